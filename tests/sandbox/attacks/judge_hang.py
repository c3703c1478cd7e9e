# family: judge
# tries: to hang in the middle of a call
# mode: judge
# names: f
# tests: assert f() == 42
# seconds: 0.3
def f():
    while True:
        pass
