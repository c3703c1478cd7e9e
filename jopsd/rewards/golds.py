"""Gold answers for mathematics that can be graded, and that hardly any completion will meet."""

import re

from jopsd.rewards.answer import normalise, too_complex
from jopsd.rewards.number import without_noise

LONG = 100  # characters
SENTENCE = 6  # words

_PLACEHOLDERS = frozenset("nan null n/a na unknown tbd todo ? - proof".split()) | {"see solution", "see above"}
_WORD = re.compile(r"(?<!\\)(?<![A-Za-z])[^\W\d_]{2,}")
_MACRO = re.compile(r"\\[A-Za-z]+")


def doubt(gold: str) -> str | None:
    """Why a gold answer looks wrong, as the end of a sentence about it; None where nothing speaks against it.

    Whether it can be graded at all is for `jopsd.rewards.grader.fault_of_gold` to say.
    """
    clean = normalise(gold)
    if not clean:
        return "holds nothing that can be graded"
    if clean.casefold() in _PLACEHOLDERS:
        return "stands for an answer that is missing"
    if len(clean) > LONG:
        return f"has {len(clean)} characters, which hardly any completion will meet"
    if len(_WORD.findall(_MACRO.sub(" ", clean))) >= SENTENCE:
        return "is a sentence: only the same words are right"
    if clean.count("{") != clean.count("}"):
        return "has braces that do not match"
    if too_complex(clean):
        return "is too complex for algebra: only the same text is right"
    if (stored := without_noise(clean)) != clean:
        return f"is a decimal as a program stored it: {stored} is right as well"
    return None
