"""The device mesh and how host arrays get onto it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jopsd.models.sharding import BATCH

AXES = ("data", "fsdp", "tensor")


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices=None) -> Mesh:
    """A `(data, fsdp, tensor)` mesh; one size may be -1 and takes the devices that are left.

    Raises:
      ValueError: sizes that do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    if any(n < 1 and n != -1 for n in sizes.values()) or list(sizes.values()).count(-1) > 1:
        raise ValueError(f"mesh sizes must be positive, and one may be -1; got {sizes}")
    given = int(np.prod([n for n in sizes.values() if n != -1]))
    filled = {axis: len(devices) // given if n == -1 else n for axis, n in sizes.items()}
    if int(np.prod(list(filled.values()))) != len(devices):
        raise ValueError(f"mesh {sizes} does not fit {len(devices)} devices; set mesh.data, mesh.fsdp and mesh.tensor")
    return jax.make_mesh(tuple(filled.values()), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def token_shards(mesh: Mesh) -> int:
    """Over how many devices the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def put_rows(tree, mesh: Mesh):
    """Host arrays [rows,...] (this process's rows) as global arrays split over the batch axes of the mesh."""
    sharding = NamedSharding(mesh, P(BATCH))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)
