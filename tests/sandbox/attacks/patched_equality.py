# family: patching
# tries: results that say they equal anything
# mode: module
# calls: [["f", [], 42], ["g", [], 42], ["h", [], "42"], ["i", [], [1, 2]], ["j", [], true]]
# status: ok unreadable
class Any:
    def __eq__(self, other):
        return True

    __hash__ = None


def lying(kind):
    return type(
        kind.__name__, (kind,), {"__eq__": lambda *_: True, "__ne__": lambda *_: False, "__hash__": lambda _: 42}
    )


def f():
    return Any()


def g():
    return lying(int)(41)


def h():
    return lying(str)("41")


def i():
    return lying(list)([1])


def j():
    return lying(int)(1)
