"""Which verifier grades a run: graders, refusals at the start, and whole runs graded by something else than math."""

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import pytest

from eval.__main__ import main as evaluate
from jopsd.config import load_config
from jopsd.data.problem import Problem
from jopsd.rewards.code_pool import CodePool
from jopsd.rewards.grader import DIRECT, VERIFIERS, fault_of_gold, fault_of_row, make_grader
from jopsd.rewards.sandbox import SandboxError, box
from jopsd.schema import Reward
from jopsd.setup import make_task
from jopsd.train import main as train
from tests import runs
from tests.runs import write_config, write_rows
from tests.sandboxed import needs_sandbox

CALL = '[{"Action": "f", "Action_Input": "{\\"a\\": 1}"}]'
GOLD = {"knights": "Ann is a knight", "choice": "A", "tools": CALL}
RIGHT = {
    "knights": "\\boxed{Ann is a knight}",
    "choice": "<answer>A</answer>",
    "tools": 'Action: f\nAction Input: {"a": 1}',
}
TESTS = json.dumps({"inputs": ["1 2", "3 4"], "outputs": ["3", "7"], "testtype": "stdin", "time_limit": 20})
RIGHT_PROGRAM = "```python\nprint(sum(map(int, input().split())))\n```"
HALF_PROGRAM = "```python\nprint(3)\n```"
WRONG = {"knights": "\\boxed{Ann is a knave}", "choice": "<answer>B</answer>", "tools": "Action: g"}


def problem(name: str, gold: str | None) -> Problem:
    field = "tests" if name == "code" else "answer"
    return Problem(id="7", problem="?", verifier=name, **{field: gold})


@pytest.mark.parametrize("name", sorted(DIRECT))
def test_a_grader_gives_finished_scores_and_counts_them(name):
    row = problem(name, GOLD[name])
    with make_grader(Reward(name=name)) as grader:
        for text in (RIGHT[name], WRONG[name], WRONG[name], "nothing"):
            future = grader.submit(text, row)
            assert future.done() and future.result() == DIRECT[name].verify(text, GOLD[name])
        assert grader.stats == Counter(correct=1, wrong=2, unformatted=1) and grader.stats["timeout"] == 0
        with pytest.raises(ValueError, match="gold answer ''"):
            grader.submit("nothing", problem(name, ""))
        with pytest.raises(ValueError, match="problem 7, field 'answer': it has no answer"):
            grader.submit("nothing", problem(name, None))
    with pytest.raises(RuntimeError, match="closed"):
        grader.submit(RIGHT[name], row)


@needs_sandbox
@pytest.mark.parametrize(("score", "half"), [("sparse", 0.0), ("dense", 0.5)])
def test_programs_are_graded_by_their_tests_in_a_sandbox_that_the_notes_describe(score, half):
    row = problem("code", TESTS)
    with make_grader(Reward(name="code", code={"score": score}, workers=2)) as grader:
        assert "seccomp" in grader.notes[0]
        futures = [grader.submit(text, row) for text in (RIGHT_PROGRAM, HALF_PROGRAM, "no program") * 3]
        scores = [future.result() for future in futures]
        assert [s.reward for s in scores] == [1.0, half, 0.0] * 3
        assert [s.correct for s in scores] == [True, False, False] * 3
        assert grader.stats == Counter(correct=3, wrong=3, unformatted=3)
        assert grader.same(row, "a", "a") and not grader.same(row, "a", "b")


@needs_sandbox
def test_under_auto_every_row_has_its_own_verifier():
    golds = {**GOLD, "math": "1/2", "code": TESTS}
    right = {**RIGHT, "math": "\\boxed{0.5}", "code": RIGHT_PROGRAM}
    rows = {name: problem(name, gold) for name, gold in golds.items()}
    assert sorted(rows) == sorted(VERIFIERS)
    with make_grader(Reward(name="auto", workers=1), rows.values()) as grader:
        for name, row in rows.items():
            assert grader.submit(right[name], row).result().correct
            assert not grader.submit("nothing", row).result().formatted
    assert fault_of_row("auto", Problem(id="1", problem="?", answer="3"))[0] == "verifier"
    assert fault_of_row("auto", problem("speech", "3")) == (
        "verifier",
        "no verifier is called 'speech'; known: math, knights, choice, tools, code",
    )
    assert fault_of_row("auto", problem("code", None)) == ("tests", "it has no tests")
    assert fault_of_row("code", problem("code", "{}"))[0] == "tests"
    assert fault_of_row("auto", rows["code"]) is None


