# family: judge
# tries: results that are no plain data
# mode: judge
# names: f
# tests: assert callable(f()) or f() is NotImplemented or f()
def f():
    return f
