"""Problems from a hub id, a local file or directory, or a built-in generator."""

import glob
import importlib
import logging
import os
import re
import shutil
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jopsd.data.files import JSON, PACKED, TABLES, common_suffix, read_rows
from jopsd.data.problem import NOT_KEPT, Problem, RowError, level_of, problem_from_row, require_fields
from jopsd.data.schemas import ALIASES
from jopsd.errors import one_line

Say = Callable[[str], None]

ACCEPTED = (
    "a .json, .jsonl or .parquet file, .csv or .tsv (.gz, .bz2, .xz or .zst too), a pattern of them (rows/*.jsonl), a "
    "URL, a directory of them (or one written by save_to_disk), a Hugging Face dataset id (owner/name), or a generator "
    "such as sums:train"
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

_FILE_SUFFIXES = (*JSON, *TABLES, ".parquet")
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
    say: Say = print,
) -> tuple[list[Problem], Counter[str]]:
    """Load a source and check every row before anything is trained on.

    ``required`` names Problem fields every row must have; ``limit`` is the number of rows read (of rows made, for a
    generator, whose draws come from ``seed``). ``difficulty`` keeps rows of this band, both ends included, and needs no
    fields of the others. ``say`` is told where what was asked for changes nothing. Returns the problems and, per
    reason, how many rows were left out.

    Raises RowError for the first bad row under ``on_bad_row="error"``; ValueError if no row is left, or for a broken
    JSON line (naming file and line); FileNotFoundError for a source that is not there.
    """
    if on_bad_row not in ("error", "skip"):
        raise ValueError(f"data.on_bad_row is {on_bad_row!r}; it must be 'error' or 'skip'")
    outcomes = read_problems(source, split, columns, required, config, limit, seed, difficulty, say)
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
    say: Say = print,
) -> Iterator[Problem | RowError | LeftOut]:
    """What becomes of each row of a source, in order; arguments and errors as `load_problems`, bad rows apart."""
    if limit is not None and limit < 1:
        raise ValueError(f"data.limit is {limit}; it must be at least 1, or null for all rows")
    name, _, part = source.partition(":")
    if name in GENERATORS:
        module, options = GENERATORS[name]
        if part and split not in ("train", part):
            say(f"{source}: split {split!r} changes nothing, since the source names {part!r}")
        problems = importlib.import_module(module).problems(part or split, limit or GENERATED_ROWS, seed, **options)
        return _from_problems(problems, required, difficulty)
    return from_rows(
        kept_columns(load_rows(source, split, config, limit, say), columns), columns, required, source, difficulty
    )


def kept_columns(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None) -> Sequence[Mapping[str, Any]]:
    """The rows without what is not worth decoding: columns that are never kept, and that ``columns`` does not name."""
    named = {column.split(".")[0] for column in (columns or {}).values()}
    present = getattr(rows, "column_names", ())
    if not set(present) & {*ALIASES["problem"]} - {*NOT_KEPT} and "problem" not in (columns or {}):
        named |= {*ALIASES["problem"]}  # the problem is in a conversation
    unread = [column for column in present if column in NOT_KEPT and column not in named]
    return rows.remove_columns(unread) if unread else rows


def load_rows(
    source: str, split: str = "train", config: str | None = None, limit: int | None = None, say: Say = print
) -> Sequence[Mapping[str, Any]]:
    """Rows of a hub data set, a directory, a file, a pattern of files or a URL, as a sequence of dicts in file order.

    Code from the hub is never run. say: is told where `split` or `config` changes nothing. Raises FileNotFoundError for
    a missing path or unknown data set, ValueError for files that cannot be read (file and line named).
    """
    path = Path(source).expanduser()
    if path.is_file() or "://" in source or (not path.exists() and glob.has_magic(source)):
        return _file_rows(source, path, split, config, limit, say)
    if not path.exists() and _looks_local(source):
        raise FileNotFoundError(f"data source {source!r} does not exist; accepted: {ACCEPTED}")
    if not path.exists() and ":" in source:
        raise ValueError(f"no generator for {source!r}; known: {', '.join(GENERATORS)}; accepted: {ACCEPTED}")
    with _quiet():
        rows = _dataset(path, source, split, config, limit)
    return rows if limit is None or isinstance(rows, list) else rows.select(range(min(limit, len(rows))))


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
    if source.startswith((".", "/", "~")) or source.endswith((*_FILE_SUFFIXES, *PACKED)):
        return True
    return ":" not in source and not _HUB_ID.fullmatch(source)


