"""A decoder as an orbax checkpoint, leaf by leaf: a model is never in memory twice, nor at all where it need not be.

What is written is an ordinary orbax tree: `StandardCheckpointer().restore(directory, abstract_decoder(cfg))` reads it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from flax import traverse_util

# Pieces in which a leaf is written and read; each is held a few times over while it is compressed.
CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class _Leaf:
    """An array that is made when its turn to be written comes."""

    shape: tuple[int, ...]
    dtype: jax.numpy.dtype
    make: Callable[[], jax.Array]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


class _OneByOne(ocp.type_handlers.ArrayHandler):
    """Writes `_Leaf`s as arrays, the next one only after the last one is on disk."""

    async def serialize(self, values, infos, args=None):
        for value, info, arg in zip(values, infos, args, strict=True):
            for commit in await super().serialize([value.make()], [info], [arg]):
                commit.result()
        return []


def tree_keys(path) -> tuple[str, ...]:
    """Names along a path, as orbax stores them."""
    return tuple(str(getattr(part, "name", None) or getattr(part, "key", None)) for part in path)


def nested(paths_and_leaves) -> dict:
    """Plain dicts for a flattened tree of modules: orbax cannot take a part of one."""
    return traverse_util.unflatten_dict({tree_keys(path): leaf for path, leaf in paths_and_leaves})


def restore_of(part: dict) -> ocp.args.PyTreeRestore:
    """What asks orbax for a part of a tree alone. part: shapes with shardings, in plain dicts."""
    restore_args = ocp.checkpoint_utils.construct_restore_args(part)
    return ocp.args.PyTreeRestore(part, restore_args=restore_args, partial_restore=True)


def write_model(directory: Path, shapes, make: Callable) -> None:
    """Writes a tree of arrays. On several processes all must call it.

    Args:
      shapes: the tree with `jax.ShapeDtypeStruct` leaves, `abstract_decoder(cfg)` for a model.
      make: (path, shape) -> the array; each is asked for once and let go of when it is written.
    """
    leaf = lambda path, x: _Leaf(x.shape, x.dtype, lambda: make(path, x))  # noqa: E731
    tree = nested((path, leaf(path, x)) for path, x in jax.tree_util.tree_flatten_with_path(shapes)[0])
    one_by_one = _OneByOne(enable_write_sharding_file=False, array_metadata_store=None)
    arrays = (jax.Array, ocp.type_handlers.ArrayHandler())  # none are written, but orbax warns where it has no rule
    registry = ocp.type_handlers.create_type_handler_registry((_Leaf, one_by_one), arrays)
    chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), tree)
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(Path(directory).resolve(), args=ocp.args.PyTreeSave(tree, save_args=chunks))


def read_leaf(directory: Path, path, shape: jax.ShapeDtypeStruct) -> jax.Array:
    """One leaf of what `write_model` wrote. shape: with its sharding.

    Raises:
      ValueError, KeyError, FileNotFoundError: it is not there, not of that shape, or damaged; orbax's own words.
    """
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(Path(directory).resolve(), args=restore_of(nested([(path, shape)])))
    return traverse_util.flatten_dict(found)[tree_keys(path)]
