"""Words on what failed in a program, for a teacher to read: in full on tests that may be shown, the kind for others."""

import builtins
import re
import reprlib
from typing import Any, NamedTuple

from jopsd.rewards.tests import Arguments, Tests

MAX_CHARS = 2_000
SHOWN_WRONG = 2  # wrong answers, the shortest
PART_CHARS, PART_LINES, MESSAGE_CHARS = 250, 8, 600
NO_PROGRAM = "No program was found: put it in one block that begins with ```python and ends with ```."
TOO_LONG = "The program is over a megabyte long."

HEADINGS = {
    "error": "Runtime error",
    "memory": "Memory limit exceeded",
    "output": "Output limit exceeded",
    "crash": "The program crashed",
    "unreadable": "The function returned no plain data",
    "timeout": "Time limit exceeded",
    "wrong": "Wrong answer",
}
_RANK = {"timeout": 1, "wrong": 2}  # all other kinds are errors, and come first
_ERRORS = {name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException)}
_EXCEPTION = re.compile(r"^([A-Za-z]+)(?=:|\s*$)", re.MULTILINE)


class Failure(NamedTuple):
    """A test that failed: wrong (a wrong answer) or the sandbox's error, timeout, memory, output, crash, unreadable.

    case: its number, from 0. message: the program's own words. output, expected: of a wrong answer.
    """

    kind: str
    case: int
    message: str = ""
    output: Any = None
    expected: Any = None


def feedback(tests: Tests, failures: list[Failure], shown: int) -> str:
    """At most 2,000 characters on the failures of a program (one at least).

    The first of ``shown`` tests may be repeated: the first error with its input, else the first timeout, else the two
    shortest wrong answers. Where none of those failed, the same order chooses the failure whose kind alone is told: no
    text that a hidden test or the program after reading one could have put there. (Shown tests run before hidden ones.)
    """
    ranked = sorted(failures, key=lambda failure: _RANK.get(failure.kind, 0))
    known = [failure for failure in ranked if failure.case < shown]
    if not known:
        return f"{_kind(ranked[0])} on a hidden test."
    first = known[0]
    if first.kind != "wrong":
        words = [HEADINGS[first.kind], first.message.strip()[-MESSAGE_CHARS:], "", *_given(tests, first)]
    else:
        words = []
        for failure in sorted(known, key=lambda failure: _length(tests, failure))[:SHOWN_WRONG]:
            words += [HEADINGS["wrong"], "", *_given(tests, failure), "", *_answer(tests, failure), ""]
    text = "\n".join(words).strip()[:MAX_CHARS]
    return text.encode("utf-8", "replace").decode()


def _kind(failure: Failure) -> str:
    """The kind of a failure, with the exception if that is one of Python's own: nothing that a program could word."""
    names = [name for name in _EXCEPTION.findall(failure.message) if name in _ERRORS] if failure.kind == "error" else []
    return HEADINGS[failure.kind] + (f" ({names[-1]})" if names else "")


def _given(tests: Tests, failure: Failure) -> list[str]:
    heading = {"stdin": "Input", "assert": "Test"}.get(tests.kind, "Arguments")
    return [heading, _part(_input(tests, failure))]


def _answer(tests: Tests, failure: Failure) -> list[str]:
    if tests.kind == "assert":
        return [failure.message.strip()[-MESSAGE_CHARS:]]
    output, expected = (_text(tests, value) for value in (failure.output, failure.expected))
    return ["Output", _part(output), "", "Expected", _part(expected)]


def _length(tests: Tests, failure: Failure) -> int:
    return len(_input(tests, failure)) + len(_text(tests, failure.output))


def _input(tests: Tests, failure: Failure) -> str:
    given = tests.cases[failure.case].given
    if not isinstance(given, Arguments):
        return given
    named = [f"{name} = {_REPR.repr(value)}" for name, value in given.kwargs.items()]
    return "\n".join([*map(_REPR.repr, given.args), *named])


def _text(tests: Tests, value: Any) -> str:
    """What a program printed as it stands, a result as Python writes it."""
    return value if tests.kind == "stdin" else _REPR.repr(value)


def _part(text: str) -> str:
    """At most 8 lines and 250 characters of a text."""
    lines = text[: PART_CHARS + 1].splitlines()
    part = "\n".join(lines[:PART_LINES])[:PART_CHARS]
    return part if len(part) == len(text.rstrip("\n")) else part + " ..."


class _Repr(reprlib.Repr):
    """`repr` of plain data, cut short before it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = 40
        self.maxstring = self.maxlong = self.maxother = PART_CHARS

    def repr_int(self, value: int, level: int) -> str:
        return super().repr_int(value, level) if value.bit_length() < 10_000 else f"<{value.bit_length()} bits>"


_REPR = _Repr()
