# family: files
# tries: to open a file by its handle, past every directory
# guard: seccomp namespaces
import ctypes
import os
import platform
import struct

libc = ctypes.CDLL(None, use_errno=True)
at, by = {"x86_64": (303, 304), "aarch64": (264, 265)}[platform.machine()]
handle, mount = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136), ctypes.c_int()
for path in (b"/usr/lib", b"/lib", b"@CANARY@"):
    if libc.syscall(at, -100, path, handle, ctypes.byref(mount), 0) == 0:
        directory = os.open(path, os.O_RDONLY)
        if libc.syscall(by, directory, handle, os.O_RDONLY) >= 0:
            print("won")
            break
