# family: output
# tries: a result of 100,000 numbers
# mode: module
# calls_from: [["f", [100_000], list(range(100_000))]]
def f(n):
    return list(range(n))
