"""Safetensors files: which tensors a directory holds, reading parts of stacked leaves, writing tensor by tensor."""

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import jax
import ml_dtypes  # noqa: F401  registers "bfloat16" with numpy, which safetensors needs
import numpy as np
from safetensors import SafetensorError, safe_open

from jopsd.models.families import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Names in a safetensors header by numpy dtype name.
DISK_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_NUMPY_DTYPES = {short: name for name, short in DISK_DTYPES.items()}

# Tensors that hold no weights: what older versions of transformers saved of rotary embeddings and attention masks.
_BUFFER = re.compile(
    r"(^|\.)(rotary_emb\.(\w*inv_freq|(cos|sin)_cached)|position_ids|(attn|attention)\.masked_bias|causal_mask)$"
)
# What puts a prefix before every name, by what stands in it.
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DataParallel, DDP or DeepSpeed",
    "base_model.": "PEFT; merge the adapter first",
}

# Told the number of bytes read or written since the last call.
Progress = Callable[[int], None]


class Stored(NamedTuple):
    """A tensor on disk. dtype: numpy's name."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class Slot(NamedTuple):
    """A tensor of a decoder as it is on disk: its name and shape there, the leaf it is (a layer of)."""

    name: str
    leaf: str
    layer: int | None  # None when the leaf is not stacked
    transposed: bool
    shape: tuple[int, ...]


Arrays = Iterable[tuple[Slot, np.ndarray]]


def read_json(path: Path, why: str) -> dict:
    """A JSON object from a file; `why` it is needed ends the message when it does not exist."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: {why}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _weight_files(directory: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The safetensors files of a directory, and the weight map if it is sharded."""
    if (directory / SINGLE).is_file():
        return [directory / SINGLE], None
    index = directory / INDEX
    if not index.is_file():
        pickled = sorted(path.name for path in directory.glob("*.bin"))
        hint = f"; {pickled[0]} is a pickle, convert it to safetensors first" if pickled else ""
        raise FileNotFoundError(f"no weights in {directory}: neither {SINGLE} nor {INDEX}{hint}")
    weight_map = read_json(index, "").get("weight_map")
    if not weight_map:
        raise ValueError(f"{index}: weight_map is missing or empty")
    files = [directory / name for name in sorted(set(weight_map.values()))]
    for file in files:
        if not file.is_file():
            lost = next(tensor for tensor, name in weight_map.items() if name == file.name)
            raise FileNotFoundError(f"shard {file} does not exist; {INDEX} places {lost} there")
    return files, weight_map


def _open(file: Path):
    try:
        return safe_open(file, "np")
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or corrupt, fetch it again: {error}") from None


def file_tensors(file: Path) -> dict[str, Stored]:
    """Every tensor of one file but for buffers, from its header alone."""
    found = {}
    with _open(file) as handle:
        for name in (name for name in handle.keys() if not _BUFFER.search(name)):
            header = handle.get_slice(name)
            if header.get_dtype() not in _NUMPY_DTYPES:
                raise ValueError(f"{file}: tensor {name} has dtype {header.get_dtype()}, which is not supported")
            found[name] = Stored(file, tuple(header.get_shape()), _NUMPY_DTYPES[header.get_dtype()])
    return found


def stored_tensors(directory: Path) -> dict[str, Stored]:
    """Every tensor of a directory, from the headers alone."""
    files, weight_map = _weight_files(directory)
    found: dict[str, Stored] = {}
    for file in files:
        for name, stored in file_tensors(file).items():
            if name in found:
                raise ValueError(f"tensor {name} is in both {found[name].file} and {file}")
            found[name] = stored
    for name, file in (weight_map or {}).items():
        if _BUFFER.search(name):
            continue
        if name not in found or found[name].file.name != file:
            raise ValueError(f"{directory / file}: tensor {name} is missing, though {INDEX} places it there")
    return found


def make_slots(shapes: dict[str, jax.ShapeDtypeStruct], tensors: dict[str, Tensor]) -> list[Slot]:
    """What a decoder is on disk, tensor by tensor, layer after layer."""
    layers = next(leaf.shape[0] for name, leaf in shapes.items() if name.startswith("layers."))

    def slot(name: str, layer: int | None) -> Slot:
        tensor = tensors[name]
        shape = shapes[name].shape[0 if layer is None else 1 :]
        return Slot(
            tensor.name.format(layer=layer), name, layer, tensor.transposed, shape[::-1] if tensor.transposed else shape
        )

    present = [name for name in tensors if name in shapes]  # no lm_head when tied, biases as the config says
    stacked = [name for name in present if name.startswith("layers.")]
    whole = [name for name in present if name not in stacked]
    return [slot(name, None) for name in whole] + [slot(name, i) for i in range(layers) for name in stacked]


def slots_by_leaf(slots: Iterable[Slot]) -> dict[str, list[Slot]]:
    """The tensors that each leaf is made of, layer after layer."""
    by_leaf: dict[str, list[Slot]] = {}
    for slot in slots:
        by_leaf.setdefault(slot.leaf, []).append(slot)
    return by_leaf


