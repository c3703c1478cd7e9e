# family: output
# tries: a result nested 200,000 levels deep
# mode: module
# calls: [["f", [], []]]
# status: unreadable
def f():
    x = []
    for _ in range(200_000):
        x = [x]
    return x
