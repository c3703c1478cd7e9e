# family: signals
# tries: to kill a process of this machine, its parent and the first process
# alone: acts
# core: yes
import os
import signal

for number in (int("@BYSTANDER@"), os.getppid()):
    try:
        if number > 0:
            os.kill(number, signal.SIGKILL)
    except OSError:
        pass
