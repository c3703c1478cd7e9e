# family: contest
# tries: sorted containers, data classes, enumerations and bytes
# prints: [1, 2, 3] P(x=1) bytearray(b'abc')
from dataclasses import dataclass


@dataclass(order=True)
class P:
    x: int


try:
    from sortedcontainers import SortedList

    ordered = list(SortedList([3, 1, 2]))
except ImportError:
    ordered = sorted([3, 1, 2])
print(ordered, P(1), bytearray(b"abc"))
