"""Scores of P problems with N samples each. Pure functions; shares are of 1 and intervals are 95 %.

`correct` is one list of N flags per problem. Scores between 0 and 1 may stand for flags, except in `pass_at_k` and the
majorities. N may differ between problems only where a docstring says so. Definitions as in the evaluators of OPSD and
PW-OPSD (arXiv 2601.18734), and of verl, which SDPO, MOPD and RLCSD use, for what is drawn with replacement.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from math import comb
from typing import NamedTuple

import numpy as np

from jopsd.evaluate import Z95, Estimate, clustered_interval, wilson_interval

Flags = Sequence[Sequence[bool]]
Same = Callable[[str, str], bool]

BOOTSTRAP_DRAWS, BOOTSTRAP_SEED = 1000, 42  # verl's, and what makes its numbers come out to the digit
LEVEL_WEIGHTS = {"low": 1, "medium": 2, "high": 4, "top": 8}
EXACT_UP_TO = 16  # differing problems whose signs are all enumerated
TIE = 1e-9  # differences and sums closer than this are equal


class Spread(NamedTuple):
    """A mean with a standard deviation; None where there is too little for one."""

    mean: float
    std: float | None


class Average(NamedTuple):
    """A mean with its standard error; None where there is too little for one."""

    mean: float
    error: float | None


class Lengths(NamedTuple):
    """Mean lengths; None where there are no samples of the kind."""

    all: float | None
    correct: float | None
    wrong: float | None


class Paired(NamedTuple):
    """Model a less model b: the difference of Avg@N with its interval and p-value, and problems counted by sign."""

    difference: float
    low: float
    high: float
    p_value: float
    better: int
    worse: int
    equal: int


# ----------------------------------------------------------------------------------------------------- one benchmark


def avg_at_n(correct: Flags) -> Estimate:
    """Mean over problems of each one's share of correct samples. N may differ.

    The interval knows that samples of one problem are alike; for several seeds see `pool_seeds`.

    Raises:
      ValueError: a problem without samples.
    """
    return clustered_interval(correct)


def pass_at_n(correct: Flags) -> Estimate:
    """Share of problems with a correct sample among all N."""
    return share([any(flags) for flags in correct])


def pass_at_k(correct: Flags, k: int) -> float:
    """Unbiased pass@k (arXiv 2107.03374, equation 1): chance that k of a problem's samples contain a correct one.

    N may differ.

    Raises:
      ValueError: no problems, or k is not between 1 and the number of samples of every problem.
    """
    fewest = min(map(len, _some(correct)))
    if not 1 <= k <= fewest:
        raise ValueError(f"pass@{k} needs k between 1 and the number of samples, {fewest}")
    missed = [comb(len(flags) - sum(flags), k) / comb(len(flags), k) for flags in correct]
    return 1.0 - sum(missed) / len(missed)


def majority_correct(
    predictions: Sequence[str | None], correct: Sequence[bool], same: Same | None = None, rule: str = "invalid"
) -> bool:
    """Whether one problem's majority answer is correct. None is a sample without an answer.

    rule "invalid" (PW-OPSD): in order, each answer joins the first cluster whose first member is the `same`, in either
    direction; samples without an answer are a cluster too, and the problem is wrong if that one wins.
    rule "string" (OPSD, COPSD): equal strings are one answer, and samples without one are left out.
    The largest cluster wins, of equals the one that came first, and counts as its first member was graded.

    Raises:
      ValueError: an unknown rule, or rule "invalid" without `same`.
    """
    if rule == "string":
        same = lambda one, other: one == other  # noqa: E731
    elif rule != "invalid" or same is None:
        raise ValueError(f"majority rule {rule!r} is not 'string', nor 'invalid' with `same`")
    first, sizes = [], []
    for i, prediction in enumerate(predictions):
        if prediction is None and rule == "string":
            continue
        joined = (c for c, member in enumerate(first) if _alike(prediction, predictions[member], same))
        if (cluster := next(joined, None)) is None:
            first.append(i)
            sizes.append(1)
        else:
            sizes[cluster] += 1
    if not first:
        return False
    winner = first[sizes.index(max(sizes))]
    return predictions[winner] is not None and bool(correct[winner])


def maj_at_n(
    predictions: Sequence[Sequence[str | None]], correct: Flags, same: Same | None = None, rule: str = "invalid"
) -> Estimate:
    """Share of problems whose majority answer is correct, see `majority_correct`. N may differ."""
    rows = zip(predictions, correct, strict=True)
    return share([majority_correct(answers, flags, same, rule) for answers, flags in rows])


def format_rate(predictions: Sequence[Sequence[str | None]]) -> float:
    """Share of samples with an answer; an empty box is one. Raises ValueError without samples."""
    flat = [prediction is not None for answers in predictions for prediction in answers]
    return sum(_some(flat, "samples")) / len(flat)


def truncation_rate(finishes: Sequence[str | None]) -> float | None:
    """Share of samples that ended at the limit of their length, of those whose end is known. None if none is."""
    known = [finish == "length" for finish in finishes if finish is not None]
    return sum(known) / len(known) if known else None


def mean_length(lengths: Sequence[float]) -> float | None:
    """Mean, or None of nothing."""
    return sum(lengths) / len(lengths) if lengths else None


def mean_lengths(lengths: Sequence[float | None], correct: Sequence[bool]) -> Lengths:
    """Mean length of all samples, of correct ones and of wrong ones; a length that is None is left out."""
    rows = [(n, flag) for n, flag in zip(lengths, correct, strict=True) if n is not None]
    means = (mean_length([n for n, flag in rows if flag == right]) for right in (True, False))
    return Lengths(mean_length([n for n, _ in rows]), *means)


def by_label(labels: Sequence[Hashable], correct: Flags) -> dict[Hashable, Estimate]:
    """Avg@N of the problems with each label, such as LiveCodeBench's difficulty, in order of first appearance.

    N may differ. Raises ValueError where there is not one label per problem.
    """
    groups: dict[Hashable, list[Sequence[bool]]] = {}
    for label, flags in zip(labels, correct, strict=True):
        groups.setdefault(label, []).append(flags)
    return {label: avg_at_n(own) for label, own in groups.items()}


def share(flags: Sequence[bool]) -> Estimate:
    """Share of true flags, with Wilson's interval."""
    return wilson_interval(sum(flags), len(flags))


