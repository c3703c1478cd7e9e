"""Drawing one token per row of logits, with per-row temperature, top-k and top-p as data.

Gumbel noise over a real vocabulary costs one random number per entry; here a row costs two, by an inverse CDF in two
levels: first a block of the vocabulary, then the entry inside it. A row's result depends on that row alone: no branch
taken for another row changes its bits.

Axes: B rows, V vocabulary, N blocks, W block width, C candidates.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jopsd.models.products import along

BLOCK = 128  # W: a lane width on TPU, and it divides the usual vocabularies
CANDIDATES = 64  # C: rows with 0 < top_k <= C take the cheap two-level path
_INFINITY_BITS = 0x7F800000


@partial(jax.jit, static_argnames="rows_first")
def draw(
    logits: jax.Array,
    keys: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    top_k: jax.Array,
    rows_first: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Draws a token per row.

    Args:
      logits: [V,B] float32.
      keys: [B] typed PRNG keys, one per row.
      temperature: [B] float32; 0 takes the first maximum.
      top_p: [B] float32 in (0, 1]; 1 keeps all.
      top_k: [B] int32; 0 or at least V keeps all. Applied before top_p, which sees the renormalised rest.
      rows_first: how branches are handed the logits; accelerators pad the last axis, so they want the long one there.

    Returns:
      token [B] int32 and its log-prob [B] float32 under the full softmax at the row's temperature (1 where greedy).
    """
    vocab = logits.shape[0]
    greedy = temperature <= 0
    heat = jnp.where(greedy, 1.0, temperature)
    top_p, top_k = jnp.where(greedy, 1.0, top_p), jnp.where(greedy | (top_k <= 0) | (top_k >= vocab), vocab, top_k)
    blocks = _blocks(logits)
    peaks = blocks.max(axis=1)  # [N,B]
    peak = peaks.max(axis=0)
    score = lambda x: (x - peak) / heat  # at most 0, so no overflow  # noqa: E731
    masses = jnp.exp(score(blocks)).sum(axis=1)  # [N,B]
    cuts = (top_p < 1.0) | (top_k < vocab)
    # A row that cuts nothing uses nothing of these branches, so its bits do not depend on whether they run.
    handed = blocks.transpose(2, 0, 1) if rows_first else blocks
    taken = lambda: score(handed.transpose(1, 2, 0) if rows_first else handed)  # noqa: E731
    threshold = jax.lax.cond(
        cuts.any(), lambda: _threshold(taken, score(peaks), top_p, top_k, vocab), lambda: _everything(peak)
    )
    kept_mass = lambda s, limit: jnp.where(s >= limit, jnp.exp(s), 0.0)  # noqa: E731
    kept = jax.lax.cond(cuts.any(), lambda: kept_mass(taken(), threshold).sum(axis=1), lambda: masses)
    uniforms = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
    drawn_block = _pick(jnp.where(cuts, kept, masses), uniforms[:, 0])
    block = jnp.where(greedy, jnp.minimum(_first(peaks == peak), len(peaks) - 1), drawn_block)
    inside = jnp.take_along_axis(blocks, block[None, None], axis=0)[0]  # [W,B]
    scores = score(inside)
    place = jnp.where(greedy, _first(inside == peak), _pick(kept_mass(scores, threshold), uniforms[:, 1]))
    place = jnp.minimum(place, BLOCK - 1)  # NaN logits equal nothing
    chosen = jnp.take_along_axis(scores, place[None], axis=0)[0]
    return jnp.minimum(block * BLOCK + place, vocab - 1), chosen - jnp.log(masses.sum(axis=0))


def _everything(like: jax.Array) -> jax.Array:
    return jnp.full(like.shape, -jnp.inf)


def _first(flags: jax.Array) -> jax.Array:
    """Index of the first True along the first axis, its length if there is none."""
    size = flags.shape[0]
    return jnp.min(jnp.where(flags, along(jnp.arange(size, dtype=jnp.int32), 0, flags.ndim), size), axis=0)


def _blocks(logits: jax.Array) -> jax.Array:
    """[V,B] -> [N,W,B], padded with -inf."""
    padding = -logits.shape[0] % BLOCK
    padded = jnp.pad(logits, ((0, padding), (0, 0)), constant_values=-jnp.inf) if padding else logits
    return padded.reshape(-1, BLOCK, logits.shape[1])


