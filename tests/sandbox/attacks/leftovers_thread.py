# family: leftovers
# tries: a thread that waits until the program has ended, then writes a file outside
import threading
import time


def late():
    time.sleep(0.5)
    with open("@CANARY@/late", "w") as file:
        file.write("here")


threading.Thread(target=late, daemon=True).start()
