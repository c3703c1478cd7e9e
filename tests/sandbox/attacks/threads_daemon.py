# family: threads
# tries: a thread that goes on and answers after the program has ended in failure
# prints: won
import os
import threading
import time


def late():
    time.sleep(0.2)
    os.write(1, b"won\n")
    os._exit(0)


threading.Thread(target=late, daemon=True).start()
raise ValueError
