# family: forged
# tries: a message that announces four gigabytes
# mode: module
# calls: [["f", [], 0]]
# status: unreadable
import os


def f():
    for number in range(3, 256):
        try:
            os.write(number, b"\xff" * 4)
            while True:
                os.write(number, bytes(1 << 16))
        except OSError:
            pass
