"""A paged key-value cache: how tokens are written to it and how queries read it.

The cache is a pool of pages of `PAGE` columns. Column c of row r lies in page `table[r, c // PAGE]`, in every layer.
Page 0 belongs to nobody: rows that are not live write there.

Attention walks over the pages of a row with an online softmax (arXiv 2205.14135) and stops after the longest row of a
small group. A page in which a row sees nothing adds exact zeros and leaves its maximum, so that neither a row's company
nor the size of the pool changes a bit of what it reads, while the cost follows the tokens that are live.

On a mesh the pages are split over the axes that split rows, each device with a pool of its own: tables hold page
numbers of that pool. Heads are split over `tensor`.

Axes: R rows, T queries of each, N query heads, K key-value heads, H head size, L layers, P pages, S columns of a page,
M pages of the longest row.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from jopsd.models.sharding import ROWS, divisible

PAGE = 64  # S: part of what bits depend on, so it is the same whatever the pool
GROUP = 4  # rows that stop together: few, so that short rows do not wait for long ones
_LEAST = -1e30  # below every score; its exponential is 0, and unlike -inf it can be subtracted from itself


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pages:
    """Keys and values of every layer.

    Attributes:
      k, v: [K,L,P,S,H] in the computation dtype, bfloat16 as its uint16 bits where `make_pages` was told so.
    """

    k: jax.Array
    v: jax.Array


class Span(NamedTuple):
    """Where the tokens of one forward pass stand.

    Attributes:
      table: [R,M] int32, pages of each row. start: [R] int32, column of a row's first token.
      count: [R] int32, tokens of a row that are real; 0 for a row that is not live.
    """

    table: jax.Array
    start: jax.Array
    count: jax.Array


def make_pages(layers: int, heads: int, head_dim: int, pages: int, dtype: str, as_bits: bool) -> Pages:
    """An empty pool. as_bits: XLA's CPU compiler would widen a bfloat16 pool as a whole; integers it leaves alone."""
    shape = (heads, layers, pages, PAGE, head_dim)
    stored = jnp.uint16 if as_bits and dtype == "bfloat16" else dtype
    return Pages(jnp.zeros(shape, stored), jnp.zeros(shape, stored))


def _stored(x: jax.Array, like: jax.Array) -> jax.Array:
    """x as a pool stores it."""
    return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16) if like.dtype == jnp.uint16 else x


def _read(x: jax.Array) -> jax.Array:
    """Stored numbers as they are computed with."""
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def write(pages: Pages, layer: jax.Array | int, k: jax.Array, v: jax.Array, span: Span) -> Pages:
    """Puts the new keys and values [K,H,R,T] of a layer into their columns, in place.

    T is 1, or divides or is a multiple of S, and `span.start` is a multiple of T then. Columns beyond `count` may hold
    anything afterwards; what comes next overwrites them before it is read.
    """

    def local(pool_k, pool_v, k, v, table, start, count):
        place = lambda pool, new: _write(pool, layer, _stored(new, pool), Span(table, start, count))  # noqa: E731
        return place(pool_k, k), place(pool_v, v)

    pool, new, table, row = ("pool", pages.k), ("new", k), ("table", span.table), ("row", span.start)
    run = _on_shards(local, [pool, pool, new, new, table, row, row], [pool, pool])
    return Pages(*run(pages.k, pages.v, k, v, *span))


