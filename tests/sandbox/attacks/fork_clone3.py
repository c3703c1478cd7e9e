# family: fork
# tries: a child by clone3, whose flags a filter cannot see
# guard: seccomp
import ctypes
import os
import signal
import struct
import time

arguments = ctypes.create_string_buffer(struct.pack("8Q", 0, 0, 0, 0, int(signal.SIGCHLD), 0, 0, 0), 64)
child = ctypes.CDLL(None).syscall(435, arguments, 64)
if child == 0:
    time.sleep(600)
    os._exit(0)
print("won" if child > 0 else "blocked")
