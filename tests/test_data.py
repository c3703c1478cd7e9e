"""Rows to problems, sources to rows, problems to batches."""

import json
import sys
import types
from collections import Counter
from itertools import islice

import datasets
import pytest

from jopsd.data.datasets import GENERATORS, load_problems, load_rows
from jopsd.data.loader import training_iterator
from jopsd.data.problem import Problem, RowError, problem_from_row

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
        return datasets.Dataset.from_list([{"question": "x", "answer": "1", "messages": "long"}])

    monkeypatch.setattr(datasets, "load_dataset", fake)
    problems, _ = load_problems("owner/name", split="test", config="sw")
    assert calls == [(("owner/name", "sw"), {"split": "test"})]
    assert problems[0].source == "owner/name" and "messages" not in problems[0].extra


def test_an_unreachable_hub_set_is_an_error_that_names_it(monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
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
    assert skipped["solution: none of the columns solution, r1_solution_1, ref_solution is there"] == 2
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
