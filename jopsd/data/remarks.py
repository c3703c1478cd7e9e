"""Remarks on how rows were read, and the one line in which those of a kind are told."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from jopsd.rewards.boxed import last_boxed
from jopsd.rewards.math import Verdict, quick_grade

LONG = 100  # characters of an answer that hardly a completion repeats
_NOTHING = re.compile(r"nan|none|null|n/?a|unknown|tbd|\?+|-+|see (?:the )?(?:solution|proof)\.?", re.IGNORECASE)


class Remark(NamedTuple):
    """One thing about one row. kind: the same for all rows of which it is true. detail: what it is in this row."""

    kind: str
    detail: str


def doubts(answer: str) -> tuple[Remark, ...]:
    """What makes it doubtful that a completion is ever graded right by `math` with this gold answer."""
    if len(answer) >= LONG:
        detail = f"{len(answer)} characters, {answer[:60]!r}..."
        return (Remark(f"answers of {LONG} characters or more, which hardly a completion will match", detail),)
    try:
        repeated, other = quick_grade(last_boxed(f"\\boxed{{{answer}}}"), answer), quick_grade("0", answer)
    except ValueError:  # which is told elsewhere
        return ()
    missed = isinstance(repeated, Verdict) and not repeated.correct
    hard = isinstance(other, Verdict) and other.stage == "too_complex"
    if missed or hard or _NOTHING.fullmatch(answer.strip()):
        return (Remark("answers that no completion will match", repr(answer)),)
    return ()


def told(label: str, remarks: Iterable[tuple[int | None, Remark]]) -> list[str]:
    """A line for each kind: how many rows, the first of them by its number, and its detail. label: where they are."""
    kinds: dict[str, list[tuple[int | None, str]]] = {}
    for row, remark in remarks:
        kinds.setdefault(remark.kind, []).append((row, remark.detail))
    return [
        f"{label}: {len(found)} rows have {kind}; the first is row {found[0][0]} (counted from 0): {found[0][1]}"
        for kind, found in kinds.items()
    ]
