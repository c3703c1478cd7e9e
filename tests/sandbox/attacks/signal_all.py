# family: signals
# tries: to reach every process, and a whole group
# core: yes
import os
import signal

for number in (-1, 0, -int("@BYSTANDER@"), -1 << 31):
    try:
        os.kill(number, signal.SIGURG)
    except (OSError, OverflowError):
        pass
try:
    os.killpg(os.getpgid(int("@BYSTANDER@")), signal.SIGURG)
except OSError:
    pass
