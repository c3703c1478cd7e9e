"""Layouts of the known data sets: each row is recognised, and its columns become the right fields."""

import json
import sys
import time
import types
from collections import Counter

import datasets
import pytest

from jopsd.data import schemas
from jopsd.data.datasets import load_problems
from jopsd.data.problem import RowError, problem_from_row
from jopsd.data.schemas import LAYOUTS, Layout, detect, verifier_of

EURUS = '{"inputs": ["1 2\\n"], "outputs": ["3\\n"]}'
WRAPPED = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\nRemember to put your answer on its "
    'own line after "Answer:".'
)


def asked(text: str, *before: dict) -> list[dict]:
    return [*before, {"role": "user", "content": text}]


def verl(source: str, truth="7", ability="math", **columns) -> dict:
    model = {"ground_truth": truth, "style": "rule"}
    return {"data_source": source, "prompt": asked("Q?"), "ability": ability, "reward_model": model, **columns}


def sdpo(kind: str, dataset: str, answer, tests="-") -> dict:
    row = {"idx": 4, "kind": kind, "dataset": dataset, "answer": answer, "elo": 1500, "prompt": "Q?"}
    return {**row, "description": "Q? in short", "tests": tests, "embedding": [0.5], "system": None}


# layout -> rows of ours with the fields that they must give (None: the row has none)
EXAMPLES: dict[str, list[tuple[dict, dict]]] = {
    "sciknoweval": [
        (
            {
                "question": "Q?",
                "choices": {"text": ["x", "y"], "label": ["A", "B"]},
                "answerKey": "B",
                "type": "mcq-2-choices",
                "domain": "Physics",
                "details": {"level": "L3"},
                "prompt": {"default": "d"},
                "answer": "",
            },
            {"problem": "Q?\n\nA: x\nB: y\nPlease reason step by step.", "answer": "B", "verifier": "choice"},
        )
    ],
    "openthoughts": [
        (
            {
                "source": "s",
                "problem": "P",
                "solution": "long \\boxed{1}",
                "messages": [],
                "system": "Think at length.",
                "conversations": [],
                "generated_token_count": 12,
                "correct": True,
                "Question": "P, asked",
                "COT_Reason": "hm",
                "Answer": "2",
            },
            {"problem": "P", "solution": "long \\boxed{1}", "answer": "2", "system": None, "verifier": "math"},
        ),
        ({"problem": "P", "solution": "so \\boxed{1}", "Answer": None}, {"answer": "1"}),
    ],
    "copsd": [
        (
            {"problem": "How?", "solution": "S", "problem_sw": "Vipi?", "problem_sw_ok": True, "Answer": 5},
            {"problem": "How?", "solution": "S", "answer": "5", "language": None, "verifier": "math"},
        )
    ],
    "copsd_hub": [
        (
            {"language": "zul", "problem": "How?", "solution": "S", "problem_translated": "Kanjani?", "Answer": "5"},
            {
                "problem": "Kanjani?",
                "problem_en": "How?",
                "solution": "S",
                "answer": "5",
                "language": "zul",
                "verifier": "math",
            },
        )
    ],
    "verl": [
        (
            verl("deepmath_filtered_level5_7", extra_info={"problem": "bare", "solution": "S", "index": 3}),
            {"id": "3", "problem": "bare", "solution": "S", "answer": "7", "verifier": "math", "tests": None},
        ),
        (
            verl("kk_4to8", "A is a knight, and B is a knave", "logic", extra_info={"solution": "S"}),
            {"problem": "Q?", "answer": "A is a knight, and B is a knave", "solution": "S", "verifier": "knights"},
        ),
        (
            verl("taco", EURUS, "code", extra_info={"opd_teacher": "code", "solution": "\\boxed{1}"}),
            {"answer": None, "tests": EURUS, "teacher": "code", "verifier": "code", "solution": "\\boxed{1}"},
        ),
        (verl("DeepMath-103K", extra_info={"opd_teacher": "math"}), {"teacher": "math", "verifier": "math"}),
        (
            verl("sciknoweval", "B", "mcq", prompt=asked("Which?", {"role": "system", "content": "Letters."})),
            {"problem": "Which?", "system": "Letters.", "answer": "B", "verifier": "choice"},
        ),
        (verl("tooluse", '[{"Action": "f"}]', "tooluse"), {"answer": '[{"Action": "f"}]', "verifier": "tools"}),
        (verl("livecodebench", {"inputs": ["1"]}, "code"), {"tests": '{"inputs": ["1"]}', "verifier": "code"}),
        (verl("owner/something", ability="physics"), {"answer": "7", "verifier": None}),
    ],
    "sdpo": [
        (sdpo("mcq", "sciknoweval", "C"), {"id": "4", "problem": "Q?", "answer": "C", "verifier": "choice"}),
        (sdpo("tooluse", "tooluse", "[]", None), {"answer": "[]", "tests": None, "verifier": "tools"}),
        (sdpo("math", "dapo_math", 12), {"answer": "12", "tests": None, "verifier": "math"}),
        (sdpo("code", "livecodebench", "", EURUS), {"answer": None, "tests": EURUS, "verifier": "code"}),
        (sdpo("essay", "letters", "x"), {"answer": "x", "tests": None, "verifier": None}),
    ],
    "alpaca": [
        (
            {"instruction": "Add these.", "input": "1, 2", "output": "So 3.\n#### 3"},
            {"problem": "Add these.\n\n1, 2", "solution": "So 3.\n#### 3", "answer": "3"},
        ),
        ({"instruction": "What is 1+2?", "input": "", "output": "3"}, {"problem": "What is 1+2?", "answer": None}),
    ],
    "deepmath": [
        (
            {
                "question": "P",
                "final_answer": "0",
                "difficulty": 6.5,
                "topic": "Algebra",
                "r1_solution_1": "first",
                "r1_solution_2": "second",
                "r1_solution_3": "third",
            },
            {"problem": "P", "answer": "0", "solution": "first", "verifier": "math"},
        )
    ],
    "logic_rl": [
        (
            {
                **verl("kk_logic", {"solution_text_format": "(1) A is a knight", "statements": "()"}, "logic"),
                "quiz": "A says ...",
                "solution": [True],
                "solution_text": "A is a knight.",
                "prompt": asked("<|im_start|>system\n..."),
            },
            {"problem": "A says ...", "answer": "A is a knight.", "solution": None, "verifier": "knights"},
        ),
        (
            {"quiz": "A says", "solution_text": "A is a knight.", "problem": "A says. Box it.", "answer": "A: knight"},
            {"problem": "A says. Box it.", "answer": "A: knight", "verifier": "knights"},
        ),
        (
            {"quiz": "Q", "solution_text": "T", "cot_head": "Head.\n", "cot_repeat_steps": ["1", "2"], "cot_foot": "F"},
            {"solution": "Head.\n1\n2\nF", "answer": "T"},
        ),
    ],
    "dapo": [
        (
            verl("math_dapo", "34", "MATH", prompt=asked(WRAPPED.format("Two\n\nparagraphs: find x.")), extra_info={}),
            {"problem": "Two\n\nparagraphs: find x.", "answer": "34", "verifier": "math"},
        ),
        (verl("math_dapo", prompt=asked(WRAPPED.format("求 x。"))), {"problem": "求 x。"}),
    ],
    "gsm8k": [
        (
            {"question": "P", "answer": "1+1=2\n#### 2"},
            {"problem": "P", "answer": "2", "solution": "1+1=2\n#### 2", "verifier": "math"},
        )
    ],
    "mgsm": [
        (
            {"question": "P", "answer": "She has 11.", "answer_number": "11", "equation_solution": "5+6=11"},
            {"problem": "P", "answer": "11", "verifier": "math"},
        ),
        ({"question": "P", "answer": None, "answer_number": 5600}, {"answer": "5600"}),
    ],
    "polymath": [
        (
            {"id": "top-sw-17", "question": "P", "answer": "$3$"},
            {"id": "top-sw-17", "answer": "$3$", "language": "sw", "verifier": "math"},
        ),
        ({"id": "low-bn-0", "question": "P", "answer": "3", "language": "ben"}, {"language": "ben"}),
    ],
    "jopsd": [
        (
            {"id": "k", "problem": "P", "solution": "S", "verifier": "knights", "extra_json": '{"solution": [true]}'},
            {"id": "k", "problem": "P", "solution": "S", "verifier": "knights"},
        )
    ],
    "plain": [
        ({"problem": "P", "answer": 3}, {"problem": "P", "answer": "3", "verifier": None}),
        ({"id": 60, "problem": "P", "solution": "S", "answer": "3", "year": "2024"}, {"id": "60", "verifier": None}),
        ({"problem_idx": 10, "problem": "P", "answer": "1, 2"}, {"id": "10", "answer": "1, 2"}),
        ({"problem": "P", "answer": "A is a knave", "data_source": "kk_9"}, {"verifier": "knights"}),
        ({"problem": "P", "tests": EURUS, "verifier": "code"}, {"tests": EURUS, "verifier": "code"}),
        ({"problem": "P", "answer": "1", "verifier": "a rival"}, {"verifier": None}),
    ],
}
CASES = [
    pytest.param(name, row, fields, id=f"{name}-{i}")
    for name, rows in EXAMPLES.items()
    for i, (row, fields) in enumerate(rows)
]
CONVERTED = {  # layouts whose rows jopsd.data.code_rows converts
    "livecodebench": {
        "question_title": "t",
        "question_content": "Add.",
        "question_id": "7",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": "[]",
        "private_test_cases": "",
        "metadata": "{}",
    },
    "humaneval_plus": {"task_id": "HumanEval/0", "prompt": "def f():", "entry_point": "f", "test": "def check(c): 0"},
    "mbpp_plus": {"task_id": "Mbpp/2", "prompt": '"""f"""', "entry_point": "f", "base_input": "[]", "assertion": ""},
}
MBPP_HUB = {
    "task_id": 2,
    "code": "def f(): 0",
    "prompt": "f",
    "test_imports": [],
    "test_list": ["assert f"],
    "test": "",
}


