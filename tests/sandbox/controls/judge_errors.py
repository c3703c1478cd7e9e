# family: judge
# tries: a call that fails, then one that does not
# mode: judge
# names: f
# tests:
#   try:
#       f(0)
#   except Exception as error:
#       assert "ZeroDivisionError" in str(error)
#   assert f(2) == 5
def f(x):
    return 10 // x
