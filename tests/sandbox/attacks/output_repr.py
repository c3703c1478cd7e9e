# family: output
# tries: an exception that takes a gigabyte to show, and one that never ends showing
# mode: module
# calls: [["f", [], 0], ["g", [], 0]]
# slow: yes
# seconds: 0.3
# status: error memory timeout
class Large(Exception):
    def __str__(self):
        return "x" * (1 << 29)

    __repr__ = __str__


class Endless(Exception):
    def __str__(self):
        while True:
            pass

    __repr__ = __str__


def f():
    raise Large


def g():
    raise Endless
