"""Labelled cases for `python -m jopsd.rewards check`: every format that is read, told apart by what a file holds.

JSON lines, each row one of:
  labelled  output (or output_segments, [[text, repeat], ...]), expected, gold or tests; optionally verifier (math),
            tier (must), category, mode ("boxed" or "freetext"), max_seconds, id
  puzzle    statements, solution; with names or solution_text also the gold of the next
  answers   puzzle_id, output, expected; optionally tier and category. The puzzles stand in another file that is given,
            or that lies beside this one

JSON documents of published verdicts: grading, kk_solver, verifier_rlcsd, verifier_mopd and verifier_gopd.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jopsd.rewards.grader import VERIFIERS

TIERS = ("must", "should", "policy")
PUBLISHED, SOLVER = "published", "solver"  # tiers that are judged as must is
MODES = ("boxed", "freetext")
MAX_OUTPUT_CHARS = 64 << 20
_KINDS = {"kk": "knights", "sciknoweval": "choice", "gpqa": "choice", "tooluse": "tools", "livecodebench": "code"}


class CaseError(ValueError):
    """A file or row that cannot be read; the message names it."""


class Case(NamedTuple):
    """One labelled case.

    verifier: one of VERIFIERS; "box" for extraction (expected is the text or None); "solver" for a puzzle (gold is its
    statements, expected the list of its solutions). max_seconds: None for no limit. Of a published verdict: key, its
    kind and response, by which `jopsd.rewards.published` lists it; formatted and feedback, None where not comparable.
    """

    file: str
    id: str
    verifier: str
    text: str
    gold: Any
    expected: Any
    tier: str = "must"
    category: str = ""
    freetext: bool = False
    max_seconds: float | None = None
    key: tuple[str, str] | None = None
    formatted: bool | None = None
    feedback: bool | None = None


def read_cases(files: Sequence[Path]) -> list[Case]:
    """The cases of all files, in order. Raises CaseError naming file and line."""
    documents = [(file, _read(file)) for file in files]
    golds = {key: gold for _, read in documents if isinstance(read, list) for key, gold in _puzzle_golds(read)}
    cases: list[Case] = []
    for file, read in documents:
        cases += _published(file, read.value) if isinstance(read, _Document) else _labelled(file, read, golds)
    return cases


class _Document(NamedTuple):
    value: Any


_Rows = list[tuple[int, dict[str, Any]]]  # with their line numbers


def _read(file: Path) -> "_Document | _Rows":
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CaseError(f"{file} cannot be read: {error}") from None
    try:
        if file.suffix == ".json":
            return _Document(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise CaseError(f"{file} is not JSON: {error}") from None
    rows: _Rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CaseError(f"{file}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise CaseError(f"{file}, line {number}: not an object")
        rows.append((number, row))
    if not rows:
        raise CaseError(f"{file} holds no cases")
    return rows


# ------------------------------------------------------------------------------------------------------ labelled rows


def _labelled(file: Path, rows: _Rows, golds: dict[str, str]) -> Iterator[Case]:
    if any("puzzle_id" in row for _, row in rows) and not all(row.get("puzzle_id") in golds for _, row in rows):
        golds = golds | _golds_beside(file)
    for number, row in rows:
        try:
            if "puzzle_id" in row:
                yield _answer(file, number, row, golds)
            elif "statements" in row:
                yield _puzzle(file, number, row)
            else:
                yield _row(file, number, row)
        except (KeyError, TypeError, ValueError) as error:
            fault = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
            raise CaseError(f"{file}, line {number}: {fault}") from None


def _row(file: Path, number: int, row: Mapping[str, Any]) -> Case:
    verifier = _one_of(row, "verifier", VERIFIERS, "math")
    gold = row["tests" if verifier == "code" else "gold"]
    seconds = row.get("max_seconds")
    return Case(
        str(file),
        str(row.get("id", number)),
        verifier,
        _output(row),
        gold if isinstance(gold, str) else json.dumps(gold),
        _boolean(row, "expected"),
        _one_of(row, "tier", TIERS, "must"),
        str(row.get("category", "")),
        _one_of(row, "mode", MODES, "boxed") == "freetext",
        None if seconds is None else float(seconds),
    )


def _answer(file: Path, number: int, row: Mapping[str, Any], golds: Mapping[str, str]) -> Case:
    if row["puzzle_id"] not in golds:
        raise ValueError(
            f"puzzle {row['puzzle_id']!r} is in no file of puzzles that is given or lies beside this one; "
            "give the file that holds it too"
        )
    tier, gold = _one_of(row, "tier", TIERS, "must"), golds[row["puzzle_id"]]
    identity = str(row.get("id", f"{row['puzzle_id']}:{number}"))
    category = str(row.get("category", ""))
    return Case(str(file), identity, "knights", _output(row), gold, _boolean(row, "expected"), tier, category)


def _puzzle(file: Path, number: int, row: Mapping[str, Any]) -> Case:
    solution = row["solution"]
    if not isinstance(solution, list) or not all(isinstance(role, bool) for role in solution):
        raise ValueError(f"solution {solution!r} is not a list of true and false")
    identity, people = str(row.get("id", number)), f"{len(solution)} people"
    return Case(str(file), identity, "solver", "", row["statements"], [solution], SOLVER, people)


def _output(row: Mapping[str, Any]) -> str:
    if row.get("output") is None:
        segments = row["output_segments"]
        if sum(len(text) * int(repeat) for text, repeat in segments) > MAX_OUTPUT_CHARS:
            raise ValueError(f"output_segments make over {MAX_OUTPUT_CHARS} characters")
        return "".join(text * int(repeat) for text, repeat in segments)
    if not isinstance(row["output"], str):
        raise ValueError(f"output {row['output']!r} is not text")
    return row["output"]


def _boolean(row: Mapping[str, Any], key: str) -> bool:
    if not isinstance(row[key], bool):
        raise ValueError(f"{key} {row[key]!r} is neither true nor false")
    return row[key]


def _one_of(row: Mapping[str, Any], key: str, allowed: Sequence[str], default: str) -> str:
    value = row.get(key, default)
    if value not in allowed:
        raise ValueError(f"{key} {value!r} is none of {', '.join(allowed)}")
    return value


def _puzzle_golds(rows: _Rows) -> Iterator[tuple[str, str]]:
    for _, row in rows:
        if "statements" not in row or "id" not in row:
            continue
        if isinstance(row.get("solution_text"), str):
            yield row["id"], row["solution_text"]
        elif "names" in row and "solution" in row:
            roles = zip(row["names"], row["solution"], strict=False)
            yield row["id"], ", ".join(f"{name} is a {'knight' if role else 'knave'}" for name, role in roles)


def _golds_beside(file: Path) -> dict[str, str]:
    """Solutions of the puzzles in the files of the same folder whose first row is one."""
    golds: dict[str, str] = {}
    for other in sorted(file.parent.glob("*.jsonl")):
        with other.open(encoding="utf-8", errors="replace") as stream:
            first = stream.readline(1 << 20)
        if other != file and '"statements"' in first:
            golds |= dict(_puzzle_golds(_read(other)))
    return golds


# ------------------------------------------------------------------------------------------------- published verdicts


def _published(file: Path, document: Any) -> list[Case]:
    reader = _reader_of(document)
    if reader is None:
        raise CaseError(f"{file} is none of the published documents that are read (labelled rows are .jsonl)")
    try:
        return [case._replace(file=str(file)) for case in reader(document)]
    except (KeyError, TypeError, AttributeError) as error:
        raise CaseError(f"{file} cannot be read as {reader.__name__}: {error!r}") from None


def _reader_of(document: Any) -> Callable[[Any], Iterable[Case]] | None:
    if isinstance(document, dict):
        return grading if {"extract_boxed", "grade_pairs"} <= document.keys() else None
    if not isinstance(document, list) or not document or not isinstance(document[0], dict):
        return None
    for keys, reader in (
        ({"statements", "solutions"}, kk_solver),
        ({"data_source", "response", "ground_truth"}, verifier_rlcsd),
        ({"kind", "response", "gt", "result"}, verifier_mopd),
        ({"kind", "response", "gt", "score"}, verifier_gopd),
    ):
        if keys <= document[0].keys():
            return reader
    return None


def _verdict(kind: str, response: str, gold: str, right: bool, text: str | None = None, **more: Any) -> Case:
    text = response if text is None else text
    name, verifier = f"{kind}: {response}", _KINDS.get(kind, "math")
    return Case("", name, verifier, text, gold, right, PUBLISHED, kind, key=(kind, response), **more)


def grading(document: dict) -> Iterator[Case]:
    """Extraction, verdicts (PW-OPSD's evaluator, the strictest) and rewards (COPSD's) of the OPSD family."""
    for entry in document["extract_boxed"]:
        text, expected = entry["text"], entry["extracted"]
        yield Case("", f"extract_boxed: {text}", "box", text, None, expected, PUBLISHED, "extract_boxed")
    for entry in [*document["grade_pairs"], *document["grade_none"]]:
        prediction, gold = entry["pred"], entry["gold"]
        text = "" if prediction is None else f"\\boxed{{{prediction}}}"
        yield _verdict("grade_pairs", f"{prediction} for {gold}", gold, entry["pwopsd"], text)
    for entry in document["grpo_reward"]:
        yield _verdict("grpo_reward", entry["completion"], entry["Answer"], entry["copsd_reward"] > 0)


def kk_solver(document: list[dict]) -> Iterator[Case]:
    """All solutions of puzzles with one, none or several."""
    for number, entry in enumerate(document):
        people = f"{entry['n']} people"
        yield Case("", str(number), "solver", "", entry["statements"], entry["solutions"], SOLVER, people)


def verifier_rlcsd(document: list[dict]) -> Iterator[Case]:
    """Knights and Knaves, and mathematics as in the main thread (in a worker the published one compares as text)."""
    for entry in document:
        is_puzzle = entry["data_source"].startswith("kk_")
        result = entry["result" if is_puzzle else "result_main_thread"]
        kind = "kk" if is_puzzle else entry["data_source"]
        right, formatted = result["score"] > 0, result["formatted"] > 0
        yield _verdict(kind, entry["response"], entry["ground_truth"], right, formatted=formatted)


def verifier_mopd(document: list[dict]) -> Iterator[Case]:
    """Choices, tool calls, mathematics and programs of SDPO and MOPD.

    Whether a choice is formatted is not compared: the published flag is inverted where it is set at all.
    """
    for entry in document:
        kind, result = entry["kind"], entry["result"]
        loose = kind in ("sciknoweval", "gpqa", "livecodebench")
        formatted = None if loose or "incorrect_format" not in result else not result["incorrect_format"]
        feedback = bool(result["feedback"]) if kind == "tooluse" else None
        right = bool(result["score"] == 1 if kind == "livecodebench" else result["acc"])
        yield _verdict(kind, entry["response"], entry["gt"], right, formatted=formatted, feedback=feedback)


def verifier_gopd(document: list[dict]) -> Iterator[Case]:
    """Mathematics. A reward of -1 for a wrong answer (DAPO's scorer) counts as 0, the only scale here."""
    for entry in document:
        yield _verdict(entry["kind"], entry["response"], entry["gt"], entry["score"] > 0)
