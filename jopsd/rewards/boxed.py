r"""The last ``\boxed{...}`` of a text: the extractor that OPSD, PW-OPSD and COPSD share (arXiv 2601.18734 code)."""

MAX_ANSWER_CHARS = 10_000
_BOX = "\\boxed"


def last_boxed(text: str, max_chars: int = MAX_ANSWER_CHARS) -> str | None:
    r"""Contents of the last ``\boxed{...}``, stripped; ``""`` for an empty box; None where there is no usable box.

    Only the last ``\boxed`` counts: if its brace never closes within ``max_chars``, or no brace follows it at once
    (``\boxed 5``, ``\boxedx{5}``), the answer is None and no earlier box is tried. Braces are counted as they stand,
    escaped ones too. Time is linear in the text: one search from the right and one bounded scan.
    """
    start = text.rfind(_BOX)
    opening = start + len(_BOX)
    if start < 0 or not text.startswith("{", opening):
        return None
    depth = 0
    for position in range(opening, min(len(text), opening + max_chars + 2)):
        character = text[position]
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[opening + 1 : position].strip()
    return None
