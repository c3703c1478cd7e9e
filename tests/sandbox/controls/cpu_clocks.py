# family: cpu
# tries: to measure time
# prints: True True
import time

start = time.perf_counter(), time.process_time()
time.sleep(0.01)
print(time.perf_counter() - start[0] >= 0.01, time.time() > 1.6e9)
