# family: judge
# tries: a result that is dear to compare and to show
# mode: judge
# names: f
# tests: assert f() == ["a" * 100] * 3, repr(f())
# seconds: 2
def f():
    return ["a" * 99] * 60_000
