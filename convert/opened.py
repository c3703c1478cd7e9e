"""A model of any source, its weights read leaf by leaf or tensor by tensor when they are asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors import safe_open

from convert.sources import MODEL, Source
from jopsd import checkpoint
from jopsd.config import Config, load_run_config
from jopsd.models.decoder import ModelConfig
from jopsd.models.families import FAMILIES, Tensor
from jopsd.models.hf import abstract_decoder, architecture, fetch_tensor, leaf_name, open_pretrained, read_config
from jopsd.models.lora import Adapter
from jopsd.models.orbax_model import nested, read_leaf
from jopsd.models.peft import load_adapter
from jopsd.models.safetensors_files import Slot, make_slots, stored_tensors
from jopsd.models.sharding import sharded_shapes
from jopsd.setup import adapter_maker, model_config, model_dir


class Opened(NamedTuple):
    """A model that is checked, and whose weights are still to be read.

    Attributes:
      label: what it is, in words.
      directory: what holds its config.json and, perhaps, its tokenizer.
      config: with the dtype of its leaves as param_dtype.
      shapes: leaves by name, with their place on the mesh.
      slots: the tensors that these are on disk.
      leaf: reads a whole leaf, by name.
      tensor: reads one tensor in the layout of the disk: in its own dtype; with the adapter folded in, in float32.
      adapter: to be folded in, or None.
    """

    label: str
    directory: Path
    config: ModelConfig
    shapes: dict[str, jax.ShapeDtypeStruct]
    slots: list[Slot]
    leaf: Callable[[str], jax.Array]
    tensor: Callable[[Slot], np.ndarray]
    adapter: Adapter | None = None

    @property
    def nbytes(self) -> int:
        return sum(shape.size * shape.dtype.itemsize for shape in self.shapes.values())


class Run(NamedTuple):
    """A checkpoint of a run. directory: its initial model, with config.json and the tokenizer."""

    path: Path
    step: int
    config: Config
    directory: Path


def open_source(source: Source, mesh: Mesh, rounded: str | None = None) -> Opened:
    """Opens a model of any kind but "peft". rounded: a dtype to cast a Hugging Face directory to.

    Raises:
      ValueError, OSError, CheckpointError: it cannot be read, or is not what its config says; by file.
    """
    match source.kind:
        case "run":
            return open_weights(open_run(source.path, source.step), mesh)
        case "orbax":
            opened = _open_orbax(source.path, mesh)
        case _:
            cfg = read_config(source.path) if rounded is None else read_config(source.path, param_dtype=rounded)
            opened = _open_hf(source.path, cfg, mesh, cast=rounded is not None)
    if source.adapter is None:
        return opened
    label = f"{opened.label} + {source.adapter}"
    return _with_adapter(opened, open_adapter(source.adapter, source.path, mesh), label)


def open_adapter(adapter: Path, base: Path, mesh: Mesh) -> Adapter:
    """A PEFT directory as an adapter of the model in `base`, of which only config.json is read.

    Raises:
      ValueError, OSError: it cannot be read, or is not for this base; by file and tensor.
    """
    cfg = read_config(base)
    return load_adapter(adapter, cfg.projections, cfg.num_layers, tensors_of(base), where_base=str(base), mesh=mesh)


def tensors_of(directory: Path) -> dict[str, Tensor]:
    """Where the family of a directory has its tensors."""
    return FAMILIES[architecture(directory)].tensors


# ------------------------------------------------------------------------------------------------------------- runs


def open_run(path: Path, step: int | None, model: str | None = None, weights: bool = True) -> Run:
    """A checkpoint of a run, without reading it.

    Args:
      step: None is the newest. model: where the initial model lies, if no longer at the config's `model.path`.
      weights: whether those of the initial model will be read.

    Raises:
      ConfigError, CheckpointError: no such run, no such step, or no initial model.
    """
    config = load_run_config(path, "the run")
    step = checkpoint.find_step(path, step)
    section = config.model if model is None else config.model.model_copy(update={"path": model})
    return Run(path, step, config, model_dir(section, weights and config.lora is not None))


def run_adapter(run: Run, mesh: Mesh) -> Adapter:
    """The adapter that a run with a section `lora` has learnt."""
    like = sharded_shapes(abstract_adapter(run), mesh)
    return checkpoint.restore_trainable(run.path, run.step, like)


def abstract_adapter(run: Run) -> Adapter:
    """The shapes of a run's adapter."""
    return jax.eval_shape(adapter_maker(run.config, run_config(run)))


