"""Hugging Face directories in and out: config.json and safetensors.

Weights are read leaf by leaf and written tensor by tensor. HF -> here -> HF gives the same bytes per tensor.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.models.families import FAMILIES, find_family, model_fields
from jopsd.models.lora import Adapter, merged_kernel
from jopsd.models.safetensors_files import (
    DISK_DTYPES,
    Progress,
    Slot,
    Stored,
    check_tensors,
    make_slots,
    read_json,
    read_leaf,
    read_rows,
    slots_by_leaf,
    split_shards,
    stored_tensors,
    write_index,
    write_json,
    write_safetensors,
)
from jopsd.models.sharding import leaf_spec, path_names

CONFIG = "config.json"
GENERATION = "generation_config.json"
VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")
# What `save_pretrained` carries over from a source directory besides config.json; absent ones are skipped.
COMPANIONS = (
    *VOCABULARIES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
    GENERATION,
)
MAX_SHARD_BYTES = 5 * 2**30
_ROWS = 16384  # of two tables that are compared at a time
_RUNTIME_FIELDS = ("dtype", "param_dtype", "remat", "attention")


def leaf_name(path) -> str:
    """A leaf of a decoder as the family table calls it, from its path in the tree."""
    return ".".join(path_names(path))


def leaves_of(tree) -> dict[str, jax.Array]:
    """The leaves of a decoder by name, such as "layers.q"."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def abstract_decoder(cfg: ModelConfig) -> Decoder:
    """A decoder of shapes (`jax.ShapeDtypeStruct`); allocates nothing."""
    return jax.eval_shape(lambda: Decoder(cfg, jax.random.key(0)))


# ---------------------------------------------------------------------------------------------------------- config


def _raw_config(directory: Path) -> dict:
    return read_json(directory / CONFIG, "it must be a model directory in the Hugging Face layout")


def architecture(directory: str | Path) -> str:
    """The architecture that a directory's config.json names, a key of `FAMILIES`."""
    directory = Path(directory)
    return find_family(_raw_config(directory), str(directory / CONFIG))[0]


def fetch_from_hub(name: str, weights: bool = True) -> Path:
    """The local copy of a model on the Hugging Face hub, fetched as far as it is not here yet.

    weights: False leaves the safetensors files out.
    """
    from huggingface_hub import snapshot_download  # slow to import

    files = ["*.json", "*.txt", "*.jinja", "*.model", "additional_chat_templates/*"]
    return Path(snapshot_download(name, allow_patterns=[*files, "*.safetensors"] if weights else files))


def read_config(directory: str | Path, **overrides) -> ModelConfig:
    """The `ModelConfig` of a Hugging Face directory.

    Args:
      overrides: dtype, param_dtype, remat, attention. Without them parameters keep the checkpoint's dtype (float32 if
        config.json names none) and computation is bfloat16 for a bfloat16 checkpoint and float32 otherwise.

    Raises:
      FileNotFoundError: no config.json.
      ValueError: an architecture or option that is not supported, by file, key and value; or an unknown override.
    """
    directory = Path(directory)
    raw, where = _raw_config(directory), str(directory / CONFIG)
    unknown = sorted(set(overrides) - set(_RUNTIME_FIELDS))
    if unknown:
        raise ValueError(f"{unknown} cannot be overridden: {where} decides; only {list(_RUNTIME_FIELDS)} can")
    fields = model_fields(raw, where)
    stored = str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    if stored not in DISK_DTYPES:
        raise ValueError(f"{where}: dtype = {stored!r} is not supported, only {sorted(DISK_DTYPES)}")
    runtime = {"param_dtype": stored, "dtype": "bfloat16" if stored == "bfloat16" else "float32"}
    return ModelConfig(**fields, **runtime | overrides)


def hf_config(cfg: ModelConfig) -> dict:
    """A config.json for a model made here, as architecture Qwen3, readable by transformers 4 and 5.

    Token ids and the context length are not ours to know: add `eos_token_id` and the like to the dict where needed.

    Raises:
      ValueError: a shape that Qwen3 does not have.
    """
    # The rotary base at top level and `torch_dtype` are read by transformers 4 and 5 alike.
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.hidden_size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "intermediate_size": cfg.intermediate_size,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": cfg.rms_eps,
        "tie_word_embeddings": cfg.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_position_embeddings": 40960,  # not a limit of ours; what the published Qwen3 models state
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": cfg.param_dtype,
    }
    _check_agrees(cfg, model_fields(config, "hf_config"), "architecture Qwen3")
    return config


