# family: cpu
# tries: to sleep, which costs no processor time
# seconds: 0.3
# status: timeout
import time

time.sleep(3600)
