"""How a pass reads an update: a row per rollout, or packed rows (`jopsd.packing`).

What methods weigh stands in [B,T], rollout by completion token. A pass over the model reads either the same rows, or
packed ones [Q,C], in which each completion token has the column that predicts it. These functions go from one to the
other, on the devices, and split rows into micro-batches.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jopsd.batch import TrainBatch, View
from jopsd.models.sharding import BATCH, constrain
from jopsd.sampling.sampler import Policy


def as_read(batch: TrainBatch) -> TrainBatch:
    """The fields that a pass reads, [B,T] or packed [Q,C]: targets, mask and route (or [B,1]), beside the views."""
    fields = {"targets": batch.targets, "mask": batch.mask}
    if batch.route is not None:
        route = batch.route[:, None]
        fields["route"] = route if batch.source is None else jnp.broadcast_to(route, batch.mask.shape)
    return TrainBatch(**by_token(fields, batch), views=batch.views)


def by_token(arrays: dict[str, jax.Array], batch: TrainBatch) -> dict[str, jax.Array]:
    """Arrays [B,T] as a pass reads them: the same, or packed [Q,C] with 0 where no token is predicted."""
    if batch.source is None:
        return arrays
    spread = lambda x: _everywhere(x).reshape(-1).at[batch.source].get(mode="fill", fill_value=0)  # noqa: E731
    return jax.tree.map(spread, arrays)


def by_rollout(arrays, batch: TrainBatch):
    """Results of a pass, [B,T] or packed [Q,C], as [B,T], 0 where there is no token; of K readings as [B,K,T]."""
    if batch.inverse is None:
        return arrays

    def gathered(x):
        columns = _everywhere(x).swapaxes(0, -2).reshape(*x.shape[1:-1], -1)
        found = columns.at[..., batch.inverse].get(mode="fill", fill_value=0)
        return found if x.ndim == 2 else found.swapaxes(0, 1)

    return jax.tree.map(gathered, arrays)


def _everywhere(x: jax.Array) -> jax.Array:
    """x on every device of the mesh in scope: one number per token is small beside activations."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty or mesh.size == 1 else jax.lax.with_sharding_constraint(x, P())


def completion_hidden(policy: Policy, view: View, length: int) -> jax.Array:
    """Hidden states that predict the completion tokens of a view.

    Args:
      length: T, which packed rows do not need.

    Returns:
      [B,T,D]; of a packed view [Q,C,D] in the student's columns, of no meaning where no token is predicted.
    """
    h = policy.model.hidden(view.tokens, positions=view.positions, segments=view.segments, adapter=policy.adapter)
    if view.positions is not None:
        return h if view.place is None else _found(h, view.place)
    start = view.tokens.shape[1] - length - 1  # the column before the completion, up to its last but one
    return constrain(jax.lax.slice_in_dim(h, start, start + length, axis=1), "activation")


def _found(h: jax.Array, place: jax.Array) -> jax.Array:
    """Hidden states [Q,C,D] of a packed view at `place` [Q',C'], on the device that holds both."""
    mesh = jax.sharding.get_abstract_mesh()
    context = mesh.shape.get("context", 1)

    def own(h, place):
        if context > 1:
            h = jax.lax.all_gather(h, "context", axis=1, tiled=True)
        return h.reshape(-1, h.shape[-1])[place]

    if mesh.empty or mesh.size == 1:
        return own(h, place)
    columns = P(BATCH, "context" if context > 1 else None)
    return jax.shard_map(own, in_specs=(columns, columns), out_specs=columns)(h, place)


def split_rows(tree, parts: int):
    """[B,...] -> [parts,B/parts,...], taking every parts-th row so that rows stay on the device that holds them."""
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), tree)


def join_rows(tree):
    """The inverse of `split_rows`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)
