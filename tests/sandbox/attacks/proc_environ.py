# family: environment
# tries: to find a secret in the environment of any process
# alone: wins
# core: yes
import os
import re

for number in os.listdir("/proc"):
    for name in ("environ", "cmdline"):
        try:
            with open(f"/proc/{number}/{name}", "rb") as file:
                if re.search(rb"planted-[0-9a-f]{32}", file.read()):
                    print("won", flush=True)
                    os._exit(0)
        except OSError:
            pass
