"""Problems from a hub id, a local file or directory, or a built-in generator."""

import importlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jopsd.data.problem import NOT_KEPT, Problem, RowError, level_of, problem_from_row, require_fields

ACCEPTED = (
    "a .json, .jsonl or .parquet file, a directory of them (or one written by save_to_disk), "
    "a Hugging Face dataset id (owner/name), or a generator such as sums:train"
)
# name -> (module with `problems(split, count, seed, **options)`, options); imported when asked for
GENERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "sums": ("jopsd.data.sums", {}),
    "sums_sw": ("jopsd.data.sums", {"language": "sw"}),
    "knights": ("jopsd.data.knights", {}),
    "kk_4to8": ("jopsd.data.knights", {"people": (4, 8)}),
    "kk_9": ("jopsd.data.knights", {"people": (9, 9)}),
    "kk_10": ("jopsd.data.knights", {"people": (10, 10)}),
    "kk_11": ("jopsd.data.knights", {"people": (11, 11)}),
}
GENERATED_ROWS = 4096  # rows of a generator when no limit is given

_FILE_SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class LeftOut(NamedTuple):
    """A good row that was not asked for."""

    row_number: int
    reason: str


def load_problems(
    source: str,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    required: tuple[str, ...] = ("problem",),
    on_bad_row: Literal["error", "skip"] = "error",
    config: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    difficulty: tuple[float, float] | None = None,
) -> tuple[list[Problem], Counter[str]]:
    """Load a source and check every row before anything is trained on.

    ``required`` names Problem fields every row must have; ``limit`` is the number of rows read (of rows made, for a
    generator, whose draws come from ``seed``). ``difficulty`` keeps rows of this band, both ends included, and needs no
    fields of the others. Returns the problems and, per reason, how many rows were left out.

    Raises RowError for the first bad row under ``on_bad_row="error"``; ValueError if no row is left, or for a broken
    JSON line (naming file and line); FileNotFoundError for a source that is not there.
    """
    if on_bad_row not in ("error", "skip"):
        raise ValueError(f"data.on_bad_row is {on_bad_row!r}; it must be 'error' or 'skip'")
    outcomes = read_problems(source, split, columns, required, config, limit, seed, difficulty)
    return _checked(outcomes, on_bad_row, source)


def read_problems(
    source: str,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    required: tuple[str, ...] = ("problem",),
    config: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    difficulty: tuple[float, float] | None = None,
) -> Iterator[Problem | RowError | LeftOut]:
    """What becomes of each row of a source, in order; arguments and errors as `load_problems`, bad rows apart."""
    if limit is not None and limit < 1:
        raise ValueError(f"data.limit is {limit}; it must be at least 1, or null for all rows")
    name, _, part = source.partition(":")
    if name in GENERATORS:
        module, options = GENERATORS[name]
        problems = importlib.import_module(module).problems(part or split, limit or GENERATED_ROWS, seed, **options)
        return _from_problems(problems, required, difficulty)
    return from_rows(
        kept_columns(load_rows(source, split, config, limit), columns), columns, required, source, difficulty
    )


def kept_columns(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None) -> Sequence[Mapping[str, Any]]:
    """The rows without what is not worth decoding: columns that are never kept, and that ``columns`` does not name."""
    named = {column.split(".")[0] for column in (columns or {}).values()}
    unread = [column for column in getattr(rows, "column_names", ()) if column in NOT_KEPT and column not in named]
    return rows.remove_columns(unread) if unread else rows