def _pick(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """Index [B] with probability proportional to weights [n,B], by one uniform [B] in [0, 1)."""
    cumulative = jnp.cumsum(weights, axis=0)
    # A parallel prefix sum need not be monotone to the last bit: an entry of weight 0 must be excluded by name.
    hit = (cumulative > uniform * cumulative[-1]) & (weights > 0)
    index = _first(hit)
    heaviest = _first(weights == weights.max(axis=0))
    return jnp.minimum(jnp.where(index < len(weights), index, heaviest), len(weights) - 1)


def _threshold(scores: Callable, peaks: jax.Array, top_p: jax.Array, top_k: jax.Array, vocab: int) -> jax.Array:
    """Smallest score [B] that top-k and top-p keep, -inf for a row that keeps everything.

    scores: gives them [N,W,B], anew in each branch. peaks: their maxima [N,B]. top_k: V where it keeps all.
    """
    cheap = (top_k < vocab) & (top_k <= CANDIDATES)
    general = ~cheap & ((top_k < vocab) | (top_p < 1.0))
    everything = _everything(top_p)
    # Which path a row takes depends on the row alone; the conditions only skip work that no row needs.
    few = jax.lax.cond(cheap.any(), lambda: _threshold_of_candidates(scores(), peaks, top_p, top_k), lambda: everything)
    many = jax.lax.cond(
        general.any(), lambda: _threshold_by_bisection(scores(), top_p, top_k, vocab), lambda: everything
    )
    return jnp.where(cheap, few, jnp.where(general, many, everything))


def _largest(blocks: jax.Array, peaks: jax.Array, count: int) -> jax.Array:
    """The `count` largest scores [B,count], sorted down. Exact: they lie in the `count` blocks of largest maxima."""
    if len(blocks) > count:
        _, where = jax.lax.top_k(peaks.T, count)  # [B,count]
        blocks = jnp.take_along_axis(blocks, where.T[:, None], axis=0)
    return jax.lax.top_k(blocks.reshape(-1, blocks.shape[2]).T, count)[0]


def _threshold_of_candidates(blocks, peaks, top_p: jax.Array, top_k: jax.Array) -> jax.Array:
    """`_threshold` where top_k <= C: top-p needs only the C largest scores."""
    largest = _largest(blocks, peaks, CANDIDATES)  # [B,C]
    at = lambda index: jnp.take_along_axis(largest, index[:, None], axis=-1)  # noqa: E731
    kth = at(jnp.clip(top_k, 1, largest.shape[-1]) - 1)
    mass = jnp.cumsum(jnp.where(largest >= kth, jnp.exp(largest), 0.0), axis=-1)
    nucleus = at(jnp.minimum(_first((mass >= top_p[:, None] * mass[:, -1:]).T), largest.shape[-1] - 1))
    return jnp.where(top_p < 1.0, jnp.maximum(nucleus, kth)[:, 0], kth[:, 0])


def _threshold_by_bisection(blocks: jax.Array, top_p: jax.Array, top_k: jax.Array, vocab: int) -> jax.Array:
    """`_threshold` for any top_k and top_p, without a sort: 31 passes find each limit to the last bit."""
    # Rows first: accelerators want the long axis last.
    scores = blocks.reshape(-1, blocks.shape[2]).T
    # Scores are at most 0, and the bits of a non-negative float order as integers do.
    depth = jax.lax.bitcast_convert_type(jnp.abs(scores), jnp.int32)
    weights = jnp.exp(scores)
    count = lambda limit: jnp.sum(depth <= limit[:, None], axis=1)  # noqa: E731
    mass = lambda limit: jnp.sum(jnp.where(depth <= limit[:, None], weights, 0.0), axis=1)  # noqa: E731
    everything = jnp.full(scores.shape[:1], _INFINITY_BITS, jnp.int32)
    cut = top_k < vocab
    limit = jax.lax.cond(
        cut.any(),
        lambda: jnp.where(cut, _bisect(lambda b: count(b) >= top_k, everything), everything),
        lambda: everything,
    )
    target = top_p * mass(limit)
    nucleus = _bisect(lambda b: mass(b) >= target, limit)
    limit = jnp.where(top_p < 1.0, nucleus, limit)
    return -jax.lax.bitcast_convert_type(limit, jnp.float32)


def _bisect(enough: Callable[[jax.Array], jax.Array], high: jax.Array) -> jax.Array:
    """Smallest int32 [B] in [0, high] for which the monotone `enough` holds; it must hold at `high`."""

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        held = enough(middle)
        return jnp.where(held, low, middle + 1), jnp.where(held, middle, high)

    return jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(high), high))[1]
