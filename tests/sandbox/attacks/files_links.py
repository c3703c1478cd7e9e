# family: files
# tries: to make links and directories outside, and links inside that lead out
# alone: acts
import os

for make in (
    lambda: os.symlink("/etc/passwd", "@CANARY@/symbolic"),
    lambda: os.link("@CANARY@/secret", "@CANARY@/hard"),
    lambda: os.mkdir("@CANARY@/made"),
    lambda: os.mkfifo("@CANARY@/pipe"),
    lambda: os.symlink("@CANARY@/secret", "/tmp/out"),
    lambda: os.link("@CANARY@/secret", "/tmp/out"),
):
    try:
        make()
    except OSError:
        pass
try:
    with open("/tmp/out") as file:
        print("won" if file.read() else "")
except OSError:
    pass
