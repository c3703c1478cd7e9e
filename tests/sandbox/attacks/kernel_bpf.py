# family: kernel
# tries: a BPF map
import ctypes
import platform
import struct

number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
attributes = ctypes.create_string_buffer(struct.pack("4I", 2, 4, 4, 1), 120)
print("won" if ctypes.CDLL(None).syscall(number, 0, attributes, 120) >= 0 else "blocked")
