"""What an evaluation keeps while it runs: its settings, and one line per finished sample.

settings.json       everything that decides what is drawn; continuing with anything else is refused
problems.jsonl      one JSON object per problem: what a report needs of it, so that the folder can be read alone
generations.jsonl   one JSON object per sample, in the order in which they finished; at the end by problem and sample
results.json        the report, once all samples are there
server.json         of `jopsd.serve`: what it served
"""

import fcntl
import json
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jopsd.tracking import replace_text

SETTINGS, PROBLEMS, GENERATIONS, RESULTS = "settings.json", "problems.jsonl", "generations.jsonl", "results.json"
SERVER = "server.json"


class Record(NamedTuple):
    """One graded sample.

    row: number of its problem in the data as read. prediction: what the last box holds; None without a box.
    finish: "eos", "length", "prompt_too_long" of a prompt that left no room, or None where that is not known.
    tokens: its length, stop token included; None where that is not known.
    """

    row: int
    sample: int
    problem_id: str
    correct: bool
    formatted: bool
    prediction: str | None
    finish: str | None
    tokens: int | None
    completion: str


@contextmanager
def open_records(folder: Path, settings: Mapping, problems: Sequence[Mapping] = ()):
    """(records so far, function that adds one), for one process at a time. problems: kept beside them.

    A line that a killed process left unfinished is cut off, so its sample is drawn again. A folder without any record
    holds nothing worth keeping, so it takes other settings.

    Raises:
      ValueError: the folder belongs to an evaluation with other settings, or to none, or a line is damaged.
      BlockingIOError: another process is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begun = (folder / GENERATIONS).exists()
    with open(folder / GENERATIONS, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"another evaluation is writing to {folder}; wait for it, or use another --output"
            ) from None
        file.seek(0)
        whole, _, torn = file.read().rpartition(b"\n")
        if torn:
            file.truncate(len(whole) + 1 if whole else 0)
        if whole and not (folder / SETTINGS).exists():
            raise ValueError(f"{folder} has {GENERATIONS} but no {SETTINGS}: use another --output")
        if begun and not whole:  # by an evaluation of ours that drew nothing
            for name in (SETTINGS, PROBLEMS, SERVER):
                (folder / name).unlink(missing_ok=True)
        claim(folder, settings)
        if not (folder / PROBLEMS).exists():
            replace_text(folder / PROBLEMS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in problems))
        records = _parse(whole, folder / GENERATIONS)

        def add(record: Record) -> None:
            file.write(_line(record).encode())
            file.flush()
            records[record.row, record.sample] = record

        yield records, add


def write_in_order(folder: Path, records: Mapping[tuple[int, int], Record]) -> None:
    """Replaces the file by one that does not tell the order in which samples finished. records: all, as they stand."""
    if list(records) != sorted(records):
        replace_text(folder / GENERATIONS, "".join(_line(records[key]) for key in sorted(records)))


def _line(record: Record) -> str:
    return json.dumps(record._asdict(), ensure_ascii=False) + "\n"


def read_folder(folder: Path) -> tuple[dict, list[dict], dict[tuple[int, int], Record]]:
    """Settings, problems and records of an evaluation, complete or not.

    Raises:
      ValueError, OSError: a file that is missing or damaged, by name.
    """
    settings = read_json(folder / SETTINGS)
    lines = (folder / PROBLEMS).read_text(encoding="utf-8").split("\n")  # splitlines would split inside problems
    problems = [read_json(folder / PROBLEMS, line) for line in lines if line]
    whole, _, _ = (folder / GENERATIONS).read_bytes().rpartition(b"\n")
    return settings, problems, _parse(whole, folder / GENERATIONS)


def claim(folder: Path, settings: Mapping) -> None:
    """Writes the settings into an unused folder, or compares them with those that are there."""
    path, settings = folder / SETTINGS, json.loads(json.dumps(settings))
    if not path.exists():
        write_json(path, settings)
        return
    old = read_json(path)
    keys = dict.fromkeys([*settings, *old])  # the digest comes last: a setting says more
    differing = [key for key in keys if old.get(key) != settings.get(key)]
    if differing:
        key = differing[0]
        more = f" (and {', '.join(differing[1:])})" if differing[1:] else ""
        raise ValueError(
            f"{folder} holds an evaluation with another {key}: {old.get(key)!r} then, {settings.get(key)!r} now{more}; "
            f"use another --output, or delete {folder}"
        )


def claim_server(folder: Path, description: Any) -> None:
    """Notes which weights a server draws from, by its `Description`; None is no server, or one that does not say.

    Raises ValueError where earlier samples were drawn from others.
    """
    if description is None:
        return
    path, now = folder / SERVER, description._asdict()
    if path.exists() and (old := read_json(path))["fingerprint"] != now["fingerprint"]:
        raise ValueError(
            f"{folder} holds samples of other weights ({old['model']}) than the server serves now ({now['model']}); "
            "serve those again, or use another --output"
        )
    write_json(path, now)


def write_json(path: Path, value) -> None:
    """Replaces a file at once."""
    replace_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, text: str | None = None) -> dict:
    """The object in a file, or in the `text` of a line of it. Raises ValueError, naming it, where that is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8") if text is None else text)
    except ValueError:
        raise ValueError(f"{path} is damaged: use another --output, or delete {path.parent}") from None


def _parse(text: bytes, path: Path) -> dict[tuple[int, int], Record]:
    records = {}
    for number, line in enumerate(text.split(b"\n") if text else [], start=1):
        try:
            record = Record(**json.loads(line))
        except (ValueError, TypeError):
            raise ValueError(f"{path}, line {number} is damaged: delete that line and start again") from None
        if (record.row, record.sample) in records:
            raise ValueError(f"{path}, line {number} repeats sample {record.sample} of row {record.row}: delete it")
        records[record.row, record.sample] = record
    return records
