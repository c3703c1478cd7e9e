# family: memory
# tries: shared mappings, one after another
# memory_mb: 64
import mmap

kept = []
for _ in range(100):
    kept.append(mmap.mmap(-1, 4 << 20, mmap.MAP_SHARED))
    kept[-1].write(bytes(4 << 20))
print("won")
