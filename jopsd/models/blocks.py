"""Attention in blocks of columns: what no query of a block may see is neither formed nor read.

For a CPU, where rows hold several short sequences (`jopsd.packing`): time and memory follow the pairs of tokens that
see each other, not the square of the row's length. An online softmax (arXiv 2205.14135) walks from a query's own block
back to the first one of its segment. Blocks of queries are sorted by the length of that walk and taken a few at a time,
so that those that take as long stop together. The backward pass walks again instead of keeping the weights.

Axes: B batch, T queries, S keys, N query heads, K key-value heads, G heads that share keys, H head size, C columns of a
block, W blocks of queries in all, E that are taken at a time.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

BLOCK = 64
AT_ONCE = 4
KEPT = "attended"  # the name of what the backward pass wants of the forward one, for `jax.checkpoint`


class _Walk(NamedTuple):
    """Which blocks of queries are taken together, and what each reads.

    Attributes:
      order: [W/E,E] int32, blocks of queries, W where there is none.
      own: [W] int32, the block of keys that stands where these queries do, counted over all rows.
      trips: [W/E,E] int32, how many blocks of keys each reads, its own and those before.
    """

    order: jax.Array
    own: jax.Array
    trips: jax.Array


class _Fixed(NamedTuple):
    """What is static: window in columns or None, the column of the first query, query heads per key head."""

    window: int | None
    offset: int


def block_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, window: int | None, offset: int = 0
) -> jax.Array:
    """Causal grouped-query attention within segments, on one device. Differentiable in q, k and v.

    Args:
      q: [B,T,N,H]; k, v: [B,K,S,H]; segments: [B,S] int32, each segment one run of columns.
      window: columns that a query sees, its own included; None is all.
      offset: the column of the first query. S is offset + T.

    Returns:
      [B,T,N,H] in q's dtype. Scores and softmax are float32.
    """
    batch, length, heads, size = q.shape
    kv_heads = k.shape[1]
    lead = -offset % BLOCK  # so that queries and keys stand in the same blocks
    pad = lambda x, axis, before: jnp.pad(  # noqa: E731
        x, [(before, -(x.shape[i] + before) % BLOCK) if i == axis else (0, 0) for i in range(x.ndim)]
    )
    q, k, v, segments = pad(q, 1, 0), pad(k, 2, lead), pad(v, 2, lead), pad(segments, 1, lead)
    blocks, key_blocks = q.shape[1] // BLOCK, k.shape[2] // BLOCK
    q = q.reshape(batch * blocks, BLOCK, kv_heads, heads // kv_heads, size).transpose(0, 2, 3, 1, 4)
    in_blocks = lambda x: x.reshape(batch, kv_heads, key_blocks, BLOCK, size).swapaxes(1, 2)  # noqa: E731
    k, v = (in_blocks(x).reshape(batch * key_blocks, kv_heads, BLOCK, size) for x in (k, v))
    fixed = _Fixed(window, (offset + lead) // BLOCK)
    walk = _plan(fixed, segments, blocks)
    out = _attend(fixed, q, k, v, segments.reshape(-1, BLOCK), walk)
    out = out.transpose(0, 3, 1, 2, 4).reshape(batch, blocks * BLOCK, heads, size)
    return out[:, :length]


def _plan(fixed: _Fixed, segments: jax.Array, blocks: int) -> _Walk:
    """segments: [B,S] of the keys, whole blocks. blocks: of queries, per row."""
    batch, columns = segments.shape
    column = jnp.arange(columns)
    changes = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    start = jax.lax.cummax(jnp.where(changes, column, 0), axis=1)
    if fixed.window is not None:
        start = jnp.maximum(start, column - fixed.window + 1)
    first = start.reshape(batch, -1, BLOCK)[:, -blocks:, 0] // BLOCK
    place = jnp.arange(blocks) + fixed.offset
    # Nobody needs what padding reads; its own block keeps it finite.
    padding = (segments.reshape(batch, -1, BLOCK)[:, -blocks:] == 0).all(axis=-1)
    trips = jnp.where(padding, 1, place - first + 1).reshape(-1)
    own = (place + jnp.arange(batch)[:, None] * (columns // BLOCK)).reshape(-1)
    order = jnp.argsort(-trips).astype(jnp.int32)
    short = -len(order) % AT_ONCE
    order = jnp.pad(order, (0, short), constant_values=len(order)).reshape(-1, AT_ONCE)
    return _Walk(order, own.astype(jnp.int32), jnp.take(trips, order, mode="fill", fill_value=0))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(fixed: _Fixed, q, k, v, segments, walk: _Walk):
    """q: [W,K,G,C,H]; k, v: [blocks of keys,K,C,H]; segments: [blocks of keys,C] -> like q."""
    return _forward(fixed, q, k, v, segments, walk)[0]


def _pieces(fixed: _Fixed, step, places, trips, walk: _Walk, segments):
    """(the blocks of keys that these queries read at a step of their walk, [E]; what they may see, [E,C,C] bool)."""
    own = jnp.take(walk.own, places, mode="clip")
    theirs = jnp.where(step < trips, own - step, len(segments))
    mine, keys = (jnp.take(segments, at, axis=0, mode="clip") for at in (own, theirs))
    distance = jnp.arange(BLOCK)[:, None] - jnp.arange(BLOCK) + step * BLOCK
    seen = (mine[:, :, None] == keys[:, None, :]) & (distance >= 0) & (step < trips)[:, None, None]
    return theirs, seen if fixed.window is None else seen & (distance < fixed.window)


def _take(x, at):
    return jnp.take(x, at, axis=0, mode="clip")


def _product(expression: str, a, b):
    return jnp.einsum(expression, a, b, preferred_element_type=jnp.promote_types(jnp.float32, a.dtype))


def _forward(fixed: _Fixed, q, k, v, segments, walk: _Walk):
    """(out like q, log of the softmax's denominator [W,K,G,C])."""
    size, wide = q.shape[-1], jnp.promote_types(jnp.float32, q.dtype)
    low = jnp.finfo(wide).min

    def group(_, part):
        places, trips = part
        queries = _take(q, places)

        def step(j, carry):
            top, total, out = carry
            theirs, seen = _pieces(fixed, j, places, trips, walk, segments)
            scores = _product("ekgth,eksh->ekgts", queries, _take(k, theirs)) * size**-0.5
            scores = jnp.where(seen[:, None, None], scores, low)
            higher = jnp.maximum(top, scores.max(axis=-1))
            weights = jnp.exp(scores - higher[..., None])  # 0 where unseen: a query has seen itself at step 0
            shrink = jnp.exp(top - higher)
            read = _product("ekgts,eksh->ekgth", weights.astype(v.dtype), _take(v, theirs))
            return higher, total * shrink + weights.sum(axis=-1), out * shrink[..., None] + read

        start = jnp.full(queries.shape[:-1], low, wide), jnp.zeros(queries.shape[:-1], wide)
        top, total, out = jax.lax.fori_loop(0, trips.max(), step, (*start, jnp.zeros(queries.shape, wide)))
        return None, ((out / total[..., None]).astype(q.dtype), top + jnp.log(total))

    _, (out, norm) = jax.lax.scan(group, None, (walk.order, walk.trips))
    back = jnp.argsort(walk.order.reshape(-1))[: len(q)]
    return tuple(x.reshape(-1, *x.shape[2:])[back] for x in (out, norm))


def _attend_forward(fixed, q, k, v, segments, walk):
    out, norm = (checkpoint_name(x, KEPT) for x in _forward(fixed, q, k, v, segments, walk))
    return out, (q, k, v, segments, walk, out, norm)


def _attend_backward(fixed: _Fixed, saved, gradient):
    q, k, v, segments, walk, out, norm = saved
    size, wide, low = q.shape[-1], norm.dtype, jnp.finfo(norm.dtype).min
    share = _product("wkgth,wkgth->wkgt", gradient, out)

    def group(carry, part):
        places, trips = part
        queries, norms, shares, grads = (_take(x, places) for x in (q, norm, share, gradient))

        def step(j, carry):
            dq, dk, dv = carry
            theirs, seen = _pieces(fixed, j, places, trips, walk, segments)
            keys, values = _take(k, theirs), _take(v, theirs)
            scores = _product("ekgth,eksh->ekgts", queries, keys) * size**-0.5
            weights = jnp.exp(jnp.where(seen[:, None, None], scores, low) - norms[..., None])
            pull = _product("ekgth,eksh->ekgts", grads, values)
            dscores = (weights * (pull - shares[..., None]) * size**-0.5).astype(q.dtype)
            weights = weights.astype(q.dtype)
            add = lambda x, part: x.at[theirs].add(part, mode="drop", unique_indices=True)  # noqa: E731
            dv = add(dv, _product("ekgts,ekgth->eksh", weights, grads))
            dk = add(dk, _product("ekgts,ekgth->eksh", dscores, queries))
            return dq + _product("ekgts,eksh->ekgth", dscores, keys), dk, dv

        dq, *carry = jax.lax.fori_loop(0, trips.max(), step, (jnp.zeros(queries.shape, wide), *carry))
        return tuple(carry), dq.astype(q.dtype)

    zeros = jnp.zeros(k.shape, wide)
    (dk, dv), dq = jax.lax.scan(group, (zeros, zeros), (walk.order, walk.trips))
    back = jnp.argsort(walk.order.reshape(-1))[: len(q)]
    dq = dq.reshape(-1, *dq.shape[2:])[back]
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attend.defvjp(_attend_forward, _attend_backward)
