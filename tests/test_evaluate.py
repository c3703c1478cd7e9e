"""Held-out accuracy while training: intervals against scipy, numpy and simulation, and what is counted."""

from concurrent.futures import Future

import numpy as np
import pytest

from jopsd.data.problem import Problem
from jopsd.evaluate import clustered_interval, evaluate, wilson_interval
from jopsd.prompts import Item
from jopsd.report import eval_metrics
from jopsd.rewards.score import Score
from jopsd.sampling import Completion, SamplingParams

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


class Answers:
    """A sampler whose n-th sample of a request is the n-th token of its prompt, and whose tokenizer spells digits."""

    def sample(self, requests):
        for request in reversed(requests):
            for index in reversed(range(request.n)):
                ids = np.array([request.prompt_ids[index]], np.int32)
                yield Completion(request.id, index, request.prompt_ids, ids, np.zeros(1), "eos", 0, False)

    def decode(self, ids, skip_special_tokens):
        return "".join(map(str, ids))


def graded(text: str, problem: Problem) -> Future:
    future: Future = Future()
    future.set_result(Score(float(text == problem.answer), text == problem.answer, True, text))
    return future


def test_an_evaluation_while_training_counts_each_source_and_their_plain_mean():
    rows = [("a/x", (1, 2)), ("a/x", (1, 1)), ("a/x", (2, 2)), ("b", (1, 1))]
    problems = [Problem(str(i), "?", answer="1", source=source) for i, (source, _) in enumerate(rows)]
    items = [Item(p, {"student": list(ids)}) for p, (_, ids) in zip(problems, rows, strict=True)]
    found = evaluate(Answers(), items, SamplingParams(4), 2, 0, Answers(), graded)
    assert [[r.text for r in own] for own in found.rollouts] == [["1", "2"], ["1", "1"], ["2", "2"], ["1", "1"]]
    metrics = eval_metrics(found, 2)
    assert metrics["accuracy"] == 5 / 8
    assert metrics["pass_at_2"] == 3 / 4
    assert (metrics["accuracy/a_x"], metrics["accuracy/b"]) == (1 / 2, 1.0)
    assert metrics["accuracy_mean_over_sources"] == 3 / 4
    alone = evaluate(Answers(), items[3:], SamplingParams(4), 1, 0, Answers(), graded)
    assert set(eval_metrics(alone, 1)) == {"accuracy", "accuracy_low", "accuracy_high"}
