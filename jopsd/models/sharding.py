"""Where each array lives on a `(data, fsdp, context, tensor)` mesh: one table, by the last parts of a leaf's path.

The same table covers parameters, adapters, optimiser moments and checkpoints, because all of them end in these names.
Axes that a mesh lacks are left out of it.
"""

import math

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

BATCH = ("data", "fsdp")
ROWS = (*BATCH, "context")  # of what has no columns to split: slots of a sampler

# Kernels are [L,in,out]. "column" kernels split their output over tensor, "row" kernels their input, so that one
# all-reduce closes attention and one the feed-forward. fsdp splits the other side, and so does context: the weights
# are the same for all columns.
FSDP = ("fsdp", "context")
_WIDE = ("tensor", *FSDP)
_COLUMN, _ROW = P(None, FSDP, "tensor"), P(None, "tensor", FSDP)
SPECS: dict[tuple[str, ...], P] = {
    ("embed",): P("tensor", FSDP),
    ("lm_head",): P("tensor", FSDP),
    **{(name,): _COLUMN for name in ("q", "k", "v", "gate", "up")},
    **{(name,): _ROW for name in ("o", "down")},
    **{(f"{name}_bias",): P(None, "tensor") for name in ("q", "k", "v", "gate", "up")},
    # Adapters: the wide side over everything, the rank never.
    **{("a", name): P(None, _WIDE, None) for name in ("q", "k", "v", "o", "gate", "up", "down")},
    **{("b", name): P(None, None, _WIDE) for name in ("q", "k", "v", "o", "gate", "up", "down")},
}

# Where an adapter's factors are used: each as its kernel splits over tensor, so that what it adds lies where it is
# wanted. Left as they are stored, they make XLA's partitioner guess, and on a mesh of three axes above 1 it guessed a
# decode step that was wrong.
FACTORS: dict[tuple[str, ...], P] = {
    **{("a", name): P(None, None, None) for name in ("q", "k", "v", "gate", "up")},
    **{("b", name): P(None, None, "tensor") for name in ("q", "k", "v", "gate", "up")},
    **{("a", name): P(None, "tensor", None) for name in ("o", "down")},
    **{("b", name): P(None, None, None) for name in ("o", "down")},
}

ACTIVATIONS = {
    "activation": P(BATCH, "context", None),
    # Queries keep their columns; keys and values are gathered, so that each query finds all of its own.
    "queries": P(BATCH, "context", "tensor", None),
    "keys": P(BATCH, "tensor", None, None),
    "sight": P(BATCH, "context", None),
    "reading": P(None, ROWS, None),  # while sampling, features first
    # The embedding table is gathered over fsdp before the lookup; otherwise XLA replicates the looked-up rows.
    "lookup": P("tensor", None),
    "rows": P(ROWS),
    "pages": P("tensor", None, ROWS),
    # Logits [V,B] are made where the head's rows are and then gathered; left alone, XLA gathers the head.
    "logits": P("tensor", ROWS),
    "whole logits": P(None, ROWS),
}


def path_names(path) -> list[str]:
    """The names along a tree path, without the parameter wrapper's own."""
    names = [getattr(part, "name", None) or getattr(part, "key", None) for part in path]
    return [str(name) for name in names if name is not None and name != "value"]


def leaf_spec(path, shape: tuple[int, ...], mesh: Mesh, table: dict[tuple[str, ...], P] = SPECS) -> P:
    """The partition spec of the leaf at `path`; axes that do not divide its shape are left whole."""
    names = path_names(path)
    spec = next((table[tuple(names[-n:])] for n in (2, 1) if tuple(names[-n:]) in table), P())
    return divisible(spec, shape, mesh)


def tree_shardings(tree, mesh: Mesh, table: dict[tuple[str, ...], P] = SPECS):
    """A `NamedSharding` for each leaf of a tree of arrays or shapes."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, leaf_spec(path, leaf.shape, mesh, table)), tree
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
    return jax.lax.with_sharding_constraint(x, divisible(ACTIVATIONS[kind], x.shape, mesh))


def constrain_factor(x: jax.Array, side: str, name: str) -> jax.Array:
    """Pins one layer's factor, "a" or "b", of the adapter to projection `name` to where it is used."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, divisible(P(*FACTORS[side, name][1:]), x.shape, mesh))


def present(axes, mesh) -> tuple[str, ...]:
    """Those of some axes (one name, several, or None) that the mesh has."""
    return tuple(name for name in ((axes,) if isinstance(axes, str) else axes or ()) if name in mesh.shape)


def divisible(spec: P, shape: tuple[int, ...], mesh) -> P:
    """The spec for an array of this shape, without axes that the mesh lacks or that do not divide a length."""

    def fit(axes, length):
        names = present(axes, mesh)
        parts = math.prod(mesh.shape[name] for name in names)
        return (names if len(names) > 1 else names[0]) if names and length % parts == 0 else None

    padded = tuple(spec) + (None,) * (len(shape) - len(spec))
    return P(*(fit(axes, length) for axes, length in zip(padded, shape, strict=False)))
