"""Whose weights draw: a model as it is on disk, or what a run had learnt by one of its checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from jopsd import checkpoint
from jopsd.config import Config, load_run_config
from jopsd.mesh import make_mesh, sampling_mesh
from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.models.hf import abstract_decoder, load_pretrained, read_config
from jopsd.models.sharding import sharded_shapes
from jopsd.sampling import Policy
from jopsd.setup import adapter_maker, model_config, model_dir, source_dir
from jopsd.teachers import student_policy


class Restored(NamedTuple):
    """Weights, and where they come from.

    config, step: of a run; None for a model as it is on disk. Step 0 is the model that the run started from.
    directory: the initial model, which holds config.json and the tokenizer. policy: that model, that model with the
    run's adapter, or the run's own weights, on `mesh`.
    """

    config: Config | None
    step: int | None
    directory: Path
    model_config: ModelConfig
    policy: Policy
    mesh: Mesh


def mesh_for_sampling(cfg: ModelConfig) -> Mesh:
    """All devices, layers split over as many as divide the key-value heads: no token waits for weights."""
    mesh = make_mesh()
    return sampling_mesh(mesh, list(mesh.devices.flat), None, cfg.num_kv_heads)


def load_policy(
    model: str | None = None,
    run_dir: str | Path | None = None,
    step: int | None = None,
    mesh: Mesh | None = None,
    base: Decoder | None = None,
    **dtypes: str,
) -> Restored:
    """The weights of a model, or of a run's checkpoint. Nothing is merged or written.

    Args:
      model: a directory, hub id or built-in name; beside `run_dir`, where the run's initial model lies now.
      run_dir, step, base: see `restore_policy`.
      mesh: default `mesh_for_sampling`.
      dtypes: dtype and param_dtype of a model on disk, where they are not to be its own; a run's are its config's.

    Raises:
      ConfigError, ValueError, OSError: no such model or run, or one that is not usable.
      CheckpointError: no such checkpoint, or one that cannot be read.
    """
    if run_dir is not None:
        return restore_policy(run_dir, step, model, mesh, base)
    directory = source_dir(model)
    cfg = read_config(directory, **dtypes)
    mesh = mesh_for_sampling(cfg) if mesh is None else mesh
    return Restored(None, None, directory, cfg, Policy(load_pretrained(directory, cfg, mesh), None), mesh)


def restore_policy(
    run_dir: str | Path,
    step: int | None = None,
    model: str | None = None,
    mesh: Mesh | None = None,
    base: Decoder | None = None,
) -> Restored:
    """The policy of a run's checkpoint, without its optimiser. It computes as the run did.

    Args:
      step: default the newest; 0 is the model that the run started from.
      model: where the initial model lies, if no longer at the config's `model.path`.
      mesh: default `mesh_for_sampling`, whatever mesh the run had.
      base: of a run with LoRA, the initial model where it is loaded already.

    Raises:
      ConfigError: no config.yaml in `run_dir`, one that is not usable, or no initial model.
      CheckpointError: no such checkpoint, or one that cannot be read.
    """
    config = load_run_config(Path(run_dir), "--checkpoint")
    step = 0 if step == 0 else checkpoint.find_step(run_dir, step)
    if model is not None:
        config = config.model_copy(update={"model": config.model.model_copy(update={"path": model})})
    directory = model_dir(config.model, weights=config.lora is not None or step == 0)
    cfg = replace(model_config(config, directory), attention="auto")  # the run may have had another device
    mesh = mesh_for_sampling(cfg) if mesh is None else mesh
    if step == 0:
        return Restored(config, 0, directory, cfg, Policy(load_pretrained(directory, cfg, mesh), None), mesh)
    shapes = jax.eval_shape(adapter_maker(config, cfg)) if config.lora else abstract_decoder(cfg)
    trainable = checkpoint.restore_trainable(run_dir, step, sharded_shapes(shapes, mesh))
    if config.lora is None:
        base = None
    elif base is None:
        base = load_pretrained(directory, cfg, mesh)
    return Restored(config, step, directory, cfg, student_policy(trainable, base), mesh)
