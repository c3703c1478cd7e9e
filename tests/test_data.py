"""Rows to problems, sources to rows, problems to batches."""

import json
import sys
import types
from collections import Counter
from itertools import islice

import datasets
import numpy as np
import pytest

from jopsd.config import ConfigError, validate_config
from jopsd.data.datasets import GENERATORS, load_problems, load_rows
from jopsd.data.loader import Part, training_iterator
from jopsd.data.problem import Problem, RowError, problem_from_row, require_fields
from tests.runs import TINY

BOXED = "Thus \\boxed{\\frac{1}{2}}."


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# --- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alias", ["problem", "question", "prompt", "Question"])
def test_the_problem_is_found_under_each_known_name(alias):
    assert problem_from_row({alias: "1+1"}, 0).problem == "1+1"


@pytest.mark.parametrize("alias", ["answer", "answer_number", "Answer", "final_answer", "gt", "target"])
def test_the_answer_is_found_under_each_known_name(alias):
    assert problem_from_row({"problem": "x", alias: "2"}, 0).answer == "2"


@pytest.mark.parametrize("alias", ["solution", "r1_solution_1", "ref_solution"])
def test_the_solution_is_found_under_each_known_name(alias):
    assert problem_from_row({"problem": "x", alias: "s"}, 0).solution == "s"


@pytest.mark.parametrize("alias", ["id", "problem_idx", "question_id", "unique_id", "task_id", "idx"])
def test_the_id_is_found_under_each_known_name_and_zero_is_an_id(alias):
    assert problem_from_row({"problem": "x", alias: 0}, 5).id == "0"


def test_a_row_without_an_id_gets_its_number():
    assert problem_from_row({"problem": "x"}, 5).id == "5"


@pytest.mark.parametrize(
    ("value", "text"),
    [(70, "70"), (27.0, "27"), (0.5, "0.5"), ("025", "025"), (" 5,600 ", "5,600"), (float("nan"), None), (None, None)],
)
def test_answers_of_any_type_become_text(value, text):
    assert problem_from_row({"problem": "x", "answer": value}, 0).answer == text


def test_a_missing_answer_is_the_last_box_of_the_solution():
    assert problem_from_row({"problem": "x", "solution": "\\boxed{1} " + BOXED}, 0).answer == "\\frac{1}{2}"


def test_a_gsm8k_answer_is_split_into_solution_and_answer():
    problem = problem_from_row({"question": "x", "answer": "48/2=24\n48+24=72\n#### 72"}, 0)
    assert (problem.answer, problem.solution) == ("72", "48/2=24\n48+24=72\n#### 72")


def test_a_worked_answer_gives_way_to_the_number_column():
    problem = problem_from_row({"question": "x", "answer": "She has 11 left.", "answer_number": 11}, 0)
    assert problem.answer == "11" and problem.extra["answer"] == "She has 11 left."


def test_a_chat_prompt_gives_the_last_user_message_and_the_system_text():
    prompt = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": [{"type": "text", "text": "se"}, {"type": "text", "text": "cond"}]},
    ]
    problem = problem_from_row({"prompt": prompt}, 0)
    assert (problem.problem, problem.system) == ("second", "Be brief.")


@pytest.mark.parametrize(
    ("truth", "answer"), [("33", "33"), (33, "33"), (33.0, "33"), ({"target": "29", "solution": BOXED}, "29")]
)
def test_verl_ground_truth_may_be_text_number_or_struct(truth, answer):
    row = {"prompt": [{"role": "user", "content": "x"}], "reward_model": {"ground_truth": truth, "style": "rule"}}
    problem = problem_from_row(row, 0)
    assert problem.answer == answer
    assert problem.solution == (BOXED if isinstance(truth, dict) else None)
    assert problem.extra["reward_model"] == row["reward_model"]


def test_extra_info_of_a_verl_row_gives_the_bare_problem_solution_and_index():
    row = {
        "prompt": [{"role": "user", "content": "Problem: x. Think."}],
        "reward_model": {"ground_truth": "1"},
        "extra_info": {"problem": "x", "solution": "s", "index": 17, "split": "train"},
    }
    problem = problem_from_row(row, 0)
    assert (problem.problem, problem.solution, problem.id, problem.answer) == ("x", "s", "17", "1")


def test_explicit_columns_override_aliases_and_reach_into_structs():
    row = {"problem": "a", "Q": "b", "answer": "1", "extra_info": {"hint": "h"}}
    problem = problem_from_row(row, 0, {"problem": "Q", "solution": "extra_info.hint"})
    assert (problem.problem, problem.solution, problem.answer) == ("b", "h", "1")


def test_a_named_column_that_is_missing_is_an_error_naming_row_field_and_columns():
    with pytest.raises(RowError, match=r"set\.json, row 3 .*'solution': column 'sol' is missing; .*: problem, id") as e:
        problem_from_row({"problem": "x", "id": 1}, 3, {"solution": "sol"}, source="set.json")
    assert (e.value.row_number, e.value.field, e.value.columns) == (3, "solution", ("problem", "id"))


def test_an_unknown_field_in_columns_is_an_error_listing_the_known_ones():
    with pytest.raises(ValueError, match="no field 'solutions'; known fields: id, problem, solution"):
        problem_from_row({"problem": "x"}, 0, {"solutions": "s"})