# --------------------------------------------------------------------------------------- drawn with replacement (verl)


def best_at_k(correct: Flags, k: int) -> Spread:
    """verl's best@k: the best of k samples drawn with replacement, mean and deviation over 1,000 draws of each problem.

    SDPO, MOPD and RLCSD call it pass@k, but at k = N it lies below: about 1 - (1 - c/N)^k, see `expected_best_at_k`.
    The deviation is the mean of the problems' own. N may differ.

    Raises:
      ValueError: no problems, a problem without samples, or k < 1.
    """
    return _bootstrap([(flags, lambda drawn: drawn.max(axis=1)) for flags in correct], k)


def worst_at_k(correct: Flags, k: int) -> Spread:
    """verl's worst@k: as `best_at_k`, with the worst of the k."""
    return _bootstrap([(flags, lambda drawn: drawn.min(axis=1)) for flags in correct], k)


def maj_at_k(predictions: Sequence[Sequence[Hashable]], correct: Flags, k: int) -> Spread:
    """verl's maj@k: of k samples drawn with replacement the most frequent string, as its first sample was graded.

    Of equals the one drawn first wins. None, no answer, is a string like any other. Otherwise as `best_at_k`.
    """
    rows = []
    for answers, flags in zip(predictions, correct, strict=True):
        if len(answers) != len(flags):
            raise ValueError(f"a problem has {len(answers)} predictions and {len(flags)} flags")
        number = {answer: i for i, answer in enumerate(dict.fromkeys(answers))}
        rows.append(([(number[answer], flag) for answer, flag in zip(answers, flags, strict=True)], _majority))
    return _bootstrap(rows, k)


