# family: patching
# tries: a dict and a set that claim to hold everything
# mode: module
# calls: [["f", [], {"a": 1}], ["g", [], [1, 2]]]
class Dict(dict):
    def __missing__(self, key):
        return 1

    def __contains__(self, key):
        return True

    def __len__(self):
        return 1

    def items(self):
        return [("a", 1)]

    def __iter__(self):
        return iter(["a"])


class List(list):
    def __iter__(self):
        return iter([1, 2])

    def __len__(self):
        return 2


def f():
    return Dict()


def g():
    return List()