def test_a_translated_column_sets_language_and_english_text():
    row = {"problem": "How many?", "problem_sw": "Ngapi?", "problem_sw_ok": True}
    problem = problem_from_row(row, 0, {"problem": "problem_sw"})
    assert (problem.problem, problem.problem_en, problem.language) == ("Ngapi?", "How many?", "sw")


@pytest.mark.parametrize("row", [{"problem_sw": "Ngapi?", "problem_sw_ok": None}, {"problem_sw": "  "}, {}])
def test_a_row_without_a_good_translation_is_rejected(row):
    with pytest.raises(RowError, match="problem_sw"):
        problem_from_row({"problem": "How many?", **row}, 0, {"problem": "problem_sw"})


def test_unused_columns_are_kept_but_transcripts_are_not():
    row = {"problem": "x", "level": 5, "messages": [{"role": "user", "content": "x"}], "conversations": []}
    assert problem_from_row(row, 0).extra == {"level": 5}


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "x is 7"},
    {"role": "assistant", "content": "Noted."},
    {"role": "user", "content": "What is x+1?"},
]
REPLY = {"role": "assistant", "content": "It is \\boxed{8}."}
SHARE = [{"from": {"user": "human", "assistant": "gpt"}.get(t["role"], t["role"]), "value": t["content"]} for t in TALK]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"messages": [*TALK, REPLY]}, {}),
        ({"messages": [*TALK, REPLY]}, {"problem": "messages", "solution": "messages"}),
        ({"messages": json.dumps([*TALK, REPLY])}, {}),
        ({"prompt": TALK, "completion": [REPLY]}, {}),
        ({"prompt": TALK, "completion": REPLY["content"]}, {}),
        ({"prompt": TALK, "privileged_context": REPLY["content"]}, {}),
        ({"conversations": [*SHARE, {"from": "gpt", "value": REPLY["content"]}]}, {}),
        ({"prompt": TALK, "extra_info": {"problem": "What is x+1?", "solution": REPLY["content"]}}, {}),
    ],
)
def test_a_conversation_is_kept_whole_and_its_last_reply_is_the_solution(row, columns):
    problem = problem_from_row(row, 0, columns)
    assert (problem.system, problem.problem) == ("Be brief.", "What is x+1?")
    assert problem.history == (("user", "x is 7"), ("assistant", "Noted."))
    assert (problem.solution, problem.answer) == (REPLY["content"], "8")


def test_columns_of_their_own_come_before_what_a_conversation_says():
    row = {"messages": [*TALK, REPLY], "system": "Think.", "solution": "9-1 = 8", "answer": "8"}
    problem = problem_from_row(row, 0)
    assert (problem.system, problem.solution, problem.answer) == ("Think.", "9-1 = 8", "8")
    assert problem.history and "messages" not in problem.extra


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        ([{"role": "narrator", "content": "x"}], "turn 0 is of 'narrator'"),
        ([TALK[1], {"role": "assistant", "content": None, "tool_calls": [{}]}], "turn 1 has tool_calls"),
        ([{"role": "user", "content": [{"type": "image", "url": "u"}]}], "turn 0 (user) has no text"),
        ([TALK[1], REPLY, REPLY], "turn 1 is the assistant's, where the user's last is due"),
    ],
)
def test_a_conversation_that_cannot_be_read_whole_is_refused(turns, told):
    with pytest.raises(RowError, match="'problem': a conversation that cannot be read") as error:
        problem_from_row({"messages": turns}, 4, source="a.jsonl")
    assert told in str(error.value) and "a.jsonl, row 4" in str(error.value)


@pytest.mark.parametrize("named", [{}, {"answer": "answer"}])
@pytest.mark.parametrize("answer", [["7", "8"], {"value": 7}, [[7]], {"target": None}])
def test_an_answer_that_is_there_and_cannot_be_read_is_an_error_and_no_box_is_taken_for_it(answer, named):
    row = {"problem": "p", "solution": "\\boxed{1}", "answer": answer, "target": "2"}
    with pytest.raises(RowError, match="field 'answer': column 'answer' is a (list|dict), not text"):
        require_fields(problem_from_row(row, 0, named), ("problem", "answer"), row, 0)


@pytest.mark.parametrize("answer", [["7"], [7], [7.0]])
def test_a_list_of_one_answer_is_that_answer(answer):
    assert problem_from_row({"problem": "p", "solution": "\\boxed{1}", "answer": answer}, 0).answer == "7"


def test_a_ground_truth_that_cannot_be_read_is_not_replaced_by_a_box():
    row = {"prompt": TALK[1:2], "reward_model": {"ground_truth": ["7", "8"]}, "extra_info": {"solution": "\\boxed{1}"}}
    problem = problem_from_row(row, 0)
    assert problem.answer is None
    with pytest.raises(RowError, match="'reward_model.ground_truth' is a list, not text"):
        require_fields(problem, ("answer",), row, 0)


@pytest.mark.parametrize("column", ["solution", "completion", "privileged_context", "ref_solution"])
def test_what_follows_four_hashes_in_the_last_line_of_a_solution_is_the_answer(column):
    worked = "48/2=24, not \\boxed{25}\n#### 1,072"
    problem = problem_from_row({"problem": "p", column: worked}, 0)
    assert (problem.solution, problem.answer) == (worked, "1,072")


