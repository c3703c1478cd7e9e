"""From graded samples to results.json and the table on the terminal."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from eval import language, metrics
from eval.records import RESULTS, Record, write_json
from jopsd.data.problem import Problem
from jopsd.evaluate import Estimate
from jopsd.rewards.grader import Grader

NO_ANSWER = "[No boxed answer found]"
MOST_LABELS = 20  # more values than this are no classes to report apart
Same = Callable[[int, str, str], bool]


def results(
    settings: Mapping,
    problems: Sequence[Mapping],
    grouped: Sequence[Sequence[Record]],
    same: Same,
    detect: language.Detect | None = None,
) -> dict:
    """The content of results.json, with the names that OPSD, PW-OPSD and COPSD give (counts, and `_pct` in percent).

    Args:
      problems: what the folder keeps of each, see `eval.problems.kept`. grouped: per problem, its N records in order of
        sample. same: (row, one, other), whether two answers to a problem are equal, see `majority_correct`.
      detect: tells languages, for answers to problems in one; None leaves that out.

    Beyond the published names: everything after `format_rate`. As there, top_k is -1 when it is off, and what is not
    known of generations that were made elsewhere is null.
    """
    n, count = settings["samples"], len(problems)
    correct = [[r.correct for r in records] for records in grouped]
    predictions = [[r.prediction for r in records] for records in grouped]
    rows = enumerate(zip(predictions, correct, strict=True))
    majority = [metrics.majority_correct(answers, flags, partial(same, row)) for row, (answers, flags) in rows]
    flat = [record for records in grouped for record in records]
    by_name = {
        "pass_at_n": metrics.pass_at_n(correct),
        "average_at_n": metrics.avg_at_n(correct),
        "majority_vote_at_n": metrics.share(majority),
    }
    counts = {"pass_at_n": count, "average_at_n": len(flat), "majority_vote_at_n": count}
    scores = {}
    for name, estimate in by_name.items():
        scores[name] = round(estimate.mean * counts[name])
        scores[f"{name}_pct"] = 100 * estimate.mean
    string = metrics.maj_at_n(predictions, correct, rule="string")
    return {
        "base_model": settings["model"],
        **settings["header"],
        **_sampling(settings),
        "num_problems": count,
        "total_solutions": len(flat),
        **scores,
        "formatted_count": sum(record.formatted for record in flat),
        "format_rate": 100 * sum(record.formatted for record in flat) / len(flat),
        "majority_vote_at_n_method": "clusters_with_invalid",
        "majority_vote_at_n_string": round(string.mean * count),
        "majority_vote_at_n_string_pct": 100 * string.mean,
        "intervals_95_pct": {name: _bounds(e) for name, e in by_name.items()},
        "pass_at_k_pct": {str(k): 100 * metrics.pass_at_k(correct, k) for k in powers_up_to(n)},
        **_bootstrap(correct, n),
        **_lengths(flat),
        "prompts_too_long": sorted({r.problem_id for r in flat if r.finish == "prompt_too_long"}),
        "by_label": _by_label(problems, correct),
        **_languages(settings, grouped, detect),
        "settings": dict(settings),
        "results": [
            _problem(*row, settings["header"].get("language")) for row in zip(problems, grouped, majority, strict=True)
        ],
    }


def write_results(
    folder: Path,
    settings: Mapping,
    rows: Sequence[Mapping],
    records: Mapping[tuple[int, int], Record],
    grader: Grader,
    problems: Sequence[Problem],
) -> None:
    """Writes the results.json of a complete evaluation. rows: as `problems` in `results`; grader: compares answers."""
    grouped = [[records[row, i] for i in range(settings["samples"])] for row in range(len(rows))]
    same = lambda row, one, other: grader.same(problems[row], one, other)  # noqa: E731
    write_json(folder / RESULTS, results(settings, rows, grouped, same, language.detector()))


def table(summary: Mapping) -> str:
    """The numbers of `results` as a few aligned lines."""
    n, low_high = summary["val_n"], summary["intervals_95_pct"]

    def line(label: str, name: str) -> str:
        return f"{label:14}{summary[name + '_pct']:7.2f} %   95 % interval {_range(low_high[name])}"

    lines = [
        f"{summary['num_problems']} problems x {n} samples",
        line(f"Avg@{n}", "average_at_n"),
        line(f"Pass@{n}", "pass_at_n"),
        line(f"Maj@{n}", "majority_vote_at_n"),
        f"{'format rate':14}{summary['format_rate']:7.2f} %",
    ]
    if summary["truncation_rate"] is not None:
        lines.append(f"{'truncated':14}{summary['truncation_rate']:7.2f} %")
    if summary["mean_tokens"] is not None:
        lines.append(f"{'mean length':14}{summary['mean_tokens']:7.1f} tokens")
    if summary["prompts_too_long"]:
        lines.append(f"{'no room':14}{len(summary['prompts_too_long']):7} problems, counted as wrong")
    for label, values in summary["by_label"].items():
        shown = ", ".join(f"{value} {each['average_at_n_pct']:.1f} %" for value, each in values.items())
        lines.append(f"by {label}: {shown}")
    if summary.get("language_consistency_pct", {}) is None:
        lines.append("language consistency: not measured, pip install 'jopsd[language]'")
    for part, share in (summary.get("language_consistency_pct") or {}).items():
        if share is not None:
            lines.append(f"{part} in the language asked in: {share:.1f} %")
    return "\n".join(lines)


def powers_up_to(n: int) -> list[int]:
    """1, 2, 4, ... and n itself."""
    return sorted({1 << i for i in range(n.bit_length()) if 1 << i <= n} | {n})


def _sampling(settings: Mapping) -> dict:
    """The published keys of how samples were drawn; null where that is not known."""
    known = settings.get("temperature") is not None
    return {
        "enable_thinking": settings.get("thinking"),
        "temperature": settings.get("temperature"),
        "top_p": settings.get("top_p"),
        "top_k": (settings["top_k"] or -1) if known else None,
        "min_p": 0.0 if known else None,
        "presence_penalty": 0.0 if known else None,
        "max_new_tokens": settings.get("max_new_tokens"),
        "val_n": settings["samples"],
        "seed": settings["seed"],
    }


def _lengths(flat: Sequence[Record]) -> dict:
    rate = metrics.truncation_rate([record.finish for record in flat])
    lengths = metrics.mean_lengths([record.tokens for record in flat], [record.correct for record in flat])
    return {
        "truncated_count": None if rate is None else sum(record.finish == "length" for record in flat),
        "truncation_rate": None if rate is None else 100 * rate,
        "mean_tokens": lengths.all,
        "mean_tokens_correct": lengths.correct,
        "mean_tokens_wrong": lengths.wrong,
    }


def _bootstrap(correct: metrics.Flags, n: int) -> dict:
    """best@k of verl (SDPO's and MOPD's "pass@k"), which is lower than pass@k: it draws with replacement."""
    return {"best_at_k_pct": {str(k): 100 * metrics.best_at_k(correct, k).mean for k in powers_up_to(n)[1:]}}


def _by_label(problems: Sequence[Mapping], correct: metrics.Flags) -> dict:
    """Avg@N by the values of each label that takes several, such as LiveCodeBench's difficulty."""
    found = {}
    for label in sorted({label for problem in problems for label in problem["labels"]}):
        values = [problem["labels"].get(label, "none") for problem in problems]
        if 1 < len(set(values)) <= MOST_LABELS:
            estimates = metrics.by_label(values, correct)
            found[label] = {value: _estimate(estimates[value], values.count(value)) for value in sorted(estimates)}
    return found


