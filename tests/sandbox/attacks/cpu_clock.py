# family: cpu
# tries: to stop every clock that it can reach
# slow: yes
# seconds: 0.3
# status: timeout
import time

for name in ("time", "monotonic", "perf_counter", "process_time", "sleep"):
    setattr(time, name, lambda *_: 0.0)
try:
    time.clock_settime(time.CLOCK_REALTIME, 0)
except OSError:
    pass
while True:
    pass
