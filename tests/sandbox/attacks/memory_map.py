# family: memory
# tries: one mapping of 64 GB
import mmap

mapped = mmap.mmap(-1, 64 << 30)
print("won")
