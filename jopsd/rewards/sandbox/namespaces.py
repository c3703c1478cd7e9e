"""The launcher's world, and each box's: an empty root with the interpreter read-only, no network, own processes.

Works as root and, where the host lets users make namespaces, without any privilege.
"""

import os
import socket
import stat
from collections.abc import Iterable

from jopsd.rewards.sandbox import kernel

WRITABLE = ("/w", "/tmp")
WRITABLE_MB = 64
_DEVICES = ("null", "zero", "full", "random", "urandom")
_STAGE = "/tmp"  # is there on every host; what it holds stays reachable under the old root until that is gone


def enter(readable: Iterable[str]) -> None:
    """Moves this process, single-threaded and for good, into namespaces in which only `readable` paths are left.

    Raises OSError where the host does not allow it; the process must then not go on.
    """
    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        kernel.syscall("unshare", flags)
    else:
        kernel.syscall("unshare", flags | kernel.CLONE_NEWUSER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
    socket.sethostname("box")
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", _STAGE, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755")
    for name in ("old", "new"):
        os.mkdir(f"{_STAGE}/{name}")
    kernel.syscall("pivot_root", _STAGE.encode(), f"{_STAGE}/old".encode())
    os.chdir("/")
    kernel.mount("tmpfs", "/new", "tmpfs", kernel.MS_NOSUID, "mode=0755,size=1m")
    _furnish("/old", "/new", readable)
    os.chdir("/new")
    kernel.syscall("pivot_root", b".", b".")
    kernel.syscall("umount2", b".", kernel.MNT_DETACH)
    os.chdir("/")
    kernel.set_mount_flags("/", kernel.MS_RDONLY, recursive=False)


def enter_box() -> None:
    """Own processes and mounts for the children of this process, which is about to fork a box's first process."""
    kernel.syscall("unshare", kernel.CLONE_NEWPID | kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC)


def furnish_box() -> None:
    """Fresh writable directories and, where the host allows it, /proc with this box's processes alone."""
    for path in WRITABLE:
        options = f"size={WRITABLE_MB // 2}m,nr_inodes=2048,mode=1777"
        kernel.mount("tmpfs", path, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, options)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    try:
        kernel.mount("proc", "/proc", "proc", flags, "subset=pid,hidepid=invisible")
    except OSError:  # in many containers; all that is lost are /dev/stdin and its like
        kernel.syscall("umount2", b"/proc", kernel.MNT_DETACH)


def _furnish(old: str, new: str, readable: Iterable[str]) -> None:
    for path in (*WRITABLE, "/proc", "/dev"):
        os.makedirs(new + path)
    for path in sorted(readable):
        _show(old, new, path)
    for name in _DEVICES:
        source, target = f"{old}/dev/{name}", f"{new}/dev/{name}"
        if os.path.exists(source) and stat.S_ISCHR(os.stat(source).st_mode):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
            kernel.mount(source, target, None, kernel.MS_BIND)
            # Read-only as a file: its mode and times are the host's. What is written to a device still arrives.
            kernel.set_mount_flags(target, kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NOEXEC)
    # The kernel lets a user mount the /proc of a box only where another is in sight; the box's own then covers it.
    kernel.mount(f"{old}/proc", f"{new}/proc", None, kernel.MS_BIND | kernel.MS_REC)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{new}/dev/{name}")


def _show(old: str, new: str, path: str) -> None:
    """One path of the old root, read-only at the same place in the new one; symbolic links on the way are resolved."""
    source, target = old + os.path.realpath(path), new + path
    if not os.path.isdir(source) or os.path.lexists(target):
        return
    os.makedirs(target)
    kernel.mount(source, target, None, kernel.MS_BIND | kernel.MS_REC)
    kernel.set_mount_flags(target, kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
