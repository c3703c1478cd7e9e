# family: threads
# tries: deep recursion in a thread with a stack of 64 MB
# prints: 50000
# core: yes
import sys
import threading

sys.setrecursionlimit(10**6)
threading.stack_size(64 << 20)


def depth(n):
    return 0 if n == 0 else 1 + depth(n - 1)


def main():
    print(depth(50_000))


threading.Thread(target=main).start()
