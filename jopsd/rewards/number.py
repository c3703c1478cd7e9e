"""Reads a normalised answer that is one plain number, exactly, and says whether two such numbers are the same."""

import re
import struct
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

MAX_CHARS = 2_000
MAX_SCALE = 400  # of a power of ten in scientific notation
MAX_PERIODIC = 60  # digits among which a period is looked for

_GROUPED = re.compile(r"([+-]?)([1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?: \d{3})+|[1-9]\d{0,2}(?:['_]\d{3})+)(\.\d+)?")
_UNSIGNED = r"(?:\d+(?:\.\d*)?|\.\d+)"
_DECIMAL = re.compile(r"([+-]?) ?(\d*)(?:\.(\d*))?")
_SCIENTIFIC = re.compile(
    rf"([+-]?) ?(?:({_UNSIGNED}) ?(?:(?:\\times|\\cdot|\*) ?10 ?(?:\^|\*\*)|[eE])|10 ?(?:\^|\*\*)) ?"
    r"(?:[{(] ?([+-]?\d+) ?[)}]|([+-]?\d+))"
)
_REPEATING = re.compile(
    r"([+-]?)(\d*)\.(\d*)(?:\\(?:overline|bar|dot) ?\{ ?(\d+) ?\}|\\(?:overline|bar|dot) ?(\d)|\((\d+)\))"
)
UNENDING = re.compile(r"(\d*)\.(\d+) ?(?:\.\.\.|\\(?:ldots|dots|cdots|dotsc)(?![A-Za-z]))")
_PERIOD = re.compile(r"(\d*?)(\d{1,12}?)\2+")  # of the shortest head, the shortest period
_RATIO = re.compile(
    rf"([+-]?) ?(?:\\frac ?\{{ ?([+-]? ?{_UNSIGNED}) ?\}} ?\{{ ?([+-]? ?{_UNSIGNED}) ?\}}|\\frac ?(\d) ?(\d)"
    rf"|\\frac ?(\d) ?\{{ ?(\d+) ?\}}|\\frac ?\{{ ?(\d+) ?\}} ?(\d)|({_UNSIGNED}) ?/ ?({_UNSIGNED}))"
)
_MIXED = re.compile(r"([+-]?) ?(\d+)(?: ?(?=\\)| (?=\d))(\D.*|\d+ ?/ ?\d+)")


class Number(NamedTuple):
    """An exact rational and, for a decimal literal, how many digits follow its point (None for integer or ratio)."""

    value: Fraction
    decimals: int | None


def ungroup(text: str) -> str:
    """A number without its thousands separators; any other text as it is."""
    match = _GROUPED.fullmatch(text)
    return match[1] + re.sub(r"[, '_]", "", match[2]) + (match[3] or "") if match else text


def exact_number(text: str) -> Number | None:
    """Read a normalised integer, decimal, ratio, mixed number, repeating decimal or power of ten; else None."""
    if len(text) > MAX_CHARS:
        return None
    text = ungroup(text)
    match = _DECIMAL.fullmatch(text)
    if match and (match[2] or match[3]):
        value = Fraction(f"{match[2] or '0'}.{match[3] or '0'}")
        return Number(_signed(value, match[1]), len(match[3]) if match[3] is not None else None)
    value = _ratio(text) or _mixed(text) or _repeating(text) or _unending(text) or _scientific(text)
    return None if value is None else Number(value[0], None)


def _signed(value: Fraction, *signs: str) -> Fraction:
    return -value if "".join(signs).count("-") % 2 else value


# Each gives a tuple of one, or None: a value of 0 must not be mistaken for no match.
def _ratio(text: str) -> tuple[Fraction] | None:
    match = _RATIO.fullmatch(text)
    if not match:
        return None
    above, below = (part.replace(" ", "") for part in match.groups()[1:] if part)
    if not Fraction(below):
        return None
    return (_signed(Fraction(above) / Fraction(below), match[1]),)


