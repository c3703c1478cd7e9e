"""Whether what a program gave is what a test expects: printed text, and results as plain data.

Stricter than the published graders, on purpose: True is not 1, the order of tokens counts, and so does their case.
Neither side is executed or trusted, and time is linear in both (with a sort where sets hold fractions).
"""

import math
import re
from collections.abc import Iterable
from typing import Any

MAX_DEPTH = 60  # of a result; what is nested deeper equals nothing
TOLERANCE = 1e-6  # relative, of a fraction
MAX_MEMBERS = 1_000  # of a list compared as a set: a program can choose numbers whose hashes collide
_ROUNDING = 1e-9  # absolute, about zero, of a result for which no tolerance is given

_NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?=\.?[0-9])(?P<whole>[0-9]*)(?:\.(?P<fraction>[0-9]*))?(?:[eE](?P<exponent>[+-]?[0-9]{1,15}))?"
)


def same_output(given: str, expected: str) -> bool:
    """Whether a program printed what it should: the same tokens in the same order, white space being what parts them.

    Tokens that are decimal numbers are equal by value: an expected whole number exactly, whatever its length; one with
    a fraction or an exponent within 1e-6, relative or absolute.
    """
    ours, theirs = given.split(), expected.split()
    return len(ours) == len(theirs) and all(map(_same_token, ours, theirs))


def _same_token(given: str, expected: str) -> bool:
    if given == expected:
        return True
    wanted, found = _NUMBER.fullmatch(expected), _NUMBER.fullmatch(given)
    if not wanted or not found:
        return False
    if _digits(found) == _digits(wanted):
        return True
    is_fraction = wanted["fraction"] or wanted["exponent"]
    return bool(is_fraction) and _close(float(given), float(expected), TOLERANCE)


def _digits(number: re.Match) -> tuple[bool, str, int]:
    """A decimal as sign, digits without zeros at either end, and power of ten: equal for equal values of any length."""
    whole, fraction = number["whole"], number["fraction"] or ""
    digits = (whole + fraction).lstrip("0")
    kept = digits.rstrip("0")
    power = int(number["exponent"] or 0) - len(fraction) + len(digits) - len(kept)
    return (number["sign"] == "-", kept, power) if kept else (False, "", 0)


def same_result(given: Any, expected: Any, sequences_alike: bool = False, atol: float = 0.0) -> bool:
    """Whether a result is the expected one: the same types all the way down, and the same values.

    int and float are one type of number, and bool is none. An expected float is met within ``atol`` or a relative 1e-6,
    an expected int exactly; nan equals nan. sequences_alike: a list and a tuple are the same (JSON has no tuples).
    Values are of the types that leave the sandbox; nested over 60 levels they are not equal.
    """
    pairs = [iter([(given, expected)])]  # one iterator a level, so that no nesting exhausts the interpreter's stack
    while pairs:
        pair = next(pairs[-1], None)
        if pair is None:
            pairs.pop()
            continue
        inside = _compare(*pair, sequences_alike, atol)
        if inside is None or len(pairs) > MAX_DEPTH:
            return False
        pairs.append(iter(inside))
    return True


def same_members(given: Any, expected: Any, sequences_alike: bool = False, atol: float = 0.0) -> bool:
    """Whether two lists, tuples or sets hold the same values, whatever their order and however often.

    Lists of over 1,000 entries are compared as they stand.
    """
    if not all(isinstance(value, list | tuple | set | frozenset) for value in (given, expected)):
        return False
    if isinstance(given, list | tuple) and len(given) > MAX_MEMBERS:
        return same_result(given, expected, sequences_alike, atol)
    ours = {_key(value, sequences_alike): value for value in given}
    theirs = {_key(value, sequences_alike): value for value in expected}
    left, right = ours.keys() - theirs.keys(), theirs.keys() - ours.keys()
    if len(left) != len(right):
        return False
    numbers = [[values[key] for key in keys] for values, keys in ((ours, left), (theirs, right))]
    if not all(type(value) in (int, float) for side in numbers for value in side):
        return False
    return all(_same_number(*pair, atol) for pair in zip(*map(sorted, numbers), strict=True))


def _compare(given: Any, expected: Any, sequences_alike: bool, atol: float) -> Iterable[tuple[Any, Any]] | None:
    """The pairs on which it depends whether two values are equal; None if they are not."""
    kind = type(expected)
    if kind in (int, float):
        equal = type(given) in (int, float) and _same_number(given, expected, atol)
    elif type(given) is not kind and not (sequences_alike and {type(given), kind} == {list, tuple}):
        equal = False
    elif kind is complex:
        parts = (given.real, expected.real), (given.imag, expected.imag)
        equal = all(_same_number(*part, atol) for part in parts)
    elif kind in (list, tuple):
        return zip(given, expected, strict=True) if len(given) == len(expected) else None
    elif kind is dict:
        ours = {_key(key, sequences_alike): value for key, value in given.items()}
        theirs = {_key(key, sequences_alike): value for key, value in expected.items()}
        return ((ours[key], theirs[key]) for key in theirs) if ours.keys() == theirs.keys() else None
    elif kind in (set, frozenset):
        equal = len(given) == len(expected) and same_members(given, expected, sequences_alike, atol)
    else:
        equal = given == expected
    return () if equal else None


def _same_number(given: float, expected: float, atol: float) -> bool:
    if given == expected or (given != given and expected != expected):
        return True
    if type(expected) is int:
        return False
    try:
        return _close(float(given), expected, max(atol, _ROUNDING))
    except OverflowError:  # a whole number beyond all floats
        return False


def _close(given: float, expected: float, atol: float) -> bool:
    difference = abs(given - expected)
    return difference <= max(atol, TOLERANCE * abs(expected)) and not math.isinf(difference)


def _key(value: Any, sequences_alike: bool, depth: int = 0) -> Any:
    """A hashable that equals another's where the values are the same; for values in sets and keys of dicts."""
    kind = type(value)
    if depth > MAX_DEPTH:
        return object()
    if kind in (int, float):
        return "number", "nan" if value != value else value
    if kind in (list, tuple):
        tag = list if sequences_alike else kind
        return tag, tuple(_key(entry, sequences_alike, depth + 1) for entry in value)
    if kind in (set, frozenset):
        return kind, frozenset(_key(entry, sequences_alike, depth + 1) for entry in value)
    if kind is dict:
        entries = ((_key(k, sequences_alike, depth + 1), _key(v, sequences_alike, depth + 1)) for k, v in value.items())
        return kind, frozenset(entries)
    return kind, value