# --------------------------------------------------------------------------------------------------------- rows of ours


@pytest.mark.parametrize(("name", "row", "fields"), CASES)
def test_a_row_is_recognised_and_gives_its_fields(name, row, fields):
    assert detect(row).name == name
    problem = problem_from_row(row, 5)
    assert {field: getattr(problem, field) for field in fields} == fields
    assert problem.row == 5


def test_every_layout_has_an_example():
    assert {layout.name for layout in LAYOUTS} | {"plain"} == {*EXAMPLES, *CONVERTED}


@pytest.mark.parametrize(
    ("source", "kind", "verifier"),
    [
        ("kk_4to8", "logic", "knights"),
        ("kk_11", None, "knights"),
        ("apps", "code", "code"),
        ("codecontests", None, "code"),
        ("codeforces", None, "code"),
        ("taco", None, "code"),
        ("humanevalplus", None, "code"),
        ("mbppplus", None, "code"),
        ("code", None, "code"),
        ("sciknoweval", None, "choice"),
        ("gpqa", "mcq", "choice"),
        ("tooluse", None, "tools"),
        ("zwhe99/DeepMath-103K", None, "math"),
        ("deepmath_filtered_level6_8", "English", "math"),
        ("HuggingFaceH4/aime_2024", None, "math"),
        ("math-ai/amc23", None, "math"),
        ("MathArena/hmmt_feb_2025", None, "math"),
        ("numina_cn_k12", "MATH", "math"),
        ("cn_k12", "MATH", "math"),
        ("gsm8k", None, "math"),
        ("some/thing", None, None),
        ("some/thing", "logic", None),
        (None, None, None),
        (3, 4, None),
    ],
)
def test_the_name_of_a_set_or_its_kind_says_who_grades_it(source, kind, verifier):
    assert verifier_of(source, kind) == verifier


