# family: environment
# tries: to find a secret in the session's keyring
# mode: module
# calls: [["f", [], "@SECRET@"]]
import ctypes
import platform

SEARCH, READ, SESSION = 10, 11, -3


def f():
    libc = ctypes.CDLL(None)
    number = {"x86_64": 250, "aarch64": 219}[platform.machine()]
    key = libc.syscall(number, SEARCH, SESSION, b"user", b"jopsd-canary", 0)
    content = ctypes.create_string_buffer(100)
    length = libc.syscall(number, READ, key, content, 100)
    return content.raw[: max(length, 0)].decode()
