# family: files
# tries: to rename, exchange and move files outside
# alone: acts
import ctypes
import os

for rename in (
    lambda: os.rename("@CANARY@/notes", "@CANARY@/moved"),
    lambda: os.replace("@CANARY@/secret", "@CANARY@/directory/secret"),
    lambda: ctypes.CDLL(None).renameat2(-100, b"@CANARY@/tool", -100, b"@CANARY@/secret", 2),
):
    try:
        rename()
    except OSError:
        pass
