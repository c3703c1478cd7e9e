# family: exit
# tries: to end itself by signals
# mode: module
# calls: [["f", [9], 42], ["f", [15], 42], ["f", [6], 42], ["f", [11], 42]]
# status: crash memory
import os


def f(number):
    os.kill(os.getpid(), number)
    while True:
        pass
