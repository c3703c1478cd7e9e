# family: cpu
# tries: to raise its own limits
# core: yes
import ctypes
import resource

libc = ctypes.CDLL(None)
raised = 0
for kind in (
    resource.RLIMIT_CPU,
    resource.RLIMIT_AS,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_NOFILE,
    resource.RLIMIT_CORE,
):
    wanted = (ctypes.c_uint64 * 2)(2**63 - 1, 2**63 - 1)
    raised += libc.prlimit64(0, kind, wanted, None) == 0
    raised += libc.setrlimit(kind, wanted) == 0
    try:
        resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        raised += 1
    except (OSError, ValueError):
        pass
print("won" if raised else "blocked")
