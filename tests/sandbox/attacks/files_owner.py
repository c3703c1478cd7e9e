# family: files
# tries: to change the owner of files outside
import os

for path in ("notes", "secret", "directory", "link"):
    for follow in (True, False):
        try:
            os.chown(f"@CANARY@/{path}", 12345, 12345, follow_symlinks=follow)
        except OSError:
            pass
