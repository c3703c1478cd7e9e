# family: kernel
# tries: io_uring, whose calls no filter sees
# guard: seccomp
import ctypes

print("won" if ctypes.CDLL(None).syscall(425, 4, ctypes.create_string_buffer(120)) >= 0 else "blocked")
