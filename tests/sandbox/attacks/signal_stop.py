# family: signals
# tries: to stop a process of this machine and its parent
# seconds: 0.3
# alone: acts
import os
import signal

for number in (int("@BYSTANDER@"), os.getppid()):
    try:
        if number > 0:
            os.kill(number, signal.SIGSTOP)
    except OSError:
        pass
