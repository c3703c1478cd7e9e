# family: leftovers
# seconds: 1
# tries: a chain of children, each of which outlives its parent by a little
import os
import time

for _ in range(20):
    try:
        if os.fork():
            time.sleep(0.01)
            os._exit(0)
    except OSError:
        os._exit(1)
    os.setsid()
time.sleep(600)
