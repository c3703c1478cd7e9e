# family: files
# tries: to delete files and directories outside
# alone: acts
# core: yes
import os
import shutil

for path in ("notes", "link", "secret"):
    try:
        os.unlink(f"@CANARY@/{path}")
    except OSError:
        pass
shutil.rmtree("@CANARY@", ignore_errors=True)
