# family: files
# tries: to write, append to and cut files outside
# alone: acts
# core: yes
import os

for path, mode in (("new", "x"), ("notes", "a"), ("notes", "w"), ("directory/new", "w"), ("tool", "r+")):
    try:
        with open(f"@CANARY@/{path}", mode) as file:
            file.write("here")
    except OSError:
        pass
try:
    os.close(os.open("@CANARY@", os.O_TMPFILE | os.O_RDWR))
    print("won")
except OSError:
    pass
