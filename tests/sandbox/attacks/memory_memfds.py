# family: memory
# tries: memory in files without a name, which no limit on one process counts
# memory_mb: 64
# seconds: 3
# guard: seccomp cgroups
import os

block, held = bytes(1 << 20), 0
try:
    while held < 420:
        descriptor = os.memfd_create("hoard")
        for _ in range(4):
            held += os.write(descriptor, block) >> 20
except OSError:
    pass
print("won" if held > 400 else held)
