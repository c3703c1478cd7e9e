# family: output
# tries: to go on writing after every error
# slow: yes
# seconds: 0.3
# status: output
import os
import signal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
while True:
    try:
        os.write(1, b"won" * 100_000)
    except OSError:
        pass