@pytest.mark.parametrize("columns", [{}, {"answer": "answer"}])
def test_an_answer_of_four_hashes_alone_is_no_solution(columns):
    problem = problem_from_row({"problem": "p", "answer": "#### 36"}, 0, columns)
    assert (problem.solution, problem.answer) == (None, "36")


@pytest.mark.parametrize(
    ("value", "text", "noisy"),
    [
        (0.7000000000000001, "0.7", True),
        (0.1 + 0.2, "0.3", True),
        (float(np.float32(0.1)), "0.1", True),
        (float(np.float32(2.675)), "2.675", True),
        (float(np.float32(1 / 3)), "0.3333333432674408", True),
        (1234.5600000000002, "1234.56", True),
        ("0.30000000000000004", "0.30000000000000004", True),
        ("2.4999999999999996", "2.4999999999999996", True),
        (1 / 3, "0.3333333333333333", False),
        (3.141592653589793, "3.141592653589793", False),
        ("3.14159265358979323846", "3.14159265358979323846", False),
        (0.1, "0.1", False),
        (2.0**-20, "9.5367431640625e-07", False),
        ("1000000000000000", "1000000000000000", False),
    ],
)
def test_rounding_noise_of_stored_floats_is_taken_off_and_remarked_on(value, text, noisy):
    problem = problem_from_row({"problem": "p", "answer": value}, 0)
    assert problem.answer == text
    assert [remark.kind for remark in problem.remarks] == ["answers with the rounding noise of a float"] * noisy
    assert not noisy or str(value) in problem.remarks[0].detail


# --- sources --------------------------------------------------------------------------------------------------------


def test_lines_and_an_array_load_alike(tmp_path):
    rows = [{"problem": "a", "answer": 1}, {"problem": "b", "answer": "two"}]
    lines = write_lines(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text("\n " + json.dumps(rows, indent=1))
    assert list(load_rows(lines)) == list(load_rows(str(tmp_path / "b.json"))) == rows
    problems, skipped = load_problems(lines, required=("problem", "answer"))
    assert [p.answer for p in problems] == ["1", "two"] and not skipped


def test_a_parquet_file_a_directory_of_splits_and_a_saved_dataset_load_alike(tmp_path):
    rows = [{"problem": "a", "answer": "1"}, {"problem": "b", "answer": "2"}]
    table = datasets.Dataset.from_list(rows)
    (tmp_path / "folder").mkdir()
    table.to_parquet(tmp_path / "folder" / "train.parquet")
    table.select([1]).to_parquet(tmp_path / "folder" / "test.parquet")
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"dev": table}).save_to_disk(tmp_path / "saved_splits")
    assert list(load_rows(str(tmp_path / "folder" / "train.parquet"))) == rows
    assert list(load_rows(str(tmp_path / "folder"))) == rows
    assert list(load_rows(str(tmp_path / "folder"), split="test")) == rows[1:]
    assert list(load_rows(str(tmp_path / "saved"))) == rows
    assert list(load_rows(str(tmp_path / "saved_splits"), split="dev")) == rows
    with pytest.raises(ValueError, match="no split 'train'; it has dev"):
        load_rows(str(tmp_path / "saved_splits"))


def test_limit_takes_the_first_rows_of_every_kind_of_source(tmp_path):
    rows = [{"problem": str(i)} for i in range(5)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    for source in (write_lines(tmp_path / "a.jsonl", rows), str(tmp_path / "a.parquet")):
        assert [p.problem for p in load_problems(source, limit=2)[0]] == ["0", "1"]
        assert len(load_problems(source, limit=99)[0]) == 5
    with pytest.raises(ValueError, match="data.limit is 0"):
        load_problems(source, limit=0)


@pytest.mark.parametrize("source", ["./nope.jsonl", "nope.parquet", "/no/such/folder", "a/b/c", "~/nope"])
def test_a_missing_local_path_is_an_error_that_says_what_is_accepted(source):
    with pytest.raises(FileNotFoundError, match=r"does not exist; accepted: a \.json, \.jsonl or \.parquet file"):
        load_rows(source)


def test_a_hub_id_goes_to_the_hub_with_config_and_split_and_runs_no_remote_code(monkeypatch):
    calls = []

    def fake(*args, **kwargs):
        calls.append((args, kwargs))
        rows = datasets.Dataset.from_list([{"question": "x", "answer": "1", "messages": "long"}])
        return types.SimpleNamespace(
            name="parquet", download_and_prepare=lambda: None, as_dataset=lambda split: {"test": rows}[split]
        )

    monkeypatch.setattr(datasets, "load_dataset_builder", fake)
    problems, _ = load_problems("owner/name", split="test", config="sw")
    assert calls == [(("owner/name", "sw"), {})]
    assert problems[0].source == "owner/name" and "messages" not in problems[0].extra


def test_an_unreachable_hub_set_is_an_error_that_names_it(monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    with pytest.raises(FileNotFoundError, match="cannot load 'owner/name': no network; accepted"):
        load_rows("owner/name")


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("a.jsonl", '{"problem": "x"}\n{"problem": \n', r"a\.jsonl, line 2: broken JSON"),
        ("a.jsonl", '{"problem": "x"}\n\n[1]\n', r"a\.jsonl, line 3 is a list"),
        ("a.json", '[{"problem": "x"},\n {"problem"}]', r"a\.json, line 2: broken JSON"),
        ("a.json", "[1]", r"a\.json, row 0 .* is a int"),
        ("a.txt", "x", "unknown file type '.txt'"),
    ],
)
def test_a_broken_file_is_an_error_that_names_file_and_place(tmp_path, name, text, fault):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=fault):
        load_rows(str(tmp_path / name))


