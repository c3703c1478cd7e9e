# family: leftovers
# tries: a child that holds its output open
# core: yes
import os
import time

if os.fork() == 0:
    for _ in range(100):
        time.sleep(0.05)
        os.write(1, b"late\n")
    os._exit(0)
