"""Scores by step of a sweep over checkpoints, as lines and as a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from eval.scores import Row, Table

LEGEND = 12  # more lines than this have no room for their names


class Line(NamedTuple):
    """One run on one column. steps ascending; values, low and high in percent, one per step.

    low, high: None without an interval. What is no sweep has its row's name, one value and no step: a level to compare
    with.
    """

    run: str
    column: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None


def lines(rows: Sequence[Row], table: Table) -> list[Line]:
    """Every run on every column, those that are no sweep last. Raises ValueError where no run has two steps."""
    runs = list(dict.fromkeys(row.run for row in rows))
    swept = [run for run in runs if len({row.step for row in rows if row.run == run and row.step is not None}) > 1]
    if not swept:
        raise ValueError("--curves needs a run at several steps: evaluate it with --checkpoints")
    columns = [column for column in table.columns if any(column in table.scores[row.name] for row in rows)]
    found = []
    for run in [*swept, *(run for run in runs if run not in swept)]:
        for column in columns:
            own = [row for row in rows if row.run == run and column in table.scores[row.name]]
            found += _line(run, column, own, table, run in swept)
    return found


def draw(found: Sequence[Line], title: str, path: Path) -> None:
    """A PNG: of one run all columns in one panel; of several runs a panel per column."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = list(dict.fromkeys(line.run for line in found))
    columns = list(dict.fromkeys(line.column for line in found))
    panels = columns if len(runs) > 1 else [title]
    wide = min(len(panels), 3)
    tall = -(-len(panels) // wide)
    figure, axes = pyplot.subplots(tall, wide, figsize=(5 * wide + 1, 4 * tall), squeeze=False, layout="constrained")
    colours = {name: f"C{i % 10}" for i, name in enumerate(runs if len(runs) > 1 else columns)}
    for panel, axis in zip(panels, axes.flat, strict=False):
        own = [line for line in found if len(runs) == 1 or line.column == panel]
        for line in own:
            name = line.run if len(runs) > 1 else line.column
            _plot(axis, line, name, colours[name])
        axis.set(title=panel, xlabel="step", ylabel=title)
        if len(own) <= LEGEND:
            axis.legend(fontsize="small")
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_axis_off()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _line(run: str, column: str, own: Sequence[Row], table: Table, swept: bool) -> list[Line]:
    scores = [table.scores[row.name][column] for row in own if not swept or row.step is not None]
    steps = tuple(row.step for row in own if row.step is not None) if swept else ()
    if not scores:
        return []
    bounded = all(score.low is not None for score in scores)
    low, high = (tuple(getattr(score, side) for score in scores) if bounded else None for side in ("low", "high"))
    return [Line(run if swept else own[0].name, column, steps, tuple(score.value for score in scores), low, high)]


def _plot(axis, line: Line, name: str, colour: str) -> None:
    if not line.steps:
        axis.axhline(line.values[0], linestyle="--", color=colour, label=name)
        return
    axis.plot(line.steps, line.values, marker="o", color=colour, label=name)
    if line.low is not None:
        axis.fill_between(line.steps, line.low, line.high, alpha=0.15, color=colour)