def test_a_row_without_solution_is_rejected_with_its_number(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", [{"problem": "a", "solution": "s"}, {"problem": "b", "solution": None}])
    with pytest.raises(RowError, match=r"a\.jsonl, row 1 .*'solution'.*is empty.*problem, solution.*on_bad_row: skip"):
        load_problems(source, required=("problem", "solution"))


def test_a_solution_that_is_no_text_is_named_as_such(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", [{"problem": "a", "solution": [True, False]}])
    with pytest.raises(RowError, match="column 'solution' is a list, not text"):
        load_problems(source, required=("solution",))


def test_skipped_rows_are_counted_by_reason(tmp_path):
    rows = [{"problem": "a", "solution": "s"}, {"problem": "b"}, {"problem": ""}, {"problem": "c"}]
    problems, skipped = load_problems(
        write_lines(tmp_path / "a.jsonl", rows), required=("problem", "solution"), on_bad_row="skip"
    )
    assert [p.problem for p in problems] == ["a"]
    assert sum(skipped.values()) == 3
    columns = "solution, r1_solution_1, ref_solution, privileged_context, completion"
    assert skipped[f"solution: none of the columns {columns} is there"] == 2
    assert skipped["problem: column 'problem' is empty"] == 1


def test_no_row_left_is_an_error_with_the_reasons(tmp_path):
    with pytest.raises(ValueError, match=r"no usable row in .*: 2 x problem: "):
        load_problems(write_lines(tmp_path / "a.jsonl", [{"x": 1}, {"y": 1}]), on_bad_row="skip")
    with pytest.raises(ValueError, match="it has no rows"):
        load_problems(write_lines(tmp_path / "b.jsonl", []))
    with pytest.raises(ValueError, match="on_bad_row"):
        load_problems(write_lines(tmp_path / "c.jsonl", []), on_bad_row="drop")


def test_a_generator_is_asked_for_its_split_count_and_seed(monkeypatch):
    def problems(split, count, seed, language="en"):
        return [Problem(id=str(i), problem=f"{split} {seed} {language}", solution="s") for i in range(count)]

    monkeypatch.setitem(sys.modules, "made_up_task", types.SimpleNamespace(problems=problems))
    monkeypatch.setitem(GENERATORS, "made_up", ("made_up_task", {"language": "sw"}))
    made, skipped = load_problems("made_up:test", limit=3, seed=7, required=("solution",))
    assert [p.problem for p in made] == ["test 7 sw"] * 3 and not skipped
    with pytest.raises(RowError, match="'answer'"):
        load_problems("made_up:test", limit=3, required=("answer",))
    with pytest.raises(ValueError, match=r"no generator for 'other:test'; known: .*sums"):
        load_problems("other:test")


@pytest.mark.parametrize(
    ("name", "count", "required", "first_answer"),
    [
        ("train_opsd_math500rows.jsonl", 500, ("problem", "solution", "answer"), "1"),
        ("train_verl_math200.parquet", 200, ("problem", "solution", "answer"), "29"),
        ("aime24.jsonl", 30, ("problem", "solution", "answer"), "204"),
        ("aime24_gopd.jsonl", 30, ("problem", "answer"), "204"),
        ("aime24_verl.parquet", 30, ("problem", "answer"), "33"),
        ("aime25_gopd.jsonl", 30, ("problem", "answer"), "70"),
        ("amc23.jsonl", 40, ("problem", "answer"), "27"),
        ("amc_aimo83.jsonl", 83, ("problem", "answer"), "142"),
        ("math500.jsonl", 500, ("problem", "solution", "answer"), "\\left( 3, \\frac{\\pi}{2} \\right)"),
        ("minerva.jsonl", 272, ("problem", "solution", "answer"), "1.6"),
        ("hmmt25_feb.jsonl", 30, ("problem", "answer"), "103"),
        ("hmmt25_feb_verl.parquet", 30, ("problem", "answer"), "103"),
        ("mgsm.jsonl", 2750, ("problem", "answer", "language"), "18"),
        ("standin_afrimgsm_swa.jsonl", 250, ("problem", "answer", "language"), "18"),
        ("standin_polymath_low.jsonl", 330, ("problem", "answer", "language"), "18"),
        ("sciknoweval.jsonl", 470, ("problem", "answer", "system"), "B"),
    ],
)
def test_every_real_file_loads_whole(shared, name, count, required, first_answer):
    problems, skipped = load_problems(str(shared / "data" / name), required=required)
    assert len(problems) == count and not skipped
    assert problems[0].answer == first_answer
    assert all(isinstance(p.id, str) for p in problems)


@pytest.mark.parametrize("code", ["sw", "de", "ru"])
def test_real_translated_rows_load_with_both_languages(shared, code):
    source = str(shared / "data" / f"train_copsd_{code}200.jsonl")
    rows = [json.loads(line) for line in open(source, encoding="utf-8")]
    problems, skipped = load_problems(
        source, columns={"problem": f"problem_{code}"}, required=("problem_en", "solution", "answer"), on_bad_row="skip"
    )
    good = [row for row in rows if row[f"problem_{code}_ok"] is True]
    assert [p.problem for p in problems] == [row[f"problem_{code}"] for row in good]
    assert [p.problem_en for p in problems] == [row["problem"] for row in good]
    assert {p.language for p in problems} == {code}
    assert sum(skipped.values()) == len(rows) - len(good)


# --- levels ---------------------------------------------------------------------------------------------------------

LEVELS = [4.5, 5, 5.5, "6", 7.0, 7.5, "Level 8"]


def levels(path, key="difficulty", **load) -> list[str]:
    rows = [{"problem": str(level), key: level} for level in LEVELS]
    return [p.problem for p in load_problems(write_lines(path / "levels.jsonl", rows), **load)[0]]


def test_a_band_keeps_its_ends_and_reads_numbers_as_text_too(tmp_path):
    assert levels(tmp_path, difficulty=(5, 7)) == ["5", "5.5", "6", "7.0"]
    assert levels(tmp_path, difficulty=(7.5, 10)) == ["7.5", "Level 8"]
    assert levels(tmp_path, key="grade", columns={"difficulty": "grade"}, difficulty=(4.5, 4.5)) == ["4.5"]


def test_rows_outside_the_band_are_counted_and_need_nothing_else(tmp_path):
    rows = [{"problem": "a", "difficulty": 6}, {"difficulty": 3}, {"problem": "", "difficulty": 9.5}]
    source = write_lines(tmp_path / "a.jsonl", rows)
    problems, skipped = load_problems(source, difficulty=(5.5, 7))
    assert [(p.problem, p.row) for p in problems] == [("a", 0)]
    assert skipped == {"difficulty outside 5.5 to 7": 2}
    with pytest.raises(ValueError, match=r"no usable row in .*: 3 x difficulty outside 7 to 8"):
        load_problems(source, difficulty=(7, 8))


def test_the_row_of_a_problem_is_its_place_in_the_file_whatever_was_left_out(tmp_path):
    rows = [{"problem": "a", "difficulty": 1}, {"problem": ""}, {"problem": "b", "difficulty": 5}]
    problems, _ = load_problems(write_lines(tmp_path / "a.jsonl", rows), difficulty=(5, 5), on_bad_row="skip")
    assert [p.row for p in problems] == [2]


@pytest.mark.parametrize(
    ("row", "columns", "fault"),
    [
        (
            {"problem": "a"},
            {},
            r"row 1 .*'difficulty': none of the columns difficulty, extra_info\.difficulty is there",
        ),
        ({"problem": "a", "difficulty": "hard"}, {}, r"column 'difficulty' is no number \(it is 'hard'\)"),
        ({"problem": "a", "difficulty": None}, {}, "column 'difficulty' is no number"),
        ({"problem": "a", "difficulty": 5}, {"difficulty": "level"}, "column 'level' is missing"),
    ],
)
def test_rows_without_a_level_are_refused_or_counted_where_a_band_is_asked_for(tmp_path, row, columns, fault):
    good = {"problem": "g", "difficulty": 6, "level": 6}
    source = write_lines(tmp_path / "a.jsonl", [good, row])
    with pytest.raises(RowError, match=fault):
        load_problems(source, columns=columns, difficulty=(5, 7))
    problems, skipped = load_problems(source, columns=columns, difficulty=(5, 7), on_bad_row="skip")
    assert len(problems) == 1 and skipped.total() == 1 and "hard" not in str(skipped)
    assert load_problems(source)[0] and not load_problems(source)[1]  # no band, no need


def test_a_set_without_levels_is_an_error_even_where_bad_rows_are_skipped(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", [{"problem": "a"}] * 3)
    with pytest.raises(ValueError, match="no usable row in .*: 3 x difficulty: none of the columns difficulty"):
        load_problems(source, difficulty=(5, 7), on_bad_row="skip")


def test_real_levels_of_mathematics_select_the_rows_that_have_them(shared):
    source = shared / "data" / "math500.jsonl"
    wanted = [row["problem"] for row in map(json.loads, source.open(encoding="utf-8")) if row["level"] >= 4]
    problems, skipped = load_problems(str(source), columns={"difficulty": "level"}, difficulty=(4, 5))
    assert [p.problem for p in problems] == wanted
    assert skipped == {"difficulty outside 4 to 5": 500 - len(wanted)}


# --- puzzles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "people"), [("kk_4to8", (4, 8)), ("kk_9", (9, 9)), ("kk_10", (10, 10)), ("kk_11", (11, 11))]
)
def test_sets_of_puzzles_ask_for_their_number_of_people(monkeypatch, name, people):
    def problems(split, count, seed, people):
        return [Problem(id=str(i), problem=f"{split} {seed} {people}", answer="A is a knight") for i in range(count)]

    monkeypatch.setitem(sys.modules, "jopsd.data.knights", types.SimpleNamespace(problems=problems))
    made, _ = load_problems(f"{name}:test", limit=2, seed=3, required=("answer",))
    assert [(p.problem, p.row) for p in made] == [(f"test 3 {people}", 0), (f"test 3 {people}", 1)]


def test_puzzles_load_with_what_training_and_grading_need():
    problems, skipped = load_problems("knights:train", limit=5, required=("problem", "solution", "answer", "verifier"))
    assert {p.verifier for p in problems} == {"knights"} and len(problems) == 5 and not skipped


# --- batches --------------------------------------------------------------------------------------------------------

TEN = [Problem(id=str(i), problem=str(i)) for i in range(10)]


def ids(batches):
    return [[p.id for p in batch] for batch in batches]


def take(iterator, count):
    return ids(islice(iterator, count))


def test_every_epoch_holds_every_row_once_in_a_new_order():
    flat = [i for batch in take(training_iterator(TEN, 4, seed=0), 15) for i in batch]
    epochs = [flat[start : start + 10] for start in range(0, 60, 10)]
    assert all(Counter(epoch) == Counter(p.id for p in TEN) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_the_order_depends_on_the_seed_alone():
    assert take(training_iterator(TEN, 4, seed=1), 9) == take(training_iterator(TEN, 4, seed=1), 9)
    assert take(training_iterator(TEN, 4, seed=1), 9) != take(training_iterator(TEN, 4, seed=2), 9)


@pytest.mark.parametrize("processes", [2, 4])
def test_the_processes_together_see_what_one_sees(processes):
    whole = take(training_iterator(TEN, 4, seed=3), 8)
    shares = [take(training_iterator(TEN, 4, 3, index, processes), 8) for index in range(processes)]
    assert [sum(parts, []) for parts in zip(*shares, strict=True)] == whole


@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_a_resumed_stream_continues_as_if_never_stopped(stop):
    whole = take(training_iterator(TEN, 4, seed=5), 12)
    iterator = training_iterator(TEN, 4, seed=5)
    take(iterator, stop)
    state = json.loads(json.dumps(iterator.get_state()))
    assert len(json.dumps(state)) < 200
    resumed = training_iterator(TEN, 4, seed=5)
    resumed.set_state(state)
    assert take(resumed, 12 - stop) == whole[stop:]


def test_a_run_may_resume_on_another_number_of_processes():
    whole = take(training_iterator(TEN, 4, seed=5), 6)
    iterator = training_iterator(TEN, 4, seed=5)
    take(iterator, 3)
    halves = [training_iterator(TEN, 4, 5, index, 2) for index in range(2)]
    for half in halves:
        half.set_state(iterator.get_state())
    assert [a + b for a, b in zip(*(take(half, 3) for half in halves), strict=True)] == whole[3:]


def test_a_batch_may_be_larger_than_the_data():
    batch = next(training_iterator(TEN[:3], 8, seed=0))
    assert len(batch) == 8 and Counter(p.id for p in batch[:6]) == {"0": 2, "1": 2, "2": 2}


def test_a_number_of_epochs_ends_the_stream_and_drops_only_the_last_part_batch():
    batches = ids(training_iterator(TEN, 4, seed=0, epochs=2))
    assert [len(batch) for batch in batches] == [4] * 5
    assert ids(training_iterator(TEN, 4, seed=0, epochs=1)) == batches[:2]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"batch_size": 6, "process_count": 4}, "batch size 6 must be a positive multiple of the process count 4"),
        ({"batch_size": 0}, "batch size 0"),
        ({"batch_size": 4, "process_index": 2, "process_count": 2}, "process index 2"),
        ({"batch_size": 40, "epochs": 2}, "10 rows x 2 epochs do not fill one batch of 40"),
        ({"batch_size": 4, "problems": []}, "no problems"),
    ],
)
def test_impossible_batches_are_refused(arguments, fault):
    with pytest.raises(ValueError, match=fault):
        training_iterator(**{"problems": TEN, "seed": 0, **arguments})