def run_config(run: Run) -> ModelConfig:
    """The model of a run, with the dtype in which it keeps the weights that this run trained, or those of the base."""
    return model_config(run.config, run.directory)


def open_weights(run: Run, mesh: Mesh, exact_base: bool = False) -> Opened:
    """What a run has learnt: its base with its adapter to fold in, or its own weights.

    exact_base: the base as it is on disk, and not in the dtype in which the run computed with it.
    """
    label, cfg = f"step {run.step} of {run.path}", run_config(run)
    if run.config.lora is not None:
        base = _open_hf(run.directory, read_config(run.directory) if exact_base else cfg, mesh, cast=not exact_base)
        return _with_adapter(base, run_adapter(run, mesh), f"{label}, the adapter merged into its base")
    read = lambda path, like: jax.tree.leaves(  # noqa: E731
        checkpoint.restore_trainable(run.path, run.step, nested([(path, like)]))
    )[0]
    return _by_leaf(f"{label}, all weights", run.directory, cfg, mesh, read)


# ------------------------------------------------------------------------------------------------------ directories


def _by_leaf(label: str, directory: Path, cfg: ModelConfig, mesh: Mesh, read: Callable) -> Opened:
    """A model by a function of path and shape that reads a leaf."""
    paths, _ = jax.tree_util.tree_flatten_with_path(sharded_shapes(abstract_decoder(cfg), mesh))
    by_name = {leaf_name(path): (path, like) for path, like in paths}
    shapes = {name: like for name, (_, like) in by_name.items()}
    leaf = lambda name: read(*by_name[name])  # noqa: E731
    slots = make_slots(shapes, tensors_of(directory))
    return Opened(label, directory, cfg, shapes, slots, leaf, _cut_from(leaf, None))


def _open_orbax(directory: Path, mesh: Mesh) -> Opened:
    checkpoint_dir = directory / MODEL

    def read(path, like):
        try:
            return read_leaf(checkpoint_dir, path, like)
        except Exception as error:
            raise ValueError(
                f"{checkpoint_dir} does not hold the model of its config.json ({leaf_name(path)}: "
                f"{checkpoint.first_line(error)}): make it again with to-flax"
            ) from error

    return _by_leaf(f"orbax directory {directory}", directory, read_config(directory), mesh, read)


def _open_hf(directory: Path, cfg: ModelConfig, mesh: Mesh, cast: bool = False) -> Opened:
    """cast: tensors are those of `cfg.param_dtype`; otherwise as they are in the files, NaN included."""
    _, load = open_pretrained(directory, cfg, mesh)
    opened = _by_leaf(f"Hugging Face directory {directory}", directory, cfg, mesh, load)
    if cast:
        return opened
    found = stored_tensors(directory)

    def read(slot: Slot) -> np.ndarray:
        with safe_open(found[slot.name].file, "np") as handle:
            return handle.get_tensor(slot.name)

    return opened._replace(tensor=read)


def _with_adapter(opened: Opened, adapter: Adapter, label: str) -> Opened:
    return opened._replace(label=label, adapter=adapter, tensor=_cut_from(opened.leaf, adapter))


def _cut_from(read: Callable[[str], jax.Array], adapter: Adapter | None) -> Callable[[Slot], np.ndarray]:
    """Reads tensors out of whole leaves, and holds the last leaf: ask for the tensors of one after another."""
    held: dict[str, jax.Array] = {}

    def tensor(slot: Slot) -> np.ndarray:
        if slot.leaf not in held:
            held.clear()
            held[slot.leaf] = read(slot.leaf)
        leaf = held[slot.leaf]
        if adapter is not None and slot.leaf.removeprefix("layers.") in adapter.a:
            return fetch_tensor(slot, leaf, adapter, "float32")
        part = np.asarray(leaf if slot.layer is None else leaf[slot.layer])
        return part.T if slot.transposed else part

    return tensor
