"""Where each array lives on a `(data, fsdp, tensor)` mesh: one table, keyed by the last parts of a leaf's path.

The same table covers parameters, adapters, optimiser moments and checkpoints, because all of them end in these names.
"""

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

BATCH = ("data", "fsdp")

# Kernels are [L,in,out]. "column" kernels split their output over tensor, "row" kernels their input, so that one
# all-reduce closes attention and one the feed-forward. fsdp splits the other side.
_COLUMN, _ROW = P(None, "fsdp", "tensor"), P(None, "tensor", "fsdp")
SPECS: dict[tuple[str, ...], P] = {
    ("embed",): P("tensor", "fsdp"),
    ("lm_head",): P("tensor", "fsdp"),
    **{(name,): _COLUMN for name in ("q", "k", "v", "gate", "up")},
    **{(name,): _ROW for name in ("o", "down")},
    **{(f"{name}_bias",): P(None, "tensor") for name in ("q", "k", "v", "gate", "up")},
    # Adapters: the wide side over everything, the rank never.
    **{("a", name): P(None, ("tensor", "fsdp"), None) for name in ("q", "k", "v", "o", "gate", "up", "down")},
    **{("b", name): P(None, None, ("tensor", "fsdp")) for name in ("q", "k", "v", "o", "gate", "up", "down")},
}

ACTIVATIONS = {
    "activation": P(BATCH, None, None),
    # The embedding table is gathered over fsdp before the lookup; otherwise XLA replicates the looked-up rows.
    "lookup": P("tensor", None),
    # One layer's adapter factors are gathered before use. Left split, they make XLA's partitioner guess, and on a mesh
    # with all three axes above 1 it guessed a decode step that was wrong.
    "factor": P(None, None),
    "rows": P(BATCH),
    "cache": P(None, BATCH, "tensor"),
}


def path_names(path) -> list[str]:
    """The names along a tree path, without the parameter wrapper's own."""
    names = [getattr(part, "name", None) or getattr(part, "key", None) for part in path]
    return [str(name) for name in names if name is not None and name != "value"]


def leaf_spec(path, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The partition spec of the leaf at `path`; axes that do not divide its shape are left whole."""
    names = path_names(path)
    spec = next((SPECS[tuple(names[-n:])] for n in (2, 1) if tuple(names[-n:]) in SPECS), P())
    return _divisible(spec, shape, mesh)


def tree_shardings(tree, mesh: Mesh):
    """A `NamedSharding` for each leaf of a tree of arrays or shapes."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, leaf_spec(path, leaf.shape, mesh)), tree
    )


def sharded_shapes(shapes, mesh: Mesh):
    """A tree of shapes with each leaf's place on the mesh: what a checkpoint is restored onto."""
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(place, shapes, tree_shardings(shapes, mesh))


def constrain(x: jax.Array, kind: str) -> jax.Array:
    """Pins an activation to its place on the mesh in scope (`jax.set_mesh`); without a mesh it does nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, _divisible(ACTIVATIONS[kind], x.shape, mesh))


def _divisible(spec: P, shape: tuple[int, ...], mesh) -> P:
    sizes = dict(mesh.shape)

    def fit(axes, length):
        names = (axes,) if isinstance(axes, str) else tuple(axes or ())
        parts = 1
        for name in names:
            parts *= sizes.get(name, 1)
        return axes if names and all(n in sizes for n in names) and length % parts == 0 else None

    padded = tuple(spec) + (None,) * (len(shape) - len(spec))
    return P(*(fit(axes, length) for axes, length in zip(padded, shape, strict=False)))
