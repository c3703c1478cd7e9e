"""Bytes of a tree of shapes on each device of a mesh that need not exist."""

import math
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh, NamedSharding

from convert.tables import size, table
from jopsd.mesh import AXES
from jopsd.models.hf import leaf_name
from jopsd.models.sharding import leaf_spec


class Placed(NamedTuple):
    """A leaf on a mesh.

    Attributes:
      shard, nbytes: what each device holds.
      whole: mesh axes, in words, that should split it, with the length that they do not divide.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    shard: tuple[int, ...]
    nbytes: int
    whole: list[tuple[str, int]]


def parse_mesh(text: str) -> AbstractMesh:
    """A mesh from `data=1,fsdp=8,tensor=2`; an axis that is not named has size 1.

    Raises:
      ValueError: another axis, one named twice, or a size that is not a positive integer.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, number = part.strip().partition("=")
        if axis not in AXES or axis in sizes or not number.isdecimal() or int(number) < 1:
            raise ValueError(f"--mesh {text!r}: {part!r} must be AXIS=N, each of {', '.join(AXES)} at most once, N > 0")
        sizes[axis] = int(number)
    axes = tuple(axis for axis in AXES if axis != "context" or axis in sizes)  # as in `make_mesh`
    return AbstractMesh(tuple(sizes.get(axis, 1) for axis in axes), axes)


def place(tree, mesh: AbstractMesh) -> list[Placed]:
    """Where `leaf_spec` puts the leaves of a tree of `jax.ShapeDtypeStruct`."""
    return [_place(path, leaf, mesh) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _place(path, leaf, mesh: AbstractMesh) -> Placed:
    spec = leaf_spec(path, leaf.shape, mesh)
    shard = NamedSharding(mesh, spec).shard_shape(leaf.shape)
    # What the table asks for shows on a shape that everything divides.
    wanted = leaf_spec(path, tuple(n * mesh.size for n in leaf.shape), mesh)
    refused = [(_axes(axes, mesh), n) for n, got, axes in zip(leaf.shape, spec, wanted, strict=True) if got != axes]
    nbytes = math.prod(shard) * leaf.dtype.itemsize
    return Placed(leaf_name(path), leaf.shape, str(leaf.dtype), shard, nbytes, [pair for pair in refused if pair[0]])


def _axes(axes, mesh: AbstractMesh) -> str:
    """Mesh axes in words, such as "tensor x fsdp = 16"; nothing for a product of 1."""
    names = (axes,) if isinstance(axes, str) else axes
    parts = math.prod(mesh.shape[name] for name in names)
    return f"{' x '.join(names)} = {parts}" if parts > 1 else ""


def placement_table(placed: list[Placed], mesh: AbstractMesh, title: str) -> str:
    """A line per leaf and the total; then the leaves that an axis should split and does not divide."""
    rows = [[x.name, str(list(x.shape)), x.dtype, str(list(x.shard)), f"{x.nbytes:,}"] for x in placed]
    whole: dict[str, list[str]] = {}
    for x in placed:
        for axes, length in x.whole:
            whole.setdefault(axes, []).append(f"{x.name} ({length})")
    sizes = ", ".join(f"{axis} {n}" for axis, n in mesh.shape.items())
    lines = [
        f"{title} on each of {mesh.size} devices ({sizes})",
        table(["leaf", "shape", "dtype", "on a device", "bytes"], rows, "llllr"),
        f"total on a device: {size(sum(x.nbytes for x in placed))}",
        *(f"not split over {axes}, which does not divide it: {', '.join(leaves)}" for axes, leaves in whole.items()),
    ]
    return "\n".join(lines)
