# family: other processes
# tries: to take a descriptor of another process
# alone: wins
import ctypes
import os

libc = ctypes.CDLL(None)
for victim in (int("@BYSTANDER@"), int("@PARENT@"), os.getppid(), 1):
    handle = libc.syscall(434, victim, 0)
    for descriptor in range(16):
        if handle >= 0 and libc.syscall(438, handle, descriptor, 0) >= 0:
            print("won", flush=True)
            os._exit(0)
