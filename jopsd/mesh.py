"""The device mesh, and how each process's host arrays get onto it.

Axes, outermost first: `data` (replicas; the only axis that may span slices), `fsdp` (rows, and the parameters too),
`context` (columns of sequences; in the mesh only where it is asked for), `tensor` (heads, feed-forward, vocabulary).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jopsd.models.sharding import BATCH, FACTORS, FSDP, SPECS, path_names, present, tree_shardings

AXES = ("data", "fsdp", "context", "tensor")


def make_mesh(
    data: int = 1,
    fsdp: int = -1,
    tensor: int = 1,
    context: int = 1,
    slices: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A `(data, fsdp, tensor)` mesh, with `context` before `tensor` where that is above 1.

    Args:
      data, fsdp, tensor, context: devices along each axis; one may be -1 and takes the devices that are left.
      slices: groups of devices that the data-centre network joins; it divides `data`, and only `data` spans them. Where
        devices do not say which slice they are in, slices are equal runs of them.
      devices: default all of all processes.

    Raises:
      ValueError: sizes that do not multiply to the number of devices, or another number of slices than there are.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = dict(zip(AXES, (data, fsdp, context, tensor), strict=True))
    if any(n < 1 and n != -1 for n in sizes.values()) or list(sizes.values()).count(-1) > 1:
        raise ValueError(f"mesh sizes must be positive, and one may be -1; got {sizes}")
    given = int(np.prod([n for n in sizes.values() if n != -1]))
    shape = {axis: len(devices) // given if n == -1 else n for axis, n in sizes.items()}
    if int(np.prod(list(shape.values()))) != len(devices):
        raise ValueError(f"mesh {sizes} does not fit {len(devices)} devices; set mesh.data, mesh.fsdp and mesh.tensor")
    if shape["context"] == 1:
        del shape["context"]
    _check_slices(shape["data"], slices, devices)
    return _auto(_place(shape, slices, devices), tuple(shape))


def _auto(devices: np.ndarray, axes: Sequence[str]) -> Mesh:
    return Mesh(devices, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def _check_slices(data: int, slices: int, devices: list) -> None:
    real = len({_slice_of(device) for device in devices})
    if real > 1 and slices != real:
        raise ValueError(f"these devices are {real} slices, not {slices}: set mesh.slices: {real}")
    if data % slices:
        raise ValueError(f"mesh.data {data} is not a multiple of mesh.slices {slices}: only that axis spans slices")


def _slice_of(device) -> int:
    # Devices of a single slice may refuse to name it.
    try:
        return getattr(device, "slice_index", None) or 0
    except Exception:
        return 0


def _place(shape: dict[str, int], slices: int, devices: list) -> np.ndarray:
    """Devices in the shape of the mesh, neighbours on the fast links next to each other."""
    if slices == 1:
        return _within(tuple(shape.values()), devices)
    groups: dict[int, list] = {}
    run = len(devices) // slices
    named = len({_slice_of(device) for device in devices}) > 1
    for place, device in enumerate(devices):
        groups.setdefault(_slice_of(device) if named else place // run, []).append(device)
    inner = (shape["data"] // slices, *list(shape.values())[1:])
    return np.concatenate([_within(inner, group) for _, group in sorted(groups.items())], axis=0)


def _within(shape: tuple[int, ...], devices: list) -> np.ndarray:
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def gathering_axes(mesh: Mesh) -> list[str]:
    """The axes along which weights are split that every device has to gather before use."""
    return [axis for axis in present(FSDP, mesh) if mesh.shape[axis] > 1]


def token_shards(mesh: Mesh) -> int:
    """Over how many devices the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def put_rows(tree, mesh: Mesh):
    """Host arrays [rows,...], whole in every process, as global arrays split over the batch axes of the mesh."""
    sharding = NamedSharding(mesh, P(BATCH))

    def put(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])

    return jax.tree.map(put, tree)


def sampling_mesh(mesh: Mesh, devices: Sequence[jax.Device], tensor: int | str | None, heads: int) -> Mesh:
    """The mesh of a sampler: layers split over `tensor`, so that no token waits for weights to be gathered.

    Args:
      mesh: of the trainer. It is the answer to "mesh", and to None where it gathers no weights.
      devices: the sampler's. tensor: None is as many of them as divide the key-value heads.

    Raises:
      ValueError: a tensor that does not divide the devices, or "mesh" for a part of them.
    """
    whole = len(devices) == mesh.size
    if tensor == "mesh" and not whole:
        raise ValueError("sampling.tensor mesh: a process of several samples on its own devices; use backend loop")
    if tensor == "mesh" or (tensor is None and whole and not gathering_axes(mesh)):
        return mesh
    tensor = math.gcd(len(devices), heads) if tensor is None else tensor
    if len(devices) % tensor:
        raise ValueError(f"sampling.tensor {tensor} does not divide the {len(devices)} devices that a sampler has")
    return _auto(np.array(devices).reshape(-1, 1, tensor), ("data", "fsdp", "tensor"))


def sampling_shardings(tree, target: Mesh):
    """Where `relaid` puts each leaf: kernels by the table, factors of adapters as they are used."""
    return tree_shardings(tree, target, SPECS | FACTORS)


def relaid(tree, mesh: Mesh, target: Mesh, dtype: str):
    """A policy's arrays on the mesh of a sampler, floats in `dtype`; of several processes, a copy for each.

    A collective: every process calls it with the same tree.
    """
    ours = sampling_shardings(tree, target)
    if target.size == mesh.size:
        everyone = target
    else:
        groups = [[d for d in mesh.devices.flat if d.process_index == p] for p in range(jax.process_count())]
        copies = np.stack([np.array(group).reshape(target.devices.shape) for group in groups])
        everyone = _auto(copies, ("process", *target.axis_names))
    spread = jax.tree.map(lambda sharding: NamedSharding(everyone, sharding.spec), ours)
    # Not by the jitted function's own shardings: it wants all devices in one order, and each process's stand together.
    copied = jax.device_put(jax.jit(narrowed, static_argnums=0)(dtype, tree), spread)
    if everyone is target:
        return copied

    def here(x, sharding):
        shards = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, shards)

    return jax.tree.map(here, copied, ours)


def narrowed(dtype: str, tree):
    """The tree with floats in `dtype`, but for the steps of int8 kernels."""

    def cast(path, x):
        keeps = not jnp.issubdtype(x.dtype, jnp.floating) or path_names(path)[-1] == "scale"
        return x if keeps else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, tree)
