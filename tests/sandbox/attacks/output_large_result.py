# family: output
# tries: a result of ten million numbers
# mode: module
# calls: [["f", [], []]]
# seconds: 0.3
# status: unreadable memory timeout
def f():
    return list(range(10**7))
