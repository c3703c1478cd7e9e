"""What a source holds and what a run would leave out of it: counted, and as text."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jopsd.data.datasets import GENERATORS, LeftOut, Say, from_rows, kept_columns, load_rows, read_problems
from jopsd.data.problem import Problem, RowError, require_fields
from jopsd.data.remarks import Remark, doubts, told
from jopsd.data.schemas import ALIASES, detect, translations
from jopsd.rewards.grader import fault_of_gold

FIELDS = tuple(ALIASES)
MEASURED = ("problem", "solution", "answer", "tests")
SHOWN_CHARS = 600  # of each field of the first row

Outcome = Problem | RowError | LeftOut
Row = Mapping[str, Any]


def inspect_source(
    source: str,
    split: str = "train",
    subset: str | None = None,
    columns: Mapping[str, str] | None = None,
    difficulty: tuple[float, float] | None = None,
    limit: int | None = None,
    tokenizer: Any = None,
    max_tokens: int | None = None,
    reward: str | None = None,
) -> dict[str, Any]:
    """Everything that `python -m jopsd.data inspect` says of a source, JSON-ready; rows are counted from 0.

    Args:
      tokenizer: lengths are in its tokens; None: in characters.
      max_tokens: rows whose problem, alone or with its solution, has more tokens are counted as left out.
      reward: the verifier of all rows; None: each row's own, else math.

    A row that has a solution and no gold answer is left out by methods that learn from a reward alone, so it is counted
    in `without_answer` too.

    Raises as `load_problems` for a source that cannot be read; ValueError for a text that the tokenizer cannot read, or
    `max_tokens` without one.
    """
    if max_tokens is not None and tokenizer is None:
        raise ValueError("--max-tokens counts tokens: give --tokenizer too")
    layouts, translated, good_translations = Counter(), Counter(), Counter()
    problems: list[Problem] = []
    lengths: list[dict[str, int]] = []
    reasons: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    remarks: list[tuple[int, Remark]] = []
    without_answer = 0
    for number, (row, outcome) in enumerate(_outcomes(source, split, subset, columns, difficulty, limit, notes.append)):
        layouts["generated" if row is None else detect(row).name] += 1
        for column in translations(row or {}):
            translated[column] += 1
            good_translations[column] += bool(row[column]) and row.get(f"{column}_ok", True) is True
        if isinstance(outcome, Problem):
            problems.append(outcome)
            lengths.append({name: _length(outcome, name, tokenizer) for name in MEASURED if getattr(outcome, name)})
            remarks += [(number, remark) for remark in _remarks(outcome, reward)]
            faults = [*_ungradable(outcome, row or {}, reward), *_too_long(lengths[-1], max_tokens)]
            bare = outcome.answer is None and outcome.tests is None and outcome.solution is not None
            without_answer += bare and not _too_long(lengths[-1], max_tokens)
        else:
            faults = [(outcome.reason, str(outcome) if isinstance(outcome, RowError) else "")]
        for reason, detail in faults[:1]:  # a row is left out once
            entry = {"reason": reason, "rows": 0, "first_row": number, "detail": detail}
            reasons.setdefault(reason, entry)["rows"] += 1
    left_out = sorted(reasons.values(), key=lambda entry: -entry["rows"])
    return {
        "source": source,
        "rows": layouts.total(),
        "usable_rows": layouts.total() - sum(entry["rows"] for entry in left_out),
        "layouts": _counts(layouts),
        "fields": _counts(Counter(name for p in problems for name in FIELDS if getattr(p, name) is not None)),
        "verifiers": _counts(Counter(p.verifier or "none" for p in problems)),
        "teachers": _counts(Counter(p.teacher for p in problems if p.teacher)),
        "languages": _counts(Counter(p.language for p in problems if p.language)),
        "translations": {c: {"rows": n, "good": good_translations[c]} for c, n in translated.items()},
        "unit": "characters" if tokenizer is None else "tokens",
        "lengths": {name: spread(found) for name in MEASURED if (found := [n[name] for n in lengths if name in n])},
        "without_answer": without_answer,
        "notes": [*notes, *told(source, remarks)],
        "left_out": left_out,
        "first": _as_json(problems[0]) if problems else None,
    }


def spread(values: Sequence[int]) -> dict[str, int]:
    """Smallest, median, 95 % and largest value (each one of the values: the smallest that so many do not exceed)."""
    ordered = sorted(values)
    at = lambda share: ordered[max(math.ceil(share * len(ordered)), 1) - 1]  # noqa: E731
    return {"min": ordered[0], "median": at(0.5), "p95": at(0.95), "max": ordered[-1]}


def as_text(report: Mapping[str, Any]) -> str:
    """A report for a terminal."""
    columns = ("min", "median", "p95", "max")
    lines = [
        f"{report['source']}: {report['rows']} rows, {report['usable_rows']} of them usable",
        f"layout     {_listed(report['layouts'])}",
        f"fields     {_listed(report['fields'])}",
        f"verifier   {_listed(report['verifiers'])}",
    ]
    lines += [f"{name[:-1]:10} {_listed(report[name])}" for name in ("teachers", "languages") if report[name]]
    lines += [
        f"translated {column}: {n['good']} of {n['rows']} good; read with --columns problem={column}"
        for column, n in report["translations"].items()
    ]
    lines += [f"{report['unit']:10} {'min':>9} {'median':>9} {'95 %':>9} {'max':>9}"] if report["lengths"] else []
    lines += [f"  {name:8} " + " ".join(f"{n[c]:9}" for c in columns) for name, n in report["lengths"].items()]
    if report["without_answer"]:
        lines.append(
            f"no answer  {report['without_answer']} rows with a solution; methods that learn from no reward use them"
        )
    lines += report["notes"]
    for entry in report["left_out"]:
        lines.append(f"left out: {entry['rows']} rows, {entry['reason']}; the first is row {entry['first_row']}")
        lines += [f"  {entry['detail']}"] if entry["detail"] else []
    first = report["first"]
    return "\n".join([*lines, *(_first_in_words(first) if first else ["no row becomes a problem"])])


def _outcomes(
    source: str,
    split: str,
    subset: str | None,
    columns: Mapping[str, str] | None,
    difficulty: tuple[float, float] | None,
    limit: int | None,
    say: Say,
) -> Iterator[tuple[Row | None, Outcome]]:
    """Each row (None: made, not read) and what becomes of it."""
    needed = ("problem",)
    if source.partition(":")[0] in GENERATORS:
        for outcome in read_problems(source, split, columns, needed, subset, limit, difficulty=difficulty, say=say):
            yield None, outcome
        return
    rows = kept_columns(load_rows(source, split, subset, limit, say), columns)
    yield from zip(rows, from_rows(rows, columns, needed, source, difficulty), strict=True)


def _ungradable(problem: Problem, row: Row, reward: str | None) -> list[tuple[str, str]]:
    """Why the verifier cannot grade this row, as (reason, detail); empty where it can."""
    verifier = reward or problem.verifier or "math"
    name = "tests" if verifier == "code" else "answer"
    try:
        require_fields(problem, (name,), row, problem.row or 0)
    except RowError as error:
        return [(error.reason, "")]
    fault = fault_of_gold(verifier, getattr(problem, name))
    return [(f"{name}: not one that {verifier} can grade", fault)] if fault else []


def _remarks(problem: Problem, reward: str | None) -> tuple[Remark, ...]:
    graded = (reward or problem.verifier or "math") == "math" and problem.answer is not None
    return (*problem.remarks, *(doubts(problem.answer) if graded else ()))


def _too_long(lengths: Mapping[str, int], limit: int | None) -> list[tuple[str, str]]:
    if limit is None or lengths["problem"] + lengths.get("solution", 0) <= limit:
        return []
    what = "problem" if lengths["problem"] > limit else "problem with solution"
    return [(f"{what} over {limit} tokens", "")]


def _length(problem: Problem, name: str, tokenizer: Any) -> int:
    text = getattr(problem, name)
    if tokenizer is None:
        return len(text)
    try:
        return len(tokenizer.encode(text, add_special_tokens=False))
    except Exception as error:  # tokenizers has no class of its own for this
        where = f"{problem.source}, row {problem.row} (counted from 0), field {name!r}"
        raise ValueError(f"{where}: the tokenizer cannot read it ({error})") from None


def _counts(counter: Counter[str]) -> dict[str, int]:
    return dict(counter.most_common())


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _as_json(problem: Problem) -> dict[str, Any]:
    texts = {name: value for name in FIELDS if (value := getattr(problem, name)) is not None}
    turns = {"history": [list(turn) for turn in problem.history]} if problem.history else {}
    return {"row": problem.row, **texts, **turns, "extra": sorted(problem.extra)}


def _first_in_words(first: Mapping[str, Any]) -> list[str]:
    lines = [f"--- first problem (row {first['row']})"]
    for name in FIELDS:
        text = first.get(name)
        if text is None:
            continue
        more = f" ... ({len(text)} characters)" if len(text) > SHOWN_CHARS else ""
        shown = text[:SHOWN_CHARS] + more
        lines.append(f"{name}: {shown}" if "\n" not in shown else "\n    ".join([f"{name}:", *shown.splitlines()]))
    lines += [f"earlier {role}: {text[:SHOWN_CHARS]}" for role, text in first.get("history", ())]
    return [*lines, f"further columns: {', '.join(first['extra']) or 'none'}", "---"]