def _check_agrees(cfg: ModelConfig, fields: dict, where: str) -> None:
    differing = {key: (getattr(cfg, key), value) for key, value in fields.items() if getattr(cfg, key) != value}
    if differing:
        told = ", ".join(f"{key} {ours!r} against {theirs!r}" for key, (ours, theirs) in differing.items())
        raise ValueError(f"the model config disagrees with {where}: {told}")


# ------------------------------------------------------------------------------------------------------------ load


def place(shape: tuple[int, ...], read: Callable, sharding: NamedSharding | None) -> jax.Array:
    """An array from `read(index) -> numpy`; with a sharding each process reads the parts of its own devices, once."""
    if sharding is None:
        return jax.block_until_ready(jax.device_put(read(tuple(slice(0, size) for size in shape))))
    parts: dict[tuple, np.ndarray] = {}

    def part(index):
        bounds = tuple(piece.indices(size)[:2] for piece, size in zip(index, shape, strict=True))
        if bounds not in parts:
            parts[bounds] = read(tuple(slice(*bound) for bound in bounds))
        return parts[bounds]

    return jax.block_until_ready(jax.make_array_from_callback(shape, sharding, part))


@jax.jit
def _finite(leaf: jax.Array) -> jax.Array:
    """[L] or [V] or [D] bool: whether all numbers in that row of a leaf are finite."""
    return jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim)))


def _require_finite(leaf: jax.Array, slots: list[Slot], found: dict[str, Stored]) -> None:
    finite = _finite(leaf)
    if not finite.all():
        slot = slots[int(jnp.argmin(finite))] if slots[0].layer is not None else slots[0]
        raise ValueError(
            f"{found[slot.name].file}: tensor {slot.name} has NaN or infinite values: fetch the file again, or take an "
            "earlier checkpoint"
        )


