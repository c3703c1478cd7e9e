# family: memory
# tries: many children, each within its own limit
# memory_mb: 64
# seconds: 2
# guard: seccomp cgroups
# held_by: seccomp cgroups user
import os
import time

reader, writer = os.pipe()
for _ in range(12):
    if os.fork() == 0:
        block = bytearray(48 << 20)
        block[::4096] = b"x" * len(block[::4096])
        os.write(writer, b"x")
        time.sleep(60)
        os._exit(0)
held = 0
while held < 9:
    held += len(os.read(reader, 12))
print("won", flush=True)
