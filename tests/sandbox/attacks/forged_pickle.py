# family: forged
# tries: pickles that write a file outside where they are read, on every descriptor and as a result
# mode: module
# calls: [["f", [], 0], ["g", [], 0]]
import os
import pickle


class Payload:
    def __reduce__(self):
        return os.system, ("echo here > @CANARY@/pickle",)


def f():
    for number in range(256):
        try:
            os.write(number, pickle.dumps(Payload()))
        except OSError:
            pass


def g():
    return pickle.dumps(Payload())