def test_what_is_not_a_field_is_kept_once_and_the_level_is_found_wherever_it_stands():
    (row, _), *_ = EXAMPLES["deepmath"]
    assert problem_from_row(row, 0).extra == {"difficulty": 6.5, "topic": "Algebra"}
    inside = verl("DeepMath-103K", extra_info={"difficulty": 7.0, "topic": "Algebra"})
    extra = problem_from_row(inside, 0).extra
    assert (extra["difficulty"], extra["topic"]) == (7.0, "Algebra")
    assert problem_from_row({"problem": "P", "grade": "Level 4"}, 0, {"difficulty": "grade"}).extra == {
        "difficulty": "Level 4"
    }
    assert problem_from_row(EXAMPLES["jopsd"][0][0], 0).extra == {"solution": [True]}
    assert "tests" not in problem_from_row(sdpo("code", "code", "", EURUS), 0).extra
    assert problem_from_row(EXAMPLES["copsd"][0][0], 0).extra["problem_sw"] == "Vipi?"  # not read, so still there


def test_named_columns_come_before_the_layout():
    (row, _), *_ = EXAMPLES["openthoughts"]
    problem = problem_from_row(row, 0, {"problem": "Question", "system": "system"})
    assert (problem.problem, problem.system, problem.answer) == ("P, asked", "Think at length.", "2")
    (row, _), *_ = EXAMPLES["deepmath"]
    assert problem_from_row(row, 0, {"solution": "r1_solution_2"}).solution == "second"
    code = verl("taco", EURUS, "code", answer_text="9")
    assert problem_from_row(code, 0, {"answer": "answer_text"}).answer == "9"