def test_no_program_runs_where_the_host_cannot_keep_it_in_unless_asked_to(monkeypatch):
    monkeypatch.setattr(box.layers, "LAYERS", {"rlimits": "limits"})
    monkeypatch.setattr("jopsd.rewards.code_pool.LAYERS", {"rlimits": "limits"})
    with pytest.raises(SandboxError, match="cannot keep programs away from files of the host, the network"):
        make_grader(Reward(name="code"))
    with make_grader(Reward(name="code", unsafe=True, workers=1)) as grader:
        assert "UNSAFE" in grader.notes[0]
        assert grader.submit(RIGHT_PROGRAM, problem("code", TESTS)).result().correct


@needs_sandbox
def test_a_sandbox_that_is_killed_costs_no_verdict():
    with CodePool(1) as pool:
        for _ in range(4):
            pool._sandboxes[0]._launcher.kill()
            assert pool.submit(RIGHT_PROGRAM, TESTS).result().correct


@pytest.mark.parametrize(
    ("name", "one", "other", "same"),
    [
        ("math", "1/2", "0.5", True),
        ("math", "", "", False),
        ("knights", "B is a knave, A is a knight", "A: knight; B: knave", True),
        ("knights", "A is a knight", "A is a knave", False),
        ("knights", "who knows", "who knows", False),
        ("choice", "B", "B", True),
        ("choice", "B", "C", False),
        ("tools", CALL, '[{"Action_Input": {"a": 1.0}, "Action": "f"}]', True),
        ("tools", CALL, '[{"Action": "f", "Action_Input": {"a": 2}}]', False),
    ],
)
def test_votes_join_where_the_answers_are_the_same(name, one, other, same):
    with make_grader(Reward(name=name, workers=1)) as grader:
        assert grader.same(problem(name, "not read"), one, other) == same


@pytest.mark.parametrize(
    ("name", "gold"),
    [
        *(("math", gold) for gold in ("$", "\u202e42")),
        *(("knights", gold) for gold in ("42", "Ann is a hero", "Ann is a knight or a knave", "A", "")),
        *(("choice", gold) for gold in ("AB", "1", "A 2.5", "A: 2, B: 3", "")),
        *(("tools", gold) for gold in ("[]", "{}", "3", "f(1)", '["f"]', '[{"Action": "f"}]')),
        ("tools", '[{"Action": "f", "Action_Input": "{"}]'),
        ("tools", '[{"Action": "f", "Action_Input": "{} {}"}]'),
        ("tools", '[{"Action": "f", "Action_Input": [1]}]'),
        ("tools", '[{"Action": "two words", "Action_Input": {}}]'),
        ("tools", '[{"Action": 3, "Action_Input": {}}]'),
        ("tools", '[{"Action": "[Optional]f", "Action_Input": {}}]'),
        ("tools", '{"a":' * 100_000),
    ],
)
def test_a_gold_answer_that_a_verifier_cannot_use_has_a_fault(name, gold):
    assert "gold answer" in fault_of_gold(name, gold)
    assert fault_of_gold(name, GOLD.get(name, "3")) is None


def test_grading_loads_neither_jax_nor_sympy():
    code = "import sys, jopsd.rewards.grader; print('jax' in sys.modules, 'sympy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=runs.REPO, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"], done.stderr


