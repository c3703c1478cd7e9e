"""Hugging Face directory -> orbax directory and back, and a run's checkpoint -> Hugging Face directory.

An orbax directory is `model/` (the decoder, flax.nnx), `config.json` and the tokenizer files, so it needs nothing else.
Every output appears under its name only when it is complete.
"""

import os
import shutil
from pathlib import Path

import orbax.checkpoint as ocp

from jopsd.checkpoint import first_line
from jopsd.mesh import make_mesh
from jopsd.models.decoder import Decoder
from jopsd.models.hf import (
    CONFIG,
    abstract_decoder,
    copy_companions,
    load_pretrained,
    read_config,
    require_free,
    save_pretrained,
)
from jopsd.models.sharding import sharded_shapes
from jopsd.setup import restore_policy

MODEL = "model"


def to_flax(source: Path, output: Path) -> None:
    """Writes the decoder of a Hugging Face directory as an orbax directory, in the dtype of its config.json.

    Raises:
      FileExistsError: `output` exists and is not an empty directory.
      FileNotFoundError, ValueError: `source` is not a model directory that jopsd can read; by file and tensor.
    """
    require_free(output)
    model = load_pretrained(source, mesh=make_mesh())
    unfinished = output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed process of the same id
        unfinished.mkdir(parents=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(unfinished.resolve() / MODEL, model)
        shutil.copyfile(source / CONFIG, unfinished / CONFIG)
        copy_companions(source, unfinished)
        os.replace(unfinished, output)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def flax_to_hf(source: Path, output: Path, dtype: str | None) -> str:
    """Writes an orbax directory made by `to_flax` as a Hugging Face directory. Returns what it wrote, in words.

    dtype: None keeps that of the weights, and then every tensor has the bytes it had before `to_flax`.
    """
    require_free(output)
    save_pretrained(_load_flax(source), output, source, dtype=dtype)
    return f"the weights of {source}"


def run_to_hf(run_dir: Path, step: int | None, output: Path, dtype: str | None, model: str | None = None) -> str:
    """Writes what a run learnt as a Hugging Face directory: its adapter folded in (in float32), or its own weights.

    Args:
      step: None is the newest checkpoint. dtype: None is that of the run's initial model.
      model: where that model lies, if no longer at the config's `model.path`.

    Returns what it wrote, in words.
    """
    require_free(output)
    run = restore_policy(run_dir, step, model)
    dtype = dtype or read_config(run.directory).param_dtype
    save_pretrained(run.policy.model, output, run.directory, adapter=run.policy.adapter, dtype=dtype)
    kind = "all weights" if run.policy.adapter is None else "the adapter merged into its base"
    return f"step {run.step} of {run_dir}, {kind}, in {dtype}"


def _load_flax(directory: Path) -> Decoder:
    shapes = abstract_decoder(read_config(directory))
    like = sharded_shapes(shapes, make_mesh())
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(directory.resolve() / MODEL, like)
    except Exception as error:
        raise ValueError(
            f"{directory / MODEL} does not hold the model of its config.json: {first_line(error)}"
        ) from error
