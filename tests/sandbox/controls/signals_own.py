# family: signals
# tries: signals to itself
# prints: [10] alive
import os
import signal

got = []
signal.signal(signal.SIGUSR1, lambda number, frame: got.append(10))
os.kill(os.getpid(), 0)
os.kill(os.getpid(), signal.SIGUSR1)
signal.raise_signal(signal.SIGURG)
print(got, "alive")