def load_rows(
    source: str, split: str = "train", config: str | None = None, limit: int | None = None
) -> Sequence[Mapping[str, Any]]:
    """Rows of a hub data set, a local file or a directory, as a sequence of dicts in file order.

    A single file has one split, so ``split`` and ``config`` do not apply to it. Code from the hub is never run. Raises
    FileNotFoundError for a missing path or unknown data set, ValueError for broken JSON (file and line named).
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _file_rows(path, limit)
    if not path.exists() and _looks_local(source):
        raise FileNotFoundError(f"data source {source!r} does not exist; accepted: {ACCEPTED}")
    if not path.exists() and ":" in source:
        raise ValueError(f"no generator for {source!r}; known: {', '.join(GENERATORS)}; accepted: {ACCEPTED}")
    rows = _dataset(path, source, split, config)
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def from_rows(
    rows: Iterable[Mapping[str, Any]],
    columns: Mapping[str, str] | None,
    required: tuple[str, ...],
    source: str,
    difficulty: tuple[float, float] | None,
) -> Iterator[Problem | RowError | LeftOut]:
    """What becomes of each row; arguments as `load_problems`."""
    for number, row in enumerate(rows):
        try:
            if difficulty and (reason := _outside(difficulty, level_of(row, number, columns, source))):
                yield LeftOut(number, reason)
                continue
            problem = problem_from_row(row, number, columns, source)
            require_fields(problem, required, row, number)
        except RowError as error:
            yield error
        else:
            yield problem


def _from_problems(
    problems: Sequence[Problem], required: tuple[str, ...], difficulty: tuple[float, float] | None
) -> Iterator[Problem | RowError | LeftOut]:
    for number, problem in enumerate(problems):
        try:
            if difficulty and (reason := _outside(difficulty, level_of(problem.extra, number, {}, problem.source))):
                yield LeftOut(number, reason)
                continue
            require_fields(problem, required, {}, number)
        except RowError as error:
            yield error
        else:
            yield replace(problem, row=number)


def _outside(band: tuple[float, float], level: float) -> str:
    low, high = band
    return "" if low <= level <= high else f"difficulty outside {low:g} to {high:g}"


def _checked(
    outcomes: Iterator[Problem | RowError | LeftOut], on_bad_row: str, source: str
) -> tuple[list[Problem], Counter[str]]:
    problems: list[Problem] = []
    skipped: Counter[str] = Counter()
    for outcome in outcomes:
        if isinstance(outcome, Problem):
            problems.append(outcome)
        elif on_bad_row == "error" and isinstance(outcome, RowError):
            raise outcome
        else:
            skipped[outcome.reason] += 1
    if not problems:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in skipped.items()) or "it has no rows"
        raise ValueError(f"no usable row in {source}: {reasons}")
    return problems, skipped


def _looks_local(source: str) -> bool:
    if source.startswith((".", "/", "~")) or source.endswith(_FILE_SUFFIXES):
        return True
    return ":" not in source and not _HUB_ID.fullmatch(source)


def _file_rows(path: Path, limit: int | None) -> Sequence[Mapping[str, Any]]:
    if path.suffix == ".parquet":
        rows = _dataset(path, str(path), "train", None)
        return rows if limit is None else rows.select(range(min(limit, len(rows))))
    if path.suffix not in _FILE_SUFFIXES:
        raise ValueError(f"cannot read {path}: unknown file type {path.suffix!r}; accepted: {ACCEPTED}")
    # Read here, not through Arrow: one column may hold text in one row and a number in the next, and a broken line
    # should be named.
    with path.open(encoding="utf-8-sig") as file:
        start = file.read(4096).lstrip()[:1]
        file.seek(0)
        return list(islice(_json_array(path, file.read()) if start == "[" else _json_lines(path, file), limit))


def _json_array(path: Path, text: str) -> Iterator[Mapping[str, Any]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: broken JSON: {error.msg}") from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number} (counted from 0) is a {type(row).__name__}, not a JSON object")
        yield row


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: broken JSON: {error.msg} (column {error.colno})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is a {type(row).__name__}, not a JSON object")
        yield row


def _dataset(path: Path, source: str, split: str, config: str | None) -> Any:
    """A Hugging Face Dataset from a parquet file, a directory or the hub."""
    import datasets  # slow to import, and the built-in generators do without

    if path.is_file():
        try:
            return datasets.load_dataset("parquet", data_files=str(path), split="train")
        except Exception as error:  # of pyarrow or datasets, by what is wrong
            raise ValueError(f"cannot read {path}: {error}") from error
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        saved = datasets.load_from_disk(str(path))
        if isinstance(saved, datasets.Dataset):
            return saved
        if split not in saved:
            raise ValueError(f"{path} has no split {split!r}; it has {', '.join(saved)}")
        return saved[split]
    try:
        return datasets.load_dataset(str(path) if path.exists() else source, config, split=split)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(f"cannot load {source!r}: {error}; accepted: {ACCEPTED}") from error
    except datasets.exceptions.DatasetsError as error:
        raise ValueError(f"cannot load {source!r}: {error}") from error
