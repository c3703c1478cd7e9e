"""Knights and Knaves puzzles: solved by plain enumeration, read back from their English, never shared by two splits."""

import json
import re
from collections import Counter
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

from jopsd.data import knights
from jopsd.rewards.knights import verify

GOLDEN = Path(__file__).parent / "golden" / "b" / "kk_solver.json"
LEAVES = ("telling-truth", "lying")


def holds(statement, roles) -> bool:
    """What a statement says under these roles, by the meaning of its words."""
    kind, *parts = statement
    if kind == "telling-truth":
        return roles[parts[0]]
    if kind == "lying":
        return not roles[parts[0]]
    values = [holds(part, roles) for part in parts]
    if kind == "->":
        return values[1] if values[0] else True
    return {"not": lambda: not values[0], "and": lambda: all(values), "or": lambda: any(values)}.get(
        kind, lambda: len(set(values)) == 1
    )()


def enumerated(statements) -> list[tuple[bool, ...]]:
    every = product((True, False), repeat=len(statements))
    return [roles for roles in every if all(holds(s, roles) == role for s, role in zip(statements, roles, strict=True))]


def nested(rng, people, depth):
    """A statement of any shape."""
    kind = ("not", "and", "or", "->", "<=>")[rng.integers(5)] if depth and rng.random() < 0.8 else None
    if kind is None:
        return (LEAVES[rng.integers(2)], int(rng.integers(people)))
    width = {"not": 1, "and": int(rng.integers(2, 5)), "or": int(rng.integers(2, 5))}.get(kind, 2)
    return (kind, *(nested(rng, people, depth - 1) for _ in range(width)))


def sayable(person, people):
    """Everything the grammar lets a person say: no claim to be a knave, and never the same leaf twice."""
    leaves = [(kind, j) for kind in LEAVES for j in range(people) if (kind, j) != ("lying", person)]
    yield from leaves
    yield from (("not", leaf) for leaf in leaves)
    yield from ((op, *pair) for op in ("and", "or", "->", "<=>") for pair in permutations(leaves, 2))


# --- solving


@pytest.mark.parametrize("people", range(2, 8))
def test_a_puzzle_has_exactly_the_solution_that_enumeration_finds(people):
    for problem in knights.problems("train", 60, seed=people, people=(people, people)):
        assert problem.extra["people"] == len(problem.extra["statements"]) == people
        assert enumerated(problem.extra["statements"]) == [tuple(problem.extra["solution"])]


def test_systems_of_any_shape_have_the_solutions_that_enumeration_finds():
    rng = np.random.default_rng(0)
    counts = Counter()
    for trial in range(300):
        people = 1 + trial % 7
        statements = [nested(rng, people, 4) for _ in range(people)]
        expected = enumerated(statements)
        assert knights.solutions(statements) == knights.solutions(repr(statements)) == expected
        counts[len(expected)] += 1
    assert counts[0] and counts[1] and counts[2]


def test_every_published_system_has_the_published_solutions():
    cases = json.loads(GOLDEN.read_text())
    assert {case["n"] for case in cases} == set(range(2, 12))
    for case in cases:
        assert sorted(knights.solutions(case["statements"])) == sorted(map(tuple, case["solutions"]))


def test_published_puzzles_have_their_published_solution_alone(shared):
    rows = [json.loads(line) for line in (shared / "data" / "kk_public.jsonl").open()]
    assert {row["n_people"] for row in rows} == set(range(3, 12))
    for row in rows:
        assert knights.solutions(row["statements"]) == [tuple(row["solution"])]


def test_statements_of_a_logic_rl_row_are_read_from_their_text(shared):
    table = pytest.importorskip("pyarrow.parquet").read_table(shared / "data" / "kk_logicrl_150.parquet")
    rows = table.select(["statements", "solution"]).to_pylist()
    assert len(rows) == 150 and isinstance(rows[0]["statements"], str)
    for row in rows:
        assert knights.solutions(row["statements"]) == [tuple(row["solution"])]
        assert repr(knights.read_statements(row["statements"])) == row["statements"]


def test_a_system_without_a_solution_has_none():
    assert knights.solutions([("lying", 0)]) == []
    assert knights.solutions([("and", ("lying", 0), ("lying", 1)), ("<=>", ("lying", 1), ("lying", 0))]) == []


# --- drawing


