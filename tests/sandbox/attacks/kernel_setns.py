# family: kernel
# tries: to enter the namespaces of other processes
import ctypes
import os

libc = ctypes.CDLL(None)
for process in ("1", "@PARENT@", "@BYSTANDER@", str(os.getppid())):
    for kind in ("mnt", "net", "pid", "user", "ipc", "uts"):
        try:
            descriptor = os.open(f"/proc/{process}/ns/{kind}", os.O_RDONLY)
        except OSError:
            continue
        if libc.setns(descriptor, 0) == 0:
            print("won", flush=True)
            os._exit(0)
