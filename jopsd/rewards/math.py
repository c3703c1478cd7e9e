r"""Grade a mathematical answer against a gold one: cheap exact stages first, computer algebra last.

The expensive last stage (`jopsd.rewards.symbolic`) can run for ever on hostile input, so training calls it through
`jopsd.rewards.pool`, in a process that can be killed. Nothing here imports jax or sympy.
"""

import re
from typing import NamedTuple

from jopsd.rewards.answer import MAX_CHARS, normalise, too_complex
from jopsd.rewards.boxed import last_boxed
from jopsd.rewards.score import FEEDBACK_CHARS, Score
from jopsd.rewards.units import Tail, quantity, read_tail, same_quantity, units_differ

SECONDS = 4.0  # limit of the symbolic stage where a timer can be set


class Verdict(NamedTuple):
    """Correct or not, the stage that decided (counted in the metrics), and the seconds it took where measured."""

    correct: bool
    stage: str
    seconds: float = 0.0


class Question(NamedTuple):
    """A normalised pair that only symbolic algebra can settle."""

    prediction: str
    gold: str


def verify(text: str, gold: str, seconds: float = SECONDS) -> Score:
    r"""Score a completion by its last ``\boxed{}`` against ``gold``. Raises ValueError for an empty gold.

    Runs symbolic algebra in this process: see `grade` for what bounds it.
    """
    prediction = last_boxed(text)
    return score(prediction, grade(prediction, gold, seconds).correct)


def score(prediction: str | None, correct: bool) -> Score:
    """Score of an extracted answer. An empty box is formatted, and wrong. The feedback never tells the gold answer."""
    return Score(float(correct), correct, prediction is not None, prediction, None if correct else _fault(prediction))


def _fault(prediction: str | None) -> str:
    if not prediction:
        return "No final answer was found: put it within \\boxed{}."
    return f"The final answer {prediction[:FEEDBACK_CHARS]} is not correct."


def grade(prediction: str | None, gold: str, seconds: float = SECONDS) -> Verdict:
    """All stages in order. Pure: the same pair gives the same verdict, up to the time limit.

    On the main thread the symbolic stage stops after ``seconds`` (SIGALRM, which it takes over meanwhile); on other
    threads nothing bounds it, so use `jopsd.rewards.pool` there.
    """
    from jopsd.rewards.symbolic import symbolic_grade

    decided = quick_grade(prediction, gold)
    return symbolic_grade(decided, seconds) if isinstance(decided, Question) else decided


def quick_grade(prediction: str | None, gold: str) -> Verdict | Question:
    """The stages that need no algebra: missing, refused, equal as text, equal as exact numbers.

    Returns the Question that is left when they do not settle it. Raises ValueError for an empty gold.
    """
    clean_gold = normalise(gold) if isinstance(gold, str) else None
    if not clean_gold:
        raise ValueError(f"gold answer {gold!r} is no gradable text; give every row an answer")
    if prediction is None:
        return Verdict(False, "no_box")
    if len(prediction) > 5 * MAX_CHARS:
        return Verdict(False, "too_long")
    clean = normalise(prediction)
    if clean is None:
        return Verdict(False, "bad_characters")
    if not clean:
        return Verdict(False, "empty")
    if _same_text(clean, clean_gold):
        return Verdict(True, "equal_text")
    if _WORDS_IN_MACRO.fullmatch(gold.strip()) and _WORDS.fullmatch(_plain(clean)):
        return Verdict(False, "words")
    if (same := _same_reading(clean, clean_gold)) is not None:
        return Verdict(same, "number")
    if len(clean) > MAX_CHARS:
        return Verdict(False, "too_long")
    return _ask(read_tail(clean), read_tail(clean_gold))


def _ask(prediction: Tail, gold: Tail) -> Verdict | Question:
    """What is left of two answers once what trails them is read."""
    if units_differ(prediction.unit, gold.unit):
        return Verdict(False, "unit")
    if prediction.changed != gold.changed:
        return Verdict(False, "words")
    question = Question(*_told_apart(_prepare(prediction), _prepare(gold)))
    if question.prediction == question.gold:
        return Verdict(True, "equal_text")
    return Verdict(False, "too_complex") if any(map(too_complex, question)) else question


