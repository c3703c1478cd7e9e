# family: patching
# tries: classes with an equality and a hash of their own, and results of derived types
# mode: module
# calls_from: [["f", [], True], ["g", [], {"a": 2}], ["h", [], [1, "x"]]]
import collections
import enum


class Point:
    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return self.x == other.x

    def __hash__(self):
        return hash(self.x)


class Colour(enum.IntEnum):
    RED = 1


class Name(str):
    pass


def f():
    return Point(1) == Point(1) and len({Point(1), Point(1)}) == 1


def g():
    return collections.Counter("aa")


def h():
    return [Colour.RED, Name("x")]
