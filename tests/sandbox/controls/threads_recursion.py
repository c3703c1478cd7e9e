# family: threads
# tries: recursion 50,000 levels deep, in Python and through C
# prints: 50000 50000
import sys
from functools import lru_cache

sys.setrecursionlimit(10**6)


def depth(n):
    return 0 if n == 0 else 1 + depth(n - 1)


@lru_cache(None)
def cached(n):
    return 0 if n == 0 else 1 + cached(n - 1)


print(depth(50_000), cached(50_000))
