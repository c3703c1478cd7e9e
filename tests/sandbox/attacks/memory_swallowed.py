# family: memory
# tries: to go on after MemoryError and answer
# mode: module
# calls: [["f", [], 42]]
# memory_mb: 64
# slow: yes
# seconds: 0.3
def f():
    while True:
        try:
            x = bytearray(1 << 34)
            return len(x)
        except MemoryError:
            pass
