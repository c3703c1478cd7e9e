"""python -m eval compare: tables over models, checkpoints, seeds and benchmarks, and differences from a baseline."""

import argparse
import csv
import io
import json
from collections.abc import Callable, Sequence

from eval.comparison import Comparison, Difference, compare
from eval.curves import draw, lines
from eval.read_results import find
from eval.scores import METRICS, TABLE_WIDE, TOKENS, Score, Table
from jopsd.paths import path_argument
from jopsd.tracking import replace_text

FORMATS = ("markdown", "csv", "json")
SMALLEST_P = 0.0001
WIDEST = 8  # more columns than this, and than rows, are written as lines
READING = (
    "Percent (95 % interval). Over several seeds: mean ± sample standard deviation of the seeds, and an interval that "
    "takes all samples of a problem as one cluster."
)
OPTIMISTIC = (
    "Choosing the best step by its score on these problems makes that score optimistic: choose on other problems, or "
    "report a step that was fixed beforehand."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m eval compare`."""
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="the --output of an evaluation or a results.json; NAME=PATH labels it")
    add("--format", choices=FORMATS, default="markdown")
    add(
        "--metric",
        nargs="+",
        default=("avg", "pass", "maj"),
        metavar="NAME",
        help=f"{', '.join(METRICS)}, pass@K, best@K",
    )
    add("--baseline", metavar="ROW", help="name of the row, or the RUN, that the others are compared with")
    add("--common", action="store_true", help="compare on the problems that both have, where they do not have the same")
    add("--papers", action="store_true", help="published numbers of the same model and benchmarks")
    add("--output", type=path_argument, metavar="FILE", help="write the tables there too")
    add("--curves", type=path_argument, metavar="FILE.png", help="plot the first metric by step of a run")


def main(argv: Sequence[str]) -> str:
    """`python -m eval compare` with these arguments. Raises ValueError or OSError on bad input, named."""
    parser = argparse.ArgumentParser(
        prog="python -m eval compare", description="Tables over models, checkpoints, seeds and benchmarks."
    )
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> str:
    """Reads, compares, writes the files asked for, and returns the text."""
    found = find(args.runs)
    comparison = compare(
        found.evaluations, args.metric, args.baseline, args.common, args.papers, unfinished=found.unfinished
    )
    text = RENDERED[args.format](comparison)
    if args.curves is not None:
        draw(lines(comparison.rows, comparison.tables[0]), comparison.tables[0].title, args.curves)
    if args.output is not None:
        replace_text(args.output, text + "\n")
    return text


def markdown(comparison: Comparison) -> str:
    """Tables with their footnotes."""
    blocks = [_table(table) for table in comparison.tables]
    notes = [READING]
    if comparison.shared:
        notes.append("All: " + ", ".join(comparison.shared) + ".")
    blocks.append("\n".join(f"- {note}" for note in [*notes, *comparison.notes]))
    if comparison.differences:
        blocks += [_differences(comparison.differences)]
    if comparison.best:
        blocks += [_best(comparison)]
    if comparison.published:
        blocks += [_published(comparison)]
    if comparison.unfinished:
        blocks.append("Unfinished, not in the tables:\n\n" + "\n".join(f"- {line}" for line in comparison.unfinished))
    return "\n\n".join(blocks)


def to_csv(comparison: Comparison) -> str:
    """One line per number, in full precision; what does not apply is empty. Differences stand beside their row."""
    differences = {(d.metric, d.row, d.column): d for d in comparison.differences}
    out = io.StringIO()
    against = ("baseline", *DIFFERENCE)
    fields = ["metric", "row", "run", "model", "step", "column", *SCORE, *TABLE_WIDE, "majority_rule", *against]
    writer = csv.DictWriter(out, fields, lineterminator="\n")
    writer.writeheader()
    for table in comparison.tables:
        for row in comparison.rows:
            for column, score in table.scores[row.name].items():
                line = {"metric": table.metric, "row": row.name, "run": row.run, "model": row.model, "step": row.step}
                line |= {"column": column, **_score(score)}
                if column in row.cells:
                    first = row.cells[column][0]
                    line |= {key: first.settings.get(key) for key in TABLE_WIDE} | {
                        "majority_rule": first.majority_rule
                    }
                if difference := differences.get((table.metric, row.name, column)):
                    line |= {key: getattr(difference, field) for key, field in DIFFERENCE.items()}
                    line["baseline"] = difference.baseline
                writer.writerow(line)
    return out.getvalue().rstrip("\n")


def to_json(comparison: Comparison) -> str:
    """Everything, in full precision."""
    rows = [
        {
            "name": row.name,
            "run": row.run,
            "model": row.model,
            "step": row.step,
            "files": {column: [str(each.path) for each in cell] for column, cell in row.cells.items()},
            "settings": {
                column: dict(cell[0].settings) | {"majority_rule": cell[0].majority_rule}
                for column, cell in row.cells.items()
            },
            "scores": {
                table.metric: {column: _score(each) | {"by_seed": _by_seed(each)} for column, each in own.items()}
                for table in comparison.tables
                for own in [table.scores[row.name]]
            },
        }
        for row in comparison.rows
    ]
    value = {
        "rows": rows,
        "titles": {table.metric: table.title for table in comparison.tables},
        "differences": [each._asdict() for each in comparison.differences],
        "best_steps": [each._asdict() for each in comparison.best],
        "published": [each._asdict() for each in comparison.published],
        "unfinished": comparison.unfinished,
        "shared_settings": comparison.shared,
        "notes": [READING, *comparison.notes, *([OPTIMISTIC] if comparison.best else [])],
    }
    return json.dumps(value, indent=2, ensure_ascii=False)


RENDERED: dict[str, Callable[[Comparison], str]] = {"markdown": markdown, "csv": to_csv, "json": to_json}
SCORE = ("value", "low", "high", "std", "seeds", "problems", "samples")
DIFFERENCE = {
    "difference": "difference",
    "difference_low": "low",
    "difference_high": "high",
    "p_value": "p_value",
    "better": "better",
    "worse": "worse",
    "equal": "equal",
    "common_problems": "problems",
}


def _score(score: Score) -> dict:
    return {key: len(score.by_seed) or None if key == "seeds" else getattr(score, key) for key in SCORE}


def _by_seed(score: Score) -> dict[str, float]:
    return {"none" if seed is None else str(seed): value for seed, value in score.by_seed.items()}


def _table(table: Table) -> str:
    """One metric; a wide table lies on its side."""
    cells = {
        name: [_cell(own.get(column), table.metric) for column in table.columns] for name, own in table.scores.items()
    }
    if len(table.columns) > max(WIDEST, len(cells)):
        lines = [[column, *(own[i] for own in cells.values())] for i, column in enumerate(table.columns)]
        head = [table.title, *cells]
    else:
        lines = [[name, *own] for name, own in cells.items()]
        head = [table.title, *table.columns]
    return _grid(head, lines)


def _cell(score: Score | None, metric: str) -> str:
    if score is None:
        return "-"
    text = f"{score.value:.1f}" if metric == TOKENS else f"{score.value:.2f}"
    text += "" if score.std is None else f" ± {score.std:.2f}"
    return text if score.low is None else f"{text} ({score.low:.1f} to {score.high:.1f})"


def _differences(differences: Sequence[Difference]) -> str:
    lines = [
        [
            each.row,
            each.column,
            each.metric,
            f"{each.difference:+.2f} ({each.low:+.2f} to {each.high:+.2f})",
            f"{each.p_value:.4f}" if each.p_value >= SMALLEST_P else f"< {SMALLEST_P}",
            f"{each.better} / {each.worse} / {each.equal}",
        ]
        for each in differences
    ]
    head = ["row", "on", "metric", "points (95 % interval)", "p", "problems better / worse / equal"]
    notes = ["Paired by problem; p of a sign-flip permutation test"]
    notes[0] += f", not corrected for {len(lines)} comparisons." if len(lines) > 1 else "."
    notes += list(dict.fromkeys(f"{each.column}: {each.note}." for each in differences if each.note))
    title = f"Difference from {differences[0].baseline}"
    return f"{title}\n\n{_grid(head, lines)}\n\n" + "\n".join(f"- {note}" for note in notes)


def _best(comparison: Comparison) -> str:
    lines = [
        [each.run, each.column, each.metric, str(each.step), f"{each.value:.2f}", str(each.steps)]
        for each in comparison.best
    ]
    return f"Best step\n\n{_grid(['run', 'on', 'metric', 'step', 'score', 'of steps'], lines)}\n\n- {OPTIMISTIC}"


def _published(comparison: Comparison) -> str:
    lines = [
        [
            each.paper,
            each.model,
            each.method,
            each.column,
            each.metric,
            f"{each.value:.2f}" + ("" if each.std is None else f" ± {each.std:.2f}"),
            "-" if each.samples is None else str(each.samples),
            each.source,
        ]
        for each in comparison.published
    ]
    head = ["paper", "model", "method", "on", "metric", "value", "N", "source"]
    return (
        f"Published\n\n{_grid(head, lines)}\n\n"
        "- With the papers' own samples, settings and graders; see docs/paper_tables.md before comparing."
    )


def _grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned so that it can be read on a terminal too."""
    cells = [[text.replace("|", "\\|") for text in line] for line in [head, *lines]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    rows = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    rows.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(rows)
