"""How well a teacher's score of a rollout tells right rollouts from wrong ones: the eight measures of MOPD's study.

Each is taken over the rollouts of one prompt and then averaged over prompts, for each condition (what the teacher
reads), overall and by bucket of difficulty. A prompt whose rollouts all got one reward says nothing about ranking. Such
prompts are left out of the measures of ranking, and the number of the others is reported. The published code counts
them as 0, and as 1 in the top-1 rate, which moves every average by their share (`one_class="zero"` does the same).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

BUCKETS = ("easy", "medium", "hard")
OneClass = Literal["left_out", "zero"]


class Scored(NamedTuple):
    """One rollout as one teacher scored it.

    score: mean log-probability of the rollout's tokens, nats. prompt_tokens: of what the teacher read.
    effective: whether everything that the condition promises was there to be read.
    """

    condition: str
    prompt_id: str
    rollout_id: str
    score: float
    reward: float
    success: bool
    bucket: str
    prompt_tokens: int
    truncated: bool
    effective: bool


def average_ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1, equal values sharing their mean rank: [N] float64."""
    _, inverse, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse]


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Correlation; 0 where either is constant."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) < 2 or np.all(x == x[0]) or np.all(y == y[0]):
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else 0.0


def spearman(scores: Sequence[float], rewards: Sequence[float]) -> float:
    """Pearson's correlation of the average ranks; 0 where either is constant."""
    return pearson(average_ranks(scores), average_ranks(rewards))


def kendall(scores: Sequence[float], rewards: Sequence[float]) -> float:
    """(concordant - discordant) / (concordant + discordant) over pairs tied in neither."""
    product = _pair_signs(scores) * _pair_signs(rewards)
    agreeing, opposed = np.sum(product > 0), np.sum(product < 0)
    return float((agreeing - opposed) / (agreeing + opposed)) if agreeing + opposed else 0.0


def pairwise_accuracy(scores: Sequence[float], rewards: Sequence[float]) -> float | None:
    """Share of the pairs with different rewards that the scores order the same way, a tie being wrong; None without."""
    order, truth = _pair_signs(scores), _pair_signs(rewards)
    told = truth != 0
    return float(np.mean(order[told] == truth[told])) if told.any() else None


def success_auc(scores: Sequence[float], success: Sequence[bool]) -> float | None:
    """Probability that a success scores above a failure, ties counting half; None where there is only one kind."""
    scores, success = np.asarray(scores, float), np.asarray(success, bool)
    right, wrong = scores[success][:, None], scores[~success][None]
    if not right.size or not wrong.size:
        return None
    return float(np.mean((right > wrong) + 0.5 * (right == wrong)))


def brier_sigmoid(scores: Sequence[float], success: Sequence[bool]) -> float:
    """Mean of (sigmoid(score) - success)^2. A mean log-probability is at most 0, so the forecast is at most 0.5."""
    return _brier(1 / (1 + np.exp(-np.asarray(scores, float))), success)


def brier_minmax(scores: Sequence[float], success: Sequence[bool]) -> float:
    """Brier score of the scores stretched to [0, 1] within the prompt; 0.5 each where they are all equal."""
    scores = np.asarray(scores, float)
    span = np.ptp(scores)
    return _brier((scores - scores.min()) / span if span > 0 else np.full(len(scores), 0.5), success)


def top1_hit(scores: Sequence[float], rewards: Sequence[float], success: Sequence[bool]) -> float:
    """1 where the first of the highest scores belongs to a success or to the highest reward, else 0."""
    best = int(np.argmax(scores))
    return float(bool(success[best]) or rewards[best] == max(rewards))


def prompt_metrics(rows: Sequence[Scored], one_class: OneClass = "left_out") -> dict[str, float | None]:
    """The eight measures of one prompt's rollouts; None where they say nothing about one.

    Reward is what Spearman, Kendall, pairwise accuracy and top-1 rank by; success what AUC and point-biserial do.
    """
    scores, rewards, success = ([getattr(row, name) for row in rows] for name in ("score", "reward", "success"))
    differ, classes = len(set(rewards)) > 1, len(set(success)) > 1
    silent = 0.0 if one_class == "zero" else None
    return {
        "mean_spearman": spearman(scores, rewards) if differ else silent,
        "mean_kendall_tau": kendall(scores, rewards) if differ else silent,
        "pairwise_accuracy": pairwise_accuracy(scores, rewards) if differ else silent,
        "success_auc": success_auc(scores, success) if classes else silent,
        "success_point_biserial": pearson(scores, success) if classes else silent,
        "success_brier_sigmoid": brier_sigmoid(scores, success),
        "success_brier_minmax": brier_minmax(scores, success),
        "top1_hit_rate": top1_hit(scores, rewards, success) if differ or one_class == "zero" else None,
    }


