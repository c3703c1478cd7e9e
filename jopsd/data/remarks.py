"""Remarks on how rows were read, and the one line in which those of a kind are told."""

from collections.abc import Iterable
from typing import NamedTuple


class Remark(NamedTuple):
    """One thing about one row. kind: the same for all rows of which it is true. detail: what it is in this row."""

    kind: str
    detail: str


def told(label: str, remarks: Iterable[tuple[int | None, Remark]]) -> list[str]:
    """A line for each kind: how many rows, the first of them by its number, and its detail. label: where they are."""
    kinds: dict[str, list[tuple[int | None, str]]] = {}
    for row, remark in remarks:
        kinds.setdefault(remark.kind, []).append((row, remark.detail))
    return [
        f"{label}: {len(found)} rows have {kind}; the first is row {found[0][0]} (counted from 0): {found[0][1]}"
        for kind, found in kinds.items()
    ]
