# family: leftovers
# tries: a daemon thread that still sleeps at the end
# prints: 7
import threading
import time

threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print(7)
