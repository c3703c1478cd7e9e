"""From evaluations to tables: rows are models or checkpoints, columns benchmark parts. Pure functions, in percent."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

from eval import metrics
from eval.benchmarks import BENCHMARKS
from eval.read_results import LEVELS, SAMPLING, STRING, Evaluation, split_column

Flags = list[list[float]]
TOKENS = "tokens"
MOST_PLACES = 4  # commas in a list that is better left unsaid
UNGRADED = ("format", "truncated", TOKENS)  # metrics that say nothing of right and wrong
DW, MEAN, AVERAGE = "DW-ACC", "mean", "average"  # in names of columns that are made of others
TABLE_WIDE = (*SAMPLING, "max_length")  # settings that should be the same in all columns
BY_COLUMN = ("reward", "template", "limit", "num_problems")  # and those that belong to a benchmark


class Row(NamedTuple):
    """One line of a table. run: what its name is without the step. cells: by column, an evaluation per seed."""

    name: str
    run: str
    model: str
    step: int | None
    cells: Mapping[str, tuple[Evaluation, ...]]


class Score(NamedTuple):
    """One number of a table, in percent (or in tokens).

    low, high: 95 % interval; None where there is none. std: sample standard deviation over seeds, None of one seed.
    by_seed: each seed's own value. problems, samples: how many, and how many answers each per seed (None: not one N).
    """

    value: float
    low: float | None
    high: float | None
    std: float | None
    by_seed: Mapping[int | None, float]
    problems: int
    samples: int | None


class Table(NamedTuple):
    """One metric. scores: by name of row, then column; what is missing or not known is left out. notes: of columns."""

    metric: str
    title: str
    columns: tuple[str, ...]
    scores: Mapping[str, Mapping[str, Score]]
    notes: tuple[str, ...]


def group(evaluations: Sequence[Evaluation]) -> list[Row]:
    """Rows in order of appearance, each run's steps ascending; several seeds of one evaluation share a cell.

    Raises:
      ValueError: one label for two models, the same evaluation twice, or seeds of one cell with different settings.
    """
    names = _names(evaluations)
    steps: dict[str, set] = {}
    cells: dict[tuple, dict[str, list[Evaluation]]] = {}
    for each, name in zip(evaluations, names, strict=True):
        steps.setdefault(name, set()).add(each.step)
        cells.setdefault((name, each.step), {}).setdefault(each.column, []).append(each)
    rows = []
    for run in steps:
        for step in sorted(steps[run], key=lambda step: -1 if step is None else step):
            own = {column: _cell(seeds) for column, seeds in cells[run, step].items()}
            model = next(iter(own.values()))[0].model
            rows.append(Row(run if step is None else f"{run} step {step}", run, model, step, own))
    return rows


def columns_of(rows: Sequence[Row]) -> list[str]:
    """All columns: benchmarks as they are listed, then others by name; languages by code, levels from low to top."""
    listed = list(BENCHMARKS)

    def order(column: str) -> tuple:
        benchmark, language, level = split_column(column)
        place = listed.index(benchmark) if benchmark in listed else len(listed)
        return place, benchmark, language or "", LEVELS.index(level) if level else -1

    return sorted({column for row in rows for column in row.cells}, key=order)


def metric_of(name: str) -> tuple[str, Callable[[Evaluation], Flags | None]]:
    """Title with {n} for the number of samples, and the function from an evaluation to shares of each problem.

    The function gives None where the file does not say.

    Raises:
      ValueError: an unknown metric, listing the known ones.
    """
    if found := re.fullmatch(r"(pass|best)@([1-9]\d*)", name):
        kind, k = found[1], int(found[2])
        if kind == "pass":
            return f"pass@{k} (unbiased)", lambda each: [[_pass_at_k(each, flags, k)] for flags in each.correct]
        return f"best@{k} (bootstrap)", lambda each: [[metrics.best_at_k([flags], k).mean] for flags in each.correct]
    if name not in METRICS:
        raise ValueError(f"--metric {name!r} is not one of {', '.join(METRICS)}, pass@K, best@K")
    return METRICS[name]


def tabulate(rows: Sequence[Row], metric: str) -> Table:
    """Scores of all cells, then those made of others: DW-ACC, means over languages, the average over benchmarks."""
    title, _ = metric_of(metric)
    columns = columns_of(rows)
    scores: dict[str, dict[str, Score]] = {row.name: {} for row in rows}
    for row in rows:
        for column, cell in row.cells.items():
            if (found := score(cell, metric)) is not None:
                scores[row.name][column] = found
    notes: list[str] = []
    made = [] if metric in UNGRADED else _add_difficulty_weighted(scores, notes)
    made += _add_language_means(scores, [*columns, *made], notes)
    made += _add_average(scores, columns, notes)
    counts = {cell[0].samples for row in rows for cell in row.cells.values()}
    return Table(
        metric, title.format(n=counts.pop() if len(counts) == 1 else "N"), (*columns, *made), scores, tuple(notes)
    )


def score(cell: Sequence[Evaluation], metric: str) -> Score | None:
    """Mean over seeds; the interval takes all samples of a problem, from all seeds, as one cluster."""
    by_seed = _by_seed(cell, metric)
    if by_seed is None:
        return None
    if metric == TOKENS:
        means, low, high = [metrics.mean_length([n for own in each for n in own]) for each in by_seed], None, None
    else:
        means = [100 * metrics.avg_at_n(found).mean for found in by_seed]
        _, low, high = (100 * bound for bound in metrics.avg_at_n(metrics.pool_seeds(by_seed)))
    value, std = metrics.over_seeds(means)
    seeds = dict(zip((each.seed for each in cell), means, strict=True))
    return Score(value, low, high, std, seeds, len(cell[0].ids), cell[0].samples)


def pooled(cell: Sequence[Evaluation], metric: str) -> Flags | None:
    """Per problem, what all seeds have."""
    by_seed = _by_seed(cell, metric)
    return None if by_seed is None else metrics.pool_seeds(by_seed)


def combine(scores: Sequence[Score], weigh: Callable[[Sequence[float]], float], independent: bool = False) -> Score:
    """What a linear `weigh` makes of their values. An interval, by propagation, only where errors are independent."""
    value, low, high = weigh([each.value for each in scores]), None, None
    if independent and all(each.low is not None for each in scores):
        # The wider side: the other may have been cut at 0 or 100.
        halves = [max(each.high - each.value, each.value - each.low) for each in scores]
        alone = [[half if i == j else 0.0 for j in range(len(halves))] for i, half in enumerate(halves)]
        half = math.hypot(*map(weigh, alone))
        low, high = max(value - half, 0.0), min(value + half, 100.0)
    seeds, by_seed = scores[0].by_seed, {}
    if all(each.by_seed.keys() == seeds.keys() for each in scores):
        by_seed = {seed: weigh([each.by_seed[seed] for each in scores]) for seed in seeds}
    std = metrics.over_seeds(list(by_seed.values())).std if by_seed else None
    counts = {each.samples for each in scores}
    samples = counts.pop() if len(counts) == 1 else None
    return Score(value, low, high, std, by_seed, sum(each.problems for each in scores), samples)


def mean(values: Sequence[float]) -> float:
    """Unweighted."""
    return metrics.average([metrics.Average(value, None) for value in values]).mean


def difficulty_weighted(values: Sequence[float]) -> float:
    """PolyMath's DW-ACC of the levels' percentages, from low to top."""
    return 100 * metrics.difficulty_weighted({k: v / 100 for k, v in zip(LEVELS, values, strict=True)})


def differing(rows: Sequence[Row], majority: bool = False) -> tuple[list[str], list[str]]:
    """(settings that all evaluations share, one line for each that differs: which value where).

    majority: whether the majority rule matters too.
    """
    cells = {(row.name, column): cell for row in rows for column, cell in row.cells.items()}
    shared, notes = [], []

    def look(key: str, values: Mapping[tuple[str, str], object], where: str = "") -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for place, value in values.items():
            groups.setdefault(_shown(key, value), []).append(place)
        if len(groups) == 1 and not where:
            shared.append(f"{key} {next(iter(groups))}")
        elif len(groups) > 1:
            notes.append(f"{key} is not the same{where}: {_told(groups, list(values))}")

    for key in TABLE_WIDE:
        values = {place: cell[0].settings.get(key) for place, cell in cells.items()}
        if key == "max_length":  # published files do not have it
            values = {place: value for place, value in values.items() if key in cells[place][0].settings}
        if any(value is not None for value in values.values()):
            look(key, values)
    if majority:
        look("majority rule", {place: cell[0].majority_rule for place, cell in cells.items()})
    look("number of seeds", {place: len(cell) for place, cell in cells.items()})
    for column in columns_of(rows):
        for key in BY_COLUMN:
            own = {p: cell[0].settings for p, cell in cells.items() if p[1] == column and key in cell[0].settings}
            look(key, {place: settings[key] for place, settings in own.items()}, f" in {column}")
    return shared, notes


def _by_seed(cell: Sequence[Evaluation], metric: str) -> list[Flags] | None:
    """Each seed's shares; None where a file does not say."""
    _, shares = metric_of(metric)
    by_seed = [shares(each) for each in cell]
    return None if any(found is None for found in by_seed) else by_seed


