"""Knights and Knaves: puzzles with exactly one solution, drawn as in the public generator that Logic-RL uses.

Each of n people makes one statement; a knight's is true, a knave's is false. A statement is a leaf
`('telling-truth', j)` (person j, counted from 0, is a knight) or `('lying', j)`, or is built of others by
`('not', a)`, `('and', a, b)`, `('or', a, b)` (one or both), `('->', a, b)` and `('<=>', a, b)`.

What each statement that person p may make says of all 2^n assignments is tabled once, so that a whole batch of
candidates is solved by a few gathers and bitwise ands. A hash of what the statements mean decides the split: a test
puzzle never is a training puzzle in other words. The English, our own, can say leaves, nots and pairs of leaves.
"""

import ast
from collections.abc import Iterator, Sequence
from functools import cache
from hashlib import sha256
from itertools import permutations
from typing import Any
from zlib import crc32

import numpy as np

from jopsd.data.problem import Problem

SPLITS = ("train", "test")
ROLES = {True: "knight", False: "knave"}
MIN_PEOPLE, MAX_PEOPLE = 2, 12  # one person has no puzzle, and the table of 13 takes 33 MB
MAX_SOLVED = 20  # people in `solutions`, which looks at 2^n assignments
MAX_CHARS, MAX_DEPTH = 20_000, 50  # of statements that are read
BATCH_BYTES = 1 << 17  # of table rows that a batch of candidates gathers
PATIENCE = 1 << 20  # candidates without a new puzzle after which there are taken to be no more

Statement = tuple[Any, ...]

_LEAVES, _PAIRS = ("telling-truth", "lying"), ("and", "or", "->", "<=>")
_ONE, _TWO, _MORE = (1, 1, "one statement"), (2, 2, "two statements"), (2, MAX_CHARS, "two or more statements")
_TAKES = {"not": _ONE, "and": _MORE, "or": _MORE, "->": _TWO, "<=>": _TWO}

_NAMES = (
    "Adam Agnes Amina Anton Bella Boris Bruno Carla Cyril Daniel Dora Edith Elif Erik Esther Farid Felix Fiona Gina "
    "Greta Hannah Hugo Ida Ines Ivan Jane Jonas Julia Karim Katya Kofi Lars Leon Lucia Marta Milan Nadia Nora Omar "
    "Oscar Paula Petra Priya Quentin Ravi Rosa Ruth Samir Sonia Tara Tobias Ursula Uma Victor Wanda Xenia Yara Yusuf "
    "Zeno Zora"
).split()
_ISLANDS = (
    "On a far-off island everybody is either a knight or a knave. What a knight says is always true, and what a knave "
    "says is always false.",
    "Two kinds of people live on an island: knights, who never say anything false, and knaves, who never say anything "
    "true.",
    "Your boat lands where all people are knights or knaves. Every statement of a knight is true; every statement of a "
    "knave is false.",
    "There is an old tale of an island of knights and knaves. A knight can only tell the truth, and a knave can only "
    "lie.",
)
_MEETINGS = (
    "You come across {count} of its inhabitants: {names}.",
    "There you talk to {count} people: {names}.",
    "In the market square stand {count} islanders: {names}.",
)
_QUESTIONS = (
    "Who is a knight, and who is a knave?",
    "What is each of them, knight or knave?",
    "Find out which of them are knights and which are knaves.",
)
INSTRUCTION = (
    "Reason step by step, and put the final answer within \\boxed{}, in the form NAME is a knight, NAME is a knave, "
    "..., covering every inhabitant."
)
# In the direct ones the speaker is "I"; {Claim} begins with a capital.
_DIRECT = (
    '{name} says: "{Claim}."',
    '"{Claim}," says {name}.',
    '{name} whispers to you: "{Claim}."',
    '"{Claim}," is all that {name} has to say.',
    '{name} looks you in the eye and says: "{Claim}."',
    '"{Claim}," {name} calls out.',
    'On the turn of {name} you hear: "{Claim}."',
)
_REPORTED = (
    "{name} says that {claim}.",
    "According to {name}, {claim}.",
    "From {name} you hear that {claim}.",
    "{name} insists that {claim}.",
    "Questioned by you, {name} answers that {claim}.",
    "{name} would have you believe that {claim}.",
    "It is the opinion of {name} that {claim}.",
)
_FRAMES = _DIRECT + _REPORTED
# One wording of each is used throughout a puzzle: "or" beside "or both" would seem to mean one only.
_WORDINGS = {
    "and": ("{0} and {1}", "{0}, and also {1}", "two things are true: {0}, {1}"),
    "or": ("{0} or {1}", "{0}, or {1}, or both", "at least one of two things is true: {0}, {1}"),
    "->": ("if {0}, then {1}", "if {0} then {1}", "{1} if {0}"),
    "<=>": ("{0} if and only if {1}", "{0} exactly when {1}"),
}
# Of a pair: both are true, the first only, the second only, neither.
_OUTCOMES = {
    "and": ("both parts are true", "the second part is false", "the first part is false", "both parts are false"),
    "or": ("both parts are true", "the first part is true", "the second part is true", "neither part is true"),
    "->": (
        "the condition is true and so is what follows from it",
        "the condition is true but what follows from it is not",
        "the condition is false",
        "the condition is false",
    ),
    "<=>": ("both sides are true", "only the first side is true", "only the second side is true", "neither is true"),
}


