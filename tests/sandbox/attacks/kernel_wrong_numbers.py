# family: kernel
# tries: system calls by the numbers of another kind of program, and by none
# mode: module
# calls: [["f", [], "won"], ["g", [], "won"]]
# guard: seccomp
import ctypes


def f():
    return "won" if ctypes.CDLL(None).syscall(0x40000000 + 41, 2, 1, 0) >= 0 else "blocked"


def g():
    return "won" if any(ctypes.CDLL(None).syscall(number, 2, 1, 0) >= 0 for number in (-1, 547, 9999)) else "blocked"