def _names(evaluations: Sequence[Evaluation]) -> list[str]:
    """The label of each, or the shortest end of its run's or model's path that no other has."""
    owners: dict[str, str] = {}
    for each in evaluations:
        own = each.checkpoint or each.model
        if each.label is not None and owners.setdefault(each.label, own) != own:
            raise ValueError(
                f"the label {each.label!r} covers {owners[each.label]} and {own} ({each.path}): give each its own "
                "NAME=PATH"
            )
    paths = {each.checkpoint or each.model for each in evaluations if each.label is None}
    short = {}
    for path in paths:
        parts = PurePath(path).parts
        ends = (str(PurePath(*parts[-n:])) for n in range(1, len(parts) + 1))
        others = [PurePath(other).parts for other in paths - {path}]
        short[path] = next((e for e in ends if not _ends_with(others, e) and e not in owners), path)
    return [each.label if each.label is not None else short[each.checkpoint or each.model] for each in evaluations]


def _ends_with(others: Iterable[tuple[str, ...]], end: str) -> bool:
    own = PurePath(end).parts
    return any(parts[-len(own) :] == own for parts in others)


def _cell(seeds: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
    """Evaluations that differ in nothing but their seed, by seed."""
    first, *others = seeds
    for other in others:
        both = f"{first.path} and {other.path}"
        keys = [*TABLE_WIDE, *BY_COLUMN]
        if changed := [key for key in keys if first.settings.get(key) != other.settings.get(key)]:
            raise ValueError(
                f"{both} differ in {', '.join(changed)}: they are not two seeds of one evaluation; label them apart, "
                "NAME=PATH"
            )
        if first.ids != other.ids or first.golds != other.golds:
            raise ValueError(f"{both} have other problems or answers: label them apart, NAME=PATH")
    by_seed: dict[int | None, Evaluation] = {}
    for each in seeds:
        if each.seed in by_seed:
            seed = "no seed" if each.seed is None else f"seed {each.seed}"
            raise ValueError(
                f"{by_seed[each.seed].path} and {each.path} are the same row and benchmark, both with {seed}: "
                "leave one out, or label them apart, NAME=PATH"
            )
        by_seed[each.seed] = each
    return tuple(by_seed[seed] for seed in sorted(by_seed, key=lambda seed: -1 if seed is None else seed))


def _known(values: Sequence[Sequence], convert: Callable[[object], float]) -> Flags | None:
    if any(value is None for own in values for value in own):
        return None
    return [[convert(value) for value in own] for own in values]


def _pass_at_k(each: Evaluation, flags: Sequence[bool], k: int) -> float:
    if k > len(flags):
        raise ValueError(f"--metric pass@{k} needs at least {k} samples of each problem; {each.path} has {len(flags)}")
    return metrics.pass_at_k([flags], k)


def _majority_by_string(each: Evaluation) -> Flags:
    rows = zip(each.predictions, each.correct, strict=True)
    return [[metrics.majority_correct(*row, rule=STRING)] for row in rows]


METRICS: dict[str, tuple[str, Callable[[Evaluation], Flags | None]]] = {
    "avg": ("Avg@{n}", lambda each: list(each.correct)),
    "pass": ("Pass@{n}", lambda each: [[any(flags)] for flags in each.correct]),
    "maj": ("Maj@{n}", lambda each: [[flag] for flag in each.majority]),
    "maj-string": ("Maj@{n} by equal strings", _majority_by_string),
    "format": ("format rate", lambda each: list(each.formatted)),
    "truncated": ("truncated", lambda each: _known(each.finish, lambda finish: finish == "length")),
    TOKENS: ("tokens per answer", lambda each: _known(each.tokens, float)),
}


def _add_difficulty_weighted(scores: Mapping[str, dict[str, Score]], notes: list[str]) -> list[str]:
    """Adds PolyMath's score of a language to the rows that have all its levels. Returns the names of new columns."""
    made: list[str] = []
    for own in scores.values():
        languages = dict.fromkeys(split_column(column)[:2] for column in own if split_column(column)[2])
        for benchmark, language in languages:
            stem = "-".join(filter(None, (benchmark, language)))
            parts = [own.get(f"{stem}-{level}") for level in LEVELS]
            if all(parts):
                own[f"{stem} {DW}"] = combine(parts, difficulty_weighted, independent=True)
                made.append(f"{stem} {DW}")
    if made:
        notes.append(f"{DW}: (low + 2 medium + 4 high + 8 top) / 15, not rounded in between")
    return sorted(set(made))


def _add_language_means(scores: Mapping[str, dict[str, Score]], columns: Sequence[str], notes: list[str]) -> list[str]:
    """Adds the mean over languages, of each benchmark and level (or DW-ACC) with several that all rows have."""
    kinds: dict[str, list[str]] = {}
    for column in columns:
        stem, _, weighted = column.partition(" ")
        benchmark, language, level = split_column(stem)
        if language and all(column in own for own in scores.values()):
            kind = f"{benchmark}-{level}" if level else f"{benchmark} {weighted}".strip()
            kinds.setdefault(kind, []).append(column)
    made = []
    for kind, members in kinds.items():
        if len(members) < 2:
            continue
        name = f"{kind} {MEAN}"
        for own in scores.values():  # the languages ask the same problems, so their errors are not independent
            own[name] = combine([own[member] for member in members], mean)
        languages = [split_column(member.partition(" ")[0])[1] for member in members]
        notes.append(f"{name}: over the languages that all rows have: {', '.join(languages)}")
        made.append(name)
    return made


def _add_average(scores: Mapping[str, dict[str, Score]], columns: Sequence[str], notes: list[str]) -> list[str]:
    """Adds the unweighted average over benchmarks that all rows have; one with several parts counts once."""
    members: dict[str, list[str]] = {}
    for column in columns:
        if all(column in own for own in scores.values()):
            members.setdefault(split_column(column)[0], []).append(column)
    if len(members) < 2:
        return []
    for own in scores.values():
        parts = [
            own[names[0]] if len(names) == 1 else combine([own[n] for n in names], mean) for names in members.values()
        ]
        own[AVERAGE] = combine(parts, mean, independent=True)
    shown = [b if names == [b] else f"{b} (mean of {', '.join(names)})" for b, names in members.items()]
    notes.append(
        f"{AVERAGE}: unweighted, over the benchmarks that all rows have: {'; '.join(shown)}; its interval takes their "
        "errors as independent"
    )
    return [AVERAGE]


def _shown(key: str, value) -> str:
    if value is None:
        return "the model's" if key == "max_length" else "none" if key in BY_COLUMN else "not recorded"
    if key == "top_k" and value == -1:
        return "off"
    return repr(value) if isinstance(value, str) and "\n" in value else str(value)


def _told(groups: Mapping[str, Sequence[tuple[str, str]]], everywhere: Sequence[tuple[str, str]]) -> str:
    """Each value with its places. The commonest comes last, as "all others" where its places would be a long list."""
    ordered = sorted(groups, key=lambda value: len(groups[value]))
    parts = [f"{value} ({_places(groups[value], everywhere)})" for value in ordered]
    if parts[-1].count(", ") >= MOST_PLACES:
        parts[-1] = f"{ordered[-1]} (all others)"
    return "; ".join(parts)


def _places(places: Sequence[tuple[str, str]], everywhere: Sequence[tuple[str, str]]) -> str:
    """Where a value is, in few words: whole columns, whole rows, or single cells."""
    for axis in (1, 0):
        names = dict.fromkeys(place[axis] for place in places)
        if all(place in places for place in everywhere if place[axis] in names):
            return ", ".join(names)
    return ", ".join(f"{row} on {column}" for row, column in places)
