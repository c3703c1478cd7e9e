"""Weights from one layout to another: Hugging Face, orbax, a run's checkpoint, PEFT.

An orbax directory is `model/` (the decoder, flax.nnx), `config.json` and the tokenizer files, so it needs nothing else.
Every output appears under its name only when it is complete. All weights move leaf by leaf.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from convert.card import CARD, base_name, card
from convert.opened import Opened, Run, open_adapter, open_run, open_source, open_weights, run_adapter, tensors_of
from convert.output import progress_bar
from convert.sources import MODEL, Source
from jopsd.mesh import make_mesh
from jopsd.models.decoder import parameter_count
from jopsd.models.hf import (
    CONFIG,
    MAX_SHARD_BYTES,
    copy_companions,
    open_pretrained,
    partial_directory,
    read_config,
    require_free,
    write_pretrained,
)
from jopsd.models.orbax_model import write_model
from jopsd.models.peft import save_adapter
from jopsd.models.safetensors_files import stored_tensors


def to_flax(source: Path, output: Path) -> None:
    """Writes the decoder of a Hugging Face directory as an orbax directory, in the dtype of its config.json.

    Raises:
      FileExistsError: `output` exists and is not an empty directory.
      FileNotFoundError, ValueError: `source` is not a model directory that jopsd can read; by file and tensor.
    """
    cfg = read_config(source)
    size = parameter_count(cfg) * np.dtype(cfg.param_dtype).itemsize
    with partial_directory(output) as folder, progress_bar("reading", size) as progress:
        shapes, load = open_pretrained(source, cfg, make_mesh(), progress)
        write_model(folder / MODEL, shapes, load)
        shutil.copyfile(source / CONFIG, folder / CONFIG)
        copy_companions(source, folder)


def flax_to_hf(source: Path, output: Path, dtype: str | None, max_shard_bytes: int = MAX_SHARD_BYTES) -> str:
    """Writes an orbax directory made by `to_flax` as a Hugging Face directory. Returns what it wrote, in words.

    dtype: None keeps that of the weights, and then every tensor has the bytes it had before `to_flax`.
    """
    require_free(output)
    _write(open_source(Source("orbax", source), make_mesh()), output, dtype, max_shard_bytes)
    return f"the weights of {source}"


def run_to_hf(
    run_dir: Path,
    step: int | None,
    output: Path,
    dtype: str | None,
    model: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    exact_base: bool = False,
    name: str | None = None,
) -> str:
    """Writes what a run learnt as a Hugging Face directory: its adapter folded in (in float32), or its own weights.

    Args:
      step: None is the newest checkpoint. dtype: None is that of the run's initial model.
      model: where that model lies, if no longer at the config's `model.path`.
      exact_base: fold the adapter into the base as it is on disk, and not as it was rounded in training.
      name: of the base, for the model card.

    Returns what it wrote, in words.
    """
    require_free(output)
    run = open_run(run_dir, step, model)
    if exact_base and run.config.lora is None:
        raise ValueError(f"--exact-base is for runs with an adapter, and {run_dir} trained all weights")
    opened = open_weights(run, make_mesh(), exact_base)
    dtype = dtype or read_config(opened.directory).param_dtype
    told = f"in {dtype}{_rounding(run, opened.config.param_dtype, dtype)}"
    base = name or base_name(run, model or run.config.model.path)
    _write(opened, output, dtype, max_shard_bytes, {CARD: card(run, base, told, "model")})
    return f"{opened.label}, {told}"


def _rounding(run: Run, computed: str, written: str) -> str:
    """How values were rounded before they were written, where the dtype of the files does not say."""
    if run.config.lora is None:
        return "" if written in (computed, "float32") else f", rounded from the {computed} of training"
    lost = {tensor.dtype for tensor in stored_tensors(run.directory).values()} - {computed}
    if not lost or computed == "float32":
        return ""
    return f", of a base that was rounded from {'/'.join(sorted(lost))} to {computed} as in training"


def merge(base: Source, adapter: Path, output: Path, dtype: str | None, max_shard_bytes: int = MAX_SHARD_BYTES) -> str:
    """Writes a base with a PEFT adapter folded in as a Hugging Face directory. Returns what it wrote, in words.

    Product and sum are in float32, so each number is rounded once, to `dtype`: None is that of the base.

    Raises:
      FileExistsError: `output` exists and is not an empty directory.
      FileNotFoundError, ValueError: either cannot be read, or the adapter is for another base; by file and tensor.
    """
    require_free(output)
    mesh = make_mesh()
    factors = open_adapter(adapter, base.path, mesh)  # first: it is small, and often what is wrong
    opened = open_source(base, mesh)
    dtype = dtype or opened.config.param_dtype
    _write(opened._replace(adapter=factors), output, dtype, max_shard_bytes)
    return f"{adapter} merged into {base.path}, in {dtype}"


def adapter(run_dir: Path, step: int | None, output: Path, model: str | None = None, name: str | None = None) -> str:
    """Writes the adapter of a run as a PEFT directory, with the tokenizer of its base beside it.

    Args:
      model: where the initial model lies, if no longer at the config's `model.path`.
      name: what to call it in adapter_config.json; None is a name that holds on other machines too.

    Returns what it wrote, in words.

    Raises:
      ValueError: the run has no adapter.
      FileExistsError: `output` exists and is not an empty directory.
    """
    require_free(output)
    run = open_run(run_dir, step, model, weights=False)
    if run.config.lora is None:
        raise ValueError(f"{run_dir} trained all weights and has no adapter: export it with to-hf --from {run_dir}")
    base = name or base_name(run, model or run.config.model.path)
    learnt = run_adapter(run, make_mesh())
    with partial_directory(output) as folder:
        save_adapter(learnt, folder, tensors_of(run.directory), rslora=run.config.lora.rslora, base=base)
        copy_companions(run.directory, folder)
        (folder / CARD).write_text(card(run, base, "float32", "adapter"), encoding="utf-8")
    hint = "" if "/" in base else "; --base-name owner/name is how others would find that base"
    return f"the adapter of step {run.step} of {run_dir}, for {base}{hint}"


def _write(
    opened: Opened, output: Path, dtype: str | None, max_shard_bytes: int, texts: Mapping[str, str] | None = None
) -> None:
    dtype = dtype or opened.config.param_dtype
    size = parameter_count(opened.config) * np.dtype(dtype).itemsize
    with progress_bar("writing", size) as progress:
        write_pretrained(
            opened.config,
            opened.shapes,
            opened.leaf,
            output,
            opened.directory,
            opened.adapter,
            dtype,
            max_shard_bytes,
            progress,
            texts,
        )
