# family: other processes
# tries: to trace a process of this machine, its parent and the first
# alone: wins
# core: yes
import ctypes
import os

SEIZE, ATTACH = 0x4206, 16
libc = ctypes.CDLL(None)
for number in (int("@BYSTANDER@"), os.getppid(), 1):
    for request in (SEIZE, ATTACH):
        if libc.ptrace(request, number, None, None) == 0:
            print("won", flush=True)
            os._exit(0)