def mixed_questions(count: int) -> list[tuple[str, Problem]]:
    """Completions for all five verifiers, right and wrong, of which one in three keeps a process busy."""
    golds = {**GOLD, "math": "x^2+2*x+1", "code": TESTS}
    made = []
    for number in range(count):
        name = ("math", "knights", "choice", "math", "tools", "code")[number % 6]
        right, wrong = {
            "math": (f"\\boxed{{(x+1)^2+{number}-{number}}}", f"\\boxed{{(x+1)^2+{number + 1}}}"),
            "code": (f"{RIGHT_PROGRAM[:-3]}# {number}\n```", f"{HALF_PROGRAM[:-3]}# {number}\n```"),
        }.get(name) or (RIGHT[name], WRONG[name])
        made.append((right if number % 5 else wrong, problem(name, golds[name])))
    return made


@needs_sandbox
@pytest.mark.parametrize("count", [240, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mixed_verifications_under_a_crash_every_hundred_are_all_answered_in_order_and_right(count):
    questions, kills = mixed_questions(count), 0
    with make_grader(Reward(name="auto", workers=2, seconds=60.0), [row for _, row in questions]) as grader:
        math, code = grader._markers["math"], grader._markers["code"]
        futures = [grader.submit(text, row) for text, row in questions]
        for number, future in enumerate(futures):
            if number % 100 == 50:
                turn = kills % 2
                alive = list(math._processes) if turn else list(code._sandboxes.values())
                victims = [p.process if turn else p._launcher for p in alive]
                victim = next((v for v in victims if v is not None and v.poll() is None), None)
                if victim is not None:
                    victim.kill()
                    kills += 1
            future.result()
        assert [f.result().correct for f in futures] == [bool(number % 5) for number in range(count)]
    assert kills >= count // 200
    mine = [p for p in descendants(os.getpid()) if "jopsd.rewards" in p]
    assert mine == []


def descendants(parent: int) -> list[str]:
    """Command lines of the processes below one."""
    known = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                above = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                known[int(entry.name)] = above, (entry / "cmdline").read_text().replace("\0", " ")
    found = {parent}
    for _ in range(len(known)):
        more = {number for number, (above, _) in known.items() if above in found} - found
        if not more:
            break
        found |= more
    return [known[number][1] for number in found - {parent}]


# ------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture
def refuse(tmp_path, capsys):
    """Runs a config that must be refused before anything compiles, and returns the error."""
    compiled = []
    note = lambda event, seconds, **details: compiled.append(event) if "backend_compile" in event else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(note)

    def run(**changes) -> str:
        assert train(["--config", str(write_config(tmp_path, train={"batch_size": 8}, **changes))]) == 1
        assert not compiled
        printed = capsys.readouterr().err
        assert printed.count("error: ") == 1 and "Traceback" not in printed
        return printed.partition("error: ")[2].strip()

    yield run
    jax.monitoring.unregister_event_duration_listener(note)


def quiz(gold: str) -> dict:
    return {"problem": "A or B?", "solution": "<answer>B</answer>", "answer": gold}


def test_programs_are_refused_at_the_start_where_they_cannot_be_kept_in(refuse, monkeypatch, tmp_path):
    monkeypatch.setattr("jopsd.rewards.code_pool.LAYERS", {"rlimits": "limits"})
    message = refuse(reward={"name": "code"})
    assert message.startswith("reward.name code runs programs that a model writes: this host cannot keep programs away")
    assert "reward.unsafe: true" in message
    row = {"data_source": "apps", "prompt": [{"role": "user", "content": "?"}], "reward_model": {"ground_truth": TESTS}}
    source = write_rows(tmp_path / "rows.jsonl", [{**row, "extra_info": {"solution": "s"}}] * 8)
    message = refuse(reward={"name": "auto"}, data={"source": str(source)}, eval=None)
    assert message.startswith("reward.name auto runs programs that a model writes")
    assert "`reward.name` = 'speech'" in refuse(reward={"name": "speech"})


@pytest.mark.parametrize("name", sorted(DIRECT))
def test_a_gold_answer_that_the_verifier_cannot_use_is_refused_with_its_row(refuse, tmp_path, name):
    good, bad = quiz(GOLD[name]), quiz("forty-two")
    source = write_rows(tmp_path / "rows.jsonl", [good, good, bad])
    message = refuse(data={"source": str(source)}, reward={"name": name})
    assert f"{source}, row 2 (counted from 0), field 'answer': gold answer 'forty-two'" in message
    assert f"reward.name is {name}" in message and "data.on_bad_row: skip" in message
    whole = write_rows(tmp_path / "whole.jsonl", [good])
    held_out = {"data": {"source": str(source)}}
    message = refuse(data={"source": str(whole)}, reward={"name": name}, eval=held_out)
    assert f"{source}, row 2" in message and "eval.data.on_bad_row: skip" in message
    source = write_rows(tmp_path / "rows.jsonl", [bad, bad])
    message = refuse(data={"source": str(source), "on_bad_row": "skip"}, reward={"name": name})
    assert f"{source}, row 0" in message


def test_rows_whose_data_set_names_no_verifier_have_that_of_their_source(tmp_path, refuse):
    silent = write_rows(tmp_path / "rows.jsonl", [{"problem": "1+1", "answer": "2", "solution": "2"}] * 8)
    puzzles = {"source": "knights:train", "limit": 8}
    message = refuse(data={"source": str(silent)}, reward={"name": "auto"}, eval=None)
    assert f"{silent}, row 0 (counted from 0), field 'verifier': its data set does not say" in message
    parts = [{"source": str(silent), "verifier": "math"}, puzzles | {"verifier": "math"}]
    mixed = {"source": None, "mix": parts, "max_prompt_tokens": 9999}
    config = write_config(tmp_path, data=mixed, reward={"name": "auto"}, eval=None)
    task = make_task(load_config(config, []))
    assert [item.problem.verifier for item in task.train] == ["math"] * 8 + ["knights"] * 8


PLAIN = {"name": "plain", "student_template": "Problem: {problem}", "instruction": ""}


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    """A run that learns by heart to answer B, graded by choice on four questions of which three have the answer B."""
    folder = tmp_path_factory.mktemp("quiz")
    rows = write_rows(folder / "rows.jsonl", [quiz("B")] * 8)
    test = write_rows(folder / "test.jsonl", [quiz("B"), quiz("b"), quiz("(B)"), quiz("A"), quiz("unknown")])
    config = write_config(
        folder,
        method={"name": "sft"},
        lora=None,
        context=PLAIN,
        data={"source": str(rows)},
        sampling={"n": 1},
        reward={"name": "choice"},
        optimizer={"learning_rate": 1e-3},
        train={"steps": 100},
        eval={
            "data": {"source": str(test), "on_bad_row": "skip"},
            "every": 100,
            "temperature": 0,
            "max_new_tokens": 30,
        },
        checkpoint={"every": 100},
    )
    runs.run(config, runs.environment())
    return folder / "run"


@pytest.mark.slow
def test_a_run_graded_by_choice_learns_what_mathematics_cannot_grade(taught):
    summary = json.loads((taught / "summary.json").read_text())
    assert (summary["base_accuracy"], summary["final_accuracy"]) == (0.0, 0.75)
    left_out = "skipped_rows/eval.data: answer: not one that choice can grade"
    assert set(runs.series(taught, left_out)) == {1}


@pytest.mark.slow
def test_an_evaluation_grades_as_its_run_did_unless_told_otherwise(taught, tmp_path, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", [quiz("B"), quiz("A"), quiz(" (b) ")])
    draw = ["--checkpoint", str(taught), "--data", str(rows), "--samples", "2", "--output", str(tmp_path / "eval")]
    assert evaluate(draw) == 0
    found = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert found["settings"]["reward"] == "choice"
    assert (found["average_at_n"], found["majority_vote_at_n"], found["formatted_count"]) == (4, 2, 6)
    assert {g["predicted_answer"] for row in found["results"] for g in row["generations"]} == {"B"}
    assert evaluate([*draw, "--reward", "math"]) == 1
    assert "another reward: 'choice' then, 'math' now" in capsys.readouterr().err
    write_rows(rows, [quiz("B"), quiz("AB")])
    assert evaluate([*draw[:-1], str(tmp_path / "other")]) == 1
    told = capsys.readouterr().err
    assert f"{rows}, row 1 (counted from 0), field 'answer': gold answer 'AB' is not the letter" in told


@pytest.mark.slow
def test_rollouts_of_a_method_that_learns_from_rewards_get_those_of_choice(taught, tmp_path):
    command = ["-m", "convert", "to-hf", "--from", str(taught), "--output", str(tmp_path / "model")]
    subprocess.run([sys.executable, *command], cwd=runs.REPO, env=runs.environment(), check=True, capture_output=True)
    rows = write_rows(tmp_path / "rows.jsonl", [quiz("B"), quiz("A"), quiz("unknown"), quiz("B"), quiz("b")])
    config = write_config(
        tmp_path,
        model={"path": str(tmp_path / "model")},
        method={"name": "grpo"},
        context=PLAIN,
        data={"source": str(rows), "on_bad_row": "skip"},
        sampling={"n": 2, "max_new_tokens": 30},
        reward={"name": "choice"},
        train={"steps": 1},
        log={"samples_every": 1, "samples": 8},
        eval=None,
    )
    runs.run(config, runs.environment())
    (samples,) = (tmp_path / "run" / "samples").iterdir()
    drawn = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(drawn) == 8 and {sample["problem_id"] for sample in drawn} == {"0", "1", "3", "4"}
    for sample in drawn:
        says_b = "<answer>B</answer>" in sample["completion"]
        assert sample["reward"] == (says_b and sample["problem_id"] != "1")
        assert (sample["prediction"] == "B") == says_b
    (row,) = runs.rows(tmp_path / "run")
    assert row["reward"] == sum(sample["reward"] for sample in drawn) / 8 >= 0.25
    assert row["skipped_rows/data: answer: not one that choice can grade"] == 1


@needs_sandbox
@pytest.mark.slow
def test_a_run_graded_by_running_programs_learns_one_by_heart_and_its_evaluation_agrees(tmp_path, capsys):
    extra = {"problem": "Add.", "solution": RIGHT_PROGRAM}
    row = {"data_source": "apps", "prompt": [{"role": "user", "content": "Add."}], "extra_info": extra}
    rows = write_rows(tmp_path / "rows.jsonl", [{**row, "reward_model": {"ground_truth": TESTS}}] * 8)
    other = json.dumps({"inputs": ["1 2"], "outputs": ["4"], "testtype": "stdin"})
    choice = {
        "data_source": "sciknoweval",
        "prompt": row["prompt"],
        "ability": "mcq",
        "reward_model": {"ground_truth": "A"},
    }
    held_out = [{**row, "reward_model": {"ground_truth": gold}} for gold in (TESTS, other)] + [choice]
    test = write_rows(tmp_path / "test.jsonl", held_out)
    config = write_config(
        tmp_path,
        method={"name": "sft"},
        lora=None,
        context=PLAIN,
        data={"source": str(rows)},
        sampling={"n": 1, "max_new_tokens": 60},
        reward={"name": "auto", "workers": 1},
        optimizer={"learning_rate": 1e-3},
        train={"steps": 100},
        eval={"data": {"source": str(test)}, "every": 100, "temperature": 0, "max_new_tokens": 60},
        checkpoint={"every": 100},
    )
    runs.run(config, runs.environment())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["base_accuracy"] == 0 and summary["final_accuracy"] == pytest.approx(1 / 3)
    output = ["--data", str(test), "--temperature", "0", "--samples", "1", "--output", str(tmp_path / "eval")]
    assert evaluate(["--checkpoint", str(tmp_path / "run"), *output]) == 0
    assert "programs run in a sandbox" in capsys.readouterr().err
    found = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert [row["num_correct"] for row in found["results"]] == [1, 0, 0]
