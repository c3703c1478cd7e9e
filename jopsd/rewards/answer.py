r"""Plain-text work on a short mathematical answer: normalise it, read it as an exact number, judge whether it is safe.

Everything here is cheap, bounded and free of sympy.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from jopsd.rewards.notation import respell

MAX_CHARS = 2_000
MAX_NESTING = 60
MAX_DIGITS = 200
MAX_LIST = 200
MAX_EXPONENT = 10_000
MAX_POWER_DEPTH = 3
MAX_SCALE = 400  # of a power of ten in scientific notation

_REPLACEMENTS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<!\\)\\[()\[\]]|\\\$|\$", " "),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"(?<![\\A-Za-z])sqrt(?=[({])", r"\\sqrt"),
        (r"(?:\{\s?\})?\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|°", r"^\\circ "),
        (r"(?<!\\)%", r"\\%"),
        (r"\\(?:mathrm|text)\s*\{\s*([A-Za-z]+)\s*\^\s*\{?(\d)\}?\s*\}", r"\\text{ \1}^\2"),
        (r"\s+", " "),
    )
)
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|mathit)\s*\{([^{}]*)\}")
_LOST_BREAK = re.compile(r"(?<!\\)\\(?=[\d-])")  # of rows, where a data set lost one of the two backslashes
_LABEL = re.compile(r"\\text ?\{(?![^{}]*\b(?:not|wrong)\b)[A-Za-z ,]*(?::|=|\bis) ?\} ?(?=[^ ])")
_LETTER = re.compile(r"\(([A-Za-z])\)")
_GROUPED = re.compile(r"([+-]?)([1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?: \d{3})+)(\.\d+)?")

_UNSIGNED = r"(?:\d+(?:\.\d*)?|\.\d+)"
_DECIMAL = re.compile(r"([+-]?) ?(\d*)(?:\.(\d*))?")
_SCIENTIFIC = re.compile(
    rf"([+-]?) ?(?:({_UNSIGNED}) ?(?:(?:\\times|\\cdot|\*) ?10 ?\^|[eE])|10 ?\^) ?(?:\{{ ?([+-]?\d+) ?\}}|([+-]?\d+))"
)
_REPEATING = re.compile(
    r"([+-]?)(\d*)\.(\d*)(?:\\(?:overline|bar|dot) ?\{ ?(\d+) ?\}|\\(?:overline|bar|dot) ?(\d)|\((\d+)\))"
)
_RATIO = re.compile(
    rf"([+-]?) ?(?:\\frac ?\{{ ?([+-]? ?{_UNSIGNED}) ?\}} ?\{{ ?([+-]? ?{_UNSIGNED}) ?\}}|\\frac ?(\d) ?(\d)"
    rf"|\\frac ?(\d) ?\{{ ?(\d+) ?\}}|\\frac ?\{{ ?(\d+) ?\}} ?(\d)|({_UNSIGNED}) ?/ ?({_UNSIGNED}))"
)
_MIXED = re.compile(r"([+-]?) ?(\d+)(?: ?(?=\\)| (?=\d))(\D.*|\d+ ?/ ?\d+)")


class Number(NamedTuple):
    """An exact rational and, for a decimal literal, how many digits follow its point (None for integer or ratio)."""

    value: Fraction
    decimals: int | None


def normalise(answer: str) -> str | None:
    """One spelling for what means the same: digits of every script, macros, spaces, separators, wrappers.

    Returns None if the answer holds control or reordering characters.
    """
    text = respell(answer)
    if text is None:
        return None
    if "matrix}" in text:
        text = _LOST_BREAK.sub(r"\\\\ ", text)
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return _unwrap(text.strip())


def _unwrap(text: str) -> str:
    """Strip what surrounds the whole answer: braces, a text macro, a final full stop, quotes, digit grouping."""
    for _ in range(MAX_NESTING):
        before = text
        text = text.strip().strip('"').removesuffix("\\\\").rstrip()
        if text[-1:] in tuple(".,;") and text[-2:-1] not in tuple(".,;"):
            text = text[:-1].rstrip()
        if text.startswith("=") and text[1:2] != "=":
            text = text[1:].lstrip()
        if len(text) > 4 and text.startswith("**") and text.endswith("**"):
            text = text[2:-2]
        text = _LABEL.sub("", text, count=1) if _LABEL.match(text) else text
        if match := _TEXT.fullmatch(text):
            text = match.group(1)
        if text.startswith("{") and text.endswith("}") and _closes_at_end(text):
            text = text[1:-1]
        if match := _LETTER.fullmatch(text):
            text = match.group(1)
        if text.startswith("(") and text.endswith(")") and exact_number(text[1:-1].strip()):
            text = text[1:-1]
        if text == before:
            break
    return _ungroup(text)


def _ungroup(text: str) -> str:
    match = _GROUPED.fullmatch(text)
    return match[1] + re.sub(r"[, ]", "", match[2]) + (match[3] or "") if match else text


def _closes_at_end(text: str) -> bool:
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return position == len(text) - 1
    return False


def exact_number(text: str) -> Number | None:
    """Read a normalised integer, decimal, ratio, mixed number, repeating decimal or power of ten; else None."""
    if len(text) > MAX_CHARS:
        return None
    text = _ungroup(text)
    match = _DECIMAL.fullmatch(text)
    if match and (match[2] or match[3]):
        value = Fraction(f"{match[2] or '0'}.{match[3] or '0'}")
        return Number(_signed(value, match[1]), len(match[3]) if match[3] is not None else None)
    value = _ratio(text) or _mixed(text) or _repeating(text) or _scientific(text)
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
    period = next(filter(None, periods))
    shift = 10 ** len(fixed)
    value = Fraction(int((whole or "0") + fixed), shift) + Fraction(int(period), shift * (10 ** len(period) - 1))
    return (_signed(value, sign),)


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


_EXPONENT = re.compile(r"\^ ?\{? ?[+-]? ?(\d+)")
# innermost power of two plain numbers that is itself an exponent: ^{a^b} or ^{a^{b}}
_TOWER = re.compile(r"\^ ?\{ ?(\d+) ?\^ ?(?:\{ ?(\d+) ?\}|(\d)) ?\}")
_FACTORIAL = re.compile(r"(\d+) ?[)}]? ?!")
_REPEATED_FACTORIAL = re.compile(r"![ )}\]]*!")


def too_complex(text: str) -> bool:
    """Whether a normalised answer is outside what symbolic algebra should ever be asked about (towers, bombs, junk)."""
    text = text.replace("**", "^")
    if len(text) > MAX_CHARS or "#" in text or "==" in text or text.count(",") + text.count(";") > MAX_LIST:
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
        depth += (character in "{([") - (character in "})]")
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
        elif character in "+-*/=,;& \\":
            chain = stack[-1] if stack else 0
    return deepest
