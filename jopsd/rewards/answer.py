r"""Plain-text work on a short mathematical answer: normalise it, read it as an exact number, judge whether it is safe.

Everything here is cheap, bounded and free of sympy.
"""

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

MAX_CHARS = 2_000
MAX_NESTING = 60
MAX_DIGITS = 200
MAX_LIST = 200
MAX_EXPONENT = 10_000
MAX_POWER_DEPTH = 3

_SYMBOLS = str.maketrans(
    {"\u2212": "-", "\uff0d": "-", "\uff0b": "+", "\uff0c": ",", "\uff0e": ".", "\uff0f": "/", "\uff1a": ":"}
    | {"\uff08": "(", "\uff09": ")", "\uff1d": "=", "\uff05": "%", "\u066a": "%", "\u066b": ".", "\u066c": ","}
)
# Reordering marks make 24 look like 42, so an answer that holds one is refused; other invisible characters are dropped.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_REPLACEMENTS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\$|\$", ""),
        (r"(?<!\\)\\!", ""),
        (r"\{,\}", ","),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\\(?:left|right)(?![A-Za-z])", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"(?<![\\A-Za-z])sqrt(?=\{)", r"\\sqrt"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|°", r"^\\circ "),
        (r"(?<!\\)%", r"\\%"),
        (r"\\(?:mathrm|textrm|mbox)\s*\{\s*([A-Za-z]+)\s*\^\s*\{?(\d)\}?\s*\}", r"\\text{ \1}^\2"),
        (r"\s+", " "),
    )
)
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}")
_GROUPED = re.compile(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+)(\.\d+)?")
_LETTER = re.compile(r"\(([A-Za-z])\)")
_DEGREES = re.compile(r"([+-]?\d+(?:\.\d+)?) ?\^\\circ")

_DECIMAL = re.compile(r"([+-]?)(\d*)(?:\.(\d*))?")
_RATIO = re.compile(
    r"([+-]?)(?:(\d+) ?(?=\\))?"
    r"(?:\\frac ?\{ ?([+-]?) ?(\d+) ?\} ?\{ ?([+-]?) ?(\d+) ?\}|\\frac ?(\d) ?(\d)|(\d+) ?/ ?(\d+))"
)


class Number(NamedTuple):
    """An exact rational and, for a decimal literal, how many digits follow its point (None for integer or ratio)."""

    value: Fraction
    decimals: int | None


def normalise(answer: str) -> str | None:
    """One spelling for what means the same: digits of every script, spaces, separators, wrappers, degree signs.

    Returns None if the answer holds control or reordering characters.
    """
    characters = []
    for character in answer.translate(_SYMBOLS):
        category = unicodedata.category(character)
        if category == "Nd":
            characters.append(str(unicodedata.decimal(character)))
        elif character in _BIDI or (category == "Cc" and not character.isspace()):
            return None
        elif category != "Cf":
            characters.append(character)
    text = "".join(characters)
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return _unwrap(text.strip())


def _unwrap(text: str) -> str:
    """Strip what surrounds the whole answer: braces, a text macro, a final full stop, quotes, digit grouping."""
    before = None
    while text != before:
        before = text
        text = text.strip().strip('"')
        if not text.endswith(".."):
            text = text.removesuffix(".").rstrip()
        if match := _TEXT.fullmatch(text):
            text = match.group(1)
        if text.startswith("{") and text.endswith("}") and _closes_at_end(text):
            text = text[1:-1]
        if match := _LETTER.fullmatch(text) or _DEGREES.fullmatch(text):
            text = match.group(1)
        if text.startswith("(") and text.endswith(")") and exact_number(text[1:-1].strip()):
            text = text[1:-1]
    if match := _GROUPED.fullmatch(text):
        text = match.group(1) + re.sub(r"[, ]", "", match.group(2)) + (match.group(3) or "")
    return text


def _closes_at_end(text: str) -> bool:
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return position == len(text) - 1
    return False


