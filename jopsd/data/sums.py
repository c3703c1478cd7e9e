"""The embedded task: sums of four two-digit numbers, worked out step by step, in English or in Swahili words.

There are about 65 million problems, so training data never repeats. A hash of the problem decides its split, so the
test problems are never seen by the pre-trained base nor by any later training.

The base learns from a sloppy demonstrator that forgets hard carries three times in four. It therefore knows both the
right step and the slip: greedy decoding is wrong about half the time, sampling gives mixed groups, and the skill that
training has to bring out is already there.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from zlib import crc32

import numpy as np

from jopsd.data.problem import Problem

SPLITS = ("train", "test")
LANGUAGES = ("en", "sw")
SWAHILI_DIGITS = ("sifuri", "moja", "mbili", "tatu", "nne", "tano", "sita", "saba", "nane", "tisa")
SWAHILI_PLUS = "jumlisha"

TERMS = 4
DROP_EASY_CARRY = 0.20  # probability of forgetting the carry when the unit digits sum to 10..12
DROP_HARD_CARRY = 0.75  # and when they sum to 13..18
MISCOUNT = 0.02  # probability of another slip: -1, +1 or +10


def problems(split: str, count: int, seed: int, language: str = "en") -> list[Problem]:
    """`count` different problems of one split, the same for the same seed; both languages draw the same numbers.

    Args:
      split: "train" or "test"; one problem in ten is a test problem.
      language: "en" writes the problem as `86+67+56+34`; "sw" writes it in Swahili words and keeps the English text
        in `problem_en`. Solutions and answers are in digits either way.

    Raises:
      ValueError: unknown split or language, or a count that is negative.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r} is not one of {', '.join(LANGUAGES)}")
    if count < 0:
        raise ValueError(f"count {count} is negative")
    stream = draws(np.random.default_rng(seed), split)
    unique: dict[tuple[int, ...], None] = {}
    while len(unique) < count:
        unique[next(stream)] = None
    return [as_problem(numbers, language) for numbers in unique]


def draws(rng: np.random.Generator, split: str) -> Iterator[tuple[int, ...]]:
    """Endless number quadruples of one split, with repeats by chance."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    while True:
        numbers = tuple(int(n) for n in rng.integers(10, 100, TERMS))
        if split_of(numbers) == split:
            yield numbers


def split_of(numbers: Sequence[int]) -> str:
    """The split a problem belongs to, by the checksum of its English text."""
    return "test" if crc32(english(numbers).encode()) % 10 == 0 else "train"


def as_problem(numbers: Sequence[int], language: str = "en") -> Problem:
    """One problem with its worked solution and answer."""
    text = english(numbers)
    totals = right_totals(numbers)
    foreign = language == "sw"
    return Problem(
        id=f"sums-{language}:{text}",
        problem=swahili_words(numbers) if foreign else text,
        solution=worked(numbers, totals),
        answer=str(totals[-1]),
        problem_en=text if foreign else None,
        language=language if foreign else None,
        verifier="math",
        source="sums",
    )


def english(numbers: Sequence[int]) -> str:
    """`86+67+56+34`."""
    return "+".join(map(str, numbers))


def swahili_words(numbers: Sequence[int]) -> str:
    """`nanesita jumlisha sitasaba jumlisha ...`: one word per digit."""
    return f" {SWAHILI_PLUS} ".join("".join(SWAHILI_DIGITS[int(d)] for d in str(n)) for n in numbers)


def swahili(problem: Problem) -> str:
    """The text of a problem in the second language, whichever language it is in."""
    return swahili_words([int(n) for n in (problem.problem_en or problem.problem).split("+")])


def right_totals(numbers: Sequence[int]) -> list[int]:
    """Running totals after each addition."""
    return list(accumulate(numbers))[1:]


def worked(numbers: Sequence[int], totals: Sequence[int]) -> str:
    r"""The text of a solution with these running totals: `86+67=153\n153+56=209\n209+34=243\n\boxed{243}`."""
    lefts = [numbers[0], *totals]
    steps = [f"{a}+{b}={c}" for a, b, c in zip(lefts, numbers[1:], totals, strict=False)]
    return "\n".join([*steps, rf"\boxed{{{totals[-1]}}}"])


def sloppy_add(rng: np.random.Generator, a: int, b: int) -> int:
    """a + b as the demonstrator does it: often without the carry out of the units."""
    units = a % 10 + b % 10
    drop = 0.0 if units < 10 else DROP_EASY_CARRY if units < 13 else DROP_HARD_CARRY
    if rng.random() < drop:
        return a + b - 10
    if rng.random() < MISCOUNT:
        return a + b + int(rng.choice((-1, 1, 10)))
    return a + b


def sloppy_totals(rng: np.random.Generator, numbers: Sequence[int]) -> list[int]:
    """Running totals of the demonstrator; a wrong one is carried on."""
    return list(accumulate(numbers, lambda a, b: sloppy_add(rng, a, b)))[1:]


def sloppy_solution(rng: np.random.Generator, numbers: Sequence[int]) -> str:
    """The demonstrator's solution, right in about 47 % of the problems."""
    return worked(numbers, sloppy_totals(rng, numbers))
