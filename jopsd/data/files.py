"""Rows of JSON, CSV and TSV files, compressed or not.

Read here and not by Arrow or pandas, which guess types by column: 007 would become 7, a date a timestamp, a long
integer a rounded float, as soon as the other rows look like it.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from jopsd.data.conversation import is_conversation

Row = Mapping[str, Any]

JSON = (".json", ".jsonl", ".ndjson")
TABLES = {".csv": ",", ".tsv": "\t"}
PACKED = (".gz", ".bz2", ".xz", ".zst")
# Keys under which an object that is the whole file holds its rows, after the name of the split.
HOLDERS = ("data", "rows", "examples", "instances", "problems", "questions", "items")

_MAGIC = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_ZSTANDARD = b"\x28\xb5\x2f\xfd"
_MOST_CHARS = 2**30  # of one cell of a table


def suffix_of(name: str) -> str:
    """The suffix that tells what is in a file, of a path or URL; that of its compression is taken off."""
    path = Path(name.partition("?")[0].lower())
    return path.with_suffix("").suffix if path.suffix in PACKED else path.suffix


def read_rows(
    path: str | Path, name: str = "", split: str = "train", limit: int | None = None, holder: str | None = None
) -> tuple[list[Row], bool]:
    """Rows of a file in their order, and whether it has splits of its own, of which `split` was read.

    name: what messages call the file, and its suffix; default the path. holder: the key of the rows, where it is known.

    Raises:
      ValueError: a file that is not UTF-8, a broken line or a ragged row, with its number.
    """
    name = name or str(path)
    with _opened(path) as file:
        start = file.read(4096)
        _check_text(name, start)
    with _opened(path) as file:
        if suffix_of(name) in TABLES:
            return list(islice(_table(name, file, TABLES[suffix_of(name)]), limit)), False
        if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
            return list(islice(_array(name, file.read()), limit)), False
        return _lines_or_object(name, file, split, limit, holder)


def _opened(path: str | Path) -> IO[bytes]:
    """The file without its compression, which its first bytes tell."""
    with open(path, "rb") as file:
        start = file.read(6)
    if start.startswith(_ZSTANDARD):
        import pyarrow  # slow to import; it needs no further library for this

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return next((opener for magic, opener in _MAGIC.items() if start.startswith(magic)), open)(path, "rb")


def _check_text(name: str, start: bytes) -> None:
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start:
        raise ValueError(
            f"{name} is not UTF-8 but, by its first bytes, UTF-16 or binary; convert it: iconv -f UTF-16 -t UTF-8"
        )


def _decoded(name: str, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(name, number, error)) from None


def _not_utf8(name: str, number: int, error: UnicodeDecodeError) -> str:
    return (
        f"{name}, line {number}: byte 0x{error.object[error.start]:02x} is not UTF-8; if the file is Latin-1, convert "
        "it: iconv -f LATIN1 -t UTF-8"
    )


# ---------------------------------------------------------------------------------------------------------------- JSON


def _lines_or_object(
    name: str, file: IO[bytes], split: str, limit: int | None, holder: str | None
) -> tuple[list[Row], bool]:
    rows = _lines(name, file)
    try:
        first = list(islice(rows, 2))
    except ValueError as error:
        file.seek(0)
        text = _decoded(name, 1, file.read())
        try:
            found = json.loads(text)
        except json.JSONDecodeError:
            raise error from None  # of the line: most such files are lines
        if not isinstance(found, dict):
            raise error from None
        rows, splits = _held(found, split, holder)
        if rows == [found]:
            raise error from None
        return rows[:limit], splits
    if len(first) == 1:
        first, splits = _held(first[0], split, holder)
        return first[:limit], splits
    return list(islice(chain(first, rows), limit)), False


def _lines(name: str, lines: IO[bytes]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        text = _decoded(name, number, line)
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}, line {number}: broken JSON: {error.msg} (column {error.colno})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{name}, line {number} is a {type(row).__name__}, not a JSON object")
        yield row


def _array(name: str, data: bytes) -> Iterator[Row]:
    try:
        rows = json.loads(_decoded(name, 1, data))
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}, line {error.lineno}: broken JSON: {error.msg}") from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{name}, row {number} (counted from 0) is a {type(row).__name__}, not a JSON object")
        yield row


def _held(found: Mapping[str, Any], split: str, holder: str | None) -> tuple[list[Row], bool]:
    """The rows of an object that is all of a file: held under a key, given by columns, or the one row that it is."""
    for key in filter(None, (holder, split, *HOLDERS)):
        held = found.get(key)
        rows = isinstance(held, list) and bool(held) and all(isinstance(row, Mapping) for row in held)
        if rows and not is_conversation(held):
            return held, key == split
    columns = list(found.values())
    if columns and all(isinstance(cells, Mapping) for cells in columns):  # as pandas writes columns
        columns = [list(cells.values()) for cells in columns if list(cells) == list(found[next(iter(found))])]
    sequences = [cells for cells in columns if isinstance(cells, list) and not is_conversation(cells)]
    if len(sequences) == len(found) > 0 and len({len(cells) for cells in sequences}) == 1:
        return [dict(zip(found, row, strict=True)) for row in zip(*sequences, strict=True)], False
    return [found], False


# -------------------------------------------------------------------------------------------------------------- tables


def _table(name: str, file: IO[bytes], separator: str) -> Iterator[Row]:
    """Rows of a table with a header, all cells as text."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    before = csv.field_size_limit(_MOST_CHARS)
    number = 1
    try:
        header = text.readline()
        if separator == "," and "," not in header and ";" in header:
            separator = ";"  # what spreadsheets write where the comma is the decimal point
        reader = csv.reader(chain([header], text), delimiter=separator, strict=True)
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise ValueError(f"{name}, line 1: the header names a column twice: {', '.join(names)}")
        for cells in reader:
            number = reader.line_num
            if not cells:
                continue
            if len(cells) != len(names):
                raise ValueError(f"{name}, line {number}: {len(cells)} cells, where the header has {len(names)}")
            yield dict(zip(names, cells, strict=True))
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(name, number + 1, error)) from None
    except csv.Error as error:
        raise ValueError(f"{name}, line {number + 1}: {error}") from None
    finally:
        csv.field_size_limit(before)


def common_suffix(names: Sequence[str]) -> str:
    """What all files of one source hold. Raises ValueError for a mixture."""
    kinds = sorted({_kind(name) for name in names})
    if len(kinds) > 1:
        raise ValueError(f"files of several kinds in one source ({', '.join(kinds)}); name those of one kind")
    return kinds[0]


def _kind(name: str) -> str:
    suffix = suffix_of(name)
    return ".json" if suffix in JSON else suffix
