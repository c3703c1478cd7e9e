"""Whether answers are in the language that was asked in: PolyMath's language consistency (arXiv 2504.18428).

The languages of a text are told by `langdetect`, which the extra `language` installs. It reads the first 10,000
characters of a text.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from jopsd.contexts.languages import shipped_records

Detect = Callable[[str], Sequence[str]]

SHORT = 15  # characters: too few to tell a language by, so they count as the right one
CLOSING = "</think>"
# The codes that langdetect 1.0.9 gives. Malay, which PolyMath asks in, is not among them.
KNOWN = frozenset(
    "af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr ne nl no pa pl pt ro "
    "ru sk sl so sq sv sw ta te th tl tr uk ur vi zh-cn zh-tw".split()
)
_CLOSING_MATHS = {"$$": "$$", r"\(": r"\)", r"\[": r"\]", "$": "$"}
_OPENING_MATHS = re.compile("|".join(map(re.escape, _CLOSING_MATHS)))


def detector(seed: int = 0) -> Detect | None:
    """`load_detector`, or None where langdetect is not installed: then nothing is measured."""
    try:
        return load_detector(seed)
    except ImportError:
        return None


def load_detector(seed: int = 0) -> Detect:
    """The function from a text to the codes of the languages in it, by langdetect; none where it has no letters.

    langdetect draws at random; with the seed a text always gets the same answer.

    Raises:
      ImportError: langdetect is not installed.
    """
    try:
        from langdetect import DetectorFactory, LangDetectException, detect_langs
    except ImportError:
        raise ImportError("language consistency needs langdetect: pip install 'jopsd[language]'") from None

    def detect(text: str) -> list[str]:
        DetectorFactory.seed = seed
        try:
            return [found.lang for found in detect_langs(text)]
        except LangDetectException:
            return []

    return detect


def consistency(
    completions: Sequence[Sequence[str]], language: str, detect: Detect, thinking: bool | None = None
) -> dict[str, float | None]:
    """Shares of 1 of "thinking" and of "answer" texts in the language: means over problems of the mean over samples.

    Args:
      completions: per problem, its samples. The thinking ends at the last `</think>`.
      language: its code, see `code_of`.
      thinking: whether a text without `</think>` is thinking that was cut off, its answer empty, and not an answer
        without thinking. None is yes if any of the texts has one.

    Returns:
      None for both in a language that langdetect does not know, and for thinking where no text has any.

    Raises:
      ValueError: no problems, or one without samples.
    """
    if not completions or not all(map(len, completions)):
        raise ValueError("language consistency needs at least one problem, and a text of each")
    target = code_of(language)
    if target is None:
        return {"thinking": None, "answer": None}
    thinks = any(CLOSING in text for texts in completions for text in texts) if thinking is None else thinking
    split = [[split_thinking(text, thinks) for text in texts] for texts in completions]
    found: Mapping[str, list[float]] = {"thinking": [], "answer": []}
    for parts in split:
        for part, texts in zip(found, zip(*parts, strict=True), strict=True):
            own = [is_consistent(text, target, detect) for text in texts if text is not None]
            if own:
                found[part].append(sum(own) / len(own))
    return {part: sum(shares) / len(shares) if shares else None for part, shares in found.items()}


def is_consistent(text: str, target: str, detect: Detect) -> bool:
    """Whether the text without its mathematics is short, or in one language, which is the target (a code of KNOWN)."""
    words = without_maths(text).strip()
    return len(words) <= SHORT or list(detect(words)) == [target]


def without_maths(text: str) -> str:
    r"""Without $$...$$, \(...\), \[...\] and $...$, as they come; an opening that is never closed stays.

    In time linear in the text, which a degenerate model may have filled with openings.
    """
    kept, position, search, unclosed = [], 0, 0, set()
    while opening := _OPENING_MATHS.search(text, search):
        mark, search = opening[0], opening.end()
        end = -1 if mark in unclosed else text.find(_CLOSING_MATHS[mark], search)
        if end < 0:
            unclosed.add(mark)
            continue
        kept.append(text[position : opening.start()])
        position = search = end + len(_CLOSING_MATHS[mark])
    return "".join([*kept, text[position:]])


def split_thinking(text: str, thinks: bool) -> tuple[str | None, str]:
    """Thinking and answer, at the last `</think>`; without one, all is thinking if the model `thinks`, else answer."""
    thinking, closing, answer = text.rpartition(CLOSING)
    if closing:
        return thinking.removeprefix("<think>"), answer
    return (text.removeprefix("<think>"), "") if thinks else (None, text)


def code_of(language: str) -> str | None:
    """langdetect's code of a language, None if it has none. In any case; further codes as languages.yaml lists them."""
    code = language.strip().lower()
    records = shipped_records().languages
    same = next(({key, *record.codes} for key, record in records.items() if code in (key, *record.codes)), {code})
    if "zh" in same:
        return "zh-cn"
    return next(iter(same & KNOWN), None)
