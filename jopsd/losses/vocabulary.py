"""Reductions over the vocabulary, whole or split over a mesh axis.

Every function takes arrays whose last axis is the vocabulary and an optional `vocab_axis`, the name of the mesh axis
over which that axis is split inside a `jax.shard_map`. With None the array holds the whole vocabulary. All results are
the same on every shard, and no function ever gathers a vocabulary-sized array.
"""

import jax
import jax.numpy as jnp


def vocab_sum(x: jax.Array, vocab_axis: str | None = None) -> jax.Array:
    """Sum over the vocabulary: [...,V] -> [...]."""
    total = x.sum(axis=-1)
    return total if vocab_axis is None else jax.lax.psum(total, vocab_axis)


def log_softmax(logits: jax.Array, vocab_axis: str | None = None) -> jax.Array:
    """Log-probabilities [...,V] of logits [...,V], in the logits' dtype."""
    peak = jax.lax.stop_gradient(logits.max(axis=-1))
    if vocab_axis is not None:
        peak = jax.lax.pmax(peak, vocab_axis)
    shifted = logits - peak[..., None]
    return shifted - jnp.log(vocab_sum(jnp.exp(shifted), vocab_axis))[..., None]


def pick(x: jax.Array, ids: jax.Array, vocab_axis: str | None = None) -> jax.Array:
    """Entries of x [...,V] at the vocabulary ids [...,S] -> [...,S]. Differentiable in x."""
    if vocab_axis is None:
        return jnp.take_along_axis(x, ids, axis=-1)
    size = x.shape[-1]
    local = ids - jax.lax.axis_index(vocab_axis) * size
    mine = (local >= 0) & (local < size)
    found = jnp.take_along_axis(x, jnp.clip(local, 0, size - 1), axis=-1)
    return jax.lax.psum(jnp.where(mine, found, 0), vocab_axis)


def token_logprobs(logprobs: jax.Array, targets: jax.Array, vocab_axis: str | None = None) -> jax.Array:
    """Log-probability of one token per position: [...,V], [...] -> [...]. Differentiable in logprobs."""
    return pick(logprobs, targets[..., None], vocab_axis)[..., 0]


def top_k_ids(logprobs: jax.Array, k: int, vocab_axis: str | None = None) -> jax.Array:
    """Vocabulary ids [...,k] of the k largest entries, largest first. Not differentiable."""
    logprobs = jax.lax.stop_gradient(logprobs)
    values, ids = jax.lax.top_k(logprobs, min(k, logprobs.shape[-1]))
    if vocab_axis is None:
        return ids
    # Each shard offers its own k best; the k best of those offers are the answer, and the same everywhere.
    ids = ids + jax.lax.axis_index(vocab_axis) * logprobs.shape[-1]
    values, ids = (_gather_shards(x, vocab_axis) for x in (values, ids))
    _, place = jax.lax.top_k(values, min(k, values.shape[-1]))
    return jnp.take_along_axis(ids, place, axis=-1)


def entropy(logprobs: jax.Array, vocab_axis: str | None = None) -> jax.Array:
    """Entropy in nats of [...,V] -> [...]. An entry of probability 0 contributes 0, also to the gradient."""
    return -vocab_sum(_plogq(logprobs, logprobs), vocab_axis)


def _plogq(p_log: jax.Array, q: jax.Array) -> jax.Array:
    """exp(p_log) * q, 0 where p_log is -inf, with gradients that are never NaN there."""
    possible = p_log > -jnp.inf
    return jnp.where(possible, jnp.exp(p_log) * jnp.where(possible, q, 0), 0)


def _gather_shards(x: jax.Array, axis: str) -> jax.Array:
    """[...,k] on each shard -> [...,shards*k] on all, by a sum of disjoint pieces so that shards provably agree."""
    count, width = jax.lax.axis_size(axis), x.shape[-1]
    wide = jnp.zeros((*x.shape[:-1], count * width), x.dtype)
    at = jax.lax.axis_index(axis) * width
    return jax.lax.psum(jax.lax.dynamic_update_slice_in_dim(wide, x, at, axis=x.ndim - 1), axis)
