r"""Answers of letters that are no product: points and figures (ABCD), sequences of outcomes (HHT), formulas, words.

Algebra would let them commute, so each becomes a symbol of its own before algebra sees it.
"""

import re
from itertools import pairwise

_SEPARATOR = re.compile(
    r"[,;=<>]|\\(?:le|ge|neq|in|subset|subseteq|cup|cap|text ?\{ ?(?:or|and) ?\})(?![A-Za-z])| or | and "
)
_FIGURE = re.compile(
    r"(?:m ?)?\\(?:triangle|angle|measuredangle|square|odot|overline|overrightarrow|overleftrightarrow|widehat|vec|bar"
    r"|text ?\{ ?(?:triangle|angle|segment|line|ray|quadrilateral) ?\})(?![A-Za-z])|\\Delta(?= ?[A-Z]{3})"
)
_TIMES = re.compile(r"\\(?:cdot|times)(?![A-Za-z])|\*")
_SEQUENCE = re.compile(r"[A-Z](?: ?(?:-|->|\\to(?![A-Za-z])) ?[A-Z]){2,}")
_LISTED = re.compile(r"[A-Z](?:, ?[A-Z]){2,}")
_FORMULA = re.compile(r"(?:[A-Z][a-z]?(?:_?\{?\d+\}?)?'*){2,}")
_SPACED_CAPITALS = re.compile(r"[A-Z](?: [A-Z])+")
_WORDS = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*")
_VOWELS = set("aeiou")
_VARIABLES = set("abcxyz")
_SHORT_WORDS = frozenset("no on up".split())
_OPENING = {"(": ")", "[": ")]", "{": "}"}
_FIRST = 9900  # of the indices of the symbols that stand for names


def with_names(prediction: str, gold: str) -> tuple[str, str]:
    r"""Both texts with one symbol for each name that fills an element of a list or a side of a relation.

    A gold answer that multiplies letters, `L \cdot C`, has no names. One that lists letters out of order is a sequence.
    """
    if _TIMES.search(gold):
        return prediction, gold
    letters = re.findall("[A-Z]", gold)
    if _LISTED.fullmatch(gold) and letters != sorted(letters):
        prediction, gold = (re.sub(", ?", "", text) if _LISTED.fullmatch(text) else text for text in (prediction, gold))
    symbols: dict[str, str] = {}
    texts = []
    for text in (gold, prediction):
        parts, done = [], 0
        for start, end in _elements(text):
            if name := read_name(text[start:end]):
                symbol = symbols.setdefault(name, f"N_{{{_FIRST + len(symbols)}}}")
                parts += [text[done:start], symbol]
                done = end
        texts.append("".join([*parts, text[done:]]))
    return texts[1], texts[0]


def read_name(text: str) -> str | None:
    """One spelling of a name; None for a text that is none."""
    plain = _FIGURE.sub("", text).replace("{", "").replace("}", "").strip()
    if _SEQUENCE.fullmatch(plain):
        return re.sub(r"[^A-Z]", "", plain)
    letters = _TIMES.sub(" ", plain)
    joined = letters.replace(" ", "")
    is_one = letters.strip() == joined or _SPACED_CAPITALS.fullmatch(" ".join(letters.split()))
    if is_one and _FORMULA.fullmatch(joined):
        return joined.replace("_", "")
    words = re.split(r"[ '-]+", joined if max(map(len, letters.split()), default=0) == 1 else plain)
    return " ".join(words).casefold() if _WORDS.fullmatch(" ".join(words)) and any(map(_is_word, words)) else None


def _is_word(run: str) -> bool:
    """Whether a run of letters is read as one: a product of variables is short, of neighbours, or without a vowel."""
    if not run.isascii():
        return len(run) > 1
    if run in _SHORT_WORDS:
        return True
    letters = set(run.lower())
    if len(run) < 3 or (len(letters) == len(run) and (letters <= _VARIABLES or _are_neighbours(letters))):
        return False
    return len(letters) < len(run) or bool(letters & _VOWELS)


def _are_neighbours(letters: set[str]) -> bool:
    return ord(max(letters)) - ord(min(letters)) == len(letters) - 1


def _elements(text: str) -> list[tuple[int, int]]:
    """Where the elements of a list, and the sides of relations, begin and end; brackets around the whole are opened."""
    stack, found = [(0, len(text))], []
    while stack:
        start, end = _stripped(text, *stack.pop())
        if start >= end:
            continue
        if inner := _opened(text, start, end):
            stack.append(inner)
        elif cuts := _cuts(text, start, end):
            edges = [(start, start), *cuts, (end, end)]
            stack += [(after, before) for (_, after), (before, _) in pairwise(edges)]
        else:
            found.append((start, end))
    return sorted(found)


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start] == " ":
        start += 1
    while start < end and text[end - 1] == " ":
        end -= 1
    return start, end


def _opened(text: str, start: int, end: int) -> tuple[int, int] | None:
    """The inside of one pair of brackets that holds all of a part of the text."""
    opening = start + text.startswith("\\{", start, end)
    if opening >= end or text[opening] not in _OPENING or text[end - 1] not in _OPENING[text[opening]] + ")":
        return None
    depth = 0
    for position in range(opening, end):
        depth += (text[position] in "([{") - (text[position] in ")]}")
        if depth == 0 and position < end - 1:
            return None
    closing = end - 1 - (text[end - 2] == "\\")
    return opening + 1, closing


def _cuts(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """The separators that no bracket encloses."""
    depth, depths = 0, {}
    separators = {match.start(): match.end() for match in _SEPARATOR.finditer(text, start, end)}
    for position in range(start, end):
        if position in separators and depth == 0:
            depths[position] = separators[position]
        depth += (text[position] in "([{") - (text[position] in ")]}")
    return sorted(depths.items())
