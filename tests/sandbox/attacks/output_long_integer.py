# family: output
# tries: an integer of 50 Mbit as the result
# mode: module
# calls: [["f", [], 0]]
# status: unreadable
def f():
    return 1 << 50_000_000
