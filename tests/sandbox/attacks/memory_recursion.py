# family: memory
# tries: recursion without end and without a limit
# memory_mb: 256
# seconds: 0.3
import sys

sys.setrecursionlimit(10**9)


def f(n):
    return f(n + 1) + f(n + 2)


f(0)
