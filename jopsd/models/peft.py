"""PEFT adapter directories in and out: adapter_config.json and adapter_model.safetensors, as `peft` reads and writes.

Of a LoRA config, every option is read, known to change nothing, or refused by name.
"""

import math
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jopsd.models.families import Tensor
from jopsd.models.hf import on_host, partial_directory, place
from jopsd.models.lora import Adapter, lora_scale
from jopsd.models.safetensors_files import (
    Slot,
    Stored,
    file_tensors,
    make_slots,
    read_json,
    read_leaf,
    slots_by_leaf,
    write_json,
    write_safetensors,
)
from jopsd.models.sharding import leaf_spec, path_names

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_FACTORS = ("a", "b")
_READ = {"peft_type", "r", "lora_alpha", "use_rslora"}
# The other initialisations of PEFT (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take something out of the base's own weights.
_ALLOWED = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal", "mica")}
# Where the adapter comes from, what it was to be placed on (the tensors say where it is), how it was initialised and
# trained. The last three mean something only beside an option that is refused.
_WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "task_type",
    "inference_mode",
    "target_modules",
    "exclude_modules",
    "lora_dropout",
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("megatron_core", "qalora_group_size", "ensure_weight_tying"),
}


def _leaves(adapter: Adapter) -> dict[str, jax.Array]:
    """The factors by leaf name, "layers.a.q" [L,in,R] and "layers.b.q" [L,R,out]."""
    return {f"layers.{factor}.{name}": x for factor in _FACTORS for name, x in getattr(adapter, factor).items()}


