# family: environment
# tries: to find a secret in its own environment and what came before it
# mode: module
# calls: [["f", [], "@SECRET@"]]
# core: yes
import ctypes
import os
import re


def f():
    found = [os.fsencode(f"{name}={value}") for name, value in os.environ.items()]
    environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    place = 0
    while environ and environ[place]:
        found.append(environ[place])
        place += 1
    try:
        with open("/proc/self/environ", "rb") as file:
            found.append(file.read())
    except OSError:
        pass
    return re.search(r"planted-[0-9a-f]{32}", b" ".join(found).decode(errors="replace")).group()
