"""Verifiers of assignments, choices and tool calls: against real rows, published verdicts, oracles and junk."""

import copy
import json
import pickle
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from jopsd.rewards import choice, knights, tools
from jopsd.rewards.grader import DIRECT
from tests.golden.verifiers import verifier_gopd, verifier_mopd, verifier_rlcsd

GOLDEN = Path(__file__).parent / "golden" / "b"
PEOPLE = ["Alice", "Bob", "Mary-Ann", "O'Neil", "Zoë", "A"]


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------------------------------------- knights and knaves

ROLES = {True: "knight", False: "knave"}
FORMS = [
    "{name} is a {role}",
    "{name} is {role}",
    "{name}: {role}",
    "{name}={role}",
    "{name} is not a {other}",
    "{name} \\to {role}",
    "{name} - {role}",
    "\\text{{{name} is a {role}}}",
    "**{name}**: {role}",
]
JOINTS = [", ", "; ", "\n", " and ", ", and ", " \\\\ ", ". "]


def spoken(assignment: dict[str, bool], draw: random.Random) -> str:
    """One way to say an assignment: any order, form and separators, some in capitals."""
    people = list(assignment.items())
    draw.shuffle(people)
    said = [draw.choice(FORMS).format(name=n, role=ROLES[k], other=ROLES[not k]) for n, k in people]
    if draw.random() < 0.3:
        said = [f"({i}) {one}" for i, one in enumerate(said, 1)]
    text = said[0] + "".join(draw.choice(JOINTS) + one for one in said[1:])
    upper = draw.random() < 0.2 and "\\" not in text
    return f"so \\boxed{{{text.upper() if upper else text}}}."


@pytest.mark.parametrize("seed", range(40))
def test_an_assignment_is_right_however_it_is_said_and_wrong_once_changed(seed):
    draw = random.Random(seed)
    people = draw.sample(PEOPLE, draw.randint(2, len(PEOPLE)))
    assignment = {name: draw.random() < 0.5 for name in people}
    gold = ", ".join(f"{name} is a {ROLES[is_knight]}" for name, is_knight in assignment.items()) + "."
    graded = lambda given: knights.verify(spoken(given, draw), gold)  # noqa: E731
    for _ in range(3):
        score = graded(assignment)
        assert (score.reward, score.correct, score.formatted, score.feedback) == (1.0, True, True, None)
    someone = draw.choice(people)
    for wrong in (
        assignment | {someone: not assignment[someone]},
        {name: role for name, role in assignment.items() if name != someone},
        assignment | {"Zanzibar": True},
    ):
        score = graded(wrong)
        assert (score.reward, score.correct, score.formatted) == (0.0, False, True)


@pytest.mark.parametrize(
    "answer",
    [
        "Ann is a knight or a knave, Ben is a knight",
        "Ann is a knight/knave, Ben is a knight",
        "Ann is a knight, Ben is a knight or Ben is a knave",
        "Ann is a knight if Ben is a knight, Ben is a knight",
        "it is not so that Ann is a knight, Ben is a knight",
        "Ann is a knight, Ben is a knight, Ann is a knave",
        "Ann is a knave, Ann is a knight, Ben is a knight",
        "Ann is not a knight, Ben is a knight",
        "everyone is a knight",
        "Ann and Ben are knights",
        "Ann is a knightly person, Ben is a knight",
        "Joann is a knight, Ben is a knight",
        "Ann is a \\neg knight, Ben is a knight",
        "Ann is maybe a knight, Ben is a knight",
        "knight, knight",
        "",
    ],
)
def test_a_hedge_a_condition_or_a_contradiction_is_wrong(answer):
    score = knights.verify(f"\\boxed{{{answer}}}", "Ann is a knight, and Ben is a knight.")
    assert not score.correct and score.reward == 0 and score.formatted and score.feedback


def test_the_last_box_decides_and_without_one_nothing_does():
    gold = "Ann is a knight, and Ben is a knave."
    right, wrong = "Ann is a knight, Ben is a knave", "Ann is a knave, Ben is a knave"
    assert knights.verify(f"\\boxed{{{wrong}}}, no: \\boxed{{{right}}}", gold).correct
    assert not knights.verify(f"\\boxed{{{right}}}, no: \\boxed{{{wrong}}}", gold).correct
    for text in (right, f"\\boxed{{{right}", f"\\boxed {right}"):
        score = knights.verify(text, gold)
        assert (score.correct, score.formatted, score.prediction) == (False, False, None)


