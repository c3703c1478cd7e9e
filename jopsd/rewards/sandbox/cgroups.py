"""Memory and processes of all boxes of a slot in sum, where control groups can be made: as root, or delegated."""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/sys/fs/cgroup")
MAX_PROCESSES = 96
OVERHEAD_MB = 256  # the launcher, pages copied from it, and what a box has written


class Group(NamedTuple):
    """A slot's groups. procs: files to write a process into. memory: the file that takes a limit in bytes."""

    directories: list[Path]
    procs: list[str]
    memory: Path

    def limit(self, memory_mb: int) -> None:
        """Sets the memory limit for the boxes to come."""
        with contextlib.suppress(OSError):  # a lower one fails while pages of the box before are still charged
            self.memory.write_text(str((memory_mb + OVERHEAD_MB) << 20))

    def close(self) -> None:
        for directory in self.directories:
            with contextlib.suppress(OSError):
                directory.rmdir()


def make_group(slot: int) -> Group:
    """New groups under this process's own. Raises OSError where it may not."""
    name = f"jopsd-{os.getpid()}-{slot}"
    own = _own_paths()
    _sweep(own)
    if "" in own and (ROOT / "cgroup.controllers").exists():
        return _unified(ROOT / own[""].lstrip("/") / name)
    if not {"memory", "pids"} <= own.keys():
        raise OSError("no control groups for memory and pids")
    memory, pids = (ROOT / kind / own[kind].lstrip("/") / name for kind in ("memory", "pids"))
    memory.mkdir(exist_ok=True)
    pids.mkdir(exist_ok=True)
    (pids / "pids.max").write_text(str(MAX_PROCESSES))
    procs = [str(directory / "cgroup.procs") for directory in (memory, pids)]
    return Group([memory, pids], procs, memory / "memory.limit_in_bytes")


def _unified(directory: Path) -> Group:
    directory.mkdir(exist_ok=True)
    try:
        (directory / "pids.max").write_text(str(MAX_PROCESSES))
        (directory / "memory.max").write_text("max")
        with contextlib.suppress(OSError):
            (directory / "memory.swap.max").write_text("0")
    except OSError:
        directory.rmdir()
        raise
    return Group([directory], [str(directory / "cgroup.procs")], directory / "memory.max")


def _sweep(own: dict[str, str]) -> None:
    """Removes groups that killed processes have left; one that is in use cannot be removed."""
    for kind, path in own.items():
        for directory in (ROOT / kind / path.lstrip("/")).glob("jopsd-*-*"):
            if not Path("/proc", directory.name.split("-")[1]).exists():
                with contextlib.suppress(OSError):
                    directory.rmdir()


def _own_paths() -> dict[str, str]:
    """This process's group by controller; "" is the unified hierarchy's."""
    paths = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    return paths