def _file_rows(
    source: str, path: Path, split: str, config: str | None, limit: int | None, say: Say
) -> Sequence[Mapping[str, Any]]:
    """Rows of one file, of those that a pattern names, or of a URL; they have no splits, but for a JSON file's own."""
    names = [str(path)] if path.is_file() else [source]
    if "://" not in source and not path.is_file():
        names = sorted(name for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not names:
            raise FileNotFoundError(f"data source {source!r}: no file has such a name; accepted: {ACCEPTED}")
    suffix = common_suffix(names)
    if suffix not in _FILE_SUFFIXES:
        raise ValueError(f"cannot read {names[0]}: unknown file type {suffix!r}; accepted: {ACCEPTED}")
    if suffix == ".parquet":
        import datasets  # slow to import

        try:
            with _quiet(), ExitStack() as stack:
                paths = [stack.enter_context(_local(name)) for name in names]
                rows = datasets.load_dataset("parquet", data_files=paths, split="train")
        except FileNotFoundError:
            raise
        except Exception as error:  # of pyarrow or datasets, by what is wrong
            raise ValueError(f"cannot read {source}: {one_line(error)}") from error
        rows, has_splits = rows if limit is None else rows.select(range(min(limit, len(rows)))), False
    else:
        rows, has_splits = _text_rows(names, split, limit)
    for key, value, default in (("split", split, "train"), ("subset", config, None)):
        if value != default and not (key == "split" and has_splits):
            say(f"{source}: {key} {value!r} changes nothing, since files have no {key}s; all of its rows are read")
    return rows


def _text_rows(
    names: Sequence[str], split: str, limit: int | None, holder: str | None = None
) -> tuple[list[Mapping[str, Any]], bool]:
    """Rows of JSON or CSV files, local or not, one file after the other, and whether they have splits of their own."""
    rows: list[Mapping[str, Any]] = []
    splits = []
    for name in names:
        with _local(name) as path:
            more, has_splits = read_rows(path, name, split, None if limit is None else limit - len(rows), holder)
        rows += more
        splits.append(has_splits)
        if limit is not None and len(rows) >= limit:
            break
    return rows, bool(splits) and all(splits)


@contextmanager
def _local(name: str) -> Iterator[str]:
    """The path of a file; of a URL, of a copy of it."""
    if "://" not in name:
        yield name
        return
    import datasets

    with tempfile.TemporaryDirectory(prefix="jopsd-") as folder, _quiet():
        try:
            if name.startswith(("http://", "https://")):  # for which `datasets` needs one more library
                path = os.path.join(folder, "rows")
                with urllib.request.urlopen(name, timeout=60) as answer, open(path, "wb") as file:
                    shutil.copyfileobj(answer, file)
            else:
                path = datasets.DownloadManager().download(name)
        except Exception as error:  # of the file system that the URL names
            raise FileNotFoundError(f"cannot load {name}: {one_line(error)}") from error
        yield path


def _dataset(path: Path, source: str, split: str, config: str | None, limit: int | None) -> Any:
    """Rows of a directory or of the hub: of its JSON and CSV files as text, of others a Hugging Face Dataset."""
    import datasets  # slow to import, and the built-in generators do without

    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        saved = datasets.load_from_disk(str(path))
        if isinstance(saved, datasets.Dataset):
            return saved
        if split not in saved:
            raise ValueError(f"{path} has no split {split!r}; it has {', '.join(saved)}")
        return saved[split]
    try:
        builder = datasets.load_dataset_builder(str(path) if path.exists() else source, config)
        if builder.name in ("json", "csv"):
            return _split_rows(builder, source, split, limit)
        builder.download_and_prepare()
        return builder.as_dataset(split=split)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(f"cannot load {source!r}: {one_line(error)}; accepted: {ACCEPTED}") from error
    except datasets.exceptions.DatasetsError as error:
        raise ValueError(f"cannot load {source!r}: {one_line(error)}") from error


def _split_rows(builder: Any, source: str, split: str, limit: int | None) -> list[Mapping[str, Any]]:
    """Rows of a split, or of a part of some ("train[:100]", "train+test"), of the files that a builder has found."""
    import datasets

    files = {str(name): found for name, found in builder.config.data_files.items()}
    holder = getattr(builder.config, "field", None)
    split = "+".join(files) if split == "all" else split
    names = list(dict.fromkeys(part.partition("[")[0].strip() for part in split.split("+")))
    if missing := [name for name in names if name not in files]:
        raise ValueError(f"{source} has no split {missing[0]!r}; it has {', '.join(files)}")
    whole = split in files
    rows = {name: _text_rows(files[name], name, limit if whole else None, holder)[0] for name in names}
    if whole:
        return rows[split]
    parts = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(found) for name, found in rows.items()})
    return [row for part in parts for row in rows[part.splitname][part.from_ : part.to]][:limit]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the progress bars and remarks of `datasets` from standing between the lines of a run."""
    import datasets

    loggers = {name: logging.getLogger(name) for name in ("datasets", "huggingface_hub")}
    levels = {name: logger.level for name, logger in loggers.items()}
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        for logger in loggers.values():
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for name, logger in loggers.items():
            logger.setLevel(levels[name])
        if not bars:
            datasets.enable_progress_bars()
