# family: crash
# tries: to crash the interpreter in the middle of a call
# mode: module
# calls: [["f", [], 42]]
# status: crash
import ctypes


def f():
    ctypes.memset(1, 0, 100)