# --- mixtures -------------------------------------------------------------------------------------------------------

TWENTY = [Problem(id=f"{'ab'[i >= 4]}{i}", problem=str(i)) for i in range(20)]
FOUR_AND_SIXTEEN = (Part(4, 1.0), Part(16, 3.0))


def mixture(batch_size=8, seed=0, parts=FOUR_AND_SIXTEEN, problems=TWENTY, **options):
    return training_iterator(problems, batch_size, seed, parts=parts, **options)


def flat(batches):
    return [i for batch in batches for i in batch]


@pytest.mark.parametrize(
    ("weights", "shares"),
    [((1, 3), (0.25, 0.75)), ((1, 1), (0.5, 0.5)), ((0.7, 0.3), (0.7, 0.3)), ((9, 1), (0.9, 0.1))],
)
def test_sources_take_turns_by_weight_in_every_stretch(weights, shares):
    parts = [Part(4, weights[0]), Part(16, weights[1])]
    order = flat(take(mixture(parts=parts), 50))
    for end in (8, 40, 200, 400):
        count = Counter(i[0] for i in order[:end])
        for name, share in zip("ab", shares, strict=True):
            assert abs(count[name] - share * end) <= 1.5 + 0.01 * share * end


def test_three_sources_take_turns_too():
    thirty = [Problem(id=f"{'abc'[i // 10]}{i}", problem=str(i)) for i in range(30)]
    order = flat(take(mixture(problems=thirty, parts=[Part(10, 1), Part(10, 2), Part(10, 5)]), 40))
    count = Counter(i[0] for i in order)
    assert [count[name] for name in "abc"] == pytest.approx([40, 80, 200], abs=2)


