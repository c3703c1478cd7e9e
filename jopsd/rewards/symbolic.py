r"""The last stage of mathematics: two answers as sympy objects, compared at 50 digits or by math-verify.

Runs in the workers of `jopsd.rewards.pool`. sympy and math-verify are imported when first needed (1 to 2 s).
"""

import contextlib
import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from jopsd.rewards.math import SECONDS, Question, Verdict

DIGITS = 50
AGREEMENT = 1e-30  # relative, of two exact values
DECIMAL_AGREEMENT = 1e-6  # where a side is a decimal literal
MAX_SYMBOLS = 8
MIN_WAIT = 0.01  # seconds between two looks at the time spent
_DECIMAL_LITERAL = re.compile(r"\d?\.\d")
_ROUNDED = re.compile(r"-? ?\d+(?:\.(\d+))?")
_OR = re.compile(r"\\(?:cup|lor|vee)(?![A-Za-z])|\bor\b")
# By what the symbols of two expressions are replaced, in turn: positive points decide; a negative one may refute.
_POINTS = (
    ("17/13", "3/7", "29/11"),
    ("5/7", "41/17", "3/19"),
    ("101/97", "13/5", "7/23"),
    ("-19/17", "-5/3", "-23/29"),
)


def symbolic_grade(question: Question, seconds: float = SECONDS) -> Verdict:
    """Settle a Question. Stages: "numeric", "math_verify", "unconfirmed", "timeout", "error_NAME".

    seconds: of this thread's processor time, imports not counted; on other threads than the main one there is no limit.
    math-verify rounds to six decimals, so on its own 1/2004! equals 1/2006!: what it calls equal must agree at 50
    digits, relatively to 1e-30 (1e-6 where a side is a decimal literal).
    """
    parse, verify = _library()
    try:
        with _deadline(seconds):
            return _settle(question, parse, verify)
    except _DeadlineError:
        return Verdict(False, "timeout")
    except (Exception, RecursionError) as error:
        return Verdict(False, f"error_{type(error).__name__}")


def _library() -> tuple[Callable, Callable]:
    """math-verify, as (parse one answer, say whether gold and prediction are equal)."""
    import math_verify
    from latex2sympy2_extended import NormalizationConfig

    # Its own limits are off (they only work on the main thread, and eat other alarms), about which it would warn.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    # Only the box is read: with its other patterns it would find a number in what it cannot parse.
    # Its units stay off: they cost it all that stands between two text macros, and `units` has read them already.
    spelling = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all")
    boxes = [math_verify.LatexExtractionConfig(False, boxed_match_priority=0, normalization_config=spelling)]

    def parse(text: str) -> Any:
        found = math_verify.parse(f"\\boxed{{{text}}}", boxes, parsing_timeout=None, extraction_mode="first_match")
        return found[0] if found else None

    def verify(gold: Any, prediction: Any) -> bool:
        return math_verify.verify(gold, prediction, timeout_seconds=None, allow_set_relation_comp=True)

    return parse, verify


def _settle(question: Question, parse: Callable, verify: Callable) -> Verdict:
    sides = [_readings(text, parse) for text in question]
    verdict = Verdict(False, "math_verify")
    for texts_and_answers in product(*sides):
        (texts, answers) = zip(*texts_and_answers, strict=True)
        verdict = _judge(*answers, Question(*texts), verify)
        if verdict.correct:
            break
    return verdict


def _readings(text: str, parse: Callable) -> list[tuple[str, Any]]:
    r"""What an answer says, as text and object: one reading, or of a \approx b two; none where it cannot be read.

    Where b is not a rounded, of two digits at least, they are two answers, and so is none.
    """
    pieces = [(piece.strip(), parse(piece.strip())) for piece in text.split("\\approx")]
    if len(pieces) > 1 and getattr(pieces[0][1], "is_Symbol", False):
        del pieces[0]
    if any(answer is None for _, answer in pieces):
        return []
    exact = _told(pieces[0][1])
    for rounded, _ in pieces[1:]:
        digits = _ROUNDED.fullmatch(rounded)
        value = _value(exact) if digits and getattr(exact, "is_number", False) else None
        if value is None or abs(value - _value(_decimal(rounded))) >= 10 ** -len(digits[1] or ""):
            return []
    return [piece for n, piece in enumerate(pieces) if not n or len(piece[0].lstrip("-0.").replace(".", "")) > 1]


def _decimal(text: str) -> Any:
    import sympy

    return sympy.Rational(text.replace(" ", ""))


