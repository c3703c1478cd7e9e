"""The device mesh, and how each process's host arrays get onto it.

Axes, outermost first: `data` (replicas; the only axis that may span slices), `fsdp` (rows, and the parameters too),
`context` (columns of sequences; in the mesh only where it is asked for), `tensor` (heads, feed-forward, vocabulary).
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jopsd.models.sharding import BATCH, tree_shardings

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
    return Mesh(_place(shape, slices, devices), tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


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


def token_shards(mesh: Mesh) -> int:
    """Over how many devices the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def local_rows(mesh: Mesh, rows: int) -> list[int]:
    """Which of the `rows` of a global batch lie on this process's devices, in order.

    Raises:
      ValueError: rows that do not split over the mesh.
    """
    if rows % token_shards(mesh):
        raise ValueError(f"{rows} rows do not split over {token_shards(mesh)} devices")
    places = NamedSharding(mesh, P(BATCH)).addressable_devices_indices_map((rows,)).values()
    return sorted({row for (span,) in places for row in range(*span.indices(rows))})


def put_rows(tree, mesh: Mesh, rows: int | None = None):
    """Host arrays as global arrays split over the batch axes of the mesh, each process giving its `local_rows`.

    rows: of the global batch; None where this process has all of them, or an equal share.
    """
    sharding = NamedSharding(mesh, P(BATCH))

    def put(x):
        x = np.asarray(x)
        shape = None if rows is None else (rows, *x.shape[1:])
        return jax.make_array_from_process_local_data(sharding, x, shape)

    return jax.tree.map(put, tree)


def host_mesh(mesh: Mesh) -> Mesh:
    """A mesh of this process's devices alone, all on `fsdp` but for what `tensor` keeps together."""
    devices = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    tensor = int(np.gcd(mesh.shape["tensor"], len(devices)))
    return make_mesh(1, -1, tensor, devices=devices)


def on_host(tree, mesh: Mesh):
    """Global arrays on `host_mesh(mesh)`: each process gets all of them, split over its own devices by the table.

    A collective: every process calls it with the same tree.
    """
    if jax.process_count() == 1:
        return tree
    local = host_mesh(mesh)
    shape = tuple(local.shape.values())
    groups = [[d for d in mesh.devices.flat if d.process_index == p] for p in range(jax.process_count())]
    everyone = Mesh(
        np.stack([np.array(group).reshape(shape) for group in groups]),
        ("process", *local.axis_names),
        axis_types=(AxisType.Auto,) * (len(shape) + 1),
    )
    ours = tree_shardings(tree, local)
    spread = jax.tree.map(lambda sharding: NamedSharding(everyone, sharding.spec), ours)
    spread_tree = jax.jit(lambda x: x, out_shardings=spread)(tree)

    def here(x, sharding):
        shards = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, shards)

    return jax.tree.map(here, spread_tree, ours)
