"""Checkpoints of a run (orbax): weights, optimiser, step, position in the data, config, fingerprints of what it read.

A checkpoint appears under its final name only when it is complete, so a process killed at any moment leaves the
previous one intact.
"""

import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import traverse_util

from jopsd import errors
from jopsd.models.orbax_model import nested, restore_of, tree_keys

STATE, META = "state", "meta"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message names the step, the directory and the fix."""


def open_checkpoints(run_dir: str | Path, keep: int | None = None, create: bool = True) -> ocp.CheckpointManager:
    """The checkpoints of a run, in `run_dir/checkpoints`. Close it when done."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=create, enable_async_checkpointing=False)
    return ocp.CheckpointManager(checkpoint_dir(run_dir), options=options)


def checkpoint_dir(run_dir: str | Path) -> Path:
    return Path(run_dir).resolve() / "checkpoints"


def save(manager: ocp.CheckpointManager, step: int, state: Any, meta: dict) -> None:
    """Writes one checkpoint and returns when it is complete.

    Args:
      state: a pytree of arrays. meta: JSON-serialisable.

    Raises:
      CheckpointError: the write failed (a full disk, no permission); earlier checkpoints are untouched.
    """
    try:
        _require_space(manager.directory, sum(x.nbytes for x in jax.tree.leaves(state)))
        manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)))
        manager.wait_until_finished()
    except Exception as error:
        complete = [s for s in manager.all_steps() if s != step]
        left = f"the checkpoint of step {max(complete)} is intact" if complete else "there is no earlier checkpoint"
        raise CheckpointError(
            f"could not save step {step} to {manager.directory}: {first_line(error)}; {left}; free space or set "
            "output_dir to another disk, then start again to resume"
        ) from error


def restore(manager: ocp.CheckpointManager, step: int, like: Any) -> tuple[Any, dict]:
    """(state, meta) of a step. `like` gives shapes, dtypes and shardings: arrays, or shapes with shardings.

    Raises:
      CheckpointError: the checkpoint does not fit `like`, or cannot be read.
    """
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    try:
        loaded = manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore())
        )
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {step} in {manager.directory} cannot be restored: {first_line(error)}; it was made with "
            "another model or method, or is damaged: use another output_dir, or delete that step"
        ) from error
    return loaded[STATE], loaded[META]


def parse_run(text: str) -> tuple[Path, int | None]:
    """Reads `RUN_DIR` or `RUN_DIR:STEP`; the step is None where it is not given."""
    path, colon, step = text.rpartition(":")
    return (Path(path), int(step)) if colon and step.isdecimal() else (Path(text), None)


def find_step(run_dir: str | Path, step: int | None = None) -> int:
    """The step of a complete checkpoint: the one asked for, or the newest.

    Raises:
      CheckpointError: there is none.
    """
    steps = all_steps(run_dir)
    if not steps or (step is not None and step not in steps):
        wanted = "" if step is None else f" of step {step}"
        raise CheckpointError(f"{checkpoint_dir(run_dir)} has no checkpoint{wanted}; complete ones: {steps or 'none'}")
    return steps[-1] if step is None else step


def all_steps(run_dir: str | Path) -> list[int]:
    """Steps of the complete checkpoints, in order. Raises CheckpointError for a folder that is no run's."""
    if not checkpoint_dir(run_dir).is_dir():
        raise CheckpointError(f"{run_dir} has no folder checkpoints: give the output_dir of a training run")
    with open_checkpoints(run_dir, create=False) as manager:
        return sorted(manager.all_steps())


def restore_trainable(run_dir: str | Path, step: int, like: Any) -> Any:
    """What a run trained, with nothing else read from disk. like: shapes with shardings.

    Raises:
      CheckpointError: the checkpoint does not fit `like`, or cannot be read.
    """
    with open_checkpoints(run_dir, create=False) as manager:
        paths, tree = jax.tree_util.tree_flatten_with_path(like)
        args = restore_of({"trainable": nested(paths)})
        try:
            loaded = manager.restore(step, args=ocp.args.Composite(state=args))
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {step} in {manager.directory} cannot be restored: {first_line(error)}; it was made with "
                "another model or adapter than the run's config.yaml names, or is damaged"
            ) from error
    found = traverse_util.flatten_dict(loaded[STATE]["trainable"])
    return tree.unflatten(found[tree_keys(path)] for path, _ in paths)


def first_line(error: BaseException) -> str:
    """What went wrong, without the traceback that storage libraries put into their messages."""
    line = errors.first_line(error)
    # Errors of the storage layer are long paths, with the reason at the end.
    return line if len(line) <= 300 else f"{line[:80]} ... {line[-200:]}"


def _require_space(folder: Path, needed: int) -> None:
    """A disk known to be too small is said in one line; one that fills up meanwhile makes orbax print tracebacks."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"it needs {needed / 1e6:.1f} MB and the disk has {free / 1e6:.1f} MB free")