def test_a_column_that_a_layout_wants_and_that_is_empty_is_the_one_named():
    (row, _), *_ = EXAMPLES["copsd_hub"]
    with pytest.raises(RowError, match="row 2 .*'problem': column 'problem_translated' is empty"):
        problem_from_row({**row, "problem_translated": " "}, 2)


def test_text_around_a_problem_that_is_not_the_wrapper_stays():
    for text in (
        "Solve the following math problem.\n\nFind x.",
        WRAPPED.format("Find x.").replace("Remember", "Recall"),
    ):
        row = verl("math_dapo", prompt=asked(text))
        assert detect(row).name == "verl" and problem_from_row(row, 0).problem == text


def test_a_very_long_prompt_is_told_from_the_wrapper_at_once():
    begin = WRAPPED.split("{}")[0]
    start = time.process_time()
    for text in (begin + " " * 300_000 + "x", begin + "Remember " * 100_000, begin + "\n" * 300_000 + "x"):
        assert detect(verl("math_dapo", prompt=asked(text))).name == "verl"
    assert time.process_time() - start < 2


def test_a_problem_column_that_numbers_the_problem_is_no_translation():
    for number in (3, "3"):
        row = {"problem": "P", "solution": "S", "problem_idx": number, "problem_id": 4, "problem_en": "P"}
        assert detect(row).name == "plain"


def test_a_file_of_sdpo_rows_may_be_an_array_or_lines_and_need_not_be_all_of_one_kind(tmp_path):
    rows = [sdpo("mcq", "sciknoweval", "C"), sdpo("code", "code", None, EURUS), sdpo("tooluse", "tooluse", "[]")]
    (tmp_path / "array.json").write_text(json.dumps(rows))
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("array.json", "lines.json"):
        problems, _ = load_problems(str(tmp_path / name))
        assert [p.verifier for p in problems] == ["choice", "code", "tools"]
        assert [p.answer for p in problems] == ["C", None, "[]"]