def _mixed(text: str) -> tuple[Fraction] | None:
    """A whole number and a proper part: the part has no sign, and written with a slash it is below one."""
    match = _MIXED.fullmatch(text)
    part = match and _ratio(match[3])
    if not part or "-" in match[3] or "+" in match[3] or ("/" in match[3] and part[0] >= 1):
        return None
    return (_signed(int(match[2]) + part[0], match[1]),)


def _repeating(text: str) -> tuple[Fraction] | None:
    match = _REPEATING.fullmatch(text)
    if not match:
        return None
    sign, whole, fixed, *periods = match.groups()
    return (_signed(_repeated(whole, fixed, next(filter(None, periods))), sign),)


def _unending(text: str) -> tuple[Fraction] | None:
    """A decimal with dots behind it, 0.1666..., whose last digits repeat: these go on for ever."""
    sign = text[: text[:1] in ("+", "-")]
    match = UNENDING.fullmatch(text.removeprefix(sign).lstrip())
    period = match and len(match[2]) <= MAX_PERIODIC and _PERIOD.fullmatch(match[2])
    if not period:
        return None
    head, repeated = len(period[1]), len(match[2]) - len(period[1])
    enough = repeated >= 3 or head <= 1 if len(period[2]) == 1 else repeated >= (4 if head <= 1 else 6)
    return (_signed(_repeated(match[1], *period.groups()), sign),) if enough else None


def _repeated(whole: str, fixed: str, period: str) -> Fraction:
    shift = 10 ** len(fixed)
    return Fraction(int((whole or "0") + fixed), shift) + Fraction(int(period), shift * (10 ** len(period) - 1))


def _scientific(text: str) -> tuple[Fraction] | None:
    match = _SCIENTIFIC.fullmatch(text)
    if not match or abs(power := int(match[3] or match[4])) > MAX_SCALE:
        return None
    return (_signed(Fraction(match[2] or "1") * Fraction(10) ** power, match[1]),)


def same_number(one: Number, other: Number) -> bool:
    """Exact equality; only a ratio without a finite decimal also equals its decimal of six or more places.

    Such a decimal may differ by 1e-6 of the ratio and by one unit of its last digit.
    """
    if one.value == other.value:
        return True
    decimal, ratio = (one, other) if one.decimals is not None else (other, one)
    if decimal.decimals is None or ratio.decimals is not None or decimal.decimals < 6 or _terminates(ratio.value):
        return False
    error = abs(decimal.value - ratio.value)
    return error <= abs(ratio.value) / 10**6 and error <= Fraction(1, 10**decimal.decimals)


def _terminates(value: Fraction) -> bool:
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


_STORED = re.compile(r"(?<![\d.])(\d{1,20})\.(\d{1,40})(?:[eE]([+-]?\d{1,3}))?(?![\d.])")


def without_noise(text: str) -> str:
    """The text with decimals as they were before a program stored them in binary: 3.3 for 3.3000000000000003.

    Such a decimal has 15 or more digits, and either twelve of them give one of nine or fewer, or it is what a number
    of 32 bits is in 64 (0.10000000149011612).
    """
    return _STORED.sub(lambda match: _shorter(*match.groups()) or match[0], text)


def _shorter(whole: str, fraction: str, power: str | None) -> str | None:
    if len(whole) > 9 or len((whole + fraction).lstrip("0")) < 15:
        return None
    value = float(f"{whole}.{fraction}e{power or 0}")
    candidates = [f"{value:.11e}"]
    if 1e-30 < value < 1e30 and struct.unpack("f", struct.pack("f", value))[0] == value:
        rounded = [f"{value:.{digits}e}" for digits in range(9)]
        candidates += [text for text in rounded if struct.pack("f", float(text)) == struct.pack("f", value)]
    for text in candidates:
        if len((short := Decimal(text).normalize()).as_tuple().digits) <= 9:
            return str(short) if power else format(short, "f")
    return None