def test_each_source_is_gone_through_whole_before_it_is_repeated_in_another_order():
    order = flat(take(mixture(), 40))
    for name, size in (("a", 4), ("b", 16)):
        own = [i for i in order if i[0] == name]
        rounds = [own[start : start + size] for start in range(0, len(own) - size + 1, size)]
        assert len(rounds) >= 15
        assert all(len(set(one)) == size for one in rounds)
        assert len({tuple(one) for one in rounds}) > 3


def test_sources_of_one_length_are_not_permuted_alike():
    twice = [Problem(id=f"{name}{i:02}", problem=str(i)) for name in "ab" for i in range(12)]
    order = flat(take(mixture(problems=twice, parts=[Part(12, 1), Part(12, 1)]), 30))
    assert [i[1:] for i in order if i[0] == "a"] != [i[1:] for i in order if i[0] == "b"]


def test_one_source_of_a_mixture_is_that_source():
    assert take(mixture(parts=[Part(20, 5.0)]), 9) == take(mixture(parts=()), 9)


@pytest.mark.parametrize("processes", [2, 4])
def test_a_mixture_is_the_same_for_any_number_of_processes(processes):
    whole = take(mixture(seed=3), 9)
    shares = [take(mixture(seed=3, process_index=i, process_count=processes), 9) for i in range(processes)]
    assert [sum(parts, []) for parts in zip(*shares, strict=True)] == whole
    assert take(mixture(seed=4), 9) != whole


