"""Inside a box: the first process, and the process of each program, which confines itself and then runs the program.

Nothing here is secret and nothing is believed: a program may take over its own process and answer what it likes. It
cannot answer what it does not know, and expected results never enter a box with a program.
"""

import builtins
import contextlib
import io
import os
import random
import resource
import signal
import socket
import sys
import traceback
from typing import NamedTuple, NoReturn

from jopsd.rewards.sandbox import kernel, landlock, namespaces, program, seccomp, wire

MEMORY_EXIT = 86  # exit code of a program that ran out of memory
MAX_FILES, MAX_PROCESSES, STACK_BYTES = 128, 64, 64 << 20
MAX_CPU_SECONDS = 600  # of one process that answers many calls; each call has its own limit on the clock


class World(NamedTuple):
    """What the launcher found and made.

    active: layers. missing: why another layer is not active. uid: the programs' user, None: the launcher's own.
    baseline: address space of a process that has done nothing. readable, writable: paths.
    """

    active: frozenset[str]
    missing: dict[str, str]
    uid: int | None
    baseline: int
    readable: tuple[str, ...]
    writable: tuple[str, ...]


def serve(job: int, world: World) -> NoReturn:
    """The first process of a box: starts the programs that are asked for on socket `job` and says how each ended."""
    try:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        close_all_but((job,))
        with contextlib.suppress(OSError):  # or programs would have the keys of whoever started the launcher
            kernel.syscall("keyctl", 1, None)
        if "namespaces" in world.active:
            namespaces.furnish_box()
        channel = socket.socket(fileno=job)
        while True:  # until the parent lets go
            request, descriptors = wire.receive_with_descriptors(channel)
            confined, tell = os.pipe()
            child = os.fork()
            if child == 0:
                channel.detach()
                start(request, descriptors, tell, world)
            for descriptor in (*descriptors, tell):
                os.close(descriptor)
            was_confined = bool(os.read(confined, 1))
            os.close(confined)
            status = os.waitpid(child, 0)[1]
            if os.getpid() == 1:  # whatever the program has started ends with it
                with contextlib.suppress(OSError):
                    os.kill(-1, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    while True:
                        os.wait()
            wire.send(channel, {"exit": os.waitstatus_to_exitcode(status), "confined": was_confined})
    finally:
        os._exit(0)


def start(request: dict, descriptors: list[int], tell: int, world: World) -> NoReturn:
    """The program's process: standard streams and channel in place, confined, then the program.

    That it was confined is told before the program can say anything.
    """
    code = 1
    try:
        *kept, tell = (os.dup2(descriptor, 10 + place) for place, descriptor in enumerate((*descriptors, tell)))
        for number, descriptor in enumerate(kept[:3]):
            os.dup2(descriptor, number)
        close_all_but((0, 1, 2, *kept[3:], tell))
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        confine(request["limits"], world, request["mode"] == "script")
        os.write(tell, b"1")
        os.close(tell)
        _fresh_state()
        code = program.run(request, socket.socket(fileno=kept[3]) if len(kept) > 3 else None)
    except MemoryError:
        code = MEMORY_EXIT
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
    os._exit(code)


def confine(limits: dict, world: World, limit_cpu: bool) -> None:
    """All active layers on this process, for good."""
    active = world.active
    with contextlib.suppress(PermissionError):
        os.setsid()
    os.chdir(world.writable[0] if world.writable else "/")
    if "rlimits" in active:
        _limit(limits, world, limit_cpu)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # of all in this control group, the program is to be killed
    kernel.take_user(world.uid)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # or its own /proc entries would be closed to it
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if "landlock" in active:
        landlock.restrict(world.readable, (*world.writable, "/dev/null"))
    if "seccomp" in active:
        seccomp.install()


def _limit(limits: dict, world: World, limit_cpu: bool) -> None:
    cpu = int(limits["seconds"]) + 2 if limit_cpu else MAX_CPU_SECONDS
    wanted = {
        resource.RLIMIT_AS: world.baseline + (limits["memory_mb"] << 20),
        resource.RLIMIT_FSIZE: limits["output_bytes"],
        resource.RLIMIT_NOFILE: MAX_FILES,
        resource.RLIMIT_CORE: 1,  # at 0 the kernel would still call a host's handler of core dumps
        resource.RLIMIT_STACK: STACK_BYTES,
    }
    if world.uid is not None or "namespaces" in world.active:  # else it would count all of this user's threads
        wanted[resource.RLIMIT_NPROC] = MAX_PROCESSES
    for kind, value in wanted.items():
        _lower(kind, value, value)
    _lower(resource.RLIMIT_CPU, cpu, cpu + 1)  # a signal that tells the reason, then the end


def _lower(kind: int, soft: int, hard: int) -> None:
    given = resource.getrlimit(kind)[1]
    if given != resource.RLIM_INFINITY:
        soft, hard = min(soft, given), min(hard, given)
    resource.setrlimit(kind, (soft, hard))


def _fresh_state() -> None:
    """Streams that belong to this process, and the same random numbers for every program."""
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(open(0, "rb", closefd=False), encoding="utf-8", errors="replace")
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(open(1, "wb", closefd=False), encoding="utf-8", errors="replace")
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(
        open(2, "wb", closefd=False), encoding="utf-8", errors="replace", line_buffering=True
    )
    sys.set_int_max_str_digits(0)
    sys.setrecursionlimit(50_000)  # as LiveCodeBench has it
    sys.argv = ["program.py"]
    builtins.exit = builtins.quit = sys.exit  # what `site` would define
    random.seed(0)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(0)


def close_all_but(kept) -> None:
    """Closes every descriptor from 0 on that is not in `kept`."""
    first = 0
    for descriptor in sorted(set(kept)):
        if descriptor > first:
            os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, 4096)