def test_verl_rows_read_from_parquet_are_those_read_as_dicts(tmp_path):
    rows = [verl("apps", EURUS, "code", extra_info={"opd_teacher": "code", "difficulty": 5.0})] * 2
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    problems, _ = load_problems(str(tmp_path / "train.parquet"), required=("problem", "tests", "teacher"))
    assert [(p.tests, p.teacher, p.answer, p.verifier) for p in problems] == [(EURUS, "code", None, "code")] * 2


def test_a_new_layout_is_a_function_and_a_line(monkeypatch):
    def riddles(row):
        return {"problem": f"{row['riddle']}?", "verifier": "choice"}

    line = Layout("riddles", {"answer": "reply"}, riddles, lambda row: "riddle" in row)
    monkeypatch.setattr(schemas, "LAYOUTS", (line, *LAYOUTS))
    problem = problem_from_row({"riddle": "What walks", "reply": "man", "problem": "unused"}, 0)
    assert (problem.problem, problem.answer, problem.verifier) == ("What walks?", "man", "choice")
    assert problem.extra == {"riddle": "What walks"}


# ------------------------------------------------------------------------------------------------------------- programs


@pytest.fixture
def converter(monkeypatch):
    """In place of jopsd.data.code_rows: notes what it is asked to convert."""
    asked = []

    def convert(name):
        def function(row):
            asked.append((name, row))
            if row["prompt" if "prompt" in row else "question_content"] == "broken":
                raise ValueError("case 3 is no JSON")
            return {"problem": "converted", "id": "x", "tests": "{}"}

        return function

    module = types.SimpleNamespace(**{name: convert(name) for name in CONVERTED})
    monkeypatch.setitem(sys.modules, "jopsd.data.code_rows", module)
    return asked


@pytest.mark.parametrize(("name", "row"), [*CONVERTED.items(), ("mbpp_plus", MBPP_HUB)])
def test_rows_of_program_benchmarks_are_converted_by_their_own_function(converter, name, row):
    problem = problem_from_row(row, 0)
    assert converter == [(name, row)]
    fields = (problem.problem, problem.id, problem.tests, problem.answer, problem.verifier)
    assert fields == ("converted", "x", "{}", None, "code")


def test_a_row_that_its_layout_cannot_read_is_an_error_with_its_number_and_one_reason_for_all(converter):
    for number in (3, 8):
        with pytest.raises(
            RowError, match=rf"set, row {number} .*ValueError: case 3 is no JSON.*on_bad_row: skip"
        ) as error:
            problem_from_row(CONVERTED["livecodebench"] | {"question_content": "broken"}, number, source="set")
        assert error.value.reason == "tests: not as the layout livecodebench has it"
    with pytest.raises(RowError, match="'extra': not as the layout jopsd has it .*holds a list"):
        problem_from_row({"problem": "P", "extra_json": "[]"}, 0)


# ------------------------------------------------------------------------------------------------------------ real rows

REAL = [
    ("train_opsd_math500rows.jsonl", "openthoughts", {"math": 500}),
    ("train_verl_math200.parquet", "verl", {"math": 200}),
    ("aime24_verl.parquet", "verl", {"math": 30}),
    ("hmmt25_feb_verl.parquet", "verl", {"math": 30}),
    ("standin_eurus_code_validation.parquet", "verl", {"code": 60}),
    ("kk_logicrl_150.parquet", "logic_rl", {"knights": 150}),
    ("kk_public.jsonl", "logic_rl", {"knights": 200}),
    ("sciknoweval.jsonl", "sdpo", {"choice": 470}),
    ("tooluse.jsonl", "sdpo", {"tools": 68}),
    ("train_copsd_sw200.jsonl", "copsd", {"math": 200}),
    ("standin_afrimgsm_swa.jsonl", "mgsm", {"math": 250}),
    ("standin_polymath_low.jsonl", "polymath", {"math": 330}),
    ("mgsm.jsonl", "plain", {None: 2750}),
    ("math500.jsonl", "plain", {None: 500}),
    ("aime25_gopd.jsonl", "plain", {None: 30}),
    ("amc23.jsonl", "plain", {None: 40}),
]