def _judge(prediction: Any, gold: Any, question: Question, verify: Callable) -> Verdict:
    if all(map(_are_inequalities, (prediction, gold))) and len({bool(_OR.search(text)) for text in question}) == 2:
        return Verdict(_same_region(prediction, gold, question), "math_verify")
    same = _same(prediction, gold)
    if same is not None:
        return Verdict(same, "numeric")
    if verify(gold, prediction):
        tolerance = DECIMAL_AGREEMENT if any(map(_DECIMAL_LITERAL.search, question)) else AGREEMENT
        confirmed = not _false_chain(prediction) and _confirmed(prediction, gold, tolerance, question)
        return Verdict(confirmed, "math_verify" if confirmed else "unconfirmed")
    return Verdict(_same_region(prediction, gold, question), "math_verify")


def _are_inequalities(answer: Any) -> bool:
    import sympy

    kinds = (sympy.core.relational._Inequality, sympy.And)
    return isinstance(answer, sympy.FiniteSet) and all(isinstance(part, kinds) for part in answer.args)


def _same(one: Any, other: Any) -> bool | None:
    """Whether two parsed answers of one shape are equal, by their values at 50 digits; None where that cannot tell."""
    import sympy

    if isinstance(one, sympy.MatrixBase) and isinstance(other, sympy.MatrixBase):
        return one.shape == other.shape and _all(map(_same, one.flat(), other.flat()))
    if isinstance(one, sympy.Tuple) and isinstance(other, sympy.Tuple):
        return len(one) == len(other) and _all(map(_same, one, other))
    if isinstance(one, sympy.Interval) and isinstance(other, sympy.Interval):
        if (one.left_open, one.right_open) != (other.left_open, other.right_open):
            return None  # infinite ends may be written either way
        return _all([_same(one.start, other.start), _same(one.end, other.end)])
    if isinstance(one, sympy.FiniteSet) and isinstance(other, sympy.FiniteSet) and len(one) == len(other):
        return _same_set(list(one.args), list(other.args))
    if isinstance(one, sympy.Ne) and isinstance(other, sympy.Ne):
        differences = [_same(one.lhs - one.rhs, sign * (other.lhs - other.rhs)) for sign in (1, -1)]
        return True if True in differences else None
    if isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr):
        return _same_expression(one, other)
    chains = _links(one), _links(other)
    return True if all(chains) and chains[0] == chains[1] else None


def _links(answer: Any) -> frozenset | None:
    """The inequalities of a chain, each as (smaller, greater, whether strict); None for what holds anything else."""
    import sympy

    links = answer.args if isinstance(answer, sympy.And) else (answer,)
    if not all(isinstance(link, sympy.core.relational._Inequality) for link in links):
        return None
    return frozenset((link.lts, link.gts, link.rel_op in ("<", ">")) for link in links)


def _all(verdicts: Iterator[bool | None]) -> bool | None:
    found = list(verdicts)
    return False if False in found else None if None in found else True


def _same_set(one: list, other: list) -> bool | None:
    """Whether every element has its equal. Equality is transitive, so the first one found will do."""
    unmatched = list(other)
    for element in one:
        verdicts = [_same(element, candidate) for candidate in unmatched]
        if True in verdicts:
            unmatched.pop(verdicts.index(True))
        else:
            return None if None in verdicts else False
    return True


def _same_expression(one: Any, other: Any) -> bool | None:
    """By value for exact expressions in the same symbols, at points where they have one."""
    import sympy

    if one == other:
        return True
    if any(side.has(sympy.Float) for side in (one, other)):
        exact = [side.replace(lambda n: n.is_Float, lambda n: sympy.Rational(str(n))) for side in (one, other)]
        return _same_expression(*exact) or None  # a decimal may be rounded: math-verify says how far
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    opaque = (sympy.UnevaluatedExpr, sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit)
    if len(symbols) > MAX_SYMBOLS or any(side.has(*opaque) for side in (one, other)):
        return None
    if symbols and all(_is_name(side) for side in (one, other)):
        return None
    one, other = (_with_imaginary_unit(side) for side in (one, other))
    agreed = 0
    for point in _POINTS if symbols else _POINTS[:1]:
        places = {symbol: sympy.Rational(point[n % 3]) + n for n, symbol in enumerate(symbols)}
        sides = [side.subs(places).doit() for side in (one, other)]
        if all(side.is_Rational for side in sides):
            same, real = bool(sides[0] == sides[1]), True
        else:
            values = list(map(_value, sides))
            if None in values:
                continue
            same = bool(abs(values[0] - values[1]) <= AGREEMENT * max(map(abs, values)))
            real = all(value.is_real for value in values)
        if not same and (real or point is not _POINTS[-1]):
            return False
        agreed += same
    return True if agreed >= (3 if symbols else 1) else None


def _is_name(expression: Any) -> bool:
    """A symbol, or a product of symbols: perhaps a word that the parser took apart."""
    import sympy

    parts = expression.args if isinstance(expression, sympy.Mul) else (expression,)
    return all(part.is_Symbol or part == sympy.E for part in parts)


