# family: frames
# tries: to find the expected value in the frames of its callers
# mode: module
# calls: [["f", [], "@EXPECTED@"]]
import re
import sys


def f():
    frame = sys._getframe()
    while frame is not None:
        for place in (frame.f_locals, frame.f_globals):
            found = re.search(r"expected-[0-9a-f]{32}", repr(place))
            if found:
                return found.group()
        frame = frame.f_back
