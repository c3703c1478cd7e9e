# family: fork
# tries: a child by the raw system call clone, which outlives its parent
import ctypes
import os
import platform
import signal
import time

number = {"x86_64": 56, "aarch64": 220}[platform.machine()]
if ctypes.CDLL(None).syscall(number, int(signal.SIGCHLD), 0, 0, 0, 0) == 0:
    time.sleep(600)
    os._exit(0)