def check_tensors(slots: list[Slot], found: dict[str, Stored], directory: Path, ignored: set[str]) -> None:
    """Raises ValueError, by file and tensor, unless `found` holds exactly `slots` (and perhaps some `ignored`)."""
    missing = [slot.name for slot in slots if slot.name not in found]
    if missing:
        told = f"{directory}: tensor {missing[0]} is missing ({len(missing)} of {len(slots)} are)"
        raise ValueError(told + _instead(missing, sorted(set(found) - {slot.name for slot in slots} - ignored)))
    for slot in slots:
        if found[slot.name].shape != slot.shape:
            file, shape, _ = found[slot.name]
            raise ValueError(f"{file}: tensor {slot.name} has shape {list(shape)}, expected {list(slot.shape)}")
    unexpected = sorted(set(found) - {slot.name for slot in slots} - ignored)
    if unexpected:
        name = unexpected[0]
        raise ValueError(f"{found[name].file}: tensor {name} is unexpected ({len(unexpected)} such); nothing reads it")


def _instead(missing: Sequence[str], others: Sequence[str]) -> str:
    """What a directory has in place of missing tensors, as the end of an error: another prefix, or other names."""
    if not others:
        return ""
    for wanted in missing:
        stem = wanted.removeprefix("model.")
        if (same := next((name for name in others if name == stem or name.endswith(f".{stem}")), None)) is None:
            continue
        has, wants = same.removesuffix(stem), wanted.removesuffix(stem)
        by = next((f" (by {who})" for part, who in _WRAPPERS.items() if part in has), "")
        return (
            f"; the file has {same}: its names have the prefix {has!r}{by} where {wants!r} is expected; save the bare "
            "...ForCausalLM, or rename the tensors"
        )
    near = difflib.get_close_matches(missing[0], others, n=1, cutoff=0) or others
    return f"; the file has {len(others)} other names instead, such as {near[0]}"


def read_leaf(
    slots: list[Slot], found: dict[str, Stored], index: tuple[slice, ...], dtype, progress: Progress | None = None
) -> np.ndarray:
    """The part `index` of a leaf, given the slots it is made of; reads only the bytes of that part.

    Files are opened anew for each part, so that mapped pages are given back as loading goes on.
    """
    stacked = slots[0].layer is not None
    inner = index[1:] if stacked else index
    rows = slots[index[0]] if stacked else slots
    with ExitStack() as stack:
        handles = {}
        out = None
        for row, slot in enumerate(rows):
            file = found[slot.name].file
            if file not in handles:
                handles[file] = stack.enter_context(_open(file))
            part = handles[file].get_slice(slot.name)[inner[::-1] if slot.transposed else inner]
            if progress is not None:
                progress(part.nbytes)
            part = part.T if slot.transposed else part
            if not stacked:
                return part.astype(dtype, copy=False)
            if out is None:
                out = _aligned((len(rows), *part.shape), dtype)
            out[row] = part
    return out


def read_rows(stored: Stored, name: str, rows: slice) -> np.ndarray:
    """Some rows of one tensor, in its own dtype."""
    with _open(stored.file) as handle:
        return handle.get_slice(name)[rows]


def _aligned(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An empty array on a 64-byte boundary, which the CPU backend takes over without copying."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def write_header(file: BinaryIO, slots: Sequence[Slot], dtype: str) -> dict[str, int]:
    """Starts a file: an 8-byte length and a JSON header. Returns where the bytes of each tensor go, by name."""
    header, offset, size = {"__metadata__": {"format": "pt"}}, 0, np.dtype(dtype).itemsize
    for slot in slots:
        end = offset + size * int(np.prod(slot.shape))
        header[slot.name] = {"dtype": DISK_DTYPES[dtype], "shape": list(slot.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the data starts on 8 bytes, as readers expect
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    start = file.tell()
    return {slot.name: start + header[slot.name]["data_offsets"][0] for slot in slots}


def write_safetensors(directory: Path, shards: Mapping[str, Sequence[Slot]], dtype: str, arrays: Arrays) -> None:
    """All files of a model. Tensors are written as they arrive, each to its place.

    Args:
      shards: the tensors of each file, by its name.
      arrays: every tensor once, in any order, in the layout and dtype of the disk.
    """
    with ExitStack() as stack:
        places = {}
        for name, slots in shards.items():
            file = stack.enter_context(open(directory / name, "wb"))
            places |= {tensor: (file, at) for tensor, at in write_header(file, slots, dtype).items()}
        for slot, array in arrays:
            file, at = places[slot.name]
            file.seek(at)
            file.write(array.reshape(-1).view(np.uint8))
        for file in {file for file, _ in places.values()}:
            file.flush()
            os.fsync(file.fileno())


def split_shards(slots: list[Slot], itemsize: int, limit: int) -> dict[str, list[Slot]]:
    """Tensors by file name, in order; a tensor above the limit has a file of its own."""
    groups, used = [[]], 0
    for slot in slots:
        size = itemsize * int(np.prod(slot.shape))
        if groups[-1] and used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(slot)
        used += size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def write_index(directory: Path, shards: dict[str, list[Slot]], itemsize: int) -> None:
    """The index of several files; a single one needs none."""
    if len(shards) > 1:
        total = itemsize * sum(int(np.prod(slot.shape)) for group in shards.values() for slot in group)
        weight_map = {slot.name: name for name, group in shards.items() for slot in group}
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