@pytest.mark.parametrize(("split", "share"), [("train", 343), ("test", 56)])
def test_two_people_have_exactly_the_puzzles_that_enumeration_finds_and_no_more_are_promised(split, share):
    every = {s for s in product(sayable(0, 2), sayable(1, 2)) if len(enumerated(s)) == 1}
    every = {statements for statements in every if knights.split_of(statements) == split}
    assert len(every) == share  # a puzzle that was once a test puzzle stays one
    made = knights.problems(split, len(every), seed=3, people=(2, 2))
    assert {knights.read_statements(p.extra["statements"]) for p in made} == every
    with pytest.raises(ValueError, match=f"only {len(every)} different {split} puzzles with 2 people"):
        knights.problems(split, len(every) + 1, seed=4, people=(2, 2))
    with pytest.raises(ValueError, match=f"only {len(every)} different {split} puzzles with 2 people.*2 to 3"):
        knights.problems(split, 2 * len(every) + 2, seed=4, people=[2, 3])


@pytest.mark.parametrize("people", [3, 8])
def test_candidates_are_drawn_with_the_odds_of_the_grammar(people):
    said, agreement = knights._table(people)
    rows = knights._draw(np.random.default_rng(1), 30_000, people)
    for person in (0, people - 1):
        assert sorted(said[person]) == sorted(sayable(person, people))
        drawn = [said[person][i] for i in rows[:, person]]
        kinds = Counter("leaf" if s[0] in LEAVES else s[0] for s in drawn)
        assert set(kinds) == {"leaf", "not", "and", "or", "->", "<=>"}
        assert all(abs(n / 30_000 - 1 / 6) < 0.011 for n in kinds.values())
        operands = Counter((place, leaf) for s in drawn if s[0] in ("and", "->") for place, leaf in enumerate(s[1:]))
        leaves, share = 2 * people - 1, sum(operands.values()) / 2 / (2 * people - 1)
        assert len(operands) == 2 * leaves
        assert all(abs(n - share) < 5 * share**0.5 for n in operands.values())
    assert agreement.nbytes == people * len(said[0]) * max(1, 2**people // 8)


def test_a_call_never_repeats_a_puzzle_and_takes_turns_between_the_numbers_of_people():
    made = knights.problems("train", 3000, seed=0, people=(3, 5))
    assert len({repr(p.extra["statements"]) for p in made}) == len({p.id for p in made}) == 3000
    assert [p.extra["people"] for p in made[:7]] == [3, 4, 5, 3, 4, 5, 3]
    assert {p.extra["people"] for p in knights.problems("test", 10, seed=0)} == {4, 5, 6, 7, 8}


def test_the_same_seed_gives_the_same_puzzles_and_a_longer_list_begins_with_the_shorter():
    first = knights.problems("test", 60, seed=7)
    assert knights.problems("test", 60, seed=7) == first
    assert knights.problems("test", 25, seed=7) == first[:25]
    other = knights.problems("test", 60, seed=8)
    assert not {p.id for p in other} & {p.id for p in first}
    assert knights.problems("train", 0, seed=7) == []


def sayings(problem) -> tuple[tuple[bool, ...], ...]:
    """What each person says of every assignment: the puzzle without its wording."""
    every = list(product((True, False), repeat=problem.extra["people"]))
    return tuple(tuple(holds(statement, roles) for roles in every) for statement in problem.extra["statements"])


def test_splits_never_share_a_puzzle_not_even_in_other_words():
    train, other = ({sayings(p) for p in knights.problems("train", 3000, seed, (3, 3))} for seed in (0, 1))
    test = {sayings(p) for p in knights.problems("test", 3000, 0, (3, 3))}
    assert len(train & other) > 100  # of so few puzzles two draws share many
    assert not train & test and not other & test


def test_about_a_tenth_is_a_test_puzzle():
    rng = np.random.default_rng(5)
    splits = [knights.split_of([nested(rng, 5, 2) for _ in range(5)]) for _ in range(4000)]
    assert 0.085 < np.mean([split == "test" for split in splits]) < 0.115


def test_the_split_goes_by_what_is_said_and_not_by_how():
    rng = np.random.default_rng(0)
    splits = set()
    for _ in range(100):
        (a, b, c), (not_a, _, not_c) = zip(
            *(((LEAVES[k], j), (LEAVES[1 - k], j)) for k, j in rng.integers((2, 4), size=(3, 2)).tolist()), strict=True
        )
        one = knights.split_of([("and", a, b), ("not", c), ("or", a, c), ("->", a, b)])
        assert knights.split_of([("and", b, a), not_c, ("or", c, a), ("or", not_a, b)]) == one
        splits.add(one)
    assert splits == {"train", "test"}


# --- English


LEAF = r"(?P<name>[A-Z][a-z]+|I) (?:is|am) (?P<denied>not )?a (?P<role>knight|knave)"
SKELETONS = {
    "@": ("leaf", 0),
    "@ and @": ("and", 0, 1),
    "@, and also @": ("and", 0, 1),
    "two things are true: @, @": ("and", 0, 1),
    "@ or @": ("or", 0, 1),
    "@, or @, or both": ("or", 0, 1),
    "at least one of two things is true: @, @": ("or", 0, 1),
    "if @, then @": ("->", 0, 1),
    "if @ then @": ("->", 0, 1),
    "@ if @": ("->", 1, 0),
    "@ if and only if @": ("<=>", 0, 1),
    "@ exactly when @": ("<=>", 0, 1),
}


def parsed_claim(claim, names, speaker):
    """The statement of an English claim, and its shape."""
    leaves = []
    for found in re.finditer(LEAF, claim):
        assert (found["name"] == "I") == (" am " in found[0])
        person = names.index(speaker if found["name"] == "I" else found["name"])
        leaf = ("telling-truth" if found["role"] == "knight" else "lying", person)
        leaves.append(("not", leaf) if found["denied"] else leaf)
    shape = re.sub(LEAF, "@", claim)
    kind, *order = SKELETONS[shape[0].lower() + shape[1:]]
    return (leaves[0] if kind == "leaf" else (kind, *(leaves[i] for i in order))), shape.lower()


def parsed(text, names):
    """Statements in the order of the people, the sentences about the island, and the shapes and frames in use."""
    body, instruction = text.split("\n\n")
    assert instruction == knights.INSTRUCTION
    sentences = re.split(r'(?<=\.) |(?<=\.") ', body)
    start = next(i for i, sentence in enumerate(sentences, start=1) if re.search(r" \d+ .*: ", sentence))
    island, said, question = sentences[:start], sentences[start:-1], sentences[-1]
    assert question[-1] in "?." and len(said) == len(names)
    statements, shapes, frames = [], set(), set()
    for speaker, sentence in zip(names, said, strict=True):
        if quote := re.search(r'"([^"]+?)[.,]"', sentence):
            claim, frame = quote[1], sentence.replace(quote[0], '"@"')
            assert claim[0].isupper() and speaker not in claim
        else:
            frame, claim = re.fullmatch(r"(According to [A-Z][a-z]+, |.*? that )(.*)\.", sentence).groups()
            assert " I " not in claim and (claim[0].islower() or claim.split()[0] in names)
        assert re.findall(r"[A-Z][a-z]+", frame).count(speaker) == 1
        statement, shape = parsed_claim(claim, names, speaker)
        statements.append(statement)
        shapes.add((statement[0], shape))
        frames.add(frame.replace(speaker, "NAME"))
    return tuple(statements), " ".join(island), shapes, frames, question


def test_the_english_says_exactly_the_statements():
    shapes, frames, questions, islands = set(), set(), set(), set()
    for problem in knights.problems("train", 1200, seed=2, people=(2, 6)):
        names = problem.extra["names"]
        statements, island, used, said, question = parsed(problem.problem, names)
        assert statements == knights.read_statements(problem.extra["statements"])
        assert len(names) == len(set(names)) and str(len(names)) in island
        listed = island.rsplit(": ", 1)[1].rstrip(".")
        assert re.split(r", and | and |, ", listed) == names
        for op in ("and", "or", "->", "<=>"):
            assert sum(kind == op for kind, _ in used) <= 1  # one wording of each in a puzzle
        shapes |= {shape for _, shape in used}
        frames |= said
        questions.add(question)
        islands.add(island.rsplit(".", 2)[0])
    assert shapes == set(SKELETONS)
    assert len(frames) == 14 and len(questions) == 3 and len(islands) == 4


def test_an_instruction_asks_for_every_role_in_a_box():
    assert knights.INSTRUCTION.endswith("NAME is a knight, NAME is a knave, ..., covering every inhabitant.")
    assert "step by step" in knights.INSTRUCTION and r"\boxed{}" in knights.INSTRUCTION


# --- solutions and answers


def test_the_verifier_takes_the_worked_solution_and_no_other_roles():
    for problem in knights.problems("test", 100, seed=5):
        names, solution = problem.extra["names"], problem.extra["solution"]
        assert verify(problem.solution, problem.answer).correct
        roles = ["knight" if role else "knave" for role in solution]
        assert re.findall(r"(\w+) is a (knight|knave)", problem.answer) == list(zip(names, roles, strict=True))
        assert problem.solution.endswith(rf"\boxed{{{problem.answer}}}")
        for person in range(len(names)):
            other = [f"{n} is a {'knight' if r != (i == person) else 'knave'}" for i, (n, r) in zip_roles(problem)]
            assert not verify(rf"\boxed{{{', '.join(other)}}}", problem.answer).correct
        assert (problem.verifier, problem.source) == ("knights", "knights")
        assert problem.id.startswith(f"knights-{len(names)}:")


def zip_roles(problem):
    return enumerate(zip(problem.extra["names"], problem.extra["solution"], strict=True))


def test_every_line_of_a_worked_solution_is_true():
    reasons = set()
    for problem in knights.problems("train", 300, seed=6, people=(3, 6)):
        names, solution = problem.extra["names"], problem.extra["solution"]
        opening, *lines, closing, box = problem.solution.split("\n")
        assert opening == f"Suppose that {problem.answer}. Check what each of them says." and len(lines) == len(names)
        for i, line in enumerate(lines):
            found = re.fullmatch(
                r"(\w+) is a (\w+), so this must be (\w+): (.+)\. ([^:.]+)(?:: ([^:.]+))?, so it is (\w+)\.", line
            )
            name, role, wanted, claim, facts, reason, verdict = found.groups()
            statement, _ = parsed_claim(claim, names, None)
            assert name == names[i] and (role == "knight") == solution[i] == (wanted == "true") == (verdict == "true")
            assert statement == knights.read_statements(problem.extra["statements"])[i]
            assert holds(statement, solution) == solution[i]
            for fact in facts.split(" and "):
                assert holds(parsed_claim(fact, names, None)[0], solution)
            if reason:
                values = tuple(holds(part, solution) for part in statement[1:])
                assert values in REASONS[statement[0], reason]
                reasons.add((statement[0], reason))
        assert closing == "All statements fit their speakers, and no other choice of roles fits them all."
    assert reasons == set(REASONS)


BOTH, FIRST, SECOND, NEITHER = (True, True), (True, False), (False, True), (False, False)
REASONS = {
    ("and", "both parts are true"): {BOTH},
    ("and", "the first part is false"): {SECOND},
    ("and", "the second part is false"): {FIRST},
    ("and", "both parts are false"): {NEITHER},
    ("or", "both parts are true"): {BOTH},
    ("or", "the first part is true"): {FIRST},
    ("or", "the second part is true"): {SECOND},
    ("or", "neither part is true"): {NEITHER},
    ("->", "the condition is true and so is what follows from it"): {BOTH},
    ("->", "the condition is true but what follows from it is not"): {FIRST},
    ("->", "the condition is false"): {SECOND, NEITHER},
    ("<=>", "both sides are true"): {BOTH},
    ("<=>", "only the first side is true"): {FIRST},
    ("<=>", "only the second side is true"): {SECOND},
    ("<=>", "neither is true"): {NEITHER},
}


# --- faults


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("dev", 1, 0), "dev"),
        (("test", -1, 0), "-1"),
        (("test", 1, 0, (5, 4)), r"\(5, 4\)"),
        (("test", 1, 0, (1, 4)), r"within 2\.\.12"),
        (("test", 1, 0, (4, 13)), r"within 2\.\.12"),
        (("test", 1, 0, 5), r"people 5 must be .* \[4, 8\]"),
        (("test", 1, 0, (4.0, 5)), "4.0"),
        (("test", 1, 0, (4, 5, 6)), "6"),
    ],
)
def test_a_bad_request_is_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        knights.problems(*arguments)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ([["lying", 1], ["telling-truth", 2]], r"statement 2: \['telling-truth', 2\] must name one person .* 0 to 1"),
        ([["lying", -1]], "statement 1.*0 to 0"),
        ([["lying", True]], "statement 1"),
        ([["lying", 0, 0]], "statement 1"),
        ([["lies", 0]], "statement 1: 'lies' is none of telling-truth, lying, not"),
        ([["not", ["lying", 0], ["lying", 0]]], "'not' takes one statement, not 2"),
        ([["->", ["lying", 0]]], "'->' takes two statements, not 1"),
        ([["<=>", ["lying", 0], ["lying", 0], ["lying", 0]]], "'<=>' takes two statements, not 3"),
        ([["and", ["lying", 0]]], "'and' takes two or more statements, not 1"),
        ([["or", 0, ["lying", 0]]], r"statement 1: 0 is not of the form \[kind, \.\.\.\]"),
        ([[["lying", 0]]], "statement 1.*not of the form"),
        ([[]], "statement 1.*not of the form"),
        ([], "one statement a person"),
        (None, "one statement a person, not None"),
        ({"lying": 0}, "one statement a person"),
        ("7", "one statement a person, not 7"),
        ("('lying', 0", "cannot be read"),
        ("__import__('os').getcwd()", "cannot be read"),
        ("-" * 9999 + "1", "cannot be read"),
        ("1" + "+1" * 9000, "cannot be read"),
        ("(" * 20_001, "20001 characters are too long"),
        ([["lying", 0]] * 21, "21 people are too many"),
    ],
)
def test_statements_that_cannot_be_read_are_refused_by_what_is_wrong(value, named):
    with pytest.raises(ValueError, match=named):
        knights.solutions(value)


def test_statements_nested_without_end_are_refused():
    deep = ["lying", 0]
    for _ in range(2000):
        deep = ["not", deep]
    with pytest.raises(ValueError, match="statement 1 is nested deeper than 50"):
        knights.read_statements([deep])
