# family: signals
# tries: to give its parent and others limits that kill them
import ctypes
import os
import resource

libc = ctypes.CDLL(None)
for number in (int("@BYSTANDER@"), int("@PARENT@"), os.getppid()):
    for kind, most in ((resource.RLIMIT_CPU, 0), (resource.RLIMIT_NOFILE, 0), (resource.RLIMIT_AS, 1)):
        if number > 0:
            libc.prlimit64(number, kind, (ctypes.c_uint64 * 2)(most, most), None)