@pytest.mark.parametrize(("name", "layout", "verifiers"), REAL)
def test_every_real_file_has_one_layout_and_says_who_grades_it(shared, name, layout, verifiers):
    from jopsd.data.datasets import load_rows

    source = str(shared / "data" / name)
    assert {detect(row).name for row in load_rows(source)} == {layout}
    problems, skipped = load_problems(source)
    assert Counter(p.verifier for p in problems) == verifiers and not skipped
    assert [p.row for p in problems] == list(range(len(problems)))


def test_real_code_rows_carry_their_tests_as_they_are_and_no_answer(shared):
    path = shared / "data" / "standin_eurus_code_validation.parquet"
    raw = datasets.load_dataset("parquet", data_files=str(path), split="train")
    problems, _ = load_problems(str(path), required=("problem", "tests", "teacher"))
    assert [p.tests for p in problems] == [row["reward_model"]["ground_truth"] for row in raw]
    assert {(p.answer, p.teacher) for p in problems} == {(None, "code")}
    assert json.loads(problems[0].tests) == {"inputs": ["1", "11", "24"], "outputs": ["2024", "2025", "1929"]}


def test_real_puzzles_give_the_quiz_and_an_assignment_that_the_verifier_reads(shared):
    from jopsd.rewards.knights import read_gold

    path = shared / "data" / "kk_logicrl_150.parquet"
    raw = datasets.load_dataset("parquet", data_files=str(path), split="train")
    problems, _ = load_problems(str(path), required=("problem", "answer"))
    for problem, row in zip(problems, raw, strict=True):
        assert problem.problem == row["quiz"]
        truth = dict(zip(map(str.casefold, row["names"]), row["solution"], strict=True))
        assert read_gold(problem.answer) == truth


def test_a_real_puzzle_that_says_how_to_answer_is_asked_in_its_own_words(shared):
    problems, _ = load_problems(str(shared / "data" / "kk_public.jsonl"), required=("problem", "answer"))
    assert all("\\boxed{NAME is a knight" in p.problem for p in problems)
    assert problems[0].answer == "Mia is a knight, Oliver is a knave, and Zoey is a knave"


def test_real_rows_of_tools_and_choices_give_what_their_verifiers_read(shared):
    from jopsd.rewards.grader import fault_of_gold

    for name in ("tooluse.jsonl", "sciknoweval.jsonl"):
        problems, _ = load_problems(str(shared / "data" / name), required=("problem", "answer", "verifier"))
        assert not any(fault_of_gold(p.verifier, p.answer) for p in problems)
    assert problems[0].system.strip().startswith("Given a question and four options")


def test_the_language_of_a_real_polymath_row_is_that_of_its_number(shared):
    path = shared / "data" / "standin_polymath_low.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        language = row.pop("language")
        assert problem_from_row(row, 0).language == language


@pytest.mark.parametrize(
    ("name", "layout", "count"),
    [
        ("livecodebench_v6.jsonl", "livecodebench", 100),
        ("humaneval_plus_early.jsonl", "humaneval_plus", 164),
        ("mbpp_plus.jsonl", "mbpp_plus", 200),
    ],
)
def test_real_program_benchmarks_load_whole_with_tests(shared, name, layout, count):
    pytest.importorskip("jopsd.data.code_rows")
    source = str(shared / "data" / name)
    problems, skipped = load_problems(source, required=("problem", "tests"))
    assert len(problems) == count and not skipped
    assert {(p.verifier, p.answer) for p in problems} == {("code", None)}
