"""Numbers of a row as text, without what storing them as a float has added."""

import math
import numbers
import re

import numpy as np

_LONG = 15  # significant digits from which a float's text may be rounding noise
_SHORT = 10  # digits that a number has which somebody wrote; of a 32-bit float, 6
# Text such as 0.30000000000000004 or 2.4999999999999996: a run of zeros or nines, and a few digits after it.
_NOISE = re.compile(r"[+-]?\d*\.\d*?(?:0{6,}[1-9]\d{0,2}|9{6,}\d{0,2})")


def number_text(value: numbers.Real) -> str | None:
    """A number as text: whole ones as integers, floats by the shortest text that somebody could have written."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, numbers.Integral):
        return str(int(value))
    number = float(value)
    if not math.isfinite(number):
        return None
    if number.is_integer() and abs(number) < 1e15:
        return str(int(number))
    return _written(number) or repr(number)


def rounding_noise(value: object) -> bool:
    """Whether a cell, a number or its text, has digits that come from storing it as a float."""
    if isinstance(value, str):
        return bool(_NOISE.fullmatch(value.strip())) and _digits(value) >= _LONG
    if not isinstance(value, numbers.Real) or isinstance(value, numbers.Integral) or not math.isfinite(value):
        return False
    number = float(value)
    return _digits(repr(number)) >= _LONG and (float(np.float32(number)) == number or _written(number) is not None)


def _written(number: float) -> str | None:
    """A short decimal that is this number but for noise, of a 64-bit or of a 32-bit float; None if there is none."""
    if _digits(repr(number)) < _LONG:
        return None
    short = f"{number:.12g}"
    if _digits(short) <= _SHORT:
        return short
    single = str(np.float32(number))
    return single if float(np.float32(number)) == number and _digits(single) <= 6 else None


def _digits(text: str) -> int:
    """Significant digits of a decimal."""
    return len(re.sub(r"e.*|[^0-9]", "", text.lower()).lstrip("0"))
