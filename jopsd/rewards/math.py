r"""Grade a mathematical answer against a gold one: cheap exact stages first, computer algebra last.

The expensive last stage (`jopsd.rewards.symbolic`) can run for ever on hostile input, so training calls it through
`jopsd.rewards.pool`, in a process that can be killed. Nothing here imports jax or sympy.
"""

import re
from typing import NamedTuple

from jopsd.rewards.answer import normalise, too_complex
from jopsd.rewards.boxed import last_boxed
from jopsd.rewards.choice import read_letter
from jopsd.rewards.names import with_names
from jopsd.rewards.number import MAX_CHARS, UNENDING, exact_number, without_noise
from jopsd.rewards.remarks import same_residue, split_domain, split_modulus
from jopsd.rewards.score import FEEDBACK_CHARS, Score
from jopsd.rewards.units import Quantity, Tail, quantity, read_tail, same_quantity, units_differ

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
    decided = _compare(clean, clean_gold)
    if decided == Verdict(False, "number") and (stored := without_noise(clean_gold)) != clean_gold:
        return _compare(clean, stored)
    return decided


def _compare(prediction: str, gold: str) -> Verdict | Question:
    """Two normalised answers: by their plain kind, and then as what algebra is asked."""
    sides = [split_modulus(text) for text in (prediction, gold)]
    if (same := same_residue(*sides)) is not None:
        return Verdict(same, "number")
    (prediction, _), (gold, _) = sides
    said, wanted = (_LABELLED.fullmatch(text) for text in (prediction, gold))
    if (wanted or _CHOICE.fullmatch(gold)) and (letter := read_letter(prediction)):
        return Verdict(letter == (wanted[1] or wanted[2] if wanted else gold), "choice")
    prediction, gold = (match[3] if match else text for match, text in ((said, prediction), (wanted, gold)))
    if (said or wanted) and _same_text(prediction, gold):
        return Verdict(True, "equal_text")
    if (same := _same_reading(prediction, gold)) is not None:
        return Verdict(same, "number")
    if len(prediction) > MAX_CHARS:
        return Verdict(False, "too_long")
    domains = [split_domain(text) for text in (prediction, gold)]
    if all(domain.over for domain in domains) and domains[0].over != domains[1].over:
        return Verdict(False, "words")
    return _ask(*(read_tail(domain.value) for domain in domains))


def _ask(prediction: Tail, gold: Tail) -> Verdict | Question:
    """What is left of two answers once what trails them is read."""
    if units_differ(prediction.unit, gold.unit):
        return Verdict(False, "unit")
    if prediction.changed != gold.changed:
        return Verdict(False, "words")
    question = Question(*_told_apart(*with_names(_prepare(prediction), _prepare(gold))))
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
_CHOICE = re.compile("[A-J]")
# With its text: (C) 42, \text{C. } 42, C: x^2
_LABELLED = re.compile(r"(?:\\text\s*\{ ?)?(?:\(([A-J])\)|([A-J])[.:)])(?: ?\} ?| |(?=\d))([^ ,;=^_+*/-].*)")
_COMMA_DECIMAL = re.compile(r"([+-]?(?:\d+,(?:\d{1,2}|\d{4,})|0,\d{3}))")
# 1.234.567 and 1.234,5 (1), 12,34,567 (2)
_FOREIGN_GROUPS = re.compile(
    r"[+-]?(?:\d{1,3}(?:\.\d{3}){2,}|(\d{1,3}(?:\.\d{3})+,\d+)|(\d{1,2}(?:,\d\d)+,\d{3}(?:\.\d+)?))"
)


def _same_reading(prediction: str, gold: str) -> bool | None:
    """Whether two answers of one plain kind say the same: clocks, ratios, choices, numbers; None if not of one kind."""
    plain = [_plain(text) for text in (prediction, gold)]
    clocks = [_CLOCK.fullmatch(text) for text in plain]
    if all(clocks):
        return _same_clock(*clocks)
    ratios = [_PROPORTION.fullmatch(text) for text in plain]
    if all(ratios):
        return _same_ratio(*([int(part) for part in ratio.groups() if part] for ratio in ratios))
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

    Decimal commas, and groups of digits that other countries set, are read where the gold answer is such a number.
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
    written = _as_written_here(tails[0].value, quantities[1]) if quantities[1] else None
    if written and (read := quantity(tails[0]._replace(value=written))) and same_quantity(read, quantities[1]):
        return True
    return None


