r"""Plain-text work on a short mathematical answer: normalise it, strip what surrounds it, judge whether it is safe.

Everything here is cheap, bounded and free of sympy.
"""

import re

from jopsd.rewards.functions import with_macros
from jopsd.rewards.notation import respell
from jopsd.rewards.number import MAX_CHARS, exact_number, ungroup
from jopsd.rewards.remarks import without_label, without_remark

MAX_NESTING = 60
MAX_DIGITS = 200
MAX_LIST = 200
MAX_EXPONENT = 10_000
MAX_POWER_DEPTH = 3

_REPLACEMENTS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\b(?:US|R|HK|AU?|NZ|CA?|SG?|NT|MX)\\?\$ ?(?=\d)", ""),
        (r"(?<!\\)\\[()\[\]]|\\\$|\$", " "),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"(?:\{\s?\})?\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|°", r"^\\circ "),
        (r"(?<!\\)%", r"\\%"),
        (r"\\(?:mathrm|text)\s*\{\s*([A-Za-z]+)\s*\^\s*\{?(\d)\}?\s*\}", r"\\text{ \1}^\2"),
        (r"\s+", " "),
    )
)
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|mathit)\s*\{([^{}]*)\}")
_LOST_BREAK = re.compile(r"(?<!\\)\\(?=[\d-])")  # of rows, where a data set lost one of the two backslashes
_LETTER = re.compile(r"\(([A-Za-z])\)")
_EMPHASIS = ("***", "**", "*", "__", "_", "`", "'")
_ENDED = r"(?:\\(?:checkmark|blacksquare|square|Box|qed|qedsymbol)(?![A-Za-z])|[✓✔✅☑■□∎]\ufe0f?)"
_MARKS = re.compile(rf"^(?:{_ENDED} ?)+(?=.)|(?<=.)(?: ?{_ENDED})+$")
_TAGS = re.compile(r"</?(?:b|i|u|em|strong|span|p|sub|div|center|mark) ?>")


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
    return with_macros(_unwrap(text.strip()))


def _unwrap(text: str) -> str:
    """Strip what surrounds the whole answer: braces, emphasis, labels, remarks, a text macro, a full stop, grouping."""
    if "</" in text:  # else a<b>c is a chain
        text = _TAGS.sub(" ", text)
    for _ in range(MAX_NESTING):
        before = text
        text = text.strip(' "').removesuffix("\\\\").removesuffix("<br>").rstrip()
        text = _MARKS.sub("", text)
        if text[-1:] in tuple(".,;:") and text[-2:-1] not in tuple(".,;:"):
            text = text[:-1].rstrip()
        if text.startswith("=") and text[1:2] != "=":
            text = text[1:].lstrip()
        text = _without_emphasis(text)
        text = without_remark(without_label(text))
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
    return ungroup(text)


def _without_emphasis(text: str) -> str:
    for mark in _EMPHASIS:
        inner = text[len(mark) : -len(mark)]
        if inner and text.startswith(mark) and text.endswith(mark) and mark[0] not in inner:
            return inner
    return text


def _closes_at_end(text: str) -> bool:
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return position == len(text) - 1
    return False


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