def test_all_collected_outputs_are_graded_as_labelled_and_all_golds_are_read(shared):
    puzzles = {row["id"]: row for row in jsonl(shared / "data" / "kk_public.jsonl")}
    for row in puzzles.values():
        wanted = {name.casefold(): role for name, role in zip(row["names"], row["solution"], strict=True)}
        assert knights.read_gold(row["answer"]) == knights.read_gold(row["solution_text"]) == wanted
    cases = jsonl(shared / "data" / "kk_verifier_public.jsonl")
    assert len(cases) == 290
    wrong = [
        c for c in cases if knights.verify(c["output"], puzzles[c["puzzle_id"]]["answer"]).correct != c["expected"]
    ]
    assert not wrong


def test_the_golds_of_logic_rl_are_read(shared):
    pandas = pytest.importorskip("pandas")
    rows = pandas.read_parquet(shared / "data" / "kk_logicrl_150.parquet")
    for row in rows.itertuples():
        wanted = {name.casefold(): bool(role) for name, role in zip(row.names, row.solution, strict=True)}
        assert knights.read_gold(row.solution_text) == knights.read_gold(row.solution_text_format) == wanted


# ------------------------------------------------------------------------------------------------- multiple choice


@pytest.mark.parametrize("answer", ["C", "c", " C\n", "(C)", "C.", "**C**", "[C]", "C:", "\\boxed{C}", "$\\text{C}$"])
def test_a_letter_is_read_whatever_surrounds_it(answer):
    for text in (f"<reasoning>A?</reasoning><answer>{answer}</answer>", f"so <answer>\n{answer}\n</answer> <summary>B"):
        assert choice.verify(text, "C") == choice.Score(1.0, True, True, "C")
        assert choice.verify(text, "(c)").correct
        assert choice.verify(text, "B") == choice.Score(0.0, False, True, "C")


@pytest.mark.parametrize(
    "answer",
    [
        "A or C",
        "C 2.5",
        "C: 2.5, D: 3",
        "C. D",
        "C/D",
        "C (or D)",
        "C is wrong",
        "C or not",
        "AC",
        "not C",
        "!C",
        "~C",
        "≠C",
        "3",
        "Ç",
        "",
    ],
)
def test_what_does_not_name_one_choice_is_wrong_but_formatted(answer):
    score = choice.verify(f"<answer>{answer}</answer>", "C")
    assert (score.correct, score.formatted, score.prediction) == (False, True, answer)
    assert score.feedback == choice.NO_LETTER


@pytest.mark.parametrize(
    "answer",
    [
        *("C: mitochondria", "C. mitochondria", "C) 42", "(C) 42", "C:42", "C - a cell", "C (a cell)", "C: Vitamin D"),
        *("Option C", "option (c): a cell", "The correct answer is C.", "C is correct", "C because A is too small"),
        *(
            "\uff23",
            "\uff08\uff23\uff09",
            "C\u3001\u7ec6\u80de",
            "\u9009C",
            "\u7b54\u6848\uff1aC",
            "\u041e\u0442\u0432\u0435\u0442: C",
            "\\textbf{(C)} 42",
            "C: c",
        ),
    ],
)
def test_a_letter_with_the_text_of_its_option_is_that_letter(answer):
    assert choice.verify(f"<answer>{answer}</answer>", "C").correct
    assert choice.verify(f"\\boxed{{{answer}}}", "C").correct
    assert choice.verify(f"<answer>{answer}</answer>", "D") == choice.Score(0.0, False, True, "C")
    assert choice.read_gold(answer) == "C"


@pytest.mark.parametrize(
    "text", ["C", "The answer is C.", "<answer>C", "</answer>C<answer>", "<answer>C</answer> <answer>"]
)
def test_without_a_closed_pair_of_tags_there_is_no_answer(text):
    assert choice.verify(text, "C") == choice.Score(0.0, False, False, None, choice.NO_ANSWER)


def test_the_last_answer_wins_and_a_box_counts_only_without_tags():
    assert choice.verify("<answer>A</answer><answer>B</answer>", "B").correct
    assert not choice.verify("<answer>B</answer><answer>A</answer>", "B").correct
    assert choice.verify("\\boxed{A} or \\boxed{(b)}", "B").correct
    assert not choice.verify("<answer>A</answer> \\boxed{B}", "B").correct
    assert not choice.verify("<answer>B \\boxed{B}", "B").formatted


def test_published_rollouts_get_their_published_rewards(shared):
    rows = jsonl(shared / "data" / "mopd_chemistry_rollouts.jsonl")
    assert len(rows) == 160
    scores = [choice.verify(row["response_text"], row["ground_truth"]).reward for row in rows]
    differing = [row for row, score in zip(rows, scores, strict=True) if score != row["reward"]]
    assert [choice.last_answer(row["response_text"]) for row in differing] == ["B: 7"]  # the letter with its text
    golds = [row["answer"] for row in jsonl(shared / "data" / "sciknoweval.jsonl")]
    assert [choice.read_gold(gold) for gold in golds] == golds


# ------------------------------------------------------------------------------------------------------ tool calls


def gold_of(calls) -> str:
    return json.dumps([{"Action": name, "Action_Input": json.dumps(given)} for name, given in calls])


