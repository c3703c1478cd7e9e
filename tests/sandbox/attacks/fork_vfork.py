# family: fork
# tries: a child by vfork that puts another program in its place
import ctypes
import os
import platform

libc = ctypes.CDLL(None)
if platform.machine() == "x86_64":
    child = libc.syscall(58)
else:
    child = libc.syscall(220, 0x4111, 0, 0, 0, 0)
if child == 0:
    libc.execl(b"/bin/sh", b"sh", b"-c", b"echo here > @CANARY@/vfork", None)
    os._exit(0)