def expected_best_at_k(correct: Flags, k: int) -> float:
    """What `best_at_k` estimates: the mean over problems of 1 - (1 - c/N)^k. Flags only; N may differ."""
    return 1.0 - sum((1 - c) ** k for c in _shares(_some(correct))) / len(correct)


def expected_worst_at_k(correct: Flags, k: int) -> float:
    """What `worst_at_k` estimates: the mean over problems of (c/N)^k. Flags only; N may differ."""
    return sum(c**k for c in _shares(_some(correct))) / len(correct)


def std_at_n(correct: Flags) -> float:
    """verl's std@N: mean over problems of the deviation between a problem's samples, with ddof 0. N may differ."""
    _shares(_some(correct))
    return float(np.mean([np.std(flags) for flags in correct]))


# ------------------------------------------------------------------------------------ several seeds, several benchmarks


def over_seeds(values: Sequence[float]) -> Spread:
    """Mean of one value per seed, with the sample deviation (ddof 1), as PW-OPSD's tables have it.

    Raises:
      ValueError: no values.
    """
    mean = sum(_some(values, "seeds")) / len(values)
    return Spread(float(mean), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def pool_seeds(by_seed: Sequence[Flags]) -> list[list[bool]]:
    """All seeds' samples of each problem together, so that an interval takes them as one cluster.

    Raises:
      ValueError: the seeds have different numbers of problems.
    """
    counts = [len(correct) for correct in by_seed]
    if len(set(counts)) > 1:
        raise ValueError(f"seeds of one benchmark need the same problems, in one order; they have {counts}")
    return [[flag for flags in own for flag in flags] for own in zip(*by_seed, strict=True)]


def standard_error(correct: Flags) -> float | None:
    """Of Avg@N, from the spread between problems: sqrt(var(c/N) / P). None for a single problem. N may differ."""
    shares = _shares(_some(correct))
    return float(np.std(shares, ddof=1)) / math.sqrt(len(shares)) if len(shares) > 1 else None


def average(scores: Sequence[Average]) -> Average:
    """Unweighted mean over benchmarks. Their problems differ, so errors are independent: sqrt(sum of squares) / number.

    Raises:
      ValueError: no scores.
    """
    count, errors = len(_some(scores, "benchmarks")), [each.error for each in scores]
    error = None if None in errors else math.hypot(*errors) / count
    return Average(sum(each.mean for each in scores) / count, error)


def difficulty_weighted(shares: Mapping[str, float], rounding: bool = False) -> float:
    """PolyMath's DW-ACC of one language (arXiv 2504.18428): (low + 2 medium + 4 high + 8 top) / 15, a share.

    rounding: as its script does, each level to a tenth of a percent first, and the result again.

    Raises:
      ValueError: a level is missing or unknown, by name.
    """
    missing = [level for level in LEVEL_WEIGHTS if level not in shares]
    unknown = [level for level in shares if level not in LEVEL_WEIGHTS]
    if missing or unknown:
        what = f"lacks {', '.join(missing)}" if missing else f"does not know {', '.join(unknown)}"
        raise ValueError(f"DW-ACC {what}: it needs the levels {', '.join(LEVEL_WEIGHTS)}")
    rounded = (lambda percent: round(percent, 1)) if rounding else (lambda percent: percent)
    weighted = sum(weight * rounded(100 * shares[level]) for level, weight in LEVEL_WEIGHTS.items())
    return rounded(weighted / sum(LEVEL_WEIGHTS.values())) / 100


# -------------------------------------------------------------------------------------------------- two models


def paired(correct_a: Flags, correct_b: Flags, seed: int = 0) -> Paired:
    """Two models on the same problems, in one order; N may differ between problems and models.

    The interval is the normal one of the per-problem differences (arXiv 2411.00640, section 4.2), within [-1, 1]. Where
    all problems differ alike that spread says nothing: then a share of problems up to Wilson's bound for what was never
    seen may differ in any way. A single problem leaves [-1, 1].

    Args:
      seed: of the p-value, see `sign_flip_p_value`.

    Raises:
      ValueError: different numbers of problems, no problems, or a problem without samples.
    """
    if len(correct_a) != len(correct_b):
        raise ValueError(f"pairs need the same problems: {len(correct_a)} of the one, {len(correct_b)} of the other")
    differences = np.subtract(_shares(_some(correct_a)), _shares(correct_b))
    count, mean = len(differences), float(differences.mean())
    if count == 1:
        low, high = -1.0, 1.0
    elif np.ptp(differences) <= TIE:
        unseen = wilson_interval(0, count).high
        low, high = mean - unseen * (1 + mean), mean + unseen * (1 - mean)
    else:
        half = Z95 * float(differences.std(ddof=1)) / math.sqrt(count)
        low, high = max(mean - half, -1.0), min(mean + half, 1.0)
    better, worse = int((differences > TIE).sum()), int((differences < -TIE).sum())
    return Paired(mean, low, high, sign_flip_p_value(differences, seed), better, worse, count - better - worse)


def sign_flip_p_value(differences: Sequence[float], seed: int = 0, draws: int = 100_000) -> float:
    """Two-sided: how often the sum is at least as far from 0 when each difference has a random sign.

    Exact where at most EXACT_UP_TO differ from 0, all signs being tried; otherwise from so many draws of the seed, the
    observed signs counted among them. 1.0 where none differs.
    """
    moved = np.asarray(differences, np.float64)
    moved = moved[np.abs(moved) > TIE]
    as_far = lambda sums: np.abs(sums) >= abs(moved.sum()) - TIE  # noqa: E731
    if len(moved) <= EXACT_UP_TO:
        sums = np.zeros(1)
        for difference in moved:
            sums = np.concatenate([sums + difference, sums - difference])
        return float(as_far(sums).mean())
    generator, block, hits = np.random.default_rng(seed), 10_000, 0
    for start in range(0, draws, block):
        kept = generator.integers(0, 2, (min(block, draws - start), len(moved)), np.int8)
        hits += int(as_far(2 * (kept @ moved) - moved.sum()).sum())
    return (1 + hits) / (1 + draws)


# ------------------------------------------------------------------------------------------------------------- inside


def _alike(one: str | None, other: str | None, same: Same) -> bool:
    if one is None or other is None:
        return one is other
    return same(one, other) or same(other, one)


def _some(rows: Sequence, what: str = "problems") -> Sequence:
    if not len(rows):
        raise ValueError(f"there are no {what} to average over")
    return rows


def _shares(correct: Flags) -> list[float]:
    for i, flags in enumerate(correct):
        if not len(flags):
            raise ValueError(f"problem {i} has no samples")
    return [float(np.mean(flags)) for flags in correct]


def _bootstrap(rows: Sequence[tuple[Sequence, Callable[[np.ndarray], np.ndarray]]], k: int) -> Spread:
    """rows: per problem its N samples, and what makes [draws] numbers of [draws, k, ...] drawn samples.

    The stream is verl's: seeded anew for each problem, and read draw by draw.
    """
    if k < 1:
        raise ValueError(f"k = {k} is no number of samples to draw: use 1 or more")
    means, stds = [], []
    for i, (samples, reduce) in enumerate(_some(rows)):
        if not len(samples):
            raise ValueError(f"problem {i} has no samples")
        generator = np.random.RandomState(BOOTSTRAP_SEED)
        drawn = generator.choice(len(samples), (BOOTSTRAP_DRAWS, k), replace=True)
        values = reduce(np.asarray(samples, np.float64)[drawn])
        means.append(values.mean())
        stds.append(values.std())
    return Spread(float(np.mean(means)), float(np.mean(stds)))


def _majority(drawn: np.ndarray) -> np.ndarray:
    """Values of the winners of [draws, k, (number of the answer, value)]."""
    answers, values = drawn[..., 0], drawn[..., 1]
    sizes = (answers[:, :, None] == answers[:, None, :]).sum(axis=2)
    return values[np.arange(len(values)), sizes.argmax(axis=1)]  # the first of the largest class that came first
