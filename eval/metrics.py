"""Accuracy over P problems with N samples each. Pure functions; intervals are 95 %, in shares of 1.

`correct` is one list of N flags per problem. Definitions as in the evaluators of OPSD and PW-OPSD (arXiv 2601.18734).
"""

from collections.abc import Callable, Sequence
from math import comb

from jopsd.evaluate import Estimate, clustered_interval, wilson_interval

Flags = Sequence[Sequence[bool]]
Same = Callable[[str, str], bool]


def avg_at_n(correct: Flags) -> Estimate:
    """Share of correct samples. The interval knows that samples of one problem are alike."""
    return clustered_interval(correct)


def pass_at_n(correct: Flags) -> Estimate:
    """Share of problems with a correct sample among all N."""
    return share([any(flags) for flags in correct])


def pass_at_k(correct: Flags, k: int) -> float:
    """Unbiased pass@k (arXiv 2107.03374, equation 1): chance that k of a problem's samples contain a correct one.

    Raises:
      ValueError: k is not between 1 and the number of samples of every problem.
    """
    fewest = min(len(flags) for flags in correct)
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
    """Share of problems whose majority answer is correct, see `majority_correct`."""
    rows = zip(predictions, correct, strict=True)
    return share([majority_correct(answers, flags, same, rule) for answers, flags in rows])


def format_rate(predictions: Sequence[Sequence[str | None]]) -> float:
    """Share of samples with an answer; an empty box is one."""
    flat = [prediction is not None for answers in predictions for prediction in answers]
    return sum(flat) / len(flat)


def share(flags: Sequence[bool]) -> Estimate:
    """Share of true flags, with Wilson's interval."""
    return wilson_interval(sum(flags), len(flags))


def _alike(one: str | None, other: str | None, same: Same) -> bool:
    if one is None or other is None:
        return one is other
    return same(one, other) or same(other, one)
