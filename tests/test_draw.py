"""Drawing one token per row, against numpy oracles and the chi-square distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jopsd.sampling import draw as drawing

DRAWS = 8_000


def draw(logits, *arguments):
    """The draw from logits [B,V]; the sampler's own have the vocabulary first."""
    return drawing.draw(jnp.asarray(logits).T, *arguments)


def softmax(x):
    e = np.exp(np.asarray(x, np.float64) - np.max(x))
    return e / e.sum()


def nucleus_mask(logits, temperature, top_p, top_k):
    """The tokens that may be drawn, by sorting in float64; ties with the last kept token are kept."""
    scaled = np.asarray(logits, np.float64) / temperature
    kept = np.ones(len(scaled), bool)
    if 0 < top_k < len(scaled):
        kept = scaled >= np.sort(scaled)[-top_k]
    if top_p < 1:
        p = np.where(kept, softmax(scaled), 0)
        p /= p.sum()
        order = np.argsort(-p)
        smallest = p[order[np.searchsorted(np.cumsum(p[order]), top_p)]]
        kept &= p >= smallest
    return kept


def draw_many(logits, temperature, top_p=1.0, top_k=0, draws=DRAWS, seed=0):
    """`draws` tokens and log-probs of one row of logits."""
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (draws, len(logits)))
    keys = jax.random.split(jax.random.key(seed), draws)
    full = lambda value, dtype: jnp.full((draws,), value, dtype)  # noqa: E731
    tokens, logprobs = draw(
        rows, keys, full(temperature, jnp.float32), full(top_p, jnp.float32), full(top_k, jnp.int32)
    )
    return np.asarray(tokens), np.asarray(logprobs)


def random_logits(size, seed=0, spread=2.0):
    return np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)


def chi_square_p(tokens, probabilities):
    """p-value of the counts, with cells of fewer than 5 expected draws merged."""
    counts, expected = np.bincount(tokens, minlength=len(probabilities)), probabilities * len(tokens)
    assert counts[expected == 0].sum() == 0, "a token of probability 0 was drawn"
    small = (expected < 5) & (expected > 0)
    big = expected >= 5
    observed = np.append(counts[big], counts[small].sum())
    wanted = np.append(expected[big], expected[small].sum())
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    return stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue


@pytest.mark.parametrize("vocab", [2, 128, 300])
def test_draws_follow_the_softmax_at_the_temperature(vocab):
    logits = random_logits(vocab)
    for temperature in (1.0, 0.6):
        tokens, _ = draw_many(logits, temperature)
        assert chi_square_p(tokens, softmax(logits / temperature)) > 1e-3


@pytest.mark.parametrize(
    ("top_p", "top_k"),
    [(0.9, 0), (0.3, 0), (1.0, 5), (1.0, 64), (1.0, 65), (1.0, 200), (0.8, 20), (0.5, 100), (1e-6, 0)],
)
def test_truncated_draws_follow_the_renormalised_kept_set(top_p, top_k):
    logits = random_logits(300, seed=1)
    tokens, _ = draw_many(logits, 0.8, top_p, top_k)
    kept = np.where(nucleus_mask(logits, 0.8, top_p, top_k), softmax(logits / 0.8), 0)
    expected = kept / kept.sum()
    if (expected > 0).sum() == 1:
        assert set(tokens) == {int(expected.argmax())}
    else:
        assert chi_square_p(tokens, expected) > 1e-3


def test_the_kept_set_is_exact_for_many_random_rows_at_once():
    generator = np.random.default_rng(2)
    rows, vocab = 40, 150
    logits = np.round(generator.normal(0, 1.5, (rows, vocab)), 1).astype(np.float32)  # rounding makes ties
    temperature = generator.uniform(0.5, 2, rows).astype(np.float32)
    top_p = np.where(generator.random(rows) < 0.5, generator.uniform(0.05, 0.95, rows), 1).astype(np.float32)
    top_k = np.where(generator.random(rows) < 0.6, generator.integers(1, vocab + 20, rows), 0).astype(np.int32)
    seen = np.zeros((rows, vocab), int)
    for seed in range(400):
        keys = jax.random.split(jax.random.key(seed), rows)
        tokens, _ = draw(logits, keys, temperature, top_p, top_k)
        seen[np.arange(rows), np.asarray(tokens)] += 1
    for row in range(rows):
        kept = nucleus_mask(logits[row], temperature[row], top_p[row], top_k[row])
        assert not seen[row][~kept].any(), f"row {row} drew a token outside its set"
        share = np.where(kept, softmax(logits[row] / temperature[row]), 0)
        likely = share / share.sum() > 0.03  # missed in 400 draws with probability below 1e-5
        assert seen[row][likely].all(), f"row {row} never drew a likely token of its set"


