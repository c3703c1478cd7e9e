# family: output
# tries: an exception with a message of 100 MB
# mode: module
# calls: [["f", [], 0]]
# status: error memory
def f():
    raise ValueError("x" * 100_000_000)
