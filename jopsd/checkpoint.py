"""Checkpoints of a run (orbax): weights, optimiser, step, position in the data, and the config they belong to.

A checkpoint appears under its final name only when it is complete, so a process killed at any moment leaves the
previous one intact.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

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
        manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)))
        manager.wait_until_finished()
    except Exception as error:
        complete = [s for s in manager.all_steps() if s != step]
        left = f"the checkpoint of step {max(complete)} is intact" if complete else "there is no earlier checkpoint"
        raise CheckpointError(
            f"could not save step {step} to {manager.directory}: {_first_line(error)}; {left}; free space or set "
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
            f"checkpoint {step} in {manager.directory} cannot be restored: {_first_line(error)}; it was made with "
            "another model or method, or is damaged: use another output_dir, or delete that step"
        ) from error
    return loaded[STATE], loaded[META]


def read_meta(manager: ocp.CheckpointManager, step: int) -> dict:
    """The metadata of a step alone."""
    return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[META]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