@pytest.mark.parametrize("top_k", [1, 63, 64, 65, 299])
def test_top_k_keeps_exactly_k_tokens(top_k):
    logits = np.random.default_rng(3).permutation(300).astype(np.float32) * 1e-4  # all different, nearly uniform
    tokens, _ = draw_many(logits, 1.0, 1.0, top_k, draws=5000)
    assert set(tokens) == set(np.argsort(-logits)[:top_k])


def test_ties_with_the_last_kept_token_are_kept():
    logits = np.array([1.0, 1.0, 0.0, 1.0, -3.0], np.float32)
    assert set(draw_many(logits, 1.0, 1.0, 2, draws=500)[0]) == {0, 1, 3}
    assert set(draw_many(logits, 1.0, 0.4, 0, draws=500)[0]) == {0, 1, 3}


def test_top_p_sees_what_top_k_left_renormalised():
    logits = np.log(np.array([0.4, 0.2, 0.15, 0.15, 0.1], np.float32))
    # Of the whole, 0.4 + 0.2 < 0.65, so the third, and its tie; of the two that top-k leaves, 2/3 >= 0.65, so one.
    assert set(draw_many(logits, 1.0, 0.65, 0, draws=500)[0]) == {0, 1, 2, 3}
    assert set(draw_many(logits, 1.0, 0.65, 2, draws=500)[0]) == {0}


def test_logprobs_are_of_the_full_softmax_at_the_temperature_even_when_truncated():
    logits = random_logits(300, seed=4)
    for temperature, top_p, top_k in ((1.0, 1.0, 0), (0.7, 0.5, 0), (1.8, 0.9, 10), (0.01, 1.0, 0)):
        tokens, logprobs = draw_many(logits, temperature, top_p, top_k, draws=200)
        scaled = logits.astype(np.float64) / temperature
        expected = (scaled - scaled.max()) - np.log(np.exp(scaled - scaled.max()).sum())
        np.testing.assert_allclose(logprobs, expected[tokens], rtol=2e-6, atol=2e-5)


def test_temperature_zero_takes_the_first_maximum_with_its_logprob_at_temperature_one():
    logits = np.array([0.5, 3.0, 3.0, -1.0], np.float32)
    tokens, logprobs = draw_many(logits, 0.0, 0.2, 1, draws=10)
    assert set(tokens) == {1}
    np.testing.assert_allclose(logprobs, np.log(softmax(logits)[1]), atol=1e-6)


def test_tokens_with_logit_minus_infinity_are_never_drawn():
    logits = np.full(300, -np.inf, np.float32)
    logits[[5, 130, 299]] = [0.0, 1.0, 2.0]
    for top_p, top_k in ((1.0, 0), (0.999, 0), (1.0, 10), (1.0, 100)):
        assert set(draw_many(logits, 1.0, top_p, top_k, draws=500)[0]) == {5, 130, 299}


def test_a_row_draws_the_same_bits_whatever_its_neighbours_ask_for():
    rows, vocab = 6, 200
    logits = np.stack([random_logits(vocab, seed) for seed in range(rows)])
    keys = jax.random.split(jax.random.key(5), rows)
    settings = [(1.0, 1.0, 0), (0.5, 0.9, 0), (1.0, 0.8, 20), (1.3, 1.0, 100), (0.0, 1.0, 0), (1.0, 0.5, 150)]
    columns = lambda chosen: [np.array(c, t) for c, t in zip(zip(*chosen, strict=True), "ffi", strict=True)]  # noqa: E731
    mixed_tokens, mixed_logprobs = map(np.asarray, draw(logits, keys, *columns(settings)))
    for row, setting in enumerate(settings):
        alone_tokens, alone_logprobs = map(np.asarray, draw(logits, keys, *columns([setting] * rows)))
        assert alone_tokens[row] == mixed_tokens[row]
        assert alone_logprobs[row].tobytes() == mixed_logprobs[row].tobytes()


def test_a_real_vocabulary_size_keeps_its_nucleus():
    logits = random_logits(151_936, seed=6)
    for top_p, top_k in ((0.95, 20), (0.1, 0), (1.0, 0)):
        tokens, _ = draw_many(logits, 0.6, top_p, top_k, draws=32)
        assert nucleus_mask(logits, 0.6, top_p, top_k)[tokens].all()
