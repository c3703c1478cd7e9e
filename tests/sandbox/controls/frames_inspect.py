# family: frames
# tries: to look at its own stack and tracebacks
# prints: f True
import inspect
import sys
import traceback


def f():
    return sys._getframe().f_code.co_name, inspect.currentframe().f_back is not None


try:
    raise ValueError("x")
except ValueError:
    seen = "ValueError: x" in traceback.format_exc()
print(f()[0], f()[1] and seen)