def _disk_names(projections: Iterable[str], family_tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Where the factors live on disk: "layers.a.q" in lora_A of q_proj, [R,in], and "layers.b.q" in lora_B, [out,R]."""
    stem = lambda name: family_tensors[f"layers.{name}"].name.removesuffix(".weight")  # noqa: E731
    return {
        f"layers.{factor}.{name}": Tensor(f"base_model.model.{stem(name)}.lora_{factor.upper()}.weight", True)
        for name in projections
        for factor in _FACTORS
    }


# ------------------------------------------------------------------------------------------------------------ save


def _alpha(scale: float, rank: int, rslora: bool) -> int | float:
    """The alpha whose `lora_scale` is `scale`; integral ones as int."""
    alpha = scale / lora_scale(rank, 1.0, rslora)
    near = round(alpha)  # 7 / sqrt(3) * sqrt(3) is not quite 7
    return near if math.isclose(alpha, near, rel_tol=1e-12, abs_tol=1e-12) else alpha


def _config(adapter: Adapter, family_tensors: dict[str, Tensor], rslora: bool, base: str | Path | None) -> dict:
    """An adapter_config.json: what describes the adapter; the rest is left to PEFT's defaults."""
    ranks = sorted({factor.shape[-1] for factor in adapter.a.values()})
    if len(ranks) != 1:
        raise ValueError(f"only an adapter of one rank can be written, the ranks of this one are {ranks}")
    return {
        "base_model_name_or_path": None if base is None else str(base),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": _alpha(adapter.scale, ranks[0], rslora),
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": ranks[0],
        "target_modules": sorted({family_tensors[f"layers.{name}"].name.split(".")[-2] for name in adapter.a}),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": rslora,
    }


def save_adapter(
    adapter: Adapter,
    directory: str | Path,
    family_tensors: dict[str, Tensor],
    *,
    rslora: bool = False,
    base: str | Path | None = None,
) -> None:
    """Writes an adapter as a directory in the layout of PEFT, in float32.

    It is built beside the target under another name and renamed at the end, so an interrupted save leaves nothing that
    looks complete. With several processes all must call it (each leaf is gathered); the first one writes.

    Args:
      family_tensors: `Family.tensors` of the base's architecture.
      rslora: how the scale is written down: lora_alpha / sqrt(r) instead of lora_alpha / r. Its value is the same.
      base: name or path of the base model, for the reader's information.

    Raises:
      FileExistsError: the target exists and is not an empty directory.
      ValueError: no target at all, or factors of several ranks.
    """
    directory = Path(directory)
    config = _config(adapter, family_tensors, rslora, base)
    leaves = _leaves(adapter)
    slots = make_slots(leaves, _disk_names(adapter.a, family_tensors))
    arrays = {leaf: on_host(x).astype(np.float32, copy=False) for leaf, x in leaves.items()}
    with partial_directory(directory) as partial_dir:
        if partial_dir is not None:
            on_disk = ((slot, np.ascontiguousarray(arrays[slot.leaf][slot.layer].T)) for slot in slots)
            write_safetensors(partial_dir, {WEIGHTS: slots}, "float32", on_disk)
            write_json(partial_dir / CONFIG, config)


# ------------------------------------------------------------------------------------------------------------ load


def _read_config(path: Path) -> tuple[int, float]:
    """(rank, scale) of an adapter_config.json; raises for every option that means more than these two."""
    config = read_json(path, "it must be a directory that peft or save_adapter wrote")
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type = {config.get('peft_type')!r} is not supported, only 'LORA'")
    for key, value in config.items():
        # What is off by being empty cannot change anything. 0 is a value: layers_to_transform = 0 is the first layer.
        empty = value is None or value is False or value in ([], {}, "")
        if not empty and key not in _READ | _WITHOUT_EFFECT and value not in _ALLOWED.get(key, ()):
            raise ValueError(
                f"{path}: {key} = {value!r} is not supported: merge the adapter into its base with peft and load the "
                "result as a model, or, if the option changes nothing about the model, remove it from the file"
            )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise ValueError(f"{path}: r = {rank!r} must be an integer of at least 1, the rank of the tensors")
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise ValueError(f"{path}: lora_alpha = {alpha!r} must be a finite number, the one it was trained with")
    return rank, lora_scale(rank, alpha, bool(config.get("use_rslora")))


def _read_header(directory: Path) -> dict[str, Stored]:
    if not (directory / WEIGHTS).is_file():
        hint = f"; {PICKLE} is a pickle, convert it to safetensors first" if (directory / PICKLE).is_file() else ""
        raise FileNotFoundError(f"no {WEIGHTS} in {directory}{hint}")
    return file_tensors(directory / WEIGHTS)


def _targets(found: dict[str, Stored], by_leaf: dict[str, list[Slot]], file: Path, where_base: str) -> list[str]:
    """The projections that are adapted; raises ValueError unless each is, A and B, in every layer, and nothing else."""
    readable = {slot.name for slots in by_leaf.values() for slot in slots}
    unread = sorted(set(found) - readable)
    if unread:
        raise ValueError(
            f"{file}: nothing reads tensor {unread[0]} ({len(unread)} such): only projections of {where_base} can be "
            f"adapted, such as {min(readable)}"
        )
    if not found:
        raise ValueError(f"{file} holds no tensor: save the adapter again")
    targets = []
    for name in (leaf.removeprefix("layers.a.") for leaf in by_leaf if leaf.startswith("layers.a.")):
        a, b = (by_leaf[f"layers.{factor}.{name}"] for factor in _FACTORS)
        for one, other in [*zip(a, b, strict=True), *zip(b, a, strict=True)]:
            if one.name in found and other.name not in found:
                raise ValueError(f"{file}: tensor {one.name} is there without {other.name}: save the adapter again")
        absent = [slot.name for slot in a if slot.name not in found]
        if 0 < len(absent) < len(a):
            raise ValueError(
                f"{file}: {name} is adapted in {len(a) - len(absent)} layers only, tensor {absent[0]} is missing, and "
                f"{where_base} has {len(a)}: if the adapter was made for it, add the missing pairs with a B of zeros"
            )
        if not absent:
            targets.append(name)
    return targets


def _check_shape(slot: Slot, stored: Stored, where_base: str) -> None:
    """Raises ValueError unless the tensor has the shape that the base and the rank of the config call for."""
    file, shape, rank_axis = stored.file, stored.shape, 0 if slot.leaf.startswith("layers.a.") else 1
    if shape == slot.shape:
        return
    if len(shape) == 2 and shape[1 - rank_axis] == slot.shape[1 - rank_axis]:
        raise ValueError(
            f"{file}: tensor {slot.name} has rank {shape[rank_axis]}, but {CONFIG} says r = {slot.shape[rank_axis]}: "
            "correct r there, and lora_alpha with it, or save the adapter again"
        )
    raise ValueError(
        f"{file}: the adapter was made for another base than {where_base}: tensor {slot.name} has shape {list(shape)}, "
        f"expected {list(slot.shape)}"
    )


def _read_factor(slots: list[Slot], found: dict[str, Stored], index: tuple[slice, ...]) -> np.ndarray:
    """The part `index` of a factor, [L,in,R] or [L,R,out], float32."""
    part = read_leaf(slots, found, index, np.float32)
    finite = np.isfinite(part).all(axis=(1, 2))
    if not finite.all():
        slot = slots[index[0]][int(np.argmin(finite))]
        raise ValueError(
            f"{found[slot.name].file}: tensor {slot.name} has NaN or infinite values: take an earlier checkpoint"
        )
    return part


def load_adapter(
    directory: str | Path,
    projections: dict[str, tuple[int, int]],
    num_layers: int,
    family_tensors: dict[str, Tensor],
    *,
    where_base: str = "the model",
    mesh: Mesh | None = None,
) -> Adapter:
    """An adapter from a directory that PEFT or `save_adapter` wrote, float32 whatever it is on disk.

    What is adapted is what tensors there are: target_modules may be a list, a regular expression or "all-linear".

    Args:
      projections: kernel shapes [in, out] by name, `ModelConfig.projections`.
      family_tensors: `Family.tensors` of the base's architecture.
      where_base: what to call the base in messages, its path say.
      mesh: place every leaf as `leaf_spec` says; each process reads only what its own devices hold. Default: the
        default device.

    Raises:
      FileNotFoundError: no adapter_config.json, no adapter_model.safetensors.
      ValueError: an option that we do not implement, by file, key and value; a tensor that is missing, unexpected, of
        another rank, made for another base, NaN or infinite, by file and name; a truncated file.
    """
    directory = Path(directory)
    rank, scale = _read_config(directory / CONFIG)
    found = _read_header(directory)

    def abstract(names: Iterable[str]) -> Adapter:
        shape = lambda *sizes: jax.ShapeDtypeStruct((num_layers, *sizes), jnp.float32)  # noqa: E731
        a = {name: shape(projections[name][0], rank) for name in names}
        return Adapter(a, {name: shape(rank, projections[name][1]) for name in names}, scale)

    leaves = _leaves(abstract(projections))
    by_leaf = slots_by_leaf(make_slots(leaves, _disk_names(projections, family_tensors)))
    targets = _targets(found, by_leaf, directory / WEIGHTS, where_base)
    for slot in (slot for slots in by_leaf.values() for slot in slots if slot.name in found):
        _check_shape(slot, found[slot.name], where_base)

    def load(path, leaf):
        slots = by_leaf[".".join(["layers", *path_names(path)])]
        read = lambda index: _read_factor(slots, found, index)  # noqa: E731
        return place(leaf.shape, read, None if mesh is None else NamedSharding(mesh, leaf_spec(path, leaf.shape, mesh)))

    return jax.tree_util.tree_map_with_path(load, abstract(targets))
