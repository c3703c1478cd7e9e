"""Intervals of the held-out accuracy against scipy, numpy and simulation."""

import numpy as np
import pytest

from jopsd.evaluate import clustered_interval, wilson_interval

# Newcombe, Statistics in Medicine 17 (1998), table I: the score method without continuity correction.
NEWCOMBE = [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]


@pytest.mark.parametrize(("successes", "trials", "low", "high"), NEWCOMBE)
def test_wilson_gives_the_published_intervals(successes, trials, low, high):
    estimate = wilson_interval(successes, trials)
    assert estimate.mean == successes / trials
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (low, high)


def test_wilson_agrees_with_scipy_everywhere():
    stats = pytest.importorskip("scipy.stats")
    for trials in (1, 2, 7, 30, 500):
        for successes in range(trials + 1):
            estimate = wilson_interval(successes, trials)
            known = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
            np.testing.assert_allclose((estimate.low, estimate.high), (known.low, known.high), atol=1e-12)


def test_no_trials_is_no_knowledge():
    assert wilson_interval(0, 0) == clustered_interval([]) == (0.0, 0.0, 1.0)


def test_one_sample_per_problem_is_wilson():
    flags = [[True]] * 7 + [[False]] * 3
    assert clustered_interval(flags) == wilson_interval(7, 10)


@pytest.mark.parametrize("seed", range(3))
def test_several_samples_give_the_normal_interval_of_the_problem_means(seed):
    flags = np.random.default_rng(seed).random((12, 4)) < 0.5
    shares = flags.mean(axis=1)
    error = np.sqrt(((shares - shares.mean()) ** 2).sum() / 11) / np.sqrt(12)
    estimate = clustered_interval(flags.tolist())
    half = 1.959963984540054 * error
    np.testing.assert_allclose(estimate, (shares.mean(), shares.mean() - half, shares.mean() + half), rtol=1e-12)


def test_problems_whose_samples_all_agree_count_once():
    assert clustered_interval([[True] * 8] * 3 + [[False] * 8] * 2) == wilson_interval(3, 5)
    assert clustered_interval([[True] * 8] * 5) == wilson_interval(5, 5)


def test_equal_shares_that_are_neither_none_nor_all_are_not_taken_for_certainty():
    assert clustered_interval([[True, False]] * 5) == wilson_interval(5, 10)


def test_one_problem_says_next_to_nothing():
    estimate = clustered_interval([[True, False, False]])
    assert estimate.mean == pytest.approx(1 / 3) and (estimate.low, estimate.high) == (0.0, 1.0)


def test_the_interval_stays_within_zero_and_one():
    estimate = clustered_interval([[True] * 4] * 9 + [[True, True, True, False]])
    assert estimate.low > 0.9 and estimate.high == 1.0


def test_it_covers_the_truth_about_95_times_in_100_where_samples_of_a_problem_are_alike():
    key, hits = np.random.default_rng(0), 0
    for _ in range(400):
        difficulty = key.beta(0.5, 0.5, size=(60, 1))
        estimate = clustered_interval((key.random((60, 4)) < difficulty).tolist())
        hits += estimate.low <= 0.5 <= estimate.high
    assert 0.92 < hits / 400 < 0.98
