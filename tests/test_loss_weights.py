"""Token weights, position ramps, hint marginals and policy-gradient pieces against plain loops."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopsd.losses import (
    clipped_surrogate,
    group_advantages,
    k_marginal,
    position_weights,
    rollout_weights,
    token_weights,
)

HOLES = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1]])


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_position_weights_have_the_published_values():
    ramp = partial(position_weights, w_min=0.25, tau=0.3, s=0.1)
    long = np.asarray(ramp(np.ones((1, 20000), int)))[0]
    mean = 0.25 + 0.75 * 0.1 * (math.log1p(math.exp(7)) - math.log1p(math.exp(-3)))
    assert long[0] == pytest.approx(0.286, abs=5e-4)
    assert long[-1] == pytest.approx(0.9993, abs=5e-5)
    assert long.mean() == pytest.approx(mean, abs=1e-5)
    assert mean == pytest.approx(0.771, abs=5e-4)
    assert float(ramp(np.ones((1, 1), int))[0, 0]) == pytest.approx(0.911, abs=5e-4)


def test_position_weights_count_valid_tokens_only_wherever_they_stand(x64):
    def loop(row):
        length, seen, weights = sum(row), 0, []
        for valid in row:
            seen += valid
            f = (seen - 0.5) / max(length, 1)
            weights.append((0.25 + 0.75 / (1 + math.exp(-(f - 0.3) / 0.1))) if valid else 0)
        return weights

    mask = HOLES.astype(np.float64)
    ours = position_weights(mask, 0.25, 0.3, 0.1)
    np.testing.assert_allclose(ours, [loop(row) for row in HOLES], rtol=1e-12)
    padded = position_weights(np.pad(mask, ((0, 1), (3, 4))), 0.25, 0.3, 0.1)
    np.testing.assert_array_equal(padded[:4, 3:8], ours)
    np.testing.assert_array_equal(position_weights(mask, 1.0, 0.3, 0.1), mask)
    np.testing.assert_array_equal(position_weights(np.ones((1, 4)), 0.0, 0.5, 0.0), [[0, 0, 1, 1]])


@pytest.mark.parametrize("options", [(1.5, 0.3, 0.1), (0.2, -0.1, 0.1), (0.2, 0.3, -0.1)])
def test_a_ramp_outside_its_domain_is_refused(options):
    with pytest.raises(ValueError, match="must"):
        position_weights(HOLES, *options)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "sequence_sum", "sequence_sum_norm"])
def test_each_reduction_equals_a_loop_over_rows(x64, reduction):
    losses = np.random.default_rng(0).normal(size=HOLES.shape)
    rows = [row[mask == 1] for row, mask in zip(losses, HOLES, strict=True) if mask.any()]
    want = {
        "token_mean": np.concatenate(rows).mean(),
        "sequence_mean": np.mean([row.mean() for row in rows]),
        "sequence_sum": np.mean([row.sum() for row in rows]),
        "sequence_sum_norm": np.mean([row.sum() / HOLES.shape[1] for row in rows]),
    }[reduction]
    weights = token_weights(HOLES.astype(np.float64), reduction)
    assert float((weights * losses).sum()) == pytest.approx(want, rel=1e-13)
    np.testing.assert_array_equal(np.asarray(weights)[HOLES == 0], 0)
    np.testing.assert_array_equal(token_weights(0 * HOLES, reduction), 0.0)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="unknown reduction 'mean'"):
        token_weights(HOLES, "mean")


def test_k_marginal_is_the_log_of_the_mean_probability_over_valid_hints(x64):
    logprobs = np.log(np.random.default_rng(0).uniform(0.01, 1, (3, 4, 5)))
    valid = np.array([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]])
    ours = k_marginal(np.where(valid[..., None] == 1, logprobs, np.nan), valid)
    for row, hints in enumerate(valid[:2]):
        np.testing.assert_allclose(ours[row], np.log(np.exp(logprobs[row][hints == 1]).mean(0)), rtol=1e-13)
    np.testing.assert_array_equal(ours[2], 0)
    gradient = jax.grad(lambda x: k_marginal(x, valid).sum())(logprobs)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient.sum(1)[:2], 1, rtol=1e-12)


@pytest.mark.parametrize("normalize_std", [True, False])
@pytest.mark.parametrize("eps", [1e-6, 0.0])
def test_group_advantages_equal_a_loop_over_interleaved_groups(x64, normalize_std, eps):
    rewards = np.array([1.0, 0.1, 0.0, 0.7, 1.0, 0.1, 0.3, 0.1])
    group = np.array([7, 2, 7, -1, 7, 2, 4, 2])  # sizes 3, 3 (equal rewards), 1, 1
    want = np.empty(8)
    for i, reward in enumerate(rewards):
        mine = rewards[group == group[i]]
        centred = reward - mine.mean() if len(mine) > 1 else reward
        std = mine.std(ddof=1) if len(mine) > 1 else 1.0
        centred = 0.0 if np.ptp(mine) == 0 and len(mine) > 1 else centred
        want[i] = centred / (std + eps) if normalize_std and centred else centred
    ours = np.asarray(group_advantages(rewards, group, normalize_std, eps))
    np.testing.assert_allclose(ours, want, rtol=1e-12)
    np.testing.assert_array_equal(ours[group == 2], 0)


@pytest.mark.parametrize("eps", [1e-6, 0.0])
def test_equal_rewards_give_advantages_of_exactly_zero_in_float32(eps):
    rewards = np.float32([0.1] * 7 + [1e6 + 0.5] * 5)
    ours = group_advantages(rewards, np.int32([0] * 7 + [1] * 5), eps=eps)
    np.testing.assert_array_equal(ours, 0)


def brute_surrogate(ratio, advantage, low, high, dual):
    """(loss, gradient in the log-probability) by cases."""
    clipped = min(max(ratio, 1 - low), 1 + high)
    loss, active = (
        (-ratio * advantage, True) if ratio * advantage <= clipped * advantage else (-clipped * advantage, False)
    )
    if dual is not None and advantage < 0 and loss > -advantage * dual:
        loss, active = -advantage * dual, False
    return loss, -ratio * advantage if active else 0.0


@pytest.mark.parametrize("dual", [None, 3.0])
def test_the_clipped_surrogate_and_its_gradient_equal_the_definition_by_cases(x64, dual):
    ratios = np.array([0.05, 0.79, 0.81, 0.99, 1.01, 1.27, 1.29, 2.9, 3.1, 50.0])
    ratio, advantage = (x.ravel() for x in np.meshgrid(ratios, [-2.0, -0.5, 0.0, 0.5, 2.0]))
    old = np.full(ratio.shape, -1.3)
    loss = lambda lp: clipped_surrogate(lp, old, advantage, 0.2, 0.28, dual)  # noqa: E731
    want, want_gradient = np.transpose(
        [brute_surrogate(*x, 0.2, 0.28, dual) for x in zip(ratio, advantage, strict=True)]
    )
    np.testing.assert_allclose(loss(np.log(ratio) + old), want, rtol=1e-12)
    np.testing.assert_allclose(jax.grad(lambda x: loss(x).sum())(np.log(ratio) + old), want_gradient, atol=1e-12)


def test_an_absurd_ratio_stays_finite():
    value, gradient = jax.value_and_grad(clipped_surrogate)(
        jnp.float32(0), jnp.float32(-500), jnp.float32(-1), 0.2, 0.2
    )
    assert float(value) == pytest.approx(math.exp(20), rel=1e-5)
    assert float(gradient) == 0


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("threshold", [None, 2.0, (0.5, 2.0)])
@pytest.mark.parametrize("normalize", [False, True])
def test_rollout_weights_equal_a_loop_over_tokens(x64, level, threshold, normalize):
    rng = np.random.default_rng(0)
    mask = np.concatenate([HOLES] * 3)
    trainer, sampler = -rng.uniform(0, 2, mask.shape), -rng.uniform(0, 2, mask.shape)
    want = np.zeros(mask.shape)
    for b, t in np.argwhere(mask):
        picked = [t] if level == "token" else np.flatnonzero(mask[b])
        weight = math.exp(sum(trainer[b, i] - sampler[b, i] for i in picked))
        if isinstance(threshold, tuple):
            weight = weight if threshold[0] <= weight <= threshold[1] else 0.0
        want[b, t] = weight if threshold is None or isinstance(threshold, tuple) else min(weight, threshold)
    if normalize:
        rows = [want[b][mask[b] == 1] for b in range(len(want)) if mask[b].any()]
        want /= np.concatenate(rows).mean() if level == "token" else np.mean([row.mean() for row in rows])
    trainer, sampler = (np.where(mask == 1, x, np.nan) for x in (trainer, sampler))
    ours = rollout_weights(trainer, sampler, mask, level, threshold, normalize)
    np.testing.assert_allclose(ours, want, rtol=1e-12)
    assert len(np.unique(np.round(want, 6))) > 2, "the case must exercise the threshold"


def test_rollout_weights_of_an_empty_or_wholly_rejected_batch_are_zero_and_a_bad_level_is_refused():
    logprobs = np.zeros(HOLES.shape, np.float32)
    np.testing.assert_array_equal(rollout_weights(logprobs, logprobs, 0 * HOLES, batch_normalize=True), 0)
    rejected = rollout_weights(logprobs + 5, logprobs, HOLES, threshold=(0.5, 2.0), batch_normalize=True)
    np.testing.assert_array_equal(rejected, 0)
    with pytest.raises(ValueError, match="'token' or 'sequence'"):
        rollout_weights(logprobs, logprobs, HOLES, level="row")


def test_rollout_weights_are_constants():
    logprobs = np.zeros(HOLES.shape, np.float32)
    gradient = jax.grad(lambda x: rollout_weights(x, logprobs, HOLES).sum())(logprobs)
    np.testing.assert_array_equal(gradient, 0)
