# family: files
# tries: to read files of the machine
# alone: wins
# core: yes
import glob

for path in (
    "/etc/passwd",
    "/etc/shadow",
    "/etc/hostname",
    "/root/.bashrc",
    "@CANARY@/secret",
    *glob.glob("/home/*/.*"),
):
    try:
        with open(path, "rb") as file:
            if file.read():
                print("won")
                break
    except OSError:
        pass
