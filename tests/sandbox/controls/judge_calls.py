# family: judge
# tries: a function that is asked several times, by name and by keyword
# mode: judge
# names: add other
# tests:
#   assert candidate(1, 2) == 3
#   assert add(1, b=2) == 3 and add([1], [2]) == [1, 2]
#   assert other() == {"a": (1, None)}
#   try:
#       add(1, "x")
#   except Exception:
#       pass
#   else:
#       assert False
# core: yes
def add(a, b):
    return a + b


def other():
    return {"a": (1, None)}
