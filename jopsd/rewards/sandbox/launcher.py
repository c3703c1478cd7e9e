"""The process that makes boxes: small, single-threaded, confined itself, with the usual modules already imported.

`python -I -S -c ...launcher.main()` is started by `jopsd.rewards.sandbox.box`, never forked from a process that runs
jax. It takes one JSON message per packet from the descriptor in argv[1]; a box's own socket comes with "open" and goes
on to the box unread, so nothing that a program writes is ever parsed here.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
import traceback

from jopsd.rewards.sandbox import guest, kernel, landlock, namespaces, seccomp

# Imported once, so that a program's import costs nothing. Those that are not installed are left out.
MODULES = (
    "array bisect cmath collections.abc contextlib copy dataclasses datetime decimal enum fractions functools heapq io "
    "itertools json math numbers operator queue random re statistics string struct sys textwrap threading time typing "
    "unittest asyncio calendar hashlib traceback numpy numpy.random numpy.linalg sortedcontainers"
).split()

ORPHAN_SECONDS = 5.0  # between looks at whether the parent is still there


def main() -> None:
    control, parent = socket.socket(fileno=int(sys.argv[1])), os.getppid()
    config = json.loads(control.recv(1 << 16))
    try:
        world = prepare(config)
    except BaseException:
        control.send(json.dumps({"error": traceback.format_exc()[-2000:]}).encode())
        return
    control.send(json.dumps({"active": sorted(world.active), "missing": world.missing}).encode())
    control.settimeout(ORPHAN_SECONDS)
    box = 0
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 1)
        except TimeoutError:  # another child of the parent may have kept its end of the socket
            message, descriptors = b"" if os.getppid() != parent else None, []
            if message is None:
                continue
        if not message:  # the parent is gone
            end_all(box, world)
            return
        if descriptors:
            box = open_box(descriptors[0], world)
            os.close(descriptors[0])
        else:
            end_all(box, world)
            box = 0
            control.send(b"{}")


def prepare(config: dict) -> guest.World:
    """Imports, then confines this process as far as the host allows; see `guest.World` for what is kept."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    os.setsid()
    sys.path[:] = config["path"]
    for name in MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    wanted, missing = set(config["layers"]), dict(config["missing"])
    with open("/proc/self/statm") as file:
        baseline = int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    for path in config["cgroups"]:  # joined once: to move each box would take longer than to run it
        with open(path, "w") as file:
            file.write("0")
    active = wanted & {"rlimits", "cgroups"}
    uid = _user(config, wanted, missing)
    if uid is not None:
        active.add("user")
    for name, try_it in (("namespaces", _try_namespaces), ("landlock", _try_landlock), ("seccomp", _try_seccomp)):
        if name in wanted:
            try:
                try_it(config)
                active.add(name)
            except OSError as error:
                missing[name] = str(error)
    if "namespaces" in active:
        namespaces.enter(config["readable"])
    os.chdir("/")
    os.environ.clear()
    os.environ.update({"HOME": "/w", "PATH": "", "LANG": "C.UTF-8"})
    gc.collect()
    gc.freeze()
    writable = namespaces.WRITABLE if "namespaces" in active else ()
    readable = (*config["readable"], "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/proc")
    readable = readable if "namespaces" in active else readable[:-1]
    return guest.World(frozenset(active), missing, uid, baseline, readable, writable)


def _user(config: dict, wanted: set[str], missing: dict[str, str]) -> int | None:
    """The user id that programs get, where this process is root and that user can read the interpreter."""
    if "user" not in wanted:
        return None
    if os.geteuid() != 0:
        missing["user"] = "only root can take another user id"
        return None
    if "namespaces" not in wanted and not all(map(_open_to_all, config["readable"])):
        missing["user"] = "another user could not read the interpreter's files"
        return None
    try:
        _in_child(lambda: kernel.take_user(config["uid"]))
    except OSError as error:
        missing["user"] = str(error)
        return None
    return config["uid"]


def _open_to_all(path: str) -> bool:
    while path != "/":
        with contextlib.suppress(OSError):
            if not os.stat(path).st_mode & 0o001:
                return False
        path = os.path.dirname(path)
    return True


def _in_child(action) -> None:
    """Runs what cannot be undone in a child first, so that a host that forbids half of it leaves us as we were."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        message = b"died"
        try:
            action()
            message = b""
        except BaseException as error:
            message = str(error).encode() or type(error).__name__.encode()
        os.write(writer, message)
        os._exit(0)
    os.close(writer)
    message = os.read(reader, 4096)
    os.close(reader)
    if os.waitpid(child, 0)[1] or message:
        raise OSError(message.decode(errors="replace") or "the kernel ended the process that tried")


def _try_namespaces(config: dict) -> None:
    def whole_way() -> None:
        namespaces.enter(config["readable"])
        namespaces.enter_box()
        first = os.fork()
        if first == 0:
            try:
                namespaces.furnish_box()
            except BaseException:
                os._exit(1)
            os._exit(0)
        if os.waitpid(first, 0)[1]:
            raise OSError("mounts in a box are not allowed")

    _in_child(whole_way)


def _try_landlock(config: dict) -> None:
    _in_child(lambda: landlock.restrict(config["readable"], ()))


def _try_seccomp(config: dict) -> None:
    _in_child(seccomp.install)


def open_box(job: int, world: guest.World) -> int:
    """Forks the outer process of a box, which forks its first inner one. Returns the outer one's id."""
    outer = os.fork()
    if outer:
        return outer
    try:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        if "namespaces" in world.active:
            namespaces.enter_box()
        inner = os.fork()
        if inner == 0:
            guest.serve(job, world)
        guest.close_all_but(())
        os.waitpid(inner, 0)
    finally:
        os._exit(0)


def end_all(box: int, world: guest.World) -> None:
    """Kills a box and waits until nothing of it is left.

    In namespaces the first process takes all others with it. Without them orphans become children of this process,
    which is their reaper, so they are found and killed one generation after another.
    """
    if not box:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(box, signal.SIGKILL)
    while True:
        if "namespaces" not in world.active:
            for child in _descendants():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _descendants() -> list[int]:
    """Processes below this one, from /proc."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
                parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
    found, before = {os.getpid()}, 0
    while len(found) > before:
        before = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return sorted(found - {os.getpid()})
