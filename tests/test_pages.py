"""Paged attention against plain softmax in float64, and its exactness: what a row reads depends on nothing else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopsd.models import pages as paged
from jopsd.models.pages import PAGE, Pages, Span, make_pages
from jopsd.models.sharding import ROWS

LAYERS, HEADS, KV, SIZE = 2, 4, 2, 8


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def filled(lengths, spare=3, seed=0, shuffle=0):
    """Pages with random keys and values of rows of these lengths: (pages, table, keys [R][K,S,H], values)."""
    width = max(-(-n // PAGE) for n in lengths) + 1
    count = 1 + spare + sum(-(-n // PAGE) for n in lengths)
    numbers = iter(np.random.default_rng(shuffle).permutation(np.arange(1, count)).tolist())
    k, v = normal(KV, LAYERS, count, PAGE, SIZE, seed=9 + shuffle), normal(KV, LAYERS, count, PAGE, SIZE, seed=8)
    table, keys, values = np.zeros((len(lengths), width), np.int32), [], []
    for row, n in enumerate(lengths):
        own = normal(2, KV, n, SIZE, seed=100 * seed + row)
        keys.append(own[0]), values.append(own[1])
        for place in range(-(-n // PAGE)):
            table[row, place] = page = next(numbers)
            part = own[:, :, place * PAGE : (place + 1) * PAGE]
            k[:, 1, page, : part.shape[2]], v[:, 1, page, : part.shape[2]] = part
    return Pages(jnp.array(k), jnp.array(v)), jnp.array(table), keys, values


def plain(q, keys, values, column, window):
    """What one query [N,H] in `column` reads, in float64."""
    first = 0 if window is None else max(column - window + 1, 0)
    out = []
    for head, query in enumerate(q.astype(np.float64)):
        kv = head // (HEADS // KV)
        scores = keys[kv, first : column + 1] @ query * SIZE**-0.5
        weights = np.exp(scores - scores.max())
        out.append(weights @ values[kv, first : column + 1] / weights.sum())
    return np.array(out)


@partial(jax.jit, static_argnames="window")
def attend(q, pages, table, start, count, window=None):
    return paged.attend(q, pages, 1, Span(table, start, count), window, "xla")


@pytest.mark.parametrize("window", [None, 1, 30, PAGE, 200])
@pytest.mark.parametrize("width", [1, 16])
def test_queries_read_what_plain_softmax_reads(window, width):
    lengths = [16, 40, PAGE, PAGE + 1, 3 * PAGE + 16, 100, 130] + [17] * 11  # more than one group
    pages, table, keys, values = filled(lengths)
    q = normal(HEADS, SIZE, len(lengths), width, seed=3)
    start = np.array(lengths) - width
    found = np.asarray(attend(q, pages, table, start, np.full(len(lengths), width), window))
    for row, n in enumerate(lengths):
        for t in range(width):
            expected = plain(q[:, :, row, t], keys[row], values[row], n - width + t, window)
            np.testing.assert_allclose(found[:, :, row, t], expected, atol=2e-6)


@pytest.mark.parametrize("window", [None, 70])
def test_a_row_reads_the_same_bits_in_any_company_place_and_pool(window):
    q = normal(HEADS, SIZE, 1, 1, seed=3)
    pages, table, *_ = filled([150])
    alone = np.asarray(attend(q, pages, table, np.array([149]), np.array([1]), window))[:, :, 0]
    for place, others in enumerate([[400, 20], [8] * 17, [1000, 70, 5]]):
        lengths = others[:place] + [150] + others[place:]
        pages, table, *_ = filled([150], seed=0, shuffle=place)
        more, wide, *_ = filled(others, spare=place, seed=5, shuffle=7)
        joined = Pages(*(jnp.concatenate([a, b], axis=2) for a, b in ((pages.k, more.k), (pages.v, more.v))))
        width = max(table.shape[1], wide.shape[1])
        rows = [
            np.pad(t, ((0, 0), (0, width - t.shape[1]))) for t in (table, np.where(wide, wide + pages.k.shape[2], 0))
        ]
        order = [*range(1, place + 1), 0, *range(place + 1, len(lengths))]
        both = np.concatenate(rows)[order]
        queries = np.concatenate([q, normal(HEADS, SIZE, len(others), 1, seed=4)], axis=2)[:, :, order]
        found = attend(queries, joined, both, np.array(lengths) - 1, np.ones(len(lengths), np.int32), window)
        assert np.asarray(found)[:, :, place].tobytes() == alone.tobytes()


def test_a_row_that_is_not_live_reads_zeros_and_writes_to_no_ones_page():
    pages, table, *_ = filled([70, 70])
    q = normal(HEADS, SIZE, 2, 1)
    live = np.array([0, 1])
    assert not np.asarray(attend(q, pages, table, np.array([69, 69]), live))[:, :, 0].any()
    new = jnp.ones((KV, SIZE, 2, 1))
    after = paged.write(pages, 1, new, new, Span(table, jnp.array([69, 69]), jnp.array(live)))
    changed = np.argwhere((np.asarray(after.k) != np.asarray(pages.k)).any(axis=(0, 1, 4)))
    assert {tuple(at) for at in changed} == {(0, 5), (int(table[1, 1]), 5)}


def test_bfloat16_as_bits_reads_what_bfloat16_reads():
    pages, table, *_ = filled([100, 30])
    narrow = Pages(pages.k.astype(jnp.bfloat16), pages.v.astype(jnp.bfloat16))
    bits = Pages(*(jax.lax.bitcast_convert_type(x, jnp.uint16) for x in (narrow.k, narrow.v)))
    q, start, one = normal(HEADS, SIZE, 2, 1).astype(jnp.bfloat16), np.array([99, 29]), np.ones(2, np.int32)
    found = attend(q, bits, table, start, one)
    assert np.asarray(found).tobytes() == np.asarray(attend(q, narrow, table, start, one)).tobytes()


@pytest.mark.parametrize("name", ["splash", "cudnn"])
def test_the_kernels_of_accelerators_read_what_the_walk_reads(name, monkeypatch):
    """In interpreted mode: same mathematics, on any device."""
    from jax.experimental import pallas

    real = pallas.pallas_call
    monkeypatch.setattr(pallas, "pallas_call", lambda *given, **how: real(*given, **how | {"interpret": True}))
    size, lengths = 128, [100, 1, 300, 64]
    k, v = normal(KV, 1, 16, PAGE, size, seed=1), normal(KV, 1, 16, PAGE, size, seed=2)
    table = np.random.default_rng(0).permutation(np.arange(1, 16))[: 4 * 8 // 3 + 1]
    table = np.resize(table, (4, 8)).astype(np.int32)
    q, count = normal(HEADS, size, 4, 1, seed=4), np.array([1, 1, 0, 1])
    span = Span(jnp.array(table), jnp.array(lengths) - 1, jnp.array(count))
    q, pages = jnp.array(q, jnp.bfloat16), Pages(jnp.array(k, jnp.bfloat16), jnp.array(v, jnp.bfloat16))
    expected = paged.attend(q, pages, 0, span, None, "xla")
    found = paged.attend(q, pages, 0, span, None, name)
    np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (found, expected)), atol=0.02)
    assert not np.asarray(found, np.float32)[:, :, 2].any()


def test_pages_are_written_and_copied_on_each_device_of_a_mesh():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    assert paged.row_shards(mesh, 4) == 4 and paged.row_shards(mesh, 3) == 1 and paged.row_shards(None, 4) == 1
    new, start = normal(KV, SIZE, 4, 16), jnp.zeros(4, jnp.int32)
    span = Span(jnp.full((4, 2), 2), start, jnp.full(4, 16))
    with jax.set_mesh(mesh):
        pages = make_pages(LAYERS, KV, SIZE, 4 * 3, "float32", False)
        pages = jax.jit(lambda p: paged.write(p, 1, new, new, span))(pages)
        source, target = jnp.full((4, 1), 2), jnp.full((4, 1), 1)
        pages = jax.jit(lambda p: paged.copy(p, source, target, jnp.int32(1)))(pages)
    held = np.asarray(pages.k).reshape(KV, LAYERS, 4, 3, PAGE, SIZE)
    for row in range(4):
        for page in (1, 2):
            np.testing.assert_array_equal(held[:, 1, row, page, :16], new[:, :, row].swapaxes(1, 2))
    assert not held[:, 0].any() and not held[:, :, :, 0].any()
    assert ROWS[0] == "data"
