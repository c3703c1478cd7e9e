# family: threads
# tries: a thread that never ends
# seconds: 0.3
# status: timeout
import threading
import time

threading.Thread(target=time.sleep, args=(3600,)).start()
print("won")
