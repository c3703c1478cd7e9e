# family: fork
# tries: three hundred children at once
# core: yes
# seconds: 2
import os
import time

made = 0
for _ in range(300):
    try:
        child = os.fork()
    except OSError:
        break
    if child == 0:
        time.sleep(60)
        os._exit(0)
    made += 1
print("won" if made >= 200 else made)
