# family: patching
# tries: to put other objects in the place of the standard streams
# prints: 42
import builtins
import sys


class Stream:
    def write(self, text):
        return len(text)

    def flush(self):
        pass

    def __eq__(self, other):
        return True


sys.stdout = sys.stderr = sys.__stdout__ = Stream()
builtins.print = lambda *_: None
print(41)
