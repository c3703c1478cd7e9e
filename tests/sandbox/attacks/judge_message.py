# family: judge
# tries: an exception with a message of 7 MB, of which the tests hear
# mode: judge
# names: f
# tests: assert f() == 42
# seconds: 2
def f():
    raise ValueError("\ud800" * 7_000_000)
