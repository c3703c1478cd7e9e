"""What the published evaluators and validation loops computed from graded samples, against `eval.metrics`."""

import re
from collections.abc import Iterator
from functools import cache

from eval import metrics
from jopsd.rewards.boxed import last_boxed
from jopsd.rewards.math import grade

NO_ANSWER = "[No boxed answer found]"
# Of the summary, what follows from the samples; the rest repeats settings.
SCORES = ("pass_at_n", "pass_at_n_pct", "average_at_n", "average_at_n_pct", "majority_vote_at_n")
SCORES += ("majority_vote_at_n_pct", "formatted_count", "format_rate", "num_problems", "total_solutions")


def eval_aggregation(document: dict) -> list[str]:
    """Scores of each evaluator of OPSD, PW-OPSD and COPSD; PW-OPSD's alone has samples without an answer vote."""
    return [fault for name, run in document["runs"].items() for fault in _faults_of_run(name, run)]


def passk_table(document: dict[str, float]) -> list[str]:
    """Unbiased pass@k of c correct among n."""
    faults = []
    for name, published in document.items():
        setting = re.fullmatch(r"n(\d+)_c(\d+)_k(\d+)", name)
        if not setting:
            raise NotImplementedError(f"entry {name}")
        n, c, k = map(int, setting.groups())
        ours = metrics.pass_at_k([[True] * c + [False] * (n - c)], k)
        if abs(ours - published) > 1e-12:
            faults.append(f"{name}: {ours}, published {published}")
    return faults


def validation_metrics_mopd(document: dict) -> list[str]:
    """verl's numbers, to the last digit."""
    drawn = {"n": metrics.BOOTSTRAP_DRAWS, "seed": metrics.BOOTSTRAP_SEED, "replace": True}
    if document["bootstrap"] != drawn:
        raise NotImplementedError(f"bootstrap {document['bootstrap']}")
    pairs = ((name, _verl(name, document["acc"]), published) for name, published in document["result"].items())
    return [f"{name}: {ours}, published {published}" for name, ours, published in pairs if ours != published]


validation_metrics_rlcsd = validation_metrics_mopd


def _verl(name: str, acc: list[list[float]]) -> float:
    setting = re.fullmatch(r"(?P<kind>mean|std|best|worst)@(?P<k>\d+)(/(?P<part>mean|std))?", name)
    if not setting:
        raise NotImplementedError(f"metric {name}")
    kind, k = setting["kind"], int(setting["k"])
    if kind in ("mean", "std"):
        if {len(flags) for flags in acc} != {k}:
            raise NotImplementedError(f"metric {name} of other than {k} samples")
        return metrics.avg_at_n(acc).mean if kind == "mean" else metrics.std_at_n(acc)
    drawn = {"best": metrics.best_at_k, "worst": metrics.worst_at_k}[kind](acc, k)
    return getattr(drawn, setting["part"])


def _faults_of_run(name: str, run: dict) -> Iterator[str]:
    """Extraction where the texts are there, each problem's count and majority, and the summary."""
    problems, rule = run["per_problem"], "invalid" if name.startswith("pwopsd") else "string"
    answers = [_answers(problem) for problem in problems]
    for problem, own in zip(problems, answers, strict=True):
        read = own if problem["generations"] is None else [last_boxed(text) for text in problem["generations"]]
        majority = metrics.majority_correct(own, problem["correct"], _same, rule)
        counts = sum(problem["correct"]), any(problem["correct"])
        if read != own:
            yield f"{name}, {problem['name']}: read {read}, published {own}"
        if (*counts, majority) != tuple(problem[key] for key in ("num_correct", "pass_at_n", "majority_vote_correct")):
            yield f"{name}, {problem['name']}: {counts}, majority {majority}"
    for key, ours in _summary([problem["correct"] for problem in problems], answers, rule).items():
        if abs(ours - run["summary"][key]) > 1e-9:
            yield f"{name}, {key}: {ours}, published {run['summary'][key]}"


def _summary(correct: list[list[bool]], answers: list[list[str | None]], rule: str) -> dict[str, float]:
    problems, samples = len(correct), sum(map(len, correct))
    solved, average = metrics.pass_at_n(correct).mean, metrics.avg_at_n(correct).mean
    majority, formatted = metrics.maj_at_n(answers, correct, _same, rule).mean, metrics.format_rate(answers)
    values = (problems * solved, 100 * solved, samples * average, 100 * average, problems * majority, 100 * majority)
    return dict(zip(SCORES, (*values, samples * formatted, 100 * formatted, problems, samples), strict=True))


def _answers(problem: dict) -> list[str | None]:
    """None without a box; the published sentinel of a box that is there is an empty one."""
    pairs = zip(problem["predicted"], problem["formatted"], strict=True)
    return [None if not formatted else "" if answer == NO_ANSWER else answer for answer, formatted in pairs]


@cache
def _same(one: str, other: str) -> bool:
    return bool(other) and grade(one, other).correct
