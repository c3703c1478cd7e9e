r"""Grade a multiple-choice answer: one letter between answer tags, as the prompts of SciKnowEval ask for.

The published verifier (SDPO, arXiv 2601.20802 code) compares whatever stands after the last opening tag with the gold
letter, whole completions without tags included, and minds case and punctuation.
"""

import re
import unicodedata

from jopsd.rewards.boxed import MAX_ANSWER_CHARS, last_boxed
from jopsd.rewards.score import Score

NO_ANSWER = "No final answer was found: put the letter of your choice between <answer> and </answer>."
NO_LETTER = "The final answer is not the letter of one choice: put nothing else between <answer> and </answer>."

_OPEN, _CLOSE = "<answer>", "</answer>"
_WRAPPER = re.compile(r"\\(?:boxed|text(?:bf|rm)?|math(?:bf|rm))(?![A-Za-z])")
_SURROUNDING = " \t\r\n()[]{}.,:;*'\"`$"
_LEAD = (
    r"(?:the|my|final|correct|right|best|answer|option|choice|letter|is|would be|choose|select|i choose|i select"
    r"|antwort|ist|respuesta|es|opción|réponse|est|ответ|вариант)(?![A-Za-z])"
    r"|答案|选项|選項|选择|選擇|应选|故选|选|選|是|为|為"
)
_CHOICE = re.compile(
    rf"(?:(?:{_LEAD})[\s:=]*){{0,8}}[\s(\[{{*'\"]*(?P<letter>[A-Za-z])(?P<after>[\s)\]}}*'\"]*)"
    r"(?:\s*is (?:the )?(?:(?:correct|right|best|final) ?)?(?:answer|option|choice)?|,?\s*(?:because|since|as)\b.*"
    r"|(?P<mark>[.:,、]|(?<=\s)[-\u2013\u2014](?=\s))?(?P<text>.*))",
    re.IGNORECASE | re.DOTALL,
)
_JOINED = re.compile(r"\s*(?:[(\[]?(?:or|and|not|but|nor|oder|und|или|и|或|和|不)\b|[&/|,;+])", re.IGNORECASE)
_LONE_LETTER = re.compile(r"\s*[(\[]?([A-Za-z])[)\].:]*\s*")
_OTHER_LABEL = re.compile(r"(?:^|[\s,;(/])(?:[A-Z]\.|[A-Za-z][:)])\s*\S")


def verify(text: str, gold: str) -> Score:
    """Score a completion by the letter of its last answer. Raises ValueError for a gold that is no letter.

    A wrong letter gets no feedback: of two choices, to call one wrong is to tell the other.
    """
    wanted = read_gold(gold)
    answer = last_answer(text)
    if answer is None:
        return Score(0.0, False, False, None, NO_ANSWER)
    letter = read_letter(answer)
    if letter is None:
        return Score(0.0, False, True, answer, NO_LETTER)
    return Score(float(letter == wanted), letter == wanted, True, letter)


def last_answer(text: str) -> str | None:
    r"""What stands between the last opening tag and the next closing one, stripped; None if that does not close.

    A text without any opening tag answers by its last ``\boxed{}``: as explicit as a tag, the habit of models trained
    on mathematics, and what the prompts of other multiple-choice sets ask for. Over 10,000 characters is no answer.
    """
    start = text.rfind(_OPEN)
    if start < 0:
        return last_boxed(text)
    start += len(_OPEN)
    end = text.find(_CLOSE, start, start + MAX_ANSWER_CHARS + len(_CLOSE))
    return None if end < 0 else text[start:end].strip()


def read_letter(answer: str) -> str | None:
    """The letter of the one choice that an answer names, upper case; None where it names none, or several.

    The letter may stand alone, behind words that call it the answer, and before the text of its option: `B`, `(b)`,
    `Option B`, `B: mitochondria`, `B because ...`.
    """
    text = _WRAPPER.sub("", unicodedata.normalize("NFKC", answer)).strip(_SURROUNDING)
    match = _CHOICE.fullmatch(text)
    if not match:
        return None
    letter, mark, option = match["letter"], match["mark"], match["text"] or ""
    if option.strip(_SURROUNDING) and not _is_text(option, letter, mark, match["after"]):
        return None
    return letter.upper()


def _is_text(option: str, letter: str, mark: str | None, after: str) -> bool:
    """Whether what follows a letter is the text of its option: marked off, and no other choice."""
    if not (mark or option.startswith("(") or any(bracket in after for bracket in ")]}")):
        return False
    lone = _LONE_LETTER.fullmatch(option)
    if _JOINED.match(option) or _OTHER_LABEL.search(option) or (lone and lone[1].isupper() == letter.isupper()):
        return False
    is_abbreviation = mark == "." and option[0].isascii() and option[0].isalpha()  # i.e.
    return not is_abbreviation and not (mark == "," and option.isascii())


def read_gold(gold: str) -> str:
    """The gold letter, upper case. Raises ValueError if it is none."""
    letter = read_letter(gold)
    if letter is None:
        raise ValueError(f"gold answer {gold!r} is not the letter of a choice")
    return letter
