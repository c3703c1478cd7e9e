# family: files
# tries: to change who may read, write or run files outside, devices among them
# alone: acts
# core: yes
import os

for path in ("notes", "secret", "tool", "directory", "."):
    for change in (os.chmod, os.lchmod if hasattr(os, "lchmod") else os.chmod):
        try:
            change(f"@CANARY@/{path}", 0o7777)
        except (OSError, NotImplementedError):
            pass
for device in ("null", "zero", "full", "random", "urandom"):
    try:
        os.chmod(f"/dev/{device}", 0o666)
        print("won")
        break
    except OSError:
        pass
