# family: files
# tries: to find a descriptor that was left open
import os
import stat

for number in range(3, 1024):
    try:
        kind = os.fstat(number).st_mode
    except OSError:
        continue
    if stat.S_ISDIR(kind) or stat.S_ISREG(kind) or stat.S_ISSOCK(kind) or stat.S_ISFIFO(kind):
        print("won")
        break
