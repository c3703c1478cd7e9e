# family: forged
# tries: dicts and sets of many kinds of keys
# mode: module
# calls_from:
#   [["f", [], {(i, -i) for i in range(500)}], ["g", [], {str(i): i for i in range(20_000)}], ["h", [], {i: None
#   for i in range(20_000)}]]
def f():
    return {(i, -i) for i in range(500)}


def g():
    return {str(i): i for i in range(20_000)}


def h():
    return dict.fromkeys(range(20_000))