def load_pretrained(
    directory: str | Path,
    cfg: ModelConfig | None = None,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> Decoder:
    """A decoder with the weights of a Hugging Face directory (one model.safetensors, or shards with an index).

    Args:
      cfg: default `read_config(directory)`. It must agree with config.json in shape; parameters are cast to its
        `param_dtype`.
      mesh: place every leaf as `leaf_spec` says; each process reads only what its own devices hold. Default: the
        default device.
      progress: told how many bytes were read.

    Raises:
      FileNotFoundError: no config.json, no weights, a missing shard.
      ValueError: a tensor that is missing, unexpected or of the wrong shape, a truncated file, an unsupported option,
        or a `cfg` that contradicts config.json, before any weight is read; NaN or infinite weights; all by file and
        tensor.
    """
    abstract, load = open_pretrained(directory, cfg, mesh, progress)
    return jax.tree_util.tree_map_with_path(load, abstract)


def open_pretrained(
    directory: str | Path, cfg: ModelConfig | None, mesh: Mesh | None, progress: Progress | None = None
) -> tuple[Decoder, Callable]:
    """`load_pretrained` in two steps: everything but the weights is checked now, weights are read when asked for.

    Returns:
      (a decoder of shapes, a function of the path and shape of a leaf that loads it).
    """
    directory = Path(directory)
    raw, where = _raw_config(directory), str(directory / CONFIG)
    cfg = read_config(directory) if cfg is None else cfg
    _check_agrees(cfg, model_fields(raw, where), where)
    found, slots = checked_tensors(directory, cfg)
    if cfg.tie_embeddings:
        tensors = FAMILIES[architecture(directory)].tensors
        _require_same_head(found, tensors["embed"].name, tensors["lm_head"].name, where)
    by_leaf = slots_by_leaf(slots)

    def load(path, leaf) -> jax.Array:
        sharding = None if mesh is None else NamedSharding(mesh, leaf_spec(path, leaf.shape, mesh))
        slots = by_leaf[leaf_name(path)]
        read = lambda index: read_leaf(slots, found, index, leaf.dtype, progress)  # noqa: E731
        array = place(leaf.shape, read, sharding)
        _require_finite(array, slots, found)
        return array

    return abstract_decoder(cfg), load


def _require_same_head(found: dict[str, Stored], table: str, head: str, where: str) -> None:
    """Raises ValueError for a head of its own in a directory whose config ties it to the table: it would be dropped."""
    if head not in found:
        return
    fix = "set tie_word_embeddings to false there to keep it, or remove it from the file"
    said = f"{where}: tie_word_embeddings is true, but {found[head].file.name} has a {head}"
    if found[head].shape != found[table].shape:
        raise ValueError(f"{said} of shape {list(found[head].shape)}, {table} has {list(found[table].shape)}; {fix}")
    rows = found[table].shape[0]
    for first in range(0, rows, _ROWS):
        part = slice(first, min(first + _ROWS, rows))
        ours, theirs = (read_rows(found[name], name, part) for name in (table, head))
        if not np.array_equal(ours.astype(np.float32), theirs.astype(np.float32), equal_nan=True):
            raise ValueError(f"{said} that differs from {table}; {fix}")


def checked_tensors(directory: Path, cfg: ModelConfig) -> tuple[dict[str, Stored], list[Slot]]:
    """What a directory holds and what a decoder of its config is made of; reads headers only.

    Raises:
      FileNotFoundError, ValueError: the two are not the same tensors, or a file is missing or damaged; by file.
    """
    found, tensors = stored_tensors(directory), FAMILIES[architecture(directory)].tensors
    slots = make_slots(leaves_of(abstract_decoder(cfg)), tensors)
    # A tied model may carry a copy of the table as its head.
    check_tensors(slots, found, directory, {tensors["lm_head"].name} if cfg.tie_embeddings else set())
    return found, slots


# ------------------------------------------------------------------------------------------------------------ save


@partial(jax.jit, static_argnames=("stacked", "transposed", "dtype"))
def _disk_tensor(leaf, layer, factors, *, stacked: bool, transposed: bool, dtype: str) -> tuple[jax.Array, jax.Array]:
    """One tensor in the layout and dtype of the disk, and whether it is finite.

    factors: (a, b, scale) of an adapter to fold in, or None. The layer is cut out first, so that nothing of the size of
    the stacked leaf is made.
    """
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, layer, 1)  # noqa: E731
    x = cut(leaf) if stacked else leaf
    if factors is not None:
        a, b, scale = factors
        x = merged_kernel(x.astype(jnp.float32), Adapter({"x": cut(a)}, {"x": cut(b)}, scale), "x")
    x = x[0] if stacked else x
    x = (x.T if transposed else x).astype(dtype)
    return x, jnp.isfinite(x).all()


def fetch_tensor(slot: Slot, leaf: jax.Array, adapter: Adapter | None, dtype: str) -> np.ndarray:
    """One tensor on the host, in the layout of the disk. On several processes all of them must call it.

    Raises:
      ValueError: a number in it is NaN, infinite, or too large for `dtype`; by name.
    """
    name = slot.leaf.removeprefix("layers.")
    factors = None
    if adapter is not None and slot.layer is not None and name in adapter.a:
        factors = adapter.a[name], adapter.b[name], adapter.scale
    stacked = slot.layer is not None
    x, finite = _disk_tensor(leaf, slot.layer or 0, factors, stacked=stacked, transposed=slot.transposed, dtype=dtype)
    if not finite:
        why = "holds numbers too large for float16, or NaN" if dtype == "float16" else "has NaN or infinite values"
        raise ValueError(f"tensor {slot.name} {why}")
    return np.ascontiguousarray(on_host(x))


def on_host(x: jax.Array) -> np.ndarray:
    """An array on the host. On several processes all of them must call it."""
    return np.asarray(x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True))


def _one_dtype(shapes: Mapping[str, jax.Array | jax.ShapeDtypeStruct]) -> str:
    dtypes = sorted({str(leaf.dtype) for leaf in shapes.values()})
    if len(dtypes) > 1:
        raise ValueError(f"the parameters have several dtypes {dtypes}: say which to write with dtype=")
    return dtypes[0]


