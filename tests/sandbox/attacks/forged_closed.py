# family: forged
# tries: to close its channel and go on
# mode: module
# calls: [["f", [], 0]]
# seconds: 0.3
# status: timeout crash
import os


def f():
    os.closerange(0, 256)
    while True:
        pass
