"""MOPD's teacher-signal study, what it shows: tables and figures of `signal_metrics.study`."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from eval.analysis.signal_metrics import BUCKETS, LOWER_IS_BETTER, METRICS

COUNTS = ("count_prompts", "count_ranked", "count_two_class")
OVERALL = ("mean_prompt_length", "truncation_rate")
VIEWS = ("conditions", "paired")


def csv_text(result: Mapping) -> str:
    """Every measure by sample set, view (all rollouts, or those that all conditions share), condition and bucket."""
    columns = ("sample_set", "view", "condition", "bucket", *COUNTS, *METRICS, *OVERALL)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rows(result))
    return text.getvalue()


def markdown(result: Mapping, sample_set: str) -> str:
    """Two tables of one sample set: each condition on its own rollouts, and on those that all conditions share."""
    chosen = result[sample_set]
    common = f"{chosen['paired_rollouts']} rollouts of {chosen['paired_prompts']} prompts that all conditions share"
    parts = [f"Sample set: {sample_set}", _table(chosen["conditions"]), f"The same on the {common}"]
    if chosen["paired"]:
        parts.append(_table(chosen["paired"]))
    return "\n\n".join(parts) + "\n"


def draw(conditions: Mapping[str, Mapping], path: Path) -> None:
    """Eight bar charts, one per measure, with a bar per condition. Brier axes are inverted: higher is always better."""
    _draw([("", conditions)], path)


def draw_buckets(conditions: Mapping[str, Mapping], path: Path) -> None:
    """The same, a row of charts for each bucket that has prompts."""
    by_bucket = {
        bucket: {name: own["by_bucket"].get(bucket, {}) for name, own in conditions.items()} for bucket in BUCKETS
    }
    _draw([(bucket, own) for bucket, own in by_bucket.items() if any(own.values())], path, wide=True)


def _rows(result: Mapping) -> Iterator[dict]:
    for sample_set, views in result.items():
        for view in VIEWS:
            for condition, own in views[view].items():
                where = {"sample_set": sample_set, "view": view, "condition": condition}
                yield {**where, "bucket": "", **{key: own[key] for key in (*COUNTS, *METRICS, *OVERALL)}}
                for bucket, measured in own["by_bucket"].items():
                    yield {**where, "bucket": bucket, **measured}


def _table(conditions: Mapping[str, Mapping]) -> str:
    names = [f"{name} ↓" if key in LOWER_IS_BETTER else name for key, name in METRICS.items()]
    head = ["condition", "prompts", "ranked", "two classes", *names, "prompt tokens", "truncated"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name, own in conditions.items():
        numbers = [_number(own[key]) for key in METRICS]
        counts = [str(own[key]) for key in COUNTS]
        lines.append([f"`{name}`", *counts, *numbers, _number(own[OVERALL[0]], 0), _number(own[OVERALL[1]])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _draw(rows: Sequence[tuple[str, Mapping[str, Mapping]]], path: Path, wide: bool = False) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = len(METRICS) if wide else len(METRICS) // 2
    charts = [(bucket, own, key) for bucket, own in rows for key in METRICS]
    names = list(rows[0][1]) if rows else []
    lines = max(len(charts) // columns, 1)
    height = 2.2 * lines + 0.08 * max(map(len, names), default=0)  # names stand upright below the last line
    size = columns * (1.6 + 0.2 * len(names)), height
    figure, axes = pyplot.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False, sharex=True)
    for axis, (bucket, own, key) in zip(axes.flat, charts, strict=False):
        _bars(axis, own, key, f"{METRICS[key]}, {bucket}" if bucket else METRICS[key])
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _bars(axis, conditions: Mapping[str, Mapping], key: str, title: str) -> None:
    values = [own.get(key) for own in conditions.values()]
    places = range(len(values))
    axis.bar(places, [0.0 if value is None else value for value in values], color=[f"C{i % 10}" for i in places])
    for place, value in enumerate(values):
        if value is None:
            axis.text(place, 0, "none", ha="center", va="bottom", fontsize=7, rotation=90)
    axis.set_title(title, fontsize=9)
    axis.set_xticks(places, list(conditions), rotation=90, fontsize=7)
    axis.tick_params(axis="y", labelsize=7)
    axis.axhline(0, color="black", linewidth=0.5)
    if key in LOWER_IS_BETTER:
        axis.invert_yaxis()