def copy_companions(source: Path, folder: Path) -> None:
    """Copies tokenizer files, generation config and chat templates, those that are there."""
    for name in COMPANIONS:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name)
        elif (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _write_companions(folder: Path, raw: dict, source: Path | None, dtype: str) -> None:
    if source is not None:
        copy_companions(source, folder)
    # transformers 5 writes "dtype", 4 "torch_dtype": keep to the key that is there.
    keys = [key for key in ("dtype", "torch_dtype") if key in raw] or ["torch_dtype"]
    write_json(folder / CONFIG, raw | dict.fromkeys(keys, dtype))


def require_free(directory: Path) -> None:
    """Raises FileExistsError for a target that is anything but absent or an empty directory."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists and is not an empty directory: remove it or choose another")


def save_pretrained(
    model: Decoder,
    directory: str | Path,
    source: dict | str | Path,
    *,
    adapter: Adapter | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Writes a model as a Hugging Face directory that transformers, vLLM and SGLang load.

    It is built beside the target under another name and renamed at the end, so an interrupted save leaves nothing that
    looks complete. With several processes all must call it (each tensor is gathered); the first one writes.

    Args:
      source: a config.json as a dict (`hf_config` makes one), or a directory whose config.json, tokenizer, generation
        config and chat template are carried over.
      adapter: folded into the kernels, product and sum in float32.
      dtype: "float32", "bfloat16" or "float16"; default: that of the parameters. config.json says the same.
      max_shard_bytes: a larger model is split into files of at most this size.
      progress: told how many bytes were written.

    Raises:
      FileExistsError: the target exists and is not an empty directory.
      ValueError: `source` describes another model, the dtype cannot be written, or weights are NaN or infinite.
    """
    leaves = leaves_of(model)
    write_pretrained(
        model.cfg, leaves, leaves.__getitem__, directory, source, adapter, dtype, max_shard_bytes, progress
    )


def write_pretrained(
    cfg: ModelConfig,
    shapes: Mapping[str, jax.Array | jax.ShapeDtypeStruct],
    leaf: Callable[[str], jax.Array],
    directory: str | Path,
    source: dict | str | Path,
    adapter: Adapter | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """`save_pretrained` for a model whose leaves need not be in memory together: `leaf(name)` is called once for each.

    Args:
      shapes: shape and dtype of every leaf, by its name. texts: more files to write, by their names.
    """
    directory = Path(directory)
    folder = None if isinstance(source, dict) else Path(source)
    raw, where = (source, "source") if folder is None else (_raw_config(folder), str(folder / CONFIG))
    _, family = find_family(raw, where)
    _check_agrees(cfg, model_fields(raw, where), where)
    dtype = _one_dtype(shapes) if dtype is None else dtype
    if dtype not in DISK_DTYPES:
        raise ValueError(f"dtype {dtype!r} cannot be written, only {sorted(DISK_DTYPES)}")
    slots = make_slots(shapes, family.tensors)
    shards = split_shards(slots, np.dtype(dtype).itemsize, max_shard_bytes)

    def arrays():
        for name, parts in slots_by_leaf(slots).items():
            whole = leaf(name)
            for slot in parts:
                array = fetch_tensor(slot, whole, adapter, dtype)
                yield slot, array
                if progress is not None:
                    progress(array.nbytes)
            del whole, array  # before the next leaf is read

    with partial_directory(directory) as partial_dir:
        if partial_dir is None:
            for _ in arrays():  # every process takes part in gathering, the first one writes
                pass
        else:
            write_safetensors(partial_dir, shards, dtype, arrays())
            write_index(partial_dir, shards, np.dtype(dtype).itemsize)
            _write_companions(partial_dir, raw, folder, dtype)
            for name, text in (texts or {}).items():
                (partial_dir / name).write_text(text, encoding="utf-8")


@contextmanager
def partial_directory(directory: Path) -> Iterator[Path | None]:
    """A new folder beside `directory` that takes its name when the block ends well, and is removed otherwise.

    So what bears the name is complete. With several processes only the first one has a folder, the others None, and
    all leave together.

    Raises:
      FileExistsError: the target exists and is not an empty directory.
    """
    require_free(directory)
    partial_dir = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    if jax.process_index() != 0:
        yield None
    else:
        try:
            shutil.rmtree(partial_dir, ignore_errors=True)  # left by a killed process of the same id
            partial_dir.mkdir(parents=True)
            yield partial_dir
            os.replace(partial_dir, directory)
        except BaseException:
            shutil.rmtree(partial_dir, ignore_errors=True)
            raise
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"written {directory}")