@pytest.mark.parametrize("stop", [0, 1, 5, 11])
def test_a_mixture_goes_on_where_it_stopped_also_on_other_processes(stop):
    whole = take(mixture(seed=5), 15)
    iterator = mixture(seed=5)
    take(iterator, stop)
    state = json.loads(json.dumps(iterator.get_state()))
    assert len(json.dumps(state)) < 200
    halves = [mixture(seed=5, process_index=i, process_count=2) for i in range(2)]
    resumed = mixture(seed=5)
    for other in (resumed, *halves):
        other.set_state(state)
    assert take(resumed, 15 - stop) == whole[stop:]
    assert [a + b for a, b in zip(*(take(half, 15 - stop) for half in halves), strict=True)] == whole[stop:]


def test_an_epoch_of_a_mixture_has_as_many_rows_as_there_are_problems():
    batches = ids(mixture(batch_size=3, epochs=2))
    assert [len(batch) for batch in batches] == [3] * 13
    assert batches == take(mixture(batch_size=3), 13)


def test_parts_that_are_not_the_problems_are_refused():
    with pytest.raises(ValueError, match=r"parts of \[4, 15\] rows are not the 20 problems"):
        mixture(parts=[Part(4, 1), Part(15, 1)])
    with pytest.raises(ValueError, match=r"parts of \[0, 20\]"):
        mixture(parts=[Part(0, 1), Part(20, 1)])


def config(*, base=TINY, **sections):
    """A config of the embedded task; a section given is merged into its own, and None removes a key."""
    tree = {"output_dir": "out", **base}
    for name, changes in sections.items():
        merged = {**tree.get(name, {}), **changes}
        tree[name] = {key: value for key, value in merged.items() if value is not None}
    return validate_config(tree, "test")


def mixed(*sources, **beside):
    return config(data={"source": None, "mix": list(sources), "limit": None, **beside})


def test_a_mixture_stands_in_place_of_a_source():
    told = mixed({"source": "a.jsonl", "weight": 3}, {"source": "b/c", "split": "test"}).data
    assert told.source is None and [part.weight for part in told.mix] == [3.0, 1.0]
    assert told.named == "a.jsonl (weight 3) + b/c (weight 1)"
    assert [(key, part.source, part.split, weight) for key, part, weight in told.parts("data")] == [
        ("data.mix[0]", "a.jsonl", "train", 3.0),
        ("data.mix[1]", "b/c", "test", 1.0),
    ]
    alone = config(data={"source": "a.jsonl"}).data
    assert alone.named == "a.jsonl" and alone.parts("data") == [("data", alone, 1.0)]


def test_what_stands_beside_a_mixture_holds_for_sources_that_do_not_say_otherwise():
    own = {"source": "b", "limit": None, "columns": {"answer": "A"}, "difficulty": [7, 10]}
    told = mixed({"source": "a"}, own, limit=9, columns={"problem": "Q"}, difficulty=[5, 7], on_bad_row="skip").data
    (_, a, _), (_, b, _) = told.parts("data")
    assert (a.limit, a.columns, a.difficulty, a.on_bad_row) == (9, {"problem": "Q"}, (5, 7), "skip")
    assert (b.limit, b.columns, b.difficulty, b.on_bad_row) == (None, {"answer": "A"}, (7, 10), "skip")
    again = type(told).model_validate(told.model_dump(mode="json"))
    assert again == told


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"source": "a", "mix": [{"source": "b"}]}, "`data`: source 'a' and mix are both given; remove one"),
        ({"source": None, "mix": None}, "`data.source` is required"),
        ({"source": None, "mix": []}, "`data`: no source is given; set source, or mix to a list"),
        ({"source": None, "mix": [{"weight": 2}]}, "`data.mix.0.source` is required"),
        ({"source": None, "mix": [{"source": "b", "weight": 0}]}, "`data.mix.0.weight` = 0"),
        ({"source": None, "mix": [{"source": "b", "weight": True}]}, "`data.mix.0.weight` = True"),
        ({"source": None, "mix": [{"source": "b", "sizes": 2}]}, "unknown key `data.mix.0.sizes`"),
        ({"difficulty": [7, 5]}, "`data.difficulty`: the lower end 7 comes first, and is above 5"),
        ({"difficulty": [7]}, "`data.difficulty"),
    ],
)
def test_a_section_that_says_not_or_twice_where_rows_come_from_is_refused(data, told):
    with pytest.raises(ConfigError) as error:
        config(data=data)
    assert told in str(error.value)
    assert len(str(error.value).splitlines()) == 2  # one fault, said once


