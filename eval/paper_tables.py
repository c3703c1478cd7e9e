"""The result tables of the papers, as data: to set a run beside them, and to print them.

`python -m eval.paper_tables` prints them as Markdown; docs/paper_tables.md holds that print and says how each paper
measured. The numbers are in paper_tables.csv, one a line, with the source in which it was read.
"""

import argparse
import csv
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

PATH = Path(__file__).with_name("paper_tables.csv")
START, END = "<!-- tables: start, printed by python -m eval.paper_tables -->", "<!-- tables: end -->"


class Row(NamedTuple):
    """One published number; an empty string or None where the source says nothing.

    Args:
      arxiv: the paper's id. version: of the paper, or README where the number is in the code's README.
      table: where in the source the number stands. model: the model that was trained or sampled.
      method: `base` is that model untrained. language, level: of a part of a benchmark; of an `average`, level names
        the group of benchmarks.
      value, std: in percent. samples: answers per problem. source: where the number was read.
    """

    paper: str
    arxiv: str
    version: str
    table: str
    model: str
    method: str
    benchmark: str
    language: str
    level: str
    metric: str
    value: float
    std: float | None
    samples: int | None
    notes: str
    source: str


def read(path: Path = PATH) -> list[Row]:
    """The rows of a csv with the columns of `Row`, in its order.

    Raises:
      ValueError: other columns, or a value that is no number, with its line.
    """
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        if tuple(lines.fieldnames or ()) != Row._fields:
            raise ValueError(f"{path}: the columns are {lines.fieldnames}, not {list(Row._fields)}")
        return [_row(fields, f"{path}, line {lines.line_num}") for fields in lines]


def _row(fields: dict, place: str) -> Row:
    if None in fields or None in fields.values():
        raise ValueError(f"{place}: it needs {len(Row._fields)} fields, one a column; quote a text with a comma in it")
    try:
        value = float(fields["value"])
        std = float(fields["std"]) if fields["std"] else None
        samples = int(fields["samples"]) if fields["samples"] else None
    except ValueError as error:
        raise ValueError(f"{place}: value, std and samples must be numbers: {error}") from None
    return Row(**{**fields, "value": value, "std": std, "samples": samples})


def references(model: str, benchmark: str, metric: str | None = None, rows: Iterable[Row] | None = None) -> list[Row]:
    """What the papers report for a model on a benchmark, of all methods, `base` among them.

    Args:
      model: a hub id, a name or a path; the last component counts, without its case, `-` and `_`.
      benchmark: a part's name as in `settings.benchmark`, such as aime24 or afrimgsm-swa; `average` for all averages.
      metric: such as avg@12, where mean@12 is the same; None for any. best@k (bootstrap) is not pass@k.
    """
    wanted = None if metric is None else _same_metric(metric)
    return [
        row
        for row in (read() if rows is None else rows)
        if _same_model(row.model) == _same_model(model)
        and benchmark in {_part(row), "average" if row.benchmark == "average" else None}
        and wanted in {None, _same_metric(row.metric)}
    ]


def _same_model(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower().replace("-", "").replace("_", "")


def _same_metric(name: str) -> str:
    return name.replace("mean@", "avg@")


def _part(row: Row) -> str:
    return "-".join(filter(None, (row.benchmark, row.language, row.level)))


def markdown(rows: Sequence[Row]) -> str:
    """One table per table of a source: a line per model and method, a column per part of a benchmark and metric."""
    tables = groupby(rows, key=lambda row: (row.paper, row.arxiv, row.version, row.table))
    return "\n\n".join(_table(list(group)) for _, group in tables)


def _table(rows: Sequence[Row]) -> str:
    first, metrics = rows[0], _distinct(row.metric for row in rows)
    columns = _distinct((_part(row), row.metric) for row in rows)
    names = {key: key[0] if len(metrics) == 1 else " ".join(key) for key in columns}
    digits = max(_decimals(row.value) for row in rows)  # as many as the source prints
    cells = {(row.model, row.method, _part(row), row.metric): _text(row.value, row.std, digits) for row in rows}
    lines = [["model", "method", *names.values()], ["---", "---", *["---:"] * len(columns)]]
    for model, method in _distinct((row.model, row.method) for row in rows):
        lines.append([model, method, *(cells.get((model, method, *key), "") for key in columns)])
    version = "" if first.version in ("", "README") else first.version
    title = f"### {first.paper} (arXiv {first.arxiv}{version}), {first.table}"
    title += f": {metrics[0]}" if len(metrics) == 1 else ""
    below = "Read in: " + "; ".join(_distinct(row.source for row in rows)) + "."
    notes = _notes(rows, names)
    below += f" Notes: {notes}." if notes else ""
    return "\n".join([title, "", *("| " + " | ".join(line) + " |" for line in lines), "", below])


def _text(value: float, std: float | None, digits: int) -> str:
    return f"{value:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def _decimals(value: float) -> int:
    return len(repr(value).partition(".")[2])


def _notes(rows: Sequence[Row], names: dict) -> str:
    """The notes of a table, each with the column it is about where that is one of several."""
    told = []
    for note in _distinct(note for row in rows for note in row.notes.split("; ") if note):
        about = _distinct(names[_part(row), row.metric] for row in rows if note in row.notes.split("; "))
        told.append(f"{about[0]}: {note}" if len(about) == 1 < len(names) else note)
    return "; ".join(told)


def _distinct(values: Iterable) -> list:
    return list(dict.fromkeys(values))


def between_markers(text: str, tables: str) -> str:
    """A document with its tables replaced, which stand between the two marker lines.

    Raises:
      ValueError: a marker is missing.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"the document needs the lines {START!r} and {END!r}")
    return f"{before}{START}\n\n{tables}\n\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.paper_tables", description=__doc__.partition("\n")[0])
    parser.add_argument("--into", type=Path, metavar="FILE", help="a Markdown file with both markers, to write it in")
    into = parser.parse_args(arguments).into
    tables = markdown(read())
    if into is None:
        print(tables)
    else:
        into.write_text(between_markers(into.read_text(encoding="utf-8"), tables), encoding="utf-8")


if __name__ == "__main__":
    main()
