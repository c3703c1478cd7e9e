# family: cpu
# tries: a time limit that it sets itself
# prints: stopped
import signal
import time


def stop(number, frame):
    raise TimeoutError


signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    time.sleep(5)
except TimeoutError:
    print("stopped")