def _languages(settings: Mapping, grouped: Sequence[Sequence[Record]], detect: language.Detect | None) -> dict:
    """Share of answers, thinking and answer apart, in the language that is asked in; null where it cannot be told."""
    if settings["language"] is None:
        return {}
    if detect is None:
        return {"language_consistency_pct": None}
    texts = [[record.completion for record in records] for records in grouped]
    shares = language.consistency(texts, settings["language"], detect, settings.get("thinking"))
    return {
        "language_consistency_pct": {part: None if share is None else 100 * share for part, share in shares.items()}
    }


def _problem(problem: Mapping, records: Sequence[Record], majority: bool, asked_in: str | None) -> dict:
    generations = [
        {
            "predicted_answer": record.prediction or NO_ANSWER,
            "full_generation": record.completion,
            "correct": record.correct,
            "formatted": record.formatted,
            "finish": record.finish,
            "tokens": record.tokens,
        }
        for record in records
    ]
    first = {key: generations[0][key] for key in ("predicted_answer", "full_generation", "correct", "formatted")}
    prompt = {"prompt": problem["prompt"]} if asked_in else {}  # as in COPSD's files, and only there
    return {
        "problem_id": problem["problem_id"],
        "problem": problem["problem"],
        **prompt,
        "ground_truth": problem["ground_truth"],
        **problem["fields"],
        "val_n": len(records),
        "generations": generations,
        "num_correct": sum(record.correct for record in records),
        "pass_at_n": any(record.correct for record in records),
        "majority_vote_correct": majority,
        **first,
    }


def _estimate(estimate: Estimate, problems: int) -> dict:
    return {"problems": problems, "average_at_n_pct": 100 * estimate.mean, "interval_95_pct": _bounds(estimate)}


def _bounds(estimate: Estimate) -> list[float]:
    return [100 * estimate.low, 100 * estimate.high]


def _range(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:.2f} to {bounds[1]:.2f}"
