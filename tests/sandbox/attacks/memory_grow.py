# family: memory
# tries: memory beyond its limit, in small pieces, however often it is told no
# memory_mb: 64
# seconds: 2
kept, refused = [], 0
while refused < 200:
    try:
        kept.append(bytearray(1 << 20))
    except MemoryError:
        refused += 1
    if len(kept) > 400:
        print("won")
        break