def written(calls) -> str:
    return "\n".join(f"Thought: next\nAction: {name}\nAction Input: {json.dumps(given)}" for name, given in calls)


def random_value(draw: random.Random, depth: int = 0):
    kinds = [lambda: draw.randint(0, 3), lambda: draw.choice(["x", 'a "quoted" }', "Action: f"]), lambda: True]
    if depth < 3:
        kinds.append(lambda: [random_value(draw, depth + 1) for _ in range(draw.randint(0, 2))])
        kinds.append(lambda: {draw.choice("abc"): random_value(draw, depth + 1) for _ in range(draw.randint(0, 2))})
    return draw.choice(kinds)()


def random_calls(draw: random.Random) -> list:
    made = lambda: {draw.choice("abc"): random_value(draw) for _ in range(draw.randint(0, 3))}  # noqa: E731
    return [(draw.choice(["get", "list_all", "api.find"]), made()) for _ in range(draw.randint(1, 4))]


@pytest.mark.parametrize("seed", range(60))
def test_calls_are_right_exactly_where_they_are_the_same_ones(seed):
    draw = random.Random(seed)
    gold, other = random_calls(draw), random_calls(draw)
    shuffled = draw.sample(gold, len(gold))
    score = tools.verify(written(shuffled), gold_of(gold))
    assert score.correct and score.formatted and score.feedback is None
    dumped = lambda calls: Counter((name, json.dumps(given, sort_keys=True)) for name, given in calls)  # noqa: E731
    inputs = [given for _, given in gold]
    moved = [(name, given) for (name, _), given in zip(gold, [*inputs[1:], inputs[0]], strict=True)]
    for calls in (other, moved, gold[1:], [*gold, gold[0]]):
        assert tools.verify(written(calls), gold_of(gold)).correct == (dumped(calls) == dumped(gold))


@pytest.mark.parametrize(
    ("given", "gold", "equal"),
    [
        ('{"n": 3.0}', {"n": 3}, True),
        ('{"n": "3"}', {"n": 3}, False),
        ('{"n": true}', {"n": 1}, False),
        ('{"n": [1, 2]}', {"n": [2, 1]}, False),
        ('{"n": null}', {}, False),
        ('{"b": 1, "a": {"x": 2, "y": 3}}', {"a": {"y": 3, "x": 2}, "b": 1}, True),
        ('```json\n{"n": 3}\n```', {"n": 3}, True),
        ("{'n': 3}", {"n": 3}, False),
        ('{"n": NaN}', {"n": 3}, False),
        ("[3]", {"n": 3}, False),
        ("", {}, False),
    ],
)
def test_inputs_are_compared_as_json(given, gold, equal):
    assert tools.verify(f"Action: f\nAction Input: {given}", gold_of([("f", gold)])).correct == equal


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Action: f", True),  # nothing to put in
        ("**Action:** `f`\n**Action Input:** {}", True),
        ("<think>Action: g\nAction Input: {</think>Action: f\nAction Input: {}", True),
        ("Reaction: g\nAction: f\nAction_Input: {}", True),
        ("Action: f\nAction Input: {}\nAction: f\nAction Input: {}", False),
        ("Action: f\nAction Input: {}\nAction Input: {}", False),
        ("Action:\nAction Input: {}", False),
        ("Action Input: {}", False),
        ("f {}", False),
        ("", False),
    ],
)
def test_what_is_a_call_and_what_is_not(text, right):
    score = tools.verify(text, gold_of([("f", {})]))
    assert score.correct == right and (score.feedback is None) == right


def test_a_gold_call_marked_optional_may_be_made_or_left_out():
    gold = gold_of([("get", {"id": 1}), ("[Optional]set", {"id": 1})])
    for calls, right in [
        ([("get", {"id": 1})], True),
        ([("set", {"id": 1}), ("get", {"id": 1})], True),
        ([("set", {"id": 1})], False),
        ([("get", {"id": 1}), ("set", {"id": 2})], False),
        ([("get", {"id": 1}), ("set", {"id": 1}), ("set", {"id": 1})], False),
    ]:
        assert tools.verify(written(calls), gold).correct == right


def test_real_gold_calls_are_right_in_any_order_and_wrong_where_one_is_missing(shared):
    rows = jsonl(shared / "data" / "tooluse.jsonl")
    assert len(rows) == 68
    for row in rows:
        entries = json.loads(row["answer"])
        lines = [
            f"Action: {e['Action'].removeprefix('[Optional]')}\nAction Input: {e['Action_Input']}" for e in entries
        ]
        assert tools.verify("\n".join(reversed(lines)), row["answer"]).correct
        assert not tools.verify("\n".join(lines[1:]), row["answer"]).correct


# ------------------------------------------------------------------------------------------------------------ golden


