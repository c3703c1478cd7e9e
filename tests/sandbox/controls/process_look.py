# family: other processes
# tries: to look at itself
# prints: True True
import resource

usage = resource.getrusage(resource.RUSAGE_SELF)
print(usage.ru_maxrss > 0, resource.getrlimit(resource.RLIMIT_STACK)[0] >= 64 << 20)
