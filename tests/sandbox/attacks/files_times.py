# family: files
# tries: to change times and attributes of files outside, devices among them
# alone: acts
import os

for path in ("notes", "secret", "directory", "."):
    for change in (
        lambda path: os.utime(path, (1, 1)),
        lambda path: os.setxattr(path, "user.jopsd", b"here"),
    ):
        try:
            change(f"@CANARY@/{path}")
        except OSError:
            pass
try:
    os.utime("/dev/null")
    print("won")
except OSError:
    pass