def _with_imaginary_unit(expression: Any) -> Any:
    import sympy

    return expression.subs({symbol: sympy.I for symbol in expression.free_symbols if symbol.name == "i"})


def _value(number: Any) -> Any:
    """The value to 50 digits; None where it is not finite or cannot be had so exactly."""
    import sympy

    with contextlib.suppress(Exception):
        value = sympy.N(number, DIGITS, maxn=4 * DIGITS, strict=True)
        if value.is_number and value.is_finite:
            return value
    return None


def _confirmed(prediction: Any, gold: Any, tolerance: float, question: Question) -> bool:
    """Whether two parsed answers that math-verify calls equal are so at 50 digits; True where that cannot be asked."""
    import sympy

    scales = (1, 100, sympy.Rational(1, 100)) if any("\\%" in text for text in question) else (1,)
    for one, other in _pairs(prediction, gold):
        if not all(isinstance(side, sympy.Expr) and side.is_number for side in (one, other)):
            continue
        low, high = sympy.N(one, DIGITS), sympy.N(other, DIGITS)
        if not (low.is_finite and high.is_finite):
            continue
        if not any(abs(low * scale - high) <= tolerance * max(abs(low * scale), abs(high)) for scale in scales):
            return False
    return True


def _pairs(one: Any, other: Any) -> list[tuple[Any, Any]]:
    """The numbers of two answers that correspond."""
    import sympy

    if isinstance(one, sympy.MatrixBase) and isinstance(other, sympy.MatrixBase) and one.shape == other.shape:
        return list(zip(one.flat(), other.flat(), strict=True))
    if isinstance(one, sympy.Interval) and isinstance(other, sympy.Interval):
        return [(one.start, other.start), (one.end, other.end)]
    if isinstance(one, sympy.FiniteSet) and isinstance(other, sympy.FiniteSet) and len(one) == len(other):
        with contextlib.suppress(Exception):  # elements without an order
            return list(zip(*(sorted(side.args, key=sympy.N) for side in (one, other)), strict=True))
        return []
    if isinstance(one, sympy.Tuple) and isinstance(other, sympy.Tuple) and len(one) == len(other):
        return list(zip(one, other, strict=True))
    return [(_told(one), _told(other))]


def _told(answer: Any) -> Any:
    """What an assignment, x = 1 + 1 = 2, says that the unknown is; any other answer itself."""
    import sympy

    links = answer.args if isinstance(answer, sympy.And) else (answer,)
    return links[-1].rhs if all(isinstance(link, sympy.Eq) for link in links) and links[0].lhs.is_Symbol else answer


def _false_chain(prediction: Any) -> bool:
    """A prediction like 6 = 5: of numbers alone, and false."""
    import sympy

    links = prediction.args if isinstance(prediction, sympy.And) else (prediction,)
    if not all(isinstance(link, sympy.Eq) and link.lhs.is_number and link.rhs.is_number for link in links):
        return False
    return any(_same(link.lhs, link.rhs) is False for link in links)


def _same_region(one: Any, other: Any, question: Question) -> bool:
    """Whether two answers are the same set of numbers, one at least told by inequalities in a single unknown.

    Of several inequalities any may hold, unless that leaves out no number and no "or" stands between them.
    """
    import sympy

    def region(answer: Any, text: str) -> Any:
        if isinstance(answer, sympy.Interval | sympy.Union):
            return answer
        if isinstance(answer, sympy.Eq) and answer.lhs.is_Symbol:
            return answer.rhs if isinstance(answer.rhs, sympy.Interval | sympy.Union) else None
        if isinstance(answer, sympy.FiniteSet) and answer.args:
            parts = [region(part, text) for part in answer.args]
            if None in parts:
                return None
            either = sympy.Union(*parts)
            return sympy.Intersection(*parts) if either == sympy.Reals and not _OR.search(text) else either
        inequalities = answer.args if isinstance(answer, sympy.And) else (answer,)
        told = all(isinstance(part, sympy.core.relational._Inequality) for part in inequalities)
        return answer.as_set() if told and len(answer.free_symbols) == 1 else None

    unknowns = [side.free_symbols if isinstance(side, sympy.Basic) else set() for side in (one, other)]
    if all(unknowns) and unknowns[0] != unknowns[1]:
        return False
    regions = [region(side, text) for side, text in zip((one, other), question, strict=True)]
    return any(unknowns) and None not in regions and bool(regions[0] == regions[1])


class _DeadlineError(BaseException):
    """No Exception: math-verify and sympy swallow those."""


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise _DeadlineError once the main thread has spent these seconds of processor time, whatever the clock says."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    end = time.thread_time() + seconds

    def look(signum: int, frame: Any) -> None:
        left = end - time.thread_time()
        if left <= 0:
            raise _DeadlineError
        signal.setitimer(signal.ITIMER_REAL, max(left, MIN_WAIT))

    previous = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
