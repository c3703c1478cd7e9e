# family: memory
# tries: memory in System V segments that it lets go of but never deletes
# memory_mb: 64
# seconds: 3
# guard: seccomp cgroups
import ctypes

libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
held = 0
for _ in range(30):
    segment = libc.shmget(0, 16 << 20, 0o1600)
    address = libc.shmat(segment, None, 0) if segment >= 0 else None
    if address in (None, ctypes.c_void_p(-1).value):
        break
    ctypes.memset(address, 1, 16 << 20)
    libc.shmdt(ctypes.c_void_p(address))
    held += 16
print("won" if held > 400 else held)
