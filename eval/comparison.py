"""What `compare` says beyond a table: differences from a baseline, best steps, published numbers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from eval import metrics
from eval.read_results import Evaluation, split_label
from eval.scores import AVERAGE, TOKENS, UNGRADED, Row, Table, columns_of, differing, group, pooled, tabulate

MANY = 8  # columns


class Difference(NamedTuple):
    """A row against the baseline on the same problems, in percentage points. better, worse, equal: numbers of problems.

    p_value: of a sign-flip permutation test, two-sided, of one comparison.
    """

    metric: str
    row: str
    baseline: str
    column: str
    difference: float
    low: float
    high: float
    p_value: float
    better: int
    worse: int
    equal: int
    problems: int
    note: str = ""


class Best(NamedTuple):
    """The step of a run at which a metric is highest, and how many steps were looked at."""

    metric: str
    run: str
    column: str
    step: int
    value: float
    steps: int


class Published(NamedTuple):
    """A number from a paper, in percent. samples: its N."""

    paper: str
    model: str
    method: str
    column: str
    metric: str
    value: float
    std: float | None
    samples: int | None
    source: str


class Comparison(NamedTuple):
    """All that `compare` has to say. shared: settings of all evaluations. notes: what differs, and how to read it."""

    rows: list[Row]
    tables: list[Table]
    differences: list[Difference]
    best: list[Best]
    published: list[Published]
    unfinished: list[str]
    shared: list[str]
    notes: list[str]


def compare(
    evaluations: Sequence[Evaluation],
    wanted: Sequence[str] = ("avg",),
    baseline: str | None = None,
    common: bool = False,
    papers: bool = False,
    unfinished: Sequence[str] = (),
) -> Comparison:
    """Everything that the tables say.

    Args:
      wanted: metrics. baseline: name of a row, or a run's label or path. common: where problems differ, compare on
        those that both have. papers: add published numbers.

    Raises:
      ValueError: an unknown metric or baseline, or problems that differ from the baseline's; see `group` too.
    """
    rows = group(evaluations)
    tables = [tabulate(rows, metric) for metric in dict.fromkeys(wanted)]
    shared, notes = differing(rows, majority="maj" in wanted)
    differences = []
    if baseline is not None:
        base = find_baseline(rows, baseline)
        differences = [d for table in tables for d in differences_from(base, rows, table, common)]
    references = published(rows) if papers else []
    silent = [] if references or not papers else ["Published: no number of these models on these benchmarks."]
    return Comparison(
        rows,
        tables,
        differences,
        best_steps(rows, tables),
        references,
        list(unfinished),
        shared,
        [*dict.fromkeys(note for table in tables for note in table.notes), *notes, *silent],
    )


def find_baseline(rows: Sequence[Row], baseline: str) -> Row:
    """The row of that name; else the only one of that label or path. Raises ValueError listing the rows."""
    if by_name := [row for row in rows if row.name == baseline]:
        return by_name[0]
    label, path = split_label(baseline)
    own = [row for row in rows if row.run in (baseline, label) or row.model == baseline]
    if not own and path.exists():
        inside = lambda each: path.resolve() in (each.path.resolve(), *each.path.resolve().parents)  # noqa: E731
        own = [row for row in rows if all(inside(each) for cell in row.cells.values() for each in cell)]
    if len(own) != 1:
        kind = "is several rows" if own else "is no row"
        raise ValueError(f"--baseline {baseline!r} {kind}; the rows are: {'; '.join(row.name for row in own or rows)}")
    return own[0]


def differences_from(base: Row, rows: Sequence[Row], table: Table, common: bool) -> list[Difference]:
    """Paired differences of all other rows from the baseline, in the columns that both have."""
    if table.metric == TOKENS:
        return []
    found = []
    for row in rows:
        for column in table.columns:
            if row is not base and column in row.cells and column in base.cells:
                difference = paired(row, base, column, table.metric, common)
                found += [] if difference is None else [difference]
    return found


def paired(row: Row, base: Row, column: str, metric: str, common: bool) -> Difference | None:
    """Row minus baseline over the problems of a column, matched by id; None where the metric is not known.

    Raises:
      ValueError: the problems or their answers are not the same, and `common` is not set; or none are the same.
    """
    a, b = (_by_id(each, column, metric) for each in (row, base))
    if a is None or b is None:
        return None
    same = [key for key in a if key in b and a[key][0] == b[key][0]]
    note = ""
    if len(same) != len(a) or len(same) != len(b):
        regolded = sum(key in b for key in a) - len(same)
        what = f"{len(a)} problems of {row.name}, {len(b)} of {base.name}, {len(same)} the same in id and answer"
        what += f", {regolded} with the same id but another answer" if regolded else ""
        if not same or not common:
            fix = "compare on those alone with --common" if same else "evaluate both on the same problems"
            raise ValueError(f"{column}: {what}; {fix}")
        note = what
    result = metrics.paired([a[key][1] for key in same], [b[key][1] for key in same])
    points = (100 * value for value in (result.difference, result.low, result.high))
    return Difference(
        metric,
        row.name,
        base.name,
        column,
        *points,
        result.p_value,
        result.better,
        result.worse,
        result.equal,
        len(same),
        note,
    )


def best_steps(rows: Sequence[Row], tables: Sequence[Table]) -> list[Best]:
    """Of every run with several steps, in each column; where there are many, in those that are made of others."""
    best, plain = [], columns_of(rows)
    for table in tables:
        made = [column for column in table.columns if column not in plain]
        for run in dict.fromkeys(row.run for row in rows):
            own = [row for row in rows if row.run == run and row.step is not None]
            for column in made if made and len(table.columns) > MANY else table.columns:
                values = {r.step: table.scores[r.name][column].value for r in own if column in table.scores[r.name]}
                if len(values) > 1 and table.metric not in UNGRADED:
                    step = max(values, key=values.__getitem__)
                    best.append(Best(table.metric, run, column, step, values[step], len(values)))
    return best


def published(rows: Sequence[Row]) -> list[Published]:
    """What papers report of the rows' models, or of what their labels name, whatever their N, and averages."""
    from eval.paper_tables import references

    found: dict[tuple, Published] = {}
    for model in dict.fromkeys(name for row in rows for name in (row.model, row.run)):
        for column in [*columns_of(rows), AVERAGE]:
            for ref in references(model, column):
                name = f"{AVERAGE} ({ref.level})" if column == AVERAGE and ref.level else column
                where = f"{ref.source}, {ref.table}" if ref.table else ref.source
                found[tuple(ref)] = Published(
                    ref.paper, ref.model, ref.method, name, ref.metric, ref.value, ref.std, ref.samples, where
                )
    return list(found.values())


def _by_id(row: Row, column: str, metric: str) -> Mapping[str, tuple[str, list[float]]] | None:
    """Per problem id its answer and the shares of all seeds; None where the metric is not known."""
    cell = row.cells[column]
    shares = pooled(cell, metric)
    if shares is None:
        return None
    ids, golds = cell[0].ids, cell[0].golds
    if len(set(ids)) < len(ids):
        repeated = next(each for i, each in enumerate(ids) if each in ids[:i])
        raise ValueError(f"{cell[0].path} repeats the problem_id {repeated!r}, so problems cannot be matched by it")
    return {key: (gold, own) for key, gold, own in zip(ids, golds, shares, strict=True)}
