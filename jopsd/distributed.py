"""Several processes as one run: how they find each other, share work, and tell each other what they found.

Every process runs the same command. What differs between hosts (rollouts, grades) is exchanged, so that all of them
know the same before the next program that they run together.
"""

import importlib.util
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jopsd.errors import first_line

T = TypeVar("T")
# Seconds: without a sign of life a process is lost after the one; a start waits for the last of them for the other.
LOST_AFTER, START_WITHIN = 25, 300
_SMALLEST = 1 << 12  # bytes of an exchange are rounded up to powers of two: few sizes, few compilations


class DistributedError(RuntimeError):
    """Processes that do not find each other, or do not agree; the message says what to check."""


class Layout(NamedTuple):
    """How this process joins the others.

    Attributes:
      coordinator: host:port of process 0, or None where JAX finds out by itself (TPU pods, SLURM).
      local_devices: ids of its GPUs; None leaves that to JAX.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    local_devices: tuple[int, ...] | None = None


def find_layout(
    coordinator: str | None, processes: int | None, process: int | None, environment: Mapping[str, str]
) -> Layout | None:
    """What flags, environment or cluster say; None for a run of one process.

    Flags go before JOPSD_COORDINATOR, JOPSD_PROCESSES and JOPSD_PROCESS, and those before SLURM and TPU pods.

    Raises:
      ValueError: flags that do not belong together, or a value that is none.
    """
    given = {
        "coordinator": coordinator or environment.get("JOPSD_COORDINATOR"),
        "processes": environment.get("JOPSD_PROCESSES") if processes is None else processes,
        "process": environment.get("JOPSD_PROCESS") if process is None else process,
    }
    if any(value is not None for value in given.values()):
        return _explicit(given)
    if int(environment.get("SLURM_NTASKS", 1)) > 1 and {"SLURM_PROCID", "SLURM_STEP_NODELIST"} <= environment.keys():
        return Layout(local_devices=_slurm_gpus(environment))
    return Layout() if _on_tpu_host(environment) else None


def _explicit(given: dict[str, Any]) -> Layout:
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(f"--coordinator, --processes and --process belong together; --{missing[0]} is missing")
    host, _, port = str(given["coordinator"]).rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--coordinator {given['coordinator']!r} must look like host:port")
    try:
        processes, process = int(given["processes"]), int(given["process"])
    except ValueError:
        raise ValueError(f"--processes and --process are whole numbers; got {given}") from None
    if not 0 <= process < processes:
        raise ValueError(f"--process {process} must be in 0..{processes - 1} (--processes {processes})")
    return Layout(str(given["coordinator"]), processes, process)


def _slurm_gpus(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """All GPUs of the node where each node runs one task; JAX by itself would take one."""
    one_each = environment["SLURM_NTASKS"] == environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES"))
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    return tuple(range(int(gpus))) if one_each and gpus.isdecimal() else None


def _on_tpu_host(environment: Mapping[str, str]) -> bool:
    device = Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()
    wanted = environment.get("JAX_PLATFORMS", "tpu").split(",")
    return device and "tpu" in wanted and importlib.util.find_spec("libtpu") is not None


def join(layout: Layout | None) -> None:
    """Waits for the other processes of the run. Before anything asks JAX for devices.

    Raises:
      DistributedError: they were not there in time.
    """
    if layout is None:
        return
    # SIGTERM is the trainer's (`preemption.py`), and not for JAX to take.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            layout.coordinator,
            layout.processes,
            layout.process,
            local_device_ids=layout.local_devices,
            initialization_timeout=START_WITHIN,
            heartbeat_timeout_seconds=LOST_AFTER,
            shutdown_timeout_seconds=LOST_AFTER,
        )
    except (RuntimeError, ValueError) as error:
        where = layout.coordinator or "the cluster that JAX detected"
        raise DistributedError(
            f"the processes of this run did not find each other through {where}: {first_line(error)}; start all of "
            "them within five minutes, with the same --coordinator and --processes, which every host can reach"
        ) from error


def is_first() -> bool:
    """Whether this process writes what a run writes once."""
    return jax.process_index() == 0


def share_of(count: int) -> range:
    """This process's part of `count` pieces of work: runs whose lengths differ by one at most."""
    index, processes = jax.process_index(), jax.process_count()
    return range(index * count // processes, (index + 1) * count // processes)


def exchange(value: T) -> list[T]:
    """What every process gave, by process. A collective; values are anything that pickle takes."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(data.size, np.int32))
    width = max(_SMALLEST, 1 << int(sizes.max() - 1).bit_length())
    padded = np.zeros(width, np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(np.asarray(rows), sizes, strict=True)]


def wait_for_all(where: str) -> None:
    """Returns once every process of the run is here. A collective; `where` says which, and must be the same."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"jopsd {where}")


def together(work: Callable[[], T]) -> T:
    """Does the same in every process; an error in one is an error in all, instead of a wait without end.

    Raises:
      Whatever `work` raised here. DistributedError: it failed elsewhere.
    """
    result, error = None, None
    try:
        result = work()
    except Exception as raised:
        error = raised
    failures = exchange(None if error is None else f"{type(error).__name__}: {first_line(error)}")
    if error is not None:
        raise error
    for process, failure in enumerate(failures):
        if failure is not None:
            raise DistributedError(f"process {process} of {jax.process_count()} failed: {failure}")
    return result


def require_agreement(what: str, value: str) -> None:
    """Raises DistributedError where `value` is not the same in every process."""
    values = exchange(value)
    other = next((process for process, theirs in enumerate(values) if theirs != values[0]), None)
    if other is not None:
        raise DistributedError(
            f"processes 0 and {other} do not have the same {what}; start the same command, code and files on every host"
        )


def require_shared_folder(folder: Path) -> None:
    """Raises DistributedError where processes do not see the same files in `folder`."""
    if jax.process_count() == 1:
        return
    sign = folder / ".shared"
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        sign.write_bytes(os.urandom(16))
    ours = exchange(sign.read_bytes() if is_first() else None)[0]
    seen = exchange(sign.is_file() and sign.read_bytes() == ours)
    if is_first():
        sign.unlink()
    if not all(seen):
        raise DistributedError(
            f"process {seen.index(False)} does not see the files that process 0 writes to {folder}; set output_dir to "
            "a folder that all hosts share (NFS, or a mounted bucket)"
        )


def leave() -> None:
    """Ends a process of several after an error, at once: a polite end would wait for the others, who wait for it."""
    if jax.process_count() > 1:
        print(
            f"process {jax.process_index()} of {jax.process_count()} ends, and so will the others; where one was lost "
            "or ended before, its own log says why. The same command on all hosts goes on from the newest checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        os._exit(1)
