"""From graded samples to results.json and the table on the terminal."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from eval.metrics import avg_at_n, format_rate, maj_at_n, majority_correct, pass_at_k, pass_at_n, share
from eval.records import Record
from jopsd.data.problem import Problem
from jopsd.prompts import Item

NO_ANSWER = "[No boxed answer found]"


def results(
    settings: Mapping,
    items: Sequence[Item],
    grouped: Sequence[Sequence[Record]],
    same: Callable[[Problem, str, str], bool],
) -> dict:
    """The content of results.json, with the names that OPSD and PW-OPSD give (counts, and `_pct` in percent).

    Args:
      grouped: per item, its N records in order of sample. same: whether two answers to a problem are equal, see
        `majority_correct`.

    Beyond those names: `intervals_95_pct`, `pass_at_k_pct` (unbiased), `majority_vote_at_n_string` (the rule of OPSD
    and COPSD), truncation, mean length and `settings`. As there, top_k is -1 when it is off.
    """
    n, problems = settings["samples"], len(items)
    correct = [[r.correct for r in records] for records in grouped]
    predictions = [[r.prediction for r in records] for records in grouped]
    majority = [
        majority_correct(answers, flags, partial(same, item.problem))
        for item, answers, flags in zip(items, predictions, correct, strict=True)
    ]
    flat = [record for records in grouped for record in records]
    by_name = {
        "pass_at_n": pass_at_n(correct),
        "average_at_n": avg_at_n(correct),
        "majority_vote_at_n": share(majority),
    }
    counts = {"pass_at_n": problems, "average_at_n": len(flat), "majority_vote_at_n": problems}
    scores = {}
    for name, estimate in by_name.items():
        scores[name] = round(estimate.mean * counts[name])
        scores[f"{name}_pct"] = 100 * estimate.mean
    truncated = sum(record.finish == "length" for record in flat)
    return {
        "base_model": settings["model"],
        "dataset": settings["data"],
        "enable_thinking": settings["thinking"],
        "temperature": settings["temperature"],
        "top_p": settings["top_p"],
        "top_k": settings["top_k"] or -1,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "max_new_tokens": settings["max_new_tokens"],
        "val_n": n,
        "seed": settings["seed"],
        "num_problems": problems,
        "total_solutions": len(flat),
        **scores,
        "formatted_count": sum(record.formatted for record in flat),
        "format_rate": 100 * format_rate(predictions),
        "majority_vote_at_n_method": "clusters_with_invalid",
        "majority_vote_at_n_string": round(maj_at_n(predictions, correct, rule="string").mean * problems),
        "intervals_95_pct": {name: [100 * e.low, 100 * e.high] for name, e in by_name.items()},
        "pass_at_k_pct": {str(k): 100 * pass_at_k(correct, k) for k in _powers_up_to(n)},
        "truncated_count": truncated,
        "truncation_rate": 100 * truncated / len(flat),
        "mean_tokens": sum(record.tokens for record in flat) / len(flat),
        "settings": dict(settings),
        "results": [_problem(*row) for row in zip(items, grouped, majority, strict=True)],
    }


def table(summary: Mapping) -> str:
    """The numbers of `results` as a few aligned lines."""
    n, low_high = summary["val_n"], summary["intervals_95_pct"]

    def line(label: str, name: str) -> str:
        return f"{label:14}{summary[name + '_pct']:7.2f} %   95 % interval {_range(low_high[name])}"

    return "\n".join(
        [
            f"{summary['num_problems']} problems x {n} samples",
            line(f"Avg@{n}", "average_at_n"),
            line(f"Pass@{n}", "pass_at_n"),
            line(f"Maj@{n}", "majority_vote_at_n"),
            f"{'format rate':14}{summary['format_rate']:7.2f} %",
            f"{'truncated':14}{summary['truncation_rate']:7.2f} %",
            f"{'mean length':14}{summary['mean_tokens']:7.1f} tokens",
        ]
    )


def _problem(item: Item, records: Sequence[Record], majority: bool) -> dict:
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
    return {
        "problem_id": item.problem.id,
        "problem": item.problem.problem,
        "ground_truth": item.problem.answer,
        "val_n": len(records),
        "generations": generations,
        "num_correct": sum(record.correct for record in records),
        "pass_at_n": any(record.correct for record in records),
        "majority_vote_correct": majority,
        **first,
    }


def _powers_up_to(n: int) -> list[int]:
    return sorted({1 << i for i in range(n.bit_length()) if 1 << i <= n} | {n})


def _range(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:.2f} to {bounds[1]:.2f}"
