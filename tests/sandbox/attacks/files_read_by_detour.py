# family: files
# tries: to read a file through /proc, through descriptors and through ..
# alone: wins
import os

roots = ["/proc/1/root", "/proc/self/root", f"/proc/{os.getppid()}/root", "/proc/self/cwd/../../../..", "/../.."]
roots += [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")] if os.path.isdir("/proc/self/fd") else []
for root in roots:
    try:
        with open(root + "@CANARY@/secret") as file:
            print("won" if file.read() else "")
            break
    except OSError:
        pass
