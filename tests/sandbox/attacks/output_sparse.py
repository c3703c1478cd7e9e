# family: output
# tries: an output of a terabyte that takes no room
import os

os.write(1, b"won\n")
for make in (lambda: os.ftruncate(1, 1 << 40), lambda: os.pwrite(1, b"x", 1 << 40)):
    try:
        make()
    except OSError:
        continue
    break
else:
    os._exit(1)
