# family: files
# tries: to fill the disk, one small file after another
# seconds: 3
# memory_mb: 256
written, block = 0, bytes(1 << 20)
for number in range(600):
    for directory in ("/tmp", "/w", "/dev/shm", "/var/tmp", "@CANARY@", "."):
        try:
            with open(f"{directory}/jopsd-{number}", "wb") as file:
                written += file.write(block)
        except OSError:
            pass
print("won" if written >> 20 > 200 else written >> 20)
