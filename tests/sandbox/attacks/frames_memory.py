# family: frames
# tries: to find the expected value anywhere in the memory of its process
# mode: module
# calls: [["f", [], "@EXPECTED@"]]
# seconds: 3
import ctypes
import re


def f():
    with open("/proc/self/maps") as maps:
        for line in maps:
            first, last = (int(part, 16) for part in line.split()[0].split("-"))
            if " rw" in line and "[v" not in line and last - first < 1 << 27:
                found = re.search(rb"expected-[0-9a-f]{32}", ctypes.string_at(first, last - first))
                if found:
                    return found.group().decode()
