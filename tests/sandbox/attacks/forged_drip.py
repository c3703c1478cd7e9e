# family: forged
# tries: a message that comes one byte at a time
# mode: module
# calls: [["f", [], 0]]
# slow: yes
# seconds: 0.3
# status: timeout
import os
import struct
import time


def f():
    for byte in struct.pack("!I", 1000) + bytes(1000):
        for number in range(3, 32):
            try:
                os.write(number, bytes([byte]))
            except OSError:
                pass
        time.sleep(0.1)
