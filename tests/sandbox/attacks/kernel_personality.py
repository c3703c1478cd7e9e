# family: kernel
# tries: to switch off address randomisation
# guard: seccomp
import ctypes
import platform

number = {"x86_64": 135, "aarch64": 92}[platform.machine()]
print("won" if ctypes.CDLL(None).syscall(number, 0x0040000) >= 0 else "blocked")
