# family: exit
# tries: to end with success before an answer is due
# mode: module
# calls: [["f", [], 42], ["g", [], 42], ["h", [], 42], ["i", [], 42]]
# status: crash error
# core: yes
import os
import sys


def f():
    os._exit(0)


def g():
    sys.exit(0)


def h():
    raise SystemExit


def i():
    exit(0)
