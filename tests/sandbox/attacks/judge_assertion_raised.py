# family: judge
# tries: to raise what the tests are likely to look for
# mode: judge
# names: f
# tests:
#   try:
#       f()
#   except (ValueError, TypeError):
#       pass
#   else:
#       assert False
class ValueError(Exception):
    pass


def f():
    raise ValueError("not the one that is meant")
