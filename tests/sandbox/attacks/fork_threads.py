# family: fork
# tries: two thousand threads with small stacks
# guard: cgroups user
# seconds: 2
# core: yes
import threading
import time

threading.stack_size(1 << 16)
made = 0
try:
    for _ in range(2000):
        threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
        made += 1
except RuntimeError:
    pass
print("won" if made >= 200 else made)
