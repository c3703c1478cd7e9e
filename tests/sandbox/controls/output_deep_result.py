# family: output
# tries: a result nested 50 levels deep
# mode: module
# calls_from: [["f", [50], __import__("functools").reduce(lambda x, _: [x], range(50), [])]]
def f(n):
    return [f(n - 1)] if n else []