def test_a_source_that_is_null_without_a_mixture_is_refused():
    with pytest.raises(ConfigError, match="no source is given"):
        validate_config({"output_dir": "out", **TINY, "data": {"source": None, "mix": None}}, "test")


def sums_file(path, count, **changes):
    """Rows of the embedded task that need no translation to its tokens."""
    rows = [{"problem": f"{n}+1", "solution": f"\\boxed{{{n + 1}}}", "answer": str(n + 1)} for n in range(count)]
    return write_lines(path, [row | changes.get(f"row{i}", {}) for i, row in enumerate(rows)])


def test_a_run_reads_all_sources_of_a_mixture_and_counts_what_each_left_out(tmp_path):
    from jopsd.report import header
    from jopsd.setup import make_task
    from jopsd.trainer import with_steps

    long = {"problem": "+".join(["11"] * 40)}
    source = sums_file(tmp_path / "own.jsonl", 5, row1={"solution": None}, row3=long)
    told = mixed(
        {"source": "sums:train", "limit": 6, "weight": 3},
        {"source": source},
        on_bad_row="skip",
        on_long_prompt="skip",
        max_prompt_tokens=100,
    )
    task = make_task(told)
    assert task.parts == (Part(6, 3.0), Part(3, 1.0))
    assert [item.problem.source for item in task.train] == ["sums"] * 6 + [source] * 3
    assert [item.problem.row for item in task.train[6:]] == [0, 2, 4]
    assert set(task.skipped.values()) == {1} and all(key.startswith("data.mix[1]: ") for key in task.skipped)
    assert any("solution" in key for key in task.skipped) and any("over 100 tokens" in key for key in task.skipped)
    told = config(base=told.model_dump(mode="json"), train={"steps": None, "epochs": 4})
    told = with_steps(told, len(task.train))
    assert told.train.steps == 4 * 9 // 4
    text = header(told, task)
    assert f"opsd on sums:train (weight 3) + {source} (weight 1): 9 training and 4 held-out problems" in text
    assert "left out: 1 rows, data.mix[1]: " in text


@pytest.mark.parametrize(
    ("row", "columns", "told"),
    [
        ({"solution": None}, None, "own.jsonl, row 2 (counted from 0), field 'solution'"),
        ({"problem": "+".join(["11"] * 40)}, None, "own.jsonl, problem 2 (id 2): its teacher prompt has"),
        ({"answer": "x" * 9}, {"answer": "gold"}, "own.jsonl, row 0 (counted from 0), field 'answer'"),
    ],
)
def test_a_bad_row_of_a_mixture_is_named_with_its_own_source(tmp_path, row, columns, told):
    from jopsd.setup import make_task

    own = {"source": sums_file(tmp_path / "own.jsonl", 4, row2=row), **({"columns": columns} if columns else {})}
    with pytest.raises(ValueError) as error:
        make_task(mixed({"source": "sums:train", "limit": 4}, own, max_prompt_tokens=100))
    assert told in str(error.value)


def test_an_answer_that_cannot_be_graded_is_named_by_its_row_in_the_file(tmp_path):
    from jopsd.setup import make_task

    rows = [{"problem": "1+1", "solution": "2", "answer": "A", "difficulty": d} for d in (1, 5, 5)]
    rows[2]["answer"] = "AB"
    source = write_lines(tmp_path / "choices.jsonl", rows)
    told = config(data={"source": source, "difficulty": [5, 5], "limit": None}, reward={"name": "choice"})
    with pytest.raises(ConfigError, match=r"choices\.jsonl, row 2 \(counted from 0\), field 'answer'"):
        make_task(told)


def test_held_out_sources_are_put_one_after_the_other_and_have_no_weights(tmp_path):
    from jopsd.setup import make_task

    source = sums_file(tmp_path / "own.jsonl", 3)
    held_out = {**TINY["eval"], "data": {"mix": [{"source": "sums:test", "limit": 2}, {"source": source}]}}
    task = make_task(config(eval=held_out))
    assert [item.problem.source for item in task.held_out] == ["sums"] * 2 + [source] * 3
    held_out["data"]["mix"][1]["weight"] = 2
    with pytest.raises(ConfigError, match=r"eval\.data\.mix\[1\]\.weight is 2, for .*own\.jsonl"):
        make_task(config(eval=held_out))


def test_the_rows_of_a_run_are_those_of_its_mixture(tmp_path):
    from jopsd.setup import make_task

    source = sums_file(tmp_path / "own.jsonl", 3)
    task = make_task(mixed({"source": "sums:train", "limit": 6, "weight": 3}, {"source": source}))
    batches = training_iterator(task.train, 8, seed=0, parts=task.parts)
    counts = np.array([sum(item.problem.source == "sums" for item in next(batches)) for _ in range(20)])
    np.testing.assert_array_equal(counts, 6)