def exact_number(text: str) -> Number | None:
    """Read a normalised integer, decimal, ratio or mixed number exactly; None for anything else."""
    if len(text) > MAX_DIGITS:
        return None
    match = _DECIMAL.fullmatch(text)
    if match and (match.group(2) or match.group(3)):
        sign, whole, part = match.groups()
        value = Fraction(f"{whole or '0'}.{part or '0'}")
        return Number(-value if sign == "-" else value, len(part) if part is not None else None)
    match = _RATIO.fullmatch(text)
    if not match:
        return None
    sign, whole, sign_above, above, sign_below, below, *short = match.groups()
    numerator = int(above or short[0] or short[2])
    denominator = int(below or short[1] or short[3])
    if denominator == 0 or (whole and (sign_above or sign_below)):
        return None
    value = int(whole or 0) + Fraction(numerator, denominator)
    return Number(-value if (sign, sign_above, sign_below).count("-") % 2 else value, None)


def same_number(one: Number, other: Number) -> bool:
    """Exact equality; only a ratio without a finite decimal also equals its decimal of six or more places (1e-6)."""
    if one.value == other.value:
        return True
    decimal, ratio = (one, other) if one.decimals is not None else (other, one)
    if decimal.decimals is None or ratio.decimals is not None or decimal.decimals < 6 or _terminates(ratio.value):
        return False
    return abs(decimal.value - ratio.value) <= abs(ratio.value) / 10**6


def _terminates(value: Fraction) -> bool:
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


_EXPONENT = re.compile(r"\^ ?\{? ?[+-]? ?(\d+)")
# innermost power of two plain numbers that is itself an exponent: ^{a^b} or ^{a^{b}}
_TOWER = re.compile(r"\^ ?\{ ?(\d+) ?\^ ?(?:\{ ?(\d+) ?\}|(\d)) ?\}")
_FACTORIAL = re.compile(r"(\d+) ?[)}]? ?!")
_REPEATED_FACTORIAL = re.compile(r"![ )}\]]*!")


def too_complex(text: str) -> bool:
    """Whether a normalised answer is outside what symbolic algebra should ever be asked about (towers, bombs, junk)."""
    text = text.replace("**", "^")
    if len(text) > MAX_CHARS or "#" in text or text.count(",") > MAX_LIST:
        return True
    if re.search(rf"\d{{{MAX_DIGITS + 1}}}", text) or _too_deep(text):
        return True
    if any(int(n) > MAX_EXPONENT for n in _FACTORIAL.findall(text)) or _REPEATED_FACTORIAL.search(text):
        return True
    while match := _TOWER.search(text):
        base, power = int(match.group(1)), int(match.group(2) or match.group(3))
        value = base**power if base < 2 or power * base.bit_length() <= 64 else MAX_EXPONENT + 1
        if value > MAX_EXPONENT:
            return True
        text = text[: match.start()] + f"^{{{value}}}" + text[match.end() :]
    return any(int(n) > MAX_EXPONENT for n in _EXPONENT.findall(text)) or _power_depth(text) > MAX_POWER_DEPTH


def _too_deep(text: str) -> bool:
    depth = 0
    for character in text:
        if character in "{([":
            depth += 1
        elif character in "})]":
            depth -= 1
        elif character == ";" and depth <= 0:  # a separator inside tuples only
            return True
        if depth > MAX_NESTING:
            return True
    return False


def _power_depth(text: str) -> int:
    """How many exponents are stacked at the deepest point; a chain a^b^c counts as stacked."""
    deepest = chain = 0
    stack: list[int] = []
    for character in text:
        if character == "^":
            chain += 1
            deepest = max(deepest, chain)
        elif character in "{(":
            stack.append(chain)
        elif character in "})":
            chain = stack.pop() if stack else 0
        elif character in "+-*/=,& \\":
            chain = stack[-1] if stack else 0
    return deepest
