# family: exit
# tries: to turn a failure into success in the functions that run at the end
# prints: 42
import atexit
import os
import sys
import threading

atexit.register(os._exit, 0)
sys.excepthook = lambda *_: os._exit(0)
threading.excepthook = lambda *_: os._exit(0)
sys.unraisablehook = lambda *_: os._exit(0)
raise ValueError
