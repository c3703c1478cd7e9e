# family: memory
# tries: to catch MemoryError and do with less
# mode: module
# calls: [["f", [], 100]]
# memory_mb: 64
def f():
    size = 1 << 40
    while True:
        try:
            return len(bytearray(size)) and 100
        except MemoryError:
            size //= 2
