r"""Classes of tokens for the share of style: rules over characters, and a token is what most of its characters are.

The rules are for worked mathematics in plain text, Markdown and LaTeX. They are crude on purpose: each is one line.
"""

import re
from collections import Counter
from collections.abc import Sequence

TASK = ("number", "mathematics", "answer")
STYLE = ("connective", "formatting", "punctuation")
CLASSES = (*TASK, *STYLE, "other")

CONNECTIVES = frozenset(
    "actually again alright also alternatively although anyway because but finally first firstly hence hmm hold "
    "however indeed instead last lastly let let's let’s maybe meanwhile next no now ok okay otherwise perhaps "
    "probably recall secondly similarly since so still then therefore though thus wait well yeah yes".split()
)

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_OPERATOR = re.compile(r"[-+*/=<>^_%|&{}−×÷±·⋅≤≥≠≈≡→⇒∞√∑∏∫∂∈∉⊂⊆∪∩°]")
_HYPHEN = re.compile(r"(?<=[^\W\d_]{2})[-/](?=[^\W\d_]{2})|(?<=[^\W\d_]{2}) -+(?= )|(?<= )-+ (?=[^\W\d_]{2})")
_COMMAND = re.compile(r"\\(?:[A-Za-z]+|\S)")
_WORDS_IN_MATH = re.compile(r"\\(?:text\w*|mbox)\{([^{}]*)\}")
_BRACKETS = {")": "(", "]": "["}
_LONG_WORD = re.compile(r"(?<!\\)\b[^\W\d_]{2,}")
LONGEST = 2000  # characters of a formula or bracket; without a bound, openings that never close cost quadratic time
# A dollar sign is money where a blank stands inside of it, as in Markdown.
_FORMULA = re.compile(
    r"\$\$.{1,2000}?\$\$|\$(?!\s)[^$\n]{1,2000}?(?<!\s)\$(?!\d)|\\\[.{1,2000}?\\\]|\\\(.{1,2000}?\\\)", re.DOTALL
)
_LETTER = re.compile(r"(?<![^\W_])[^\W\d_](?![^\W_]|['’])|(?<=\d)[^\W\d_](?![^\W\d_])")  # alone, or as in 2x
_MARKS = re.compile(
    r"^[ \t]*(?:#{1,6}|[-*+•]|\d+[.)])(?=\s)"  # headings and lists
    r"|^[ \t]*(?:-{3,}|\*{3,}|_{3,})[ \t]*$"  # rules
    r"|\*\*(?!\d)|```\w*|`|</?\w+>",
    re.MULTILINE,
)
_BOX = r"\boxed{"


def classes_of(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    r"""The class of each token of a text, of which `spans` says where it begins and ends.

    answer       inside the last \boxed{...}
    number       digits, with a decimal point or commas between them
    mathematics  operators, LaTeX commands, braces, brackets without a word in them, what stands in a formula, and
                 single letters beside any of these
    connective   `CONNECTIVES`
    formatting   blanks and newlines, Markdown, tags such as <think>, and tokens without text (the stop token)
    punctuation  other signs
    other        other words

    A token is what most of its characters are that are not blank, the first of them where two classes have as many.
    """
    labels = characters(text)
    found = []
    for start, end in spans:
        counts = Counter(label for label, sign in zip(labels[start:end], text[start:end], strict=True) if sign.strip())
        found.append(counts.most_common(1)[0][0] if counts else "formatting")
    return found


def characters(text: str) -> list[str]:
    """The class of each character; later rules overrule earlier ones."""
    labels = ["formatting" if sign.isspace() else "punctuation" for sign in text]

    def paint(name: str, start: int, end: int) -> None:
        labels[start:end] = [name] * (end - start)

    def paint_all(name: str, pattern: re.Pattern) -> None:
        for match in pattern.finditer(text):
            paint(name, *match.span())

    def paint_words(start: int, end: int) -> None:
        for match in _WORD.finditer(text, start, end):
            paint("connective" if match[0].casefold() in CONNECTIVES else "other", *match.span())

    paint_words(0, len(text))
    paint_all("number", _NUMBER)
    paint_all("mathematics", _OPERATOR)
    paint_all("punctuation", _HYPHEN)
    paint_all("mathematics", _COMMAND)
    for place in _mathematical_brackets(text):
        paint("mathematics", place, place + 1)
    for place in [m.start() for m in _LETTER.finditer(text) if _beside_mathematics(text, labels, m.start())]:
        paint("mathematics", place, place + 1)
    for formula in _FORMULA.finditer(text):
        start, end = formula.span()
        labels[start:end] = [label if label == "number" else "mathematics" for label in labels[start:end]]
        for words in _WORDS_IN_MATH.finditer(text, start, end):
            paint_words(*words.span(1))
    paint_all("formatting", _MARKS)
    start, end = last_box(text)
    paint("answer", start, end)
    return labels


def last_box(text: str) -> tuple[int, int]:
    r"""Where the contents of the last \boxed{ begin and end; of one that is never closed, at the text's end."""
    start = text.rfind(_BOX)
    if start < 0:
        return 0, 0
    start += len(_BOX)
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return start, place
    return start, len(text)


def _mathematical_brackets(text: str) -> list[int]:
    """Places of round and square brackets between which no word of two letters stands."""
    found, opened = [], []
    for place, sign in enumerate(text):
        if sign in "([":
            opened.append(place)
        elif sign in _BRACKETS and opened and text[opened[-1]] == _BRACKETS[sign]:
            start = opened.pop()
            if place - start <= LONGEST and not _LONG_WORD.search(text, start + 1, place):
                found += [start, place]
        elif sign == "\n" and text[place - 1 : place] == "\n":
            opened = []  # no bracket spans paragraphs
    return found


def _beside_mathematics(text: str, labels: Sequence[str], place: int) -> bool:
    """Whether the sign before or after a letter, blanks aside, is mathematics, or a number touches it."""
    before, after = place - 1, place + 1
    if "number" in (labels[before] if place else "", labels[after] if after < len(text) else ""):
        return True
    while before >= 0 and text[before] in " \t":
        before -= 1
    while after < len(text) and text[after] in " \t":
        after += 1
    beside = (labels[before] if before >= 0 else "", labels[after] if after < len(text) else "")
    return "mathematics" in beside