_MACRO = re.compile(r"\\(?:text|mathrm|mathbf|mathit)\s*\{([^{}]*)\}")
_WORD = re.compile(r"[^\W\d_]{2,}")
_WORDS = re.compile(r"[^\W\d_]{2,}(?: [^\W\d_]+)*")
_WORDS_IN_MACRO = re.compile(r"\\text(?:bf|it|rm)?\s*\{\s*" + _WORDS.pattern + r"\s*\}")
_AND = re.compile(r",? (?:and|&) |, ?")


def _plain(text: str) -> str:
    return " ".join(_MACRO.sub(r" \1 ", text).split()).strip(". ")


def _same_text(one: str, other: str) -> bool:
    """Equal as they stand, or but for case, macros, spaces, hyphens and "and" where they are of words."""
    if one == other:
        return True
    plain = [_plain(text) for text in (one, other)]
    if not all(map(_WORD.search, plain)) or "\\" in plain[0] + plain[1]:
        return False
    folded = [_WORD.sub(lambda word: word[0].casefold(), _AND.sub(", ", text)).replace("-", " ") for text in plain]
    return folded[0].replace(" ,", ",") == folded[1].replace(" ,", ",")


_CLOCK = re.compile(r"(\d{1,2}) ?: ?([0-5]\d)(?: ?: ?([0-5]\d))?(?: ?(?:([ap])\.? ?m\b\.?))?", re.IGNORECASE)
_PROPORTION = re.compile(r"(\d{1,9}) ?: ?(\d{1,9})(?: ?: ?(\d{1,9}))?")
_IN_BASE = re.compile(r"(\d[\dA-F]*) ?_ ?(?:\{ ?(\d{1,2}) ?\}|(\d{1,2}))")
_LETTER = re.compile(r"(?:(?:option|choice|answer) )?[(\[]? ?([A-Ja-j]) ?[)\]]?", re.IGNORECASE)
_LABELLED = re.compile(r"(?:\\text\s*\{ ?)?\(([A-J])\) ?\}? ?(.+)")
_COMMA_DECIMAL = re.compile(r"([+-]?(?:\d+,(?:\d{1,2}|\d{4,})|0,\d{3}))")


def _same_reading(prediction: str, gold: str) -> bool | None:
    """Whether two answers of one plain kind say the same: clocks, ratios, choices, numbers; None if not of one kind."""
    plain = [_plain(text) for text in (prediction, gold)]
    clocks = [_CLOCK.fullmatch(text) for text in plain]
    if all(clocks):
        return _same_clock(*clocks)
    ratios = [_PROPORTION.fullmatch(text) for text in plain]
    if all(ratios):
        return _same_ratio(*([int(part) for part in ratio.groups() if part] for ratio in ratios))
    letters = [_LETTER.fullmatch(text) for text in plain]
    if all(letters) and len(gold) == 1 and gold.isupper():
        return letters[0][1].upper() == gold
    return _same_number(*(_without_base_ten(text) for text in (prediction, gold)))


def _same_clock(one: re.Match, other: re.Match) -> bool:
    halves = one[4], other[4]
    same_half = not all(halves) or halves[0].casefold() == halves[1].casefold()
    return same_half and all(int(one[part] or 0) == int(other[part] or 0) for part in (1, 2, 3))


def _same_ratio(one: list[int], other: list[int]) -> bool:
    if len(one) != len(other) or not all(one + other):
        return one == other
    return all(one[0] * theirs == other[0] * ours for ours, theirs in zip(one, other, strict=True))


def _without_base_ten(text: str) -> str:
    match = _IN_BASE.fullmatch(text)
    return match[1] if match and "10" in match.groups() else text