def _write(pool: jax.Array, layer, new: jax.Array, span: Span) -> jax.Array:
    heads, size, rows, width = new.shape
    new = new.transpose(2, 0, 3, 1)  # [R,K,T,H]
    piece = min(width, PAGE)
    for row in range(rows):
        for first in range(0, width, piece):
            column = span.start[row] + first
            page = jnp.where(first < span.count[row], span.table[row, column // PAGE], 0)
            part = new[row, :, first : first + piece].reshape(heads, 1, 1, piece, size)
            pool = jax.lax.dynamic_update_slice(pool, part, (0, layer, page, column % PAGE, 0))
    # Left alone, the TPU compiler turns the whole pool into another layout and back around a loop over prompts.
    return with_layout_constraint(pool, Layout(tuple(range(pool.ndim))))


def attend(q: jax.Array, pages: Pages, layer: jax.Array | int, span: Span, window: int | None, backend: str):
    """What queries read from the pages, the columns of their own tokens included.

    Args:
      q: [N,H,R,T]; query t of row r stands in column start[r] + t and sees that and earlier columns, with a window the
        last `window` of them.
      backend: of `jopsd.models.attention`; "splash" and "cudnn" mean the paged kernel of a TPU and a GPU, where a row
        has one query in bfloat16 and no window.

    Returns:
      [N,H,R,T] in q's dtype; zeros for rows with a count of 0.
    """
    single = q.shape[3] == 1 and window is None and q.dtype == jnp.bfloat16
    kernel = KERNELS.get(backend) if single else None

    def local(q, pool_k, pool_v, table, start, count):
        q = (q.astype(jnp.float32) * q.shape[1] ** -0.5).astype(q.dtype)
        if kernel is None:
            return _walk(q, Pages(pool_k, pool_v), layer, Span(table, start, count), window, backend in KERNELS)
        length = jnp.where(count > 0, start + 1, 0)
        in_layer = table + layer * pool_k.shape[2]
        out = kernel(q[..., 0].transpose(2, 0, 1), _flat(pool_k), _flat(pool_v), length, in_layer)
        return jnp.where((count > 0)[:, None, None], out, 0).transpose(1, 2, 0)[..., None].astype(q.dtype)

    queries, pool, table, row = ("new", q), ("pool", pages.k), ("table", span.table), ("row", span.start)
    return _on_shards(local, [queries, pool, pool, table, row, row], [queries])(q, pages.k, pages.v, *span)


def _walk(q: jax.Array, pages: Pages, layer, span: Span, window: int | None, slices: bool) -> jax.Array:
    """`attend` with scaled queries on one device: groups of rows of like length, one after the other."""
    rows = q.shape[2]
    if rows <= GROUP:
        return _walk_group(q, pages, layer, span, window, slices)
    last = jnp.where(span.count > 0, span.start + span.count, 0)
    order = jnp.argsort(last)
    split = [order[first : first + GROUP] for first in range(0, rows, GROUP)]
    read = [_walk_group(q[:, :, at], pages, layer, Span(*(x[at] for x in span)), window, slices) for at in split]
    return jnp.concatenate(read, axis=2)[:, :, jnp.argsort(order)]


def _walk_group(q: jax.Array, pages: Pages, layer, span: Span, window: int | None, slices: bool) -> jax.Array:
    heads, size, rows, width = q.shape
    kv = pages.k.shape[0]
    column = span.start[:, None] + jnp.arange(width)  # [R,T], of the queries
    live = span.count > 0
    first = jnp.maximum(span.start - (window - 1), 0) // PAGE if window else jnp.zeros_like(span.start)
    # With a window each row has a first page of its own: trip i reads page first + i.
    trips = jnp.max(jnp.where(live, (span.start + span.count - 1) // PAGE + 1 - first, 0))
    grouped = q.reshape(kv, heads // kv, size, rows, width).transpose(3, 0, 1, 4, 2)  # [R,K,G,T,H]

    def trip(carry):
        i, most, total, read = carry
        number = first + i
        page = jnp.take_along_axis(span.table, jnp.minimum(number, span.table.shape[1] - 1)[:, None], axis=1)[:, 0]
        get = partial(_gather, layer=layer, page=page, slices=slices or rows == 1)
        scores = jnp.einsum("rkgth,krsh->rkgts", grouped, get(pages.k), preferred_element_type=jnp.float32)
        key = number[:, None] * PAGE + jnp.arange(PAGE)  # [R,S]
        seen = (key[:, None] <= column[:, :, None]) & live[:, None, None]
        if window:
            seen &= key[:, None] > column[:, :, None] - window
        seen = seen[:, None, None]
        new_most = jnp.maximum(most, jnp.where(seen, scores, _LEAST).max(axis=-1))
        weights = jnp.where(seen, jnp.exp(scores - new_most[..., None]), 0.0)
        kept = jnp.exp(most - new_most)
        values = get(pages.v)
        fresh = jnp.einsum(
            "rkgts,krsh->rkgth", weights.astype(values.dtype), values, preferred_element_type=jnp.float32
        )
        return i + 1, new_most, total * kept + weights.sum(axis=-1), read * kept[..., None] + fresh

    shape = grouped.shape[:-1]
    start = (jnp.int32(0), jnp.full(shape, _LEAST), jnp.zeros(shape), jnp.zeros(grouped.shape, jnp.float32))
    _, _, total, read = jax.lax.while_loop(lambda carry: carry[0] < trips, trip, start)
    out = read / jnp.where(total > 0, total, 1.0)[..., None]
    return out.astype(q.dtype).transpose(1, 2, 4, 0, 3).reshape(q.shape)


def _gather(pool: jax.Array, layer, page: jax.Array, slices: bool) -> jax.Array:
    """One page of each row: [K,R,S,H]. slices: cut out one by one, which asks for no layout of the pool."""
    if not slices:  # with one page axis for all layers: a gather along a single axis is the faster one
        return _read(_flat(pool).at[:, layer * pool.shape[2] + page].get(mode="promise_in_bounds"))
    shape = (pool.shape[0], 1, 1, *pool.shape[3:])
    cut = [jax.lax.dynamic_slice(pool, (0, layer, at, 0, 0), shape)[:, 0] for at in page]
    return _read(cut[0] if len(cut) == 1 else jnp.concatenate(cut, axis=1))


def _flat(pool: jax.Array) -> jax.Array:
    return pool.reshape(pool.shape[0], -1, *pool.shape[3:])


def copy(pages: Pages, source: jax.Array, target: jax.Array, count: jax.Array) -> Pages:
    """Copies page source[d,i] to target[d,i], [D,n] int32 for D shards, for i < count, in every layer."""

    def local(pool_k, pool_v, source, target, count):
        def one(i, pools):
            page = lambda pool: jax.lax.dynamic_slice_in_dim(pool, source[0, i], 1, axis=2)  # noqa: E731
            put = lambda pool: jax.lax.dynamic_update_slice_in_dim(pool, page(pool), target[0, i], axis=2)  # noqa: E731
            return put(pools[0]), put(pools[1])

        return jax.lax.fori_loop(0, count, one, (pool_k, pool_v))

    pool, row = ("pool", pages.k), ("table", source)
    run = _on_shards(local, [pool, pool, row, row, ("all", count)], [pool, pool])
    return Pages(*run(pages.k, pages.v, source, target, count))


SPECS = {
    "pool": PartitionSpec("tensor", None, ROWS),
    "new": PartitionSpec("tensor", None, ROWS),
    "table": PartitionSpec(ROWS),
    "row": PartitionSpec(ROWS),
    "all": PartitionSpec(),
}


def row_shards(mesh, slots: int) -> int:
    """Over how many devices `slots` rows, and with them the pages, are split on a mesh."""
    axes = divisible(PartitionSpec(ROWS), (slots,), mesh)[0] if mesh is not None else None
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[axis] for axis in axes)


def _on_shards(run: Callable, inputs: list[tuple], outputs: list[tuple]) -> Callable:
    """`run` on each device's part of its arguments, where there is a mesh. inputs: (kind of `SPECS`, array)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return run
    pool = next(array for kind, array in inputs if kind == "pool")
    rows = divisible(SPECS["row"], (next(array.shape[0] for kind, array in inputs if kind in ("row", "table")),), mesh)
    heads = divisible(PartitionSpec("tensor"), pool.shape[:1], mesh)

    def spec(kind: str):
        parts = {"tensor": heads[0], ROWS: rows[0]}
        return PartitionSpec(*(None if axis is None else parts[axis] for axis in SPECS[kind]))

    found = [spec(kind) for kind, _ in outputs]
    out = found[0] if len(found) == 1 else tuple(found)
    return jax.shard_map(run, in_specs=tuple(spec(kind) for kind, _ in inputs), out_specs=out, check_vma=False)


def _tpu_kernel(q, k, v, length, table):
    from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

    return paged_attention(q, k, v, length, table, pages_per_compute_block=math.gcd(table.shape[1], 8))


def _gpu_kernel(q, k, v, length, table):
    from jax.experimental.pallas.ops.gpu.paged_attention import paged_attention

    splits = math.gcd(table.shape[1], 16)
    block = math.gcd(table.shape[1] // splits, 2)
    return paged_attention(q, k, v, table, length, k_splits=splits, pages_per_compute_block=block)


# By attention backend: (q [R,N,H] scaled, k and v [K,P,S,H], lengths [R], table [R,M]) -> [R,N,H]. Each row reads its
# own pages only, so that its bits depend on no other.
KERNELS: dict[str, Callable] = {"splash": _tpu_kernel, "cudnn": _gpu_kernel}
