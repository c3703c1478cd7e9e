# family: cpu
# tries: all processors at once, in C
# slow: yes
# seconds: 1
# status: timeout
import hashlib
import threading


def work():
    block = bytes(1 << 22)
    while True:
        hashlib.sha256(block).digest()


for _ in range(4):
    threading.Thread(target=work).start()
