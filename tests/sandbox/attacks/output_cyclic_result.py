# family: output
# tries: a result that contains itself
# mode: module
# calls: [["f", [], []]]
# status: unreadable
def f():
    x = []
    x.append({"x": (x,)})
    return x