def _as_written_here(text: str, gold: Quantity) -> str | None:
    """A number with a decimal point and no separators, if it has a decimal comma or foreign groups; else None."""
    if gold.number.decimals and _COMMA_DECIMAL.fullmatch(text):
        return text.replace(",", ".")
    if not (match := _FOREIGN_GROUPS.fullmatch(text)):
        return None
    whole, _, fraction = text.partition("," if match[1] else "." if match[2] else " ")
    return re.sub("[.,]", "", whole) + ("." + fraction if fraction else "")


_TRIGONOMETRIC = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc) ?(?:\^ ?\{?-?\d\}? ?)?)(\(|\{)? ?(\d+(?:\.\d+)?) ?(?:\^\\circ|degrees?) ?"
    r"(?:(?(2)[)}]))"
)
_FUNCTION_LABEL = re.compile(r"(?<![A-Za-z\\])[A-Z](?=\([a-z]\) ?=)")
_SEMICOLON = re.compile(r"([(\[\]][^,;]+);([^,;]+[)\[\]])")
_OPEN_INTERVAL = re.compile(r"([\[\]])([^\[\](){}]+,[^\[\](){}]+)([\[\]])")
_SET_OF_REALS = re.compile(
    r"(?:\\\{ ?)?([a-z]) ?(?:\\in ?\\mathbb ?\{R\} ?)?(?::|\||\\mid(?![A-Za-z])) ?"
    r"([^|{}]*(?:[<>]|\\[lg]e(?![a-z]))[^|\\]*(?:\\(?!\})[^|\\]*)*)(?:\\\})?"
)
_INEQUALITY = re.compile(r"[<>]|\\[gl]e(?![A-Za-z])")
_UNION = re.compile(r"\\(?:cup|lor|vee)(?![A-Za-z])")
_FACTOR = re.compile(r"(?<![\d.}/^])(\d+) ?/ ?(\d+) (?=\\(?:pi|sqrt)(?![A-Za-z])|[a-zA-Z](?![A-Za-z]))")


def _prepare(tail: Tail) -> str:
    """A value in the form that the algebra reads: degrees as radians, ] [ as ( ), each sign of ± on its own."""
    text = tail.value if tail.scale == 1 and not tail.percent else f"{tail.value}\\%" if tail.percent else ""
    if not text:  # a multiplied value that is no plain number
        text = f"{tail.scale} \\cdot ({tail.value})"
    text = _TRIGONOMETRIC.sub(r"\1(\\frac{\3 \\pi}{180})", text)
    text = _FACTOR.sub(r"\\frac{\1}{\2} ", text.replace("**", "^"))
    text = UNENDING.sub(_ended, text)
    text = match[2] if (match := _SET_OF_REALS.fullmatch(text)) else text
    text = _UNION.sub(r" \\text{ or } ", text) if _INEQUALITY.search(text) else text
    text = _FUNCTION_LABEL.sub(lambda match: match[0].lower(), text)
    if match := _SEMICOLON.fullmatch(text):
        text = f"{match[1]},{match[2]}"
    if (match := _OPEN_INTERVAL.fullmatch(text)) and (match[1], match[3]) != ("[", "]"):
        text = ("(" if match[1] == "]" else "[") + match[2] + (")" if match[3] == "[" else "]")
    return _both_signs(text)


def _ended(decimal: re.Match) -> str:
    """A decimal with dots behind it: the fraction that its last digit makes where it repeats, else the digits shown."""
    whole, digits = decimal.groups()
    number = exact_number(decimal[0]) if digits[-1] * 2 == digits[-2:] else None
    return f"\\frac{{{number.value.numerator}}}{{{number.value.denominator}}}" if number else f"{whole}.{digits}"


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
