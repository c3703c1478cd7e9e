# family: leftovers
# tries: a daemon by double fork, in a session of its own, that later writes outside
# core: yes
import os
import time

if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for descriptor in range(3):
            os.close(descriptor)
        time.sleep(0.5)
        with open("@CANARY@/daemon", "w") as file:
            file.write("here")
        time.sleep(600)
    os._exit(0)
os.wait()
