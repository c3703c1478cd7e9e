r"""Words around an answer that do not change it: "the answer is", "approximately", "because ...", "(mod 12)".

All work on a text in the spelling of `jopsd.rewards.notation`, in time linear in it.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from jopsd.rewards.number import Number, exact_number

MAX_LABEL_CHARS = 80

# A text that holds one of these says something else than what stands beside it.
_CHANGING = frozenset(
    "or and not no nor but wrong false incorrect untrue than more less fewer greater least most minus plus times over"
    " to through between from except without if unless either neither maybe perhaps possibly is are was dozen dozens"
    " pi mod modulo divided multiplied squared cubed factorial negative opposite inverse binary octal hexadecimal"
    " oder und nicht mehr weniger kein o ou et pas non moins más menos ni sino или и не нет больше меньше более менее"
    " 或 和 不 不是 非 以上 以下 未満 以内 超 または".split()
)
_CHANGING_IN = re.compile(r"不|非|错|錯|或|以上|以下|未満|または")  # of scripts that put no space between words
_ANSWERS = re.compile(
    r"\b(?:answers?|ans|results?|solutions?|values?|totals?|sum|product|count|number|output|final|conclusion"
    r"|antwort|ergebnis|lösung|respuesta|resultado|solución|réponse|résultat|risposta|risultato|resposta|jibu|jawaban"
    r"|ответ|итого|результат|решение|відповідь|odpowiedź|cevap|svar|đáp án)\b"
    r"|答案|答え|答|解|结果|結果|정답|답|उत्तर|উত্তর|คำตอบ|الجواب|الإجابة|الاجابة",
    re.IGNORECASE,
)
_SAYS = re.compile(r"(?::|=| is:?| is equal to| ist:?| es:?| est:?|是:?|为:?|為:?|は) ?(?=[^ ])")
_LABEL_IN_MACRO = re.compile(r"\\text ?\{(?![^{}]*\b(?:not|wrong)\b)[A-Za-z ,]*(?::|=|\bis) ?\} ?(?=[^ ])")
_WORD = re.compile(r"[^\W\d_]+")

_LEADING = re.compile(
    r"(?:\\(?:approx|sim|simeq|cong|doteq|therefore|Rightarrow|Longrightarrow|implies|to)(?![A-Za-z])|:"
    r"|(?:so|thus|hence|therefore|exactly|precisely|only|just|about|approximately|approx|roughly|around|circa|ca"
    r"|etwa|ungefähr|environ|aproximadamente|около|примерно)\b\.?,?(?= ?[-+\d.$\\({€£])"
    r"|(?:大约|大約|约|約)(?=[-+\d.])) ?(?=[^ ])",
    re.IGNORECASE,
)
# What follows a complete value up to the end.
_REASON = re.compile(
    r"[,;.:]? ?(?:\\(?:text|mathrm) ?\{ ?,? ?)?[(\[]? ?\b(?:because|since|due to|as (?:required|desired|requested)|weil"
    r"|porque|parce que|так как|потому что)\b|[,;]? ?[(\[]?因为"
)
_ROUNDED = (
    r"approx(?:imately)?\.?|approximate|exact(?:ly)?|simplified|rounded(?: [^()\[\]{}]{1,40})?"
    r"|(?:rounded |correct |accurate )?to (?:the )?(?:nearest [a-z]{2,20}|\w{1,6} (?:decimal|significant)[a-z ]{0,20})"
    r"|\w{1,6} (?:d\.?p\.?|s\.?f\.?|(?:decimal|significant) [a-z]{3,8}|sig\.? figs?\.?)|final(?: answer)?|answer"
)
_REMARK = re.compile(
    rf"[,;]? ?(?:\\text ?\{{ ?)?[(\[] ?(?:{_ROUNDED}) ?[)\]] ?\}}?$"
    r"|(?:,| ) ?(?:\\text ?\{ ?)?(?:approx(?:imately)?\.?|exactly|is (?:the )?(?:(?:correct|right|final) )*(?:answer|"
    r"correct|right|true|result|solution)) ?\}?$",
    re.IGNORECASE,
)
_INCOMPLETE = re.compile(r"(?:[-+*/^_=<>,(\[{:]|\\[A-Za-z]+)$")
_VALUE_MACRO = re.compile(r"\\(?:pi|infty|emptyset|circ|theta|alpha|beta|gamma|lambda|%)$")


def without_label(text: str) -> str:
    r"""The text without words before the answer that call it the answer, and without a sign that it is rounded.

    `Answer: 5`, `The final answer is 5`, `\text{so } 5`, `\approx 5`, `about 5`.
    """
    if match := _LABEL_IN_MACRO.match(text):
        return text[match.end() :]
    if match := _LEADING.match(text):
        return text[match.end() :]
    says = _SAYS.search(text, 0, MAX_LABEL_CHARS)
    words = _WORD.findall(text[: says.start()]) if says else []
    if words and _ANSWERS.search(text, 0, says.start()) and not changes(words) and not any(map(_is_capital, words)):
        return text[says.end() :]
    return text


def _is_capital(word: str) -> bool:
    return len(word) == 1 and word.isupper()  # the letter of a choice, say


def changes(words: Iterable[str]) -> bool:
    """Whether one of these words makes an answer beside them another one."""
    return any(word.lower() in _CHANGING or _CHANGING_IN.search(word) for word in words)


def without_remark(text: str) -> str:
    """The text without a reason, or a remark on how it was rounded, behind a value."""
    for pattern in (_REASON, _REMARK):
        match = pattern.search(text)
        value = text[: match.start()].rstrip(" ,;.") if match else ""
        if value and (not _INCOMPLETE.search(value) or _VALUE_MACRO.search(value)):
            return value
    return text


_MODULUS = re.compile(
    r" ?(?:\\pmod ?|[({]? ?\\?(?:text|mathrm)? ?\{? ?\\?[bp]?mod(?:ulo)? ?\}? ?)\{? ?(\d{1,12}) ?\}?[)}]? ?\)?$"
)
_CONGRUENT = re.compile(r"[A-Za-z](?:_\w)? ?(?:\\equiv(?![A-Za-z])|=) ?")


def split_modulus(text: str) -> tuple[str, int | None]:
    r"""A residue and its modulus, of `x \equiv 7 \pmod{12}`; the whole text and None where there is no modulus."""
    match = _MODULUS.search(text)
    if not match or not int(match[1]) or not text[: match.start()].strip():
        return text, None
    return _CONGRUENT.sub("", text[: match.start()].strip(), count=1), int(match[1])


def same_residue(prediction: tuple[str, int | None], gold: tuple[str, int | None]) -> bool | None:
    """Whether two whole numbers, one at least with a modulus, say the same; None for any others.

    With two moduli these must be equal. With one, the other number must be the residue, or as it is written.
    """
    moduli = [modulus for _, modulus in (prediction, gold) if modulus is not None]
    if len(set(moduli)) == 2:
        return False
    values = [_whole(text) for text, _ in (prediction, gold)]
    if not moduli or None in values:
        return None
    if len(moduli) == 2:
        return (values[0] - values[1]) % moduli[0] == 0
    residue, plain = values if prediction[1] is not None else values[::-1]
    return plain == residue % moduli[0] or (plain == residue and abs(residue) < moduli[0])


def _whole(text: str) -> int | None:
    number: Number | None = exact_number(text)
    return int(number.value) if number and number.value.denominator == 1 else None


class Domain(NamedTuple):
    """A value, and over which numbers a letter in it runs: "" where the text does not say."""

    value: str
    over: str


_DOMAIN = re.compile(
    r",? ?(?:\\(?:text|mathrm) ?\{ ?,? ?)?[(\[]? ?(?:(?:where|for|with)(?: all| any| some| every| each)? ?)?\}? ?"
    r"(?:\\forall ?)?(?:\\text ?\{ ?)?([a-z]) ?(?:\\in(?![A-Za-z]) ?(?:\\mathbb ?)?\{? ?([A-Z]) ?\}?"
    r"|(?:\\text ?\{ ?)?(?:is|in) (?:an? |the )?(?:arbitrary |any )?(integer|natural|real)s?(?: numbers?)?)"
    r" ?\}?[)\]]? ?$"
)
_BOUND = re.compile(
    r",? ?(?:\\text ?\{ ?,? ?)?[(\[]? ?(?:where|for|with)(?: all| any| every)? ?\}? ?([a-z]) ?(?:[<>]|\\[gl]eq?|\\neq?)"
    r" ?-?\d{1,9} ?[)\]]? ?$"
)
_SETS = {"integer": "Z", "natural": "N", "real": "R"}


def split_domain(text: str) -> Domain:
    r"""A value without the `, k \in \mathbb{Z}` behind it, where k is a letter of the value."""
    for pattern in (_DOMAIN, _BOUND):
        match = pattern.search(text)
        if match and re.search(rf"(?<![A-Za-z\\]){match[1]}|\d{match[1]}", value := text[: match.start()].strip()):
            over = match[2] or _SETS[match[3]] if pattern is _DOMAIN else ""
            return Domain(value, over)
    return Domain(text, "")