# In the order of tables and figures: key, and its name in words.
METRICS = {
    "mean_spearman": "Spearman",
    "mean_kendall_tau": "Kendall",
    "pairwise_accuracy": "pairwise accuracy",
    "success_auc": "AUC of success",
    "success_point_biserial": "point-biserial",
    "success_brier_sigmoid": "Brier, sigmoid",
    "success_brier_minmax": "Brier, min-max",
    "top1_hit_rate": "top-1 hit rate",
}
LOWER_IS_BETTER = ("success_brier_sigmoid", "success_brier_minmax")


def condition_metrics(rows: Sequence[Scored], one_class: OneClass = "left_out") -> dict:
    """Averages over the prompts of one condition that have two rollouts or more, overall and `by_bucket`.

    count_prompts: those averaged; count_ranked, count_two_class: of them, those whose rewards differ, and those with a
    success and a failure. mean_prompt_length (tokens) and truncation_rate are over their rollouts. A measure without a
    prompt is None.
    """
    prompts = [group for group in _by(rows, "prompt_id").values() if len(group) > 1]
    rollouts = [row for group in prompts for row in group]
    buckets = {bucket: [group for group in prompts if group[0].bucket == bucket] for bucket in BUCKETS}
    return {
        **_averages(prompts, one_class),
        "mean_prompt_length": _mean([row.prompt_tokens for row in rollouts]),
        "truncation_rate": _mean([row.truncated for row in rollouts]),
        "by_bucket": {bucket: _averages(own, one_class) for bucket, own in buckets.items() if own},
    }


def by_condition(rows: Iterable[Scored], one_class: OneClass = "left_out") -> dict[str, dict]:
    """`condition_metrics` of each condition, in the order in which conditions first appear."""
    return {name: condition_metrics(own, one_class) for name, own in _by(rows, "condition").items()}


def paired(rows: Sequence[Scored]) -> list[Scored]:
    """The rows of rollouts that every condition has scored, so that conditions differ in what was read alone.

    The published code pairs prompts. That is the same where every condition has every rollout; where some are left out
    (no peer to show), conditions would be compared on different rollouts of a prompt.
    """
    conditions = {row.condition for row in rows}
    seen: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        seen.setdefault((row.prompt_id, row.rollout_id), set()).add(row.condition)
    return [row for row in rows if seen[row.prompt_id, row.rollout_id] == conditions]


SAMPLE_SETS: dict[str, Callable[[Scored], bool]] = {
    "all": lambda row: True,
    "effective_only": lambda row: row.effective,
    "reward0": lambda row: row.reward == 0,
    "reward0_effective_only": lambda row: row.reward == 0 and row.effective,
}


def study(rows: Sequence[Scored], one_class: OneClass = "left_out") -> dict[str, dict]:
    """By sample set: `conditions` over all its rows, `paired` over the rollouts that all conditions share.

    Sets: all rollouts; effective_only, where the condition's sections were there; and of both, those of reward 0 (all
    of one class: nothing but Brier scores and lengths).
    """
    result = {}
    for name, belongs in SAMPLE_SETS.items():
        own = [row for row in rows if belongs(row)]
        common = paired(own)
        result[name] = {
            "conditions": by_condition(own, one_class),
            "paired": by_condition(common, one_class),
            "paired_prompts": len({row.prompt_id for row in common}),
            "paired_rollouts": len({(row.prompt_id, row.rollout_id) for row in common}),
        }
    return result


def _averages(prompts: Sequence[Sequence[Scored]], one_class: OneClass) -> dict[str, float | int | None]:
    measured = [prompt_metrics(group, one_class) for group in prompts]
    counts = {
        "count_prompts": len(prompts),
        "count_ranked": sum(len({row.reward for row in group}) > 1 for group in prompts),
        "count_two_class": sum(len({row.success for row in group}) > 1 for group in prompts),
    }
    return counts | {key: _mean([own[key] for own in measured if own[key] is not None]) for key in METRICS}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _brier(forecast: np.ndarray, success: Sequence[bool]) -> float:
    return float(np.mean((forecast - np.asarray(success, float)) ** 2))


def _pair_signs(values: Sequence[float]) -> np.ndarray:
    """Sign of value i minus value j for the pairs i < j."""
    values = np.asarray(values, float)
    first, second = np.triu_indices(len(values), 1)
    return np.sign(values[first] - values[second])


def _by(rows: Iterable[Scored], key: str) -> dict[str, list[Scored]]:
    groups: dict[str, list[Scored]] = {}
    for row in rows:
        groups.setdefault(getattr(row, key), []).append(row)
    return groups
