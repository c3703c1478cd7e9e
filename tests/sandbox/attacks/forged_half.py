# family: forged
# tries: half a message, then silence
# mode: module
# calls: [["f", [], 0]]
# seconds: 0.3
# status: timeout
import os
import struct


def f():
    for number in range(3, 256):
        try:
            os.write(number, struct.pack("!I", 1000) + b'{"status": "ok", ')
        except OSError:
            pass
    while True:
        pass
