# family: files
# tries: to leave a module where the next program would import it
# core: yes
import json
import os
import sys

places = [
    *sys.path,
    os.path.dirname(json.__file__),
    os.path.dirname(json.__file__) + "/__pycache__",
    "/usr/lib/python3",
]
for place in places:
    for name in ("jopsd_poison.py", "jopsd_poison.pth", "sitecustomize.py"):
        try:
            with open(f"{place}/{name}", "x") as file:
                file.write("")
            os.unlink(f"{place}/{name}")
            print("won")
            sys.exit(0)
        except OSError:
            pass
for place in (json.__file__, os.__file__):
    try:
        os.close(os.open(place, os.O_WRONLY))
        print("won")
        break
    except OSError:
        pass
