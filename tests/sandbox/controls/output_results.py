# family: output
# imports: numpy
# tries: results of every plain kind, and numpy's
# mode: module
# calls_from:
#   [["f", [], [None, True, 1, 0.5, 1j, "\U0001f600\n\x00", b"\xff", (1, [2]), {1: {"a": (2,)}}, {1, 2},
#   frozenset({"a"}), 10**3000]], ["g", [], [[1, 2], 3, 0.5, True]]]
import numpy


def f():
    return [
        None,
        True,
        1,
        0.5,
        1j,
        "\U0001f600\n\0",
        b"\xff",
        (1, [2]),
        {1: {"a": (2,)}},
        {1, 2},
        frozenset("a"),
        10**3000,
    ]


def g():
    return [numpy.array([1, 2]), numpy.int64(3), numpy.float64(0.5), numpy.bool_(True)]
