# family: memory
# tries: 300 MB of a limit of 512 MB
# prints: 314572800 3
# memory_mb: 512
block = bytearray(300 << 20)
block[::4096] = b"\3" * len(block[::4096])
print(len(block), memoryview(block)[4096])