def problems(split: str, count: int, seed: int, people: Sequence[int] = (4, 8)) -> list[Problem]:
    """`count` different puzzles of one split, each with one solution; the same for the same seed, a longer list first.

    Args:
      split: "train" or "test"; about one puzzle in ten is a test puzzle.
      people: the fewest and the most people of a puzzle, within 2..12; the numbers between take turns.

    Each problem has a solution that checks every statement and ends in a box, the answer, the verifier "knights", and
    in `extra` people, names, statements (nested lists) and solution (one bool a person, true for a knight).

    Raises:
      ValueError: an unknown split, a negative count, a bad range, or more puzzles than there are (few people).
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if count < 0:
        raise ValueError(f"count {count} is negative")
    fewest, most = _checked_range(people)
    sizes = range(fewest, most + 1)
    streams = [puzzles(np.random.default_rng((seed, n)), n, split) for n in sizes]
    words = np.random.default_rng((seed, 0))
    made: list[Problem] = []
    for index in range(count):
        puzzle = next(streams[index % len(sizes)], None)
        if puzzle is None:
            raise ValueError(
                f"only {index // len(sizes)} different {split} puzzles with {sizes[index % len(sizes)]} people were "
                f"found, too few for {count} with {fewest} to {most} people; ask for fewer, or for more people"
            )
        made.append(_problem(*puzzle, words))
    return made


def puzzles(rng: np.random.Generator, people: int, split: str) -> Iterator[tuple[tuple[Statement, ...], list[bool]]]:
    """Statements and only solution (true for a knight) of different puzzles of a split, until no new one turns up."""
    said, agreement = _table(people)
    everyone = np.arange(people)
    seen: set[bytes] = set()
    batch = min(1 << 13, max(256, BATCH_BYTES // agreement[:, 0].nbytes))
    idle = 0
    while idle < PATIENCE:
        drawn = _draw(rng, batch, people)
        valid = agreement[0, drawn[:, 0]]
        for person in range(1, people):
            valid &= agreement[person, drawn[:, person]]
        # Whole words are counted where there are any: eight times fewer.
        words = valid.view(np.uint64) if valid.shape[1] % 8 == 0 else valid
        unique = np.flatnonzero(np.bitwise_count(words).sum(1, dtype=np.uint32) == 1)
        assignments = _knights(people)[:, np.unpackbits(valid[unique], axis=1).argmax(1)].T.tolist()
        idle += batch
        for row, solution in zip(drawn[unique], assignments, strict=True):
            key = row.tobytes()
            if key in seen:
                continue
            seen.add(key)
            idle = 0
            if _split(agreement[everyone, row]) == split:
                yield tuple(of_person[i] for of_person, i in zip(said, row.tolist(), strict=True)), solution


def split_of(statements: Any) -> str:
    """The split a puzzle belongs to, by a checksum of what its statements mean. Raises ValueError as `solutions`."""
    return _split(np.packbits(_agreement(read_statements(statements)), axis=1))


def solutions(statements: Any) -> list[tuple[bool, ...]]:
    """All assignments (true for a knight) under which exactly the knights' statements are true, knights first.

    ``statements``: one a person, as `read_statements` takes them, nested at will. Time and memory grow as 2^n.

    Raises ValueError for statements that cannot be read, or of more than 20 people.
    """
    read = read_statements(statements)
    found = np.flatnonzero(_agreement(read).all(0))
    return [tuple(assignment) for assignment in _knights(len(read))[:, found].T.tolist()]


def read_statements(value: Any) -> tuple[Statement, ...]:
    """One statement a person, as nested tuples, from nested lists or tuples or their text as Python or JSON writes it.

    Raises ValueError naming the statement (counted from 1) and what is wrong with it.
    """
    if isinstance(value, str):
        if len(value) > MAX_CHARS:
            raise ValueError(f"statements of {len(value)} characters are too long: at most {MAX_CHARS} are read")
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise ValueError(f"statements {_shown(value)} cannot be read as nested lists or tuples") from None
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"statements must be a list of one statement a person, not {_shown(value)}")
    return tuple(_read(statement, len(value), f"statement {i}", 0) for i, statement in enumerate(value, start=1))


# ------------------------------------------------------------------------------------------------ reading and solving


def _checked_range(people: Any) -> tuple[int, int]:
    ends = tuple(people) if isinstance(people, list | tuple) else ()
    if len(ends) != 2 or not all(type(n) is int for n in ends) or not MIN_PEOPLE <= ends[0] <= ends[1] <= MAX_PEOPLE:
        raise ValueError(
            f"people {people!r} must be the fewest and the most people, as [4, 8], within {MIN_PEOPLE}..{MAX_PEOPLE}"
        )
    return ends


def _read(value: Any, people: int, where: str, depth: int) -> Statement:
    if depth > MAX_DEPTH:
        raise ValueError(f"{where} is nested deeper than {MAX_DEPTH}")
    if not isinstance(value, list | tuple) or not value or not isinstance(value[0], str):
        raise ValueError(f"{where}: {_shown(value)} is not of the form [kind, ...]")
    kind, *parts = value
    if kind in _LEAVES:
        if len(parts) != 1 or type(parts[0]) is not int or not 0 <= parts[0] < people:
            raise ValueError(f"{where}: {_shown(value)} must name one person by number, 0 to {people - 1}")
        return kind, parts[0]
    if kind not in _TAKES:
        raise ValueError(f"{where}: {_shown(kind)} is none of {', '.join((*_LEAVES, *_TAKES))}")
    least, most, words = _TAKES[kind]
    if not least <= len(parts) <= most:
        raise ValueError(f"{where}: {kind!r} takes {words}, not {len(parts)}")
    return (kind, *(_read(part, people, where, depth + 1) for part in parts))


def _shown(value: Any) -> str:
    return repr(value)[:80]


def _as_lists(statement: Any) -> Any:
    return [_as_lists(part) for part in statement] if isinstance(statement, tuple) else statement


@cache
def _knights(people: int) -> np.ndarray:
    """bool [people, 2^people]: is this person a knight under this assignment; the first has everybody a knight."""
    every = np.arange(1 << people)
    return np.stack([every >> bit & 1 == 0 for bit in range(people - 1, -1, -1)])


def _agreement(statements: Sequence[Statement]) -> np.ndarray:
    """bool [people, 2^people]: does this person's statement fit the person's role under this assignment."""
    if len(statements) > MAX_SOLVED:
        raise ValueError(f"statements of {len(statements)} people are too many to solve: at most {MAX_SOLVED}")
    knights = _knights(len(statements))
    return np.stack([_truth(statement, knights) for statement in statements]) == knights


def _truth(statement: Statement, knights: np.ndarray) -> np.ndarray:
    kind, *parts = statement
    if kind in _LEAVES:
        return knights[parts[0]] == (kind == "telling-truth")
    truths = [_truth(part, knights) for part in parts]
    if kind == "not":
        return ~truths[0]
    if kind == "and":
        return np.logical_and.reduce(truths)
    if kind == "or":
        return np.logical_or.reduce(truths)
    return truths[0] == truths[1] if kind == "<=>" else ~truths[0] | truths[1]


def _split(agreement: np.ndarray) -> str:
    """Of packed agreement: with the speaker known, it says what the statement says."""
    return "test" if crc32(agreement.tobytes()) % 10 == 0 else "train"


# ----------------------------------------------------------------------------------------------------------- sampling


@cache
def _table(people: int) -> tuple[list[list[Statement]], np.ndarray]:
    """What each person may say, and uint8 [people, statements, ceil(2^people / 8)]: `_agreement` of it, as bits.

    The order is leaves, their nots, then for each of and, or, ->, <=> the ordered pairs of different leaves. Nobody
    says "I am a knave", not even as a part.
    """
    knights = _knights(people)
    said, agreement = [], []
    for person in range(people):
        leaves = [(kind, j) for j in range(people) for kind in _LEAVES if (kind, j) != ("lying", person)]
        pairs = list(permutations(leaves, 2))
        said.append([*leaves, *(("not", leaf) for leaf in leaves), *((op, *pair) for op in _PAIRS for pair in pairs)])
        truth = np.stack([_truth(leaf, knights) for leaf in leaves])
        first, second = np.array(list(permutations(range(len(leaves)), 2))).T
        a, b = truth[first], truth[second]
        truths = np.concatenate([truth, ~truth, a & b, a | b, ~a | b, a == b])
        agreement.append(np.packbits(truths == knights[person], axis=1))
    return said, np.stack(agreement)


def _draw(rng: np.random.Generator, count: int, people: int) -> np.ndarray:
    """uint16 [count, people]: places in `_table` of statements drawn with the odds of the public generator."""
    shape, leaves = (count, people), 2 * people - 1
    kind = rng.integers(6, size=shape)  # each sixth: a leaf, a not, and, or, ->, <=>
    first, second = rng.integers(leaves, size=shape), rng.integers(leaves - 1, size=shape)
    pair = 2 * leaves + ((kind - 2) * leaves + first) * (leaves - 1) + second
    return np.where(kind < 2, kind * leaves + first, pair).astype(np.uint16)


# --------------------------------------------------------------------------------------------------------------- text


def _problem(statements: Sequence[Statement], solution: Sequence[bool], rng: np.random.Generator) -> Problem:
    """A puzzle in English with its worked solution; names, frames and wordings are drawn from ``rng``."""
    people = len(statements)
    names = [_NAMES[i] for i in rng.permutation(len(_NAMES))[:people]]
    frames = rng.integers(len(_FRAMES), size=people).tolist()
    picks = rng.integers(1 << 16, size=3 + len(_WORDINGS)).tolist()
    island, meeting, question = (
        texts[pick % len(texts)] for texts, pick in zip((_ISLANDS, _MEETINGS, _QUESTIONS), picks, strict=False)
    )
    wordings = {op: texts[pick % len(texts)] for (op, texts), pick in zip(_WORDINGS.items(), picks[3:], strict=True)}
    sentences = [
        _said(_FRAMES[frame], names, person, statement, wordings)
        for person, (frame, statement) in enumerate(zip(frames, statements, strict=True))
    ]
    meets = meeting.format(count=people, names=_listed(names))
    text = " ".join([island, meets, *sentences, question]) + "\n\n" + INSTRUCTION
    answer = _listed([_is(name, knight) for name, knight in zip(names, solution, strict=True)])
    return Problem(
        id=f"knights-{people}:{sha256(text.encode()).hexdigest()[:16]}",
        problem=text,
        solution=_worked(statements, solution, names, wordings, answer),
        answer=answer,
        verifier="knights",
        source="knights",
        extra={
            "people": people,
            "names": names,
            "statements": [_as_lists(statement) for statement in statements],
            "solution": list(solution),
        },
    )


def _is(name: str, knight: bool, denied: bool = False) -> str:
    return f"{name} {'am' if name == 'I' else 'is'} {'not ' if denied else ''}a {ROLES[knight]}"


def _listed(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])}{',' if len(parts) > 2 else ''} and {parts[-1]}"


def _claim(statement: Statement, names: Sequence[str], wordings: dict[str, str]) -> str:
    kind, *parts = statement
    if kind in _LEAVES:
        return _is(names[parts[0]], kind == "telling-truth")
    if kind == "not":
        return _is(names[parts[0][1]], parts[0][0] == "telling-truth", denied=True)
    return wordings[kind].format(*(_is(names[j], leaf == "telling-truth") for leaf, j in parts))


def _said(frame: str, names: Sequence[str], person: int, statement: Statement, wordings: dict[str, str]) -> str:
    if frame in _DIRECT:
        claim = _claim(statement, [*names[:person], "I", *names[person + 1 :]], wordings)
        return frame.format(name=names[person], Claim=claim[0].upper() + claim[1:])
    return frame.format(name=names[person], claim=_claim(statement, names, wordings))


def _worked(
    statements: Sequence[Statement],
    solution: Sequence[bool],
    names: Sequence[str],
    wordings: dict[str, str],
    answer: str,
) -> str:
    """Each statement against the roles, a line each, then the box."""
    lines = [f"Suppose that {answer}. Check what each of them says."]
    for name, knight, statement in zip(names, solution, statements, strict=True):
        verdict = "true" if knight else "false"
        lines.append(
            f"{_is(name, knight)}, so this must be {verdict}: {_claim(statement, names, wordings)}. "
            f"{_reason(statement, solution, names)}, so it is {verdict}."
        )
    lines.append("All statements fit their speakers, and no other choice of roles fits them all.")
    return "\n".join([*lines, rf"\boxed{{{answer}}}"])


def _reason(statement: Statement, solution: Sequence[bool], names: Sequence[str]) -> str:
    """Why a statement is true or false under the solution: the roles of those it names, and what follows for a pair."""
    kind, *parts = statement
    leaves = [statement] if kind in _LEAVES else parts
    facts = " and ".join(dict.fromkeys(_is(names[j], solution[j]) for _, j in leaves))
    if len(leaves) == 1:
        return facts
    first, second = (solution[j] == (leaf == "telling-truth") for leaf, j in leaves)
    return f"{facts}: {_OUTCOMES[kind][2 * (not first) + (not second)]}"
