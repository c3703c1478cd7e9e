"""What an analysis leaves behind: table.csv, table.md, summary.json and figure.png."""

import csv
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from eval.records import write_json
from jopsd.tracking import replace_text

Row = Mapping[str, object]


def write_tables(folder: Path, rows: Sequence[Row], summary: Mapping, note: str | None = None) -> str:
    """Writes the rows (all with the same keys) as csv and Markdown, and the summary. Returns the Markdown.

    note: what stands below the table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "table.csv", rows)
    text = markdown(rows) + (f"\n\n{note}" if note else "")
    replace_text(folder / "table.md", text + "\n")
    write_json(folder / "summary.json", dict(summary))
    return text


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Rows, all with the same keys, under a line with these; None is empty."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table; numbers on the right, "–" for None."""
    columns = list(rows[0])
    numeric = [any(isinstance(row[name], int | float) for row in rows) for name in columns]
    lines = [columns, ["---:" if right else "---" for right in numeric]]
    lines += [[cell(row[name]) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def figure(path: Path, columns: int = 1, rows: int = 1, size: tuple[float, float] = (4.5, 3.2)):
    """Axes [rows][columns] to draw on, saved at the end. size: of each, in inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made, axes = pyplot.subplots(
        rows, columns, figsize=(columns * size[0], rows * size[1]), layout="constrained", squeeze=False
    )
    try:
        yield axes
        made.savefig(path, dpi=120)
    finally:
        pyplot.close(made)
