# family: kernel
# tries: counters of the kernel's
# guard: seccomp
import ctypes
import platform
import struct

number = {"x86_64": 298, "aarch64": 241}[platform.machine()]
attributes = ctypes.create_string_buffer(struct.pack("IIQ", 1, 128, 0), 128)
print("won" if ctypes.CDLL(None).syscall(number, attributes, 0, -1, -1, 0) >= 0 else "blocked")