def _same_number(prediction: str, gold: str) -> bool | None:
    """As `_same_reading`, for exact numbers with units, and for digits in a base, which equal only themselves.

    A labelled choice, "(C) 42", is read as its letter or its number; a decimal comma, where gold is such a decimal.
    """
    based = [_IN_BASE.fullmatch(text) for text in (prediction, gold)]
    if all(based):
        return [based[0][1], based[0][2] or based[0][3]] == [based[1][1], based[1][2] or based[1][3]]
    tails = [read_tail(text) for text in (prediction, gold)]
    quantities = [quantity(tail) for tail in tails]
    if all(quantities):
        return same_quantity(*quantities)
    if (based[0] or quantities[0]) and (based[1] or quantities[1]):
        return False
    if quantities[1] and quantities[1].number.decimals and _COMMA_DECIMAL.fullmatch(tails[0].value):
        read = quantity(tails[0]._replace(value=tails[0].value.replace(",", ".")))
        return True if read and same_quantity(read, quantities[1]) else None
    choice = _LABELLED.fullmatch(prediction)
    labelled = choice and quantity(read_tail(choice[2]))
    if labelled and (len(gold) == 1 and gold.isalpha() or quantities[1]):
        return choice[1] == gold or bool(quantities[1] and same_quantity(labelled, quantities[1]))
    return None


_TRIGONOMETRIC = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc) ?(?:\^ ?\{?-?\d\}? ?)?)(\(|\{)? ?(\d+(?:\.\d+)?) ?\^\\circ ?(?:(?(2)[)}]))"
)
_FUNCTION_LABEL = re.compile(r"(?<![A-Za-z\\])[A-Z](?=\([a-z]\) ?=)")
_OPEN_INTERVAL = re.compile(r"([\[\]])([^\[\](){}]+,[^\[\](){}]+)([\[\]])")


def _prepare(tail: Tail) -> str:
    """A value in the form that the algebra reads: degrees as radians, ] [ as ( ), each sign of ± on its own."""
    text = tail.value if tail.scale == 1 and not tail.percent else f"{tail.value}\\%" if tail.percent else ""
    if not text:  # a multiplied value that is no plain number
        text = f"{tail.scale} \\cdot ({tail.value})"
    text = _TRIGONOMETRIC.sub(r"\1(\\frac{\3 \\pi}{180})", text)
    text = text.replace("**", "^")
    text = _FUNCTION_LABEL.sub(lambda match: match[0].lower(), text)
    if (match := _OPEN_INTERVAL.fullmatch(text)) and (match[1], match[3]) != ("[", "]"):
        text = ("(" if match[1] == "]" else "[") + match[2] + (")" if match[3] == "[" else "]")
    return _both_signs(text)


def _both_signs(text: str) -> str:
    """Each top-level element with a ± written twice; a text of one element without any is left as it is."""
    if not 0 < text.count("\\pm") <= 10:
        return text
    opening, closing = ("\\{", "\\}") if text.startswith("\\{") and text.endswith("\\}") else ("", "")
    elements = []
    for element in _split(text[len(opening) : len(text) - len(closing)]):
        if "\\pm" in element:
            elements += [re.sub(r"\\pm ?", "+", element), re.sub(r"\\pm ?", "-", element)]
            elements[-2:] = [
                re.sub(r"\\mp ?", "-+"[side], part).strip().removeprefix("+") for side, part in enumerate(elements[-2:])
            ]
        else:
            elements.append(element)
    return opening + ",".join(elements) + closing


def _told_apart(*texts: str) -> list[str]:
    """Both texts with an index on each capital that stands beside its small letter: the parser reads R as r."""
    for small in set(re.findall(r"(?<![A-Za-z\\])[a-z](?![A-Za-z])", " ".join(texts))):
        capital = re.compile(rf"(?<![A-Za-z\\]){small.upper()}(?![A-Za-z_(])")
        if any(capital.search(text) and re.search(rf"(?<![A-Za-z\\]){small}(?![A-Za-z])", text) for text in texts):
            texts = tuple(capital.sub(f"{small.upper()}_{{99}}", text) for text in texts)
    return list(texts)


def _split(text: str) -> list[str]:
    """The parts between the commas that no bracket encloses."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]
