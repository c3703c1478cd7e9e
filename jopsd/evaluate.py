"""Held-out accuracy: N samples per problem, graded, with an interval that knows samples of one problem are alike."""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from jopsd.lengths import Lengths
from jopsd.preemption import Notice
from jopsd.prompts import Item
from jopsd.rollouts import Grade, Rollout, gather_rollouts, sample_rollouts
from jopsd.sampling.sampler import Sampler, SamplingParams

Z95 = 1.959963984540054


class Estimate(NamedTuple):
    """A mean in [0, 1] with its 95 % interval."""

    mean: float
    low: float
    high: float


def wilson_interval(successes: int, trials: int) -> Estimate:
    """Share of independent successes with the Wilson score interval. No trials: 0 with the interval [0, 1]."""
    if trials == 0:
        return Estimate(0.0, 0.0, 1.0)
    p, z2 = successes / trials, Z95**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    return Estimate(p, max(centre - half, 0.0), min(centre + half, 1.0))


def clustered_interval(correct: Sequence[Sequence[bool]]) -> Estimate:
    """Mean over problems of each problem's share correct, with problems as clusters. No problems: as no trials.

    Args:
      correct: per problem, one flag per sample, of all seeds together. One sample each is Wilson's interval; more is a
        normal interval from the spread between problems. Where that spread says nothing it is Wilson's: over problems
        where all samples of each agree, over samples where all problems have the same share.

    Raises:
      ValueError: a problem without samples.
    """
    if empty := [i for i, flags in enumerate(correct) if not len(flags)]:
        raise ValueError(f"problem {empty[0]} has no samples")
    shares = [float(np.mean(flags)) for flags in correct]
    if all(share in (0.0, 1.0) for share in shares):
        return wilson_interval(int(sum(shares)), len(shares))
    if len(shares) > 1 and len(set(shares)) == 1:
        return wilson_interval(sum(map(sum, correct)), sum(map(len, correct)))
    half = Z95 * float(np.std(shares, ddof=1)) / math.sqrt(len(shares)) if len(shares) > 1 else 1.0
    mean = float(np.mean(shares))
    return Estimate(mean, max(mean - half, 0.0), min(mean + half, 1.0))


class Evaluated(NamedTuple):
    """accuracy: over samples, problems as clusters. solved: problems with a correct sample. by_source: accuracies of
    each source, where there are several. rollouts: all samples, per problem.
    """

    accuracy: Estimate
    solved: Estimate
    by_source: dict[str, Estimate]
    rollouts: list[list[Rollout]]


def evaluate(
    sampler: Sampler,
    items: Sequence[Item],
    params: SamplingParams,
    samples: int,
    seed: int,
    tokenizer,
    grade: Grade,
    notice: Notice | None = None,
    lengths: Lengths | None = None,
) -> Evaluated:
    """Accuracy of the sampler's policy on the items, each sampled so many times. The seed decides every draw.

    All processes of a run call it, and share the work. lengths: of earlier evaluations; learns those of this one.

    Raises:
      Preempted: the run was told to end.
    """
    notice = notice or Notice()
    lengths = lengths or Lengths()
    own = partial(sample_rollouts, sampler, items, params, samples, (seed,), tokenizer, grade, notice, lengths)
    flat = gather_rollouts(own, items, notice)
    lengths.learn((r.item.problem, len(r.completion_ids)) for r in flat)
    grouped = [flat[i * samples : (i + 1) * samples] for i in range(len(items))]
    correct = [[r.score.correct for r in rollouts] for rollouts in grouped]
    sources: dict[str, list[list[bool]]] = {}
    for item, flags in zip(items, correct, strict=True):
        sources.setdefault(item.problem.source, []).append(flags)
    return Evaluated(
        clustered_interval(correct),
        wilson_interval(sum(map(any, correct)), len(correct)),
        {name: clustered_interval(own) for name, own in sources.items()} if len(sources) > 1 else {},
        grouped,
    )
