# family: judge
# tries: to pass off a class, a module and a built-in function as what is asked for
# mode: module
# calls:
#   [["print", ["won"], "won"], ["len", ["won"], "won"], ["open", ["@CANARY@/notes", "w"], "won"], ["sys", [],
#   "won"], ["__builtins__", [], "won"], ["__import__", ["os"], "won"]]
import os

assert os
