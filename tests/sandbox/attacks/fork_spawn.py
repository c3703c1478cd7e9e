# family: fork
# tries: another program by posix_spawn, by subprocess and by system
import os
import subprocess

for start in (
    lambda: os.posix_spawn("/bin/sh", ["sh", "-c", "echo here > @CANARY@/spawned"], {}),
    lambda: subprocess.run(["/bin/sh", "-c", "echo here > @CANARY@/subprocess"], timeout=2),
    lambda: os.system("echo here > @CANARY@/system"),
    lambda: os.popen("echo here > @CANARY@/popen").read(),
):
    try:
        start()
    except (OSError, ValueError, subprocess.SubprocessError):
        pass