def test_a_published_verdict_that_changes_is_a_fault():
    changes = [
        (verifier_rlcsd, lambda d: d[0]["result"].update(score=0.0)),
        (verifier_rlcsd, lambda d: d[3]["result"].update(formatted=0.0)),
        (verifier_rlcsd, lambda d: d[1]["parsed"].update(alice="knave")),
        (verifier_rlcsd, lambda d: d[18]["result_main_thread"].update(score=0.0)),
        (verifier_mopd, lambda d: d[1]["result"].update(acc=0.0)),
        (verifier_mopd, lambda d: d[2]["result"].update(acc=1.0)),  # listed as different, and is not
        (verifier_mopd, lambda d: d[16]["result"].update(feedback=False)),
        (verifier_mopd, lambda d: d.pop(3)),  # listed, and gone
        (verifier_gopd, lambda d: d[4].update(score=1.0)),
    ]
    for checker, change in changes:
        document = json.loads((GOLDEN / f"{checker.__name__}.json").read_text())
        assert checker(copy.deepcopy(document)) == []
        change(document)
        assert len(checker(document)) == 1


# ----------------------------------------------------------------------------------------------------------- hostile

RIGHT = {"knights": "Ann is a knight", "choice": "A", "tools": gold_of([("f", {"a": 1})])}
JUNK = [
    *("\\boxed{", "\\boxed{A is a ", "\\begin{", "a-", "a is ", "(1", "not ", "{}", "\\\\", " ", "1", "knight "),
    *("<answer>", "</answer>", "<answer>C", "*", "Action", "Action:", "Action Input:", "Action Input: {", "Action: f "),
    *(
        'Action: f\nAction Input: {"a": ',
        'Action: f\nAction Input: {"a": "\\"',
        "Action: f\nAction Input: {}",
        "</think>",
    ),
]


@pytest.mark.parametrize("name", sorted(DIRECT))
def test_megabytes_of_junk_are_wrong_at_once(name):
    verify, gold = DIRECT[name].verify, RIGHT[name]
    for junk in JUNK:
        body = junk * (1_000_000 // len(junk))
        inside = f"\\boxed{{{body[:9_900]}}}<answer>{body[:9_900]}</answer>"
        input_text = f'Action: f\nAction Input: {{"a": "{body}'
        for text in (body, inside, f"\\boxed{{{body[:9_900]}}}", f"<answer>{body}", input_text):
            start = time.perf_counter()
            score = verify(text, gold)
            assert time.perf_counter() - start < 1.0, (junk, len(text))
            assert not score.correct and len(score.feedback or "") < 600
            assert score.prediction is None or len(score.prediction) <= 10_000


def test_more_calls_or_longer_inputs_than_any_gold_has_are_not_read():
    calls = [("f", {"a": 1})] * 101
    assert "over 100" in tools.verify(written(calls), gold_of(calls)).feedback
    assert tools.verify(written(calls[1:]), gold_of(calls[1:])).correct
    long = [("f", {"a": "x" * 10_000})]
    assert "over 10000 characters" in tools.verify(written(long), gold_of(long)).feedback


def test_deep_and_huge_json_is_wrong_and_never_an_exception():
    for depth in (900, 100_000):
        for left, right in (("[", "]"), ('{"a":', "}")):
            given = '{"a":' + left * depth + "1" + right * depth + "}"
            assert not tools.verify(f"Action: f\nAction Input: {given}", RIGHT["tools"]).correct
    for number in ("1" * 100_000, "1e999999", "-"):
        assert not tools.verify(f'Action: f\nAction Input: {{"a": {number}}}', RIGHT["tools"]).correct


@pytest.mark.parametrize("name", sorted(DIRECT))
def test_a_verifier_can_be_sent_to_another_process(name):
    verify = pickle.loads(pickle.dumps(DIRECT[name].verify))
    assert verify("nothing", RIGHT[name]) == DIRECT[name].verify("nothing", RIGHT[name])


def test_feedback_never_tells_the_gold_answer():
    calls = gold_of([("secret_tool", {"key": "secret value"})])
    for text in ("", "Action: f", "Action: f\nAction Input: {}", "Action: f\nAction Input: {", "Action Input: {}"):
        assert "secret" not in tools.verify(text, calls).feedback
    assert choice.verify("<answer>A</answer>", "B").feedback is None
    for text in ("", "<answer>x y</answer>"):
        said = {choice.verify(text, gold).feedback for gold in "ABCD"}
        assert len(said) == 1
    for text in ("", "\\boxed{Ann is a knave}", "\\boxed{Ann or Ben}", "\\boxed{Ann is a knight, Ann is a knave}"):
        said = {
            knights.verify(text, f"Ann is a {one}, Ben is a {other}").feedback
            for one in ROLES.values()
            for other in ROLES.values()
        }
        assert len(said) == 1
