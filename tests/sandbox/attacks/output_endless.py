# family: output
# tries: results that never end when they are read
# mode: module
# calls: [["f", [], []], ["g", [], []], ["h", [], 0]]
# seconds: 0.3
# status: unreadable ok
import itertools


class Endless(list):
    def __iter__(self):
        return itertools.count()

    def __len__(self):
        return 1 << 60


class Array:
    def tolist(self):
        return self


def f():
    return itertools.count()


def g():
    return Endless("x")


def h():
    return Array()
