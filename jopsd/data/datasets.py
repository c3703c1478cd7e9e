"""Problems from a hub id, a local file or directory, or a built-in generator."""

import importlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from jopsd.data.problem import NOT_KEPT, Problem, RowError, problem_from_row, require_fields

ACCEPTED = (
    "a .json, .jsonl or .parquet file, a directory of them (or one written by save_to_disk), "
    "a Hugging Face dataset id (owner/name), or a generator such as sums:train"
)
# name -> (module with `problems(split, count, seed, **options)`, options); imported when asked for
GENERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "sums": ("jopsd.data.sums", {}),
    "sums_sw": ("jopsd.data.sums", {"language": "sw"}),
}
GENERATED_ROWS = 4096  # rows of a generator when no limit is given

_FILE_SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_problems(
    source: str,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    required: tuple[str, ...] = ("problem",),
    on_bad_row: Literal["error", "skip"] = "error",
    config: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> tuple[list[Problem], Counter[str]]:
    """Load a source and check every row before anything is trained on.

    ``required`` names Problem fields every row must have; ``limit`` is the number of rows read (of rows made, for a
    generator, whose draws come from ``seed``). Returns the problems and, per reason, how many rows were skipped.

    Raises RowError for the first bad row under ``on_bad_row="error"``; ValueError if no row is left, or for a broken
    JSON line (naming file and line); FileNotFoundError for a source that is not there.
    """
    if on_bad_row not in ("error", "skip"):
        raise ValueError(f"data.on_bad_row is {on_bad_row!r}; it must be 'error' or 'skip'")
    if limit is not None and limit < 1:
        raise ValueError(f"data.limit is {limit}; it must be at least 1, or null for all rows")
    name, _, part = source.partition(":")
    if name in GENERATORS:
        module, options = GENERATORS[name]
        problems = importlib.import_module(module).problems(part or split, limit or GENERATED_ROWS, seed, **options)
        return _checked(_from_problems(problems, required), on_bad_row, source)
    rows = load_rows(source, split, config, limit)
    return _checked(_from_rows(rows, columns or {}, required, source), on_bad_row, source)


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


def _from_rows(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], required: tuple[str, ...], source: str
) -> Iterator[Problem | RowError]:
    named = {column.split(".")[0] for column in columns.values()}
    unread = [column for column in getattr(rows, "column_names", ()) if column in NOT_KEPT and column not in named]
    if unread:
        rows = rows.remove_columns(unread)  # not worth decoding
    for number, row in enumerate(rows):
        try:
            problem = problem_from_row(row, number, columns, source)
            require_fields(problem, required, row, number)
        except RowError as error:
            yield error
        else:
            yield problem


def _from_problems(problems: Sequence[Problem], required: tuple[str, ...]) -> Iterator[Problem | RowError]:
    for number, problem in enumerate(problems):
        try:
            require_fields(problem, required, {}, number)
        except RowError as error:
            yield error
        else:
            yield problem


def _checked(
    outcomes: Iterator[Problem | RowError], on_bad_row: str, source: str
) -> tuple[list[Problem], Counter[str]]:
    problems: list[Problem] = []
    skipped: Counter[str] = Counter()
    for outcome in outcomes:
        if isinstance(outcome, Problem):
            problems.append(outcome)
        elif on_bad_row == "error":
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
        return datasets.load_dataset("parquet", data_files=str(path), split="train")
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
