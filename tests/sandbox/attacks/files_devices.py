# family: files
# tries: to open or make devices of the machine
import glob
import os
import stat

for path in (
    "/dev/mem",
    "/dev/kmsg",
    "/dev/vsock",
    "/dev/fuse",
    "/dev/kvm",
    "/dev/ptmx",
    "/dev/tty",
    *glob.glob("/dev/[sv]d*"),
):
    try:
        os.close(os.open(path, os.O_RDONLY))
        print("won")
        break
    except OSError:
        pass
for directory in ("/tmp", "/w", "."):
    try:
        os.mknod(f"{directory}/mem", 0o666 | stat.S_IFCHR, os.makedev(1, 1))
        os.close(os.open(f"{directory}/mem", os.O_RDONLY))
        print("won")
        break
    except OSError:
        pass
