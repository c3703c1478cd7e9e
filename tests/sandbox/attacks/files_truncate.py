# family: files
# tries: to cut files outside without opening them
# alone: acts
# core: yes
import ctypes
import os

for cut in (os.truncate, lambda path, length: ctypes.CDLL(None).truncate(path.encode(), length)):
    try:
        cut("@CANARY@/notes", 1)
    except OSError:
        pass
