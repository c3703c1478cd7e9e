"""`python -m eval`: whole evaluations against what a run logged and against an undisturbed one; bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from eval.__main__ import main
from eval.options import Options, complete
from eval.report import NO_ANSWER
from eval.subject import find_subjects
from jopsd.config import ConfigError, load_config
from jopsd.sampling import Request, SamplingParams

REPO = Path(__file__).resolve().parent.parent
GOLDEN = json.loads((REPO / "tests" / "golden" / "eval.json").read_text())
FAST = {"XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"}
ROWS, SAMPLES = 16, 4
DRAW = ["--data", "sums:test", "--limit", ROWS, "--data-seed", 1, "--samples", SAMPLES, "--top-p", 1]
DRAW += ["--max-new-tokens", 44, "--slots", 4]


def evaluation(*argv) -> list[str]:
    return [sys.executable, "-m", "eval", *map(str, argv)]


def run(*command) -> None:
    subprocess.run(list(map(str, command)), cwd=REPO, env=os.environ | FAST, check=True, capture_output=True)


def lines_of(folder: Path) -> list[bytes]:
    path = folder / "generations.jsonl"
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def by_sample(folder: Path) -> dict:
    rows = [json.loads(line) for line in lines_of(folder)]
    found = {(row["row"], row["sample"]): row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of two steps that evaluates itself on the problems of DRAW."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny = ["train.steps=2", "train.batch_size=4", "data.limit=16", "sampling.slots=4", "sampling.chunk=16"]
    evals = [f"eval.data.limit={ROWS}", f"eval.samples={SAMPLES}", "eval.data.seed=1"]
    config = ["--config", "configs/quickstart.yaml", *tiny, *evals, f"output_dir={folder}"]
    run(sys.executable, "-m", "jopsd.train", *config)
    return folder


@pytest.fixture(scope="module")
def undisturbed(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evals") / "undisturbed"
    run(*evaluation("--checkpoint", trained, *DRAW, "--output", folder))
    return folder


# ---------------------------------------------------------------------------------------------------------- whole runs


def test_a_checkpoint_scores_what_its_run_logged_for_the_same_problems_and_seed(trained, undisturbed):
    logged = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in logged if "eval/accuracy" in row][-1]
    found = json.loads((undisturbed / "results.json").read_text())
    assert found["settings"]["step"] == 2
    assert found["average_at_n_pct"] == pytest.approx(100 * last["eval/accuracy"])
    assert found["mean_tokens"] == pytest.approx(last["eval/length"])
    low, high = found["intervals_95_pct"]["average_at_n"]
    assert [low, high] == pytest.approx([100 * last["eval/accuracy_low"], 100 * last["eval/accuracy_high"]])


def test_sampling_parameters_left_open_are_those_of_the_run(trained, tmp_path):
    given = Options(data="sums:test", output=tmp_path, samples=1, checkpoint=str(trained), temperature=0.5)
    (filled, _), of_run = complete(given), load_config(trained / "config.yaml").eval
    assert (filled.temperature, filled.max_new_tokens) == (0.5, of_run.max_new_tokens)
    assert (filled.top_p, filled.top_k) == (of_run.top_p, of_run.top_k) == (1.0, 0)
    bare, _ = complete(Options(data="sums:test", output=tmp_path, samples=1, model="builtin:sums"))
    assert (bare.temperature, bare.top_p, bare.top_k, bare.max_new_tokens) == (1.0, 0.95, 0, 1024)


def test_a_preset_fills_what_is_left_open_and_brings_its_benchmarks(tmp_path):
    filled, preset = complete(Options(output=tmp_path, model="builtin:sums", preset="pw-opsd", top_p=0.8))
    assert (filled.samples, filled.seeds, filled.temperature, filled.top_p) == (12, (0, 1, 2), 1.0, 0.8)
    assert (filled.max_new_tokens, filled.thinking) == (38912, True)
    assert filled.benchmarks == preset.benchmarks == ("math500", "aime24", "aime25", "hmmt25_feb")


def test_a_sweep_is_the_base_and_the_checkpoints_and_a_run_is_read_as_it_reads(trained, tmp_path):
    options, _ = complete(Options(output=tmp_path, data="sums:test", samples=1, checkpoints=trained, every=5))
    subjects = find_subjects(options)
    assert [subject.step for subject in subjects] == [0, 2]
    assert {subject.context.student_template for subject in subjects} == {"Problem: {problem}"}
    with pytest.raises(ConfigError, match="none does not exist"):
        find_subjects(Options(output=tmp_path, data="sums:test", samples=1, checkpoints=tmp_path / "none"))


def test_results_have_the_published_names_in_order_and_follow_from_the_generations(undisturbed):
    found = json.loads((undisturbed / "results.json").read_text())
    case = GOLDEN["evaluators"]["pwopsd_eval_n4"]
    assert [key for key in found if key in case["keys"]] == case["keys"]
    assert len(found["results"]) == found["num_problems"] == ROWS
    counts, majority = Counter(), 0
    for problem in found["results"]:
        assert set(case["result_keys"]) == set(problem)
        assert problem["ground_truth"] == str(sum(map(int, problem["problem"].split("+"))))
        for sample in problem["generations"]:
            boxed = sample["full_generation"].rpartition("\\boxed{")
            answer = boxed[2].partition("}")[0] if boxed[1] else NO_ANSWER
            assert sample["predicted_answer"] == answer
            assert sample["formatted"] == bool(boxed[1])
            assert sample["correct"] == (answer == problem["ground_truth"])
        flags = [sample["correct"] for sample in problem["generations"]]
        votes = Counter(sample["predicted_answer"] for sample in problem["generations"])
        assert problem["majority_vote_correct"] == (max(votes, key=votes.get) == problem["ground_truth"])
        assert (problem["num_correct"], problem["pass_at_n"]) == (sum(flags), any(flags))
        counts.update(flags)
        majority += problem["majority_vote_correct"]
    assert found["average_at_n"] == counts[True]
    assert found["majority_vote_at_n"] == majority
    assert found["total_solutions"] == ROWS * SAMPLES == counts.total()
    assert 0 < counts[True] < counts.total()


def test_an_evaluation_killed_midway_ends_with_the_samples_of_an_undisturbed_one(trained, undisturbed, tmp_path):
    command = evaluation("--checkpoint", trained, *DRAW, "--output", tmp_path)
    process = subprocess.Popen(command, cwd=REPO, env=os.environ | FAST, stderr=subprocess.DEVNULL)
    while len(lines_of(tmp_path)) < 7 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = [line for line in lines_of(tmp_path) if line.endswith(b"\n")]
    kept = [json.loads(line) for line in kept[: ROWS * SAMPLES // 2]]  # where the signal came late
    saved = kept[0]["completion"]
    kept[0]["completion"] = "as it was saved"
    lines = [json.dumps(row) + "\n" for row in kept]
    (tmp_path / "generations.jsonl").write_text("".join(lines) + '{"row": 3, "sam')
    run(*command)
    # What was there is kept, not drawn again; all else is what an undisturbed evaluation has, in the same order.
    assert by_sample(tmp_path)[kept[0]["row"], kept[0]["sample"]] == kept[0]
    for name in ("generations.jsonl", "results.json"):
        found = (tmp_path / name).read_text()
        assert found.count("as it was saved") in (1, 2)
        assert found.replace("as it was saved", json.dumps(saved)[1:-1]) == (undisturbed / name).read_text()


def test_a_finished_evaluation_is_reported_again_without_drawing(trained, undisturbed, capsys):
    before = lines_of(undisturbed)
    assert main([str(part) for part in ["--checkpoint", trained, *DRAW, "--output", undisturbed]]) == 0
    told = capsys.readouterr()
    found = json.loads((undisturbed / "results.json").read_text())
    assert f"Avg@4         {found['average_at_n_pct']:7.2f} %   95 % interval" in told.out
    assert "Problem: " in told.err  # the header shows a prompt, and the run's own template
    assert "Please reason" not in told.err
    assert lines_of(undisturbed) == before


# ---------------------------------------------------------------------------------------------------------- bad input


def error_of(capsys, *argv) -> str:
    assert main([str(part) for part in argv]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def write_rows(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_other_settings_in_the_same_folder_are_an_error_that_names_them(trained, undisturbed, capsys):
    changed = ["--checkpoint", trained, *DRAW, "--output", undisturbed]
    assert "another temperature: 1.0 then, 0.5 now" in error_of(capsys, *changed, "--temperature", 0.5)
    assert "another seed: 0 then, 7 now" in error_of(capsys, *changed, "--seed", 7)
    assert "another thinking: None then, False now" in error_of(capsys, *changed, "--thinking", "off")


def test_rows_that_changed_since_are_an_error(tmp_path, capsys):
    out, data = tmp_path / "out", tmp_path / "rows.jsonl"
    (out).mkdir()
    (out / "settings.json").write_text(json.dumps({"prompts_and_answers_sha256": "other"}))
    write_rows(data, {"problem": "1+1", "answer": "2"})
    told = error_of(capsys, "--model", "builtin:sums", "--data", data, "--samples", 1, "--output", out)
    assert "prompts_and_answers_sha256" in told


def test_bad_input_is_one_line_that_names_it(trained, tmp_path, capsys):
    model, out = ["--model", "builtin:sums"], ["--samples", 1, "--output", tmp_path / "out"]
    sums = ["--data", "sums:test", "--limit", 2]
    rows = write_rows(tmp_path / "rows.jsonl", {"problem": "1+1", "answer": "2"}, {"problem": "1+2", "gold": "3"})
    cases = {
        "give --model, or the --checkpoint": [*sums, *out],
        "--model '/none' is not a directory": ["--model", "/none", *sums, *out],
        "has no checkpoint of step 9; complete ones: [2]": ["--checkpoint", f"{trained}:9", *sums, *out],
        f"--checkpoint {tmp_path} is a folder without config.yaml": ["--checkpoint", tmp_path, *sums, *out],
        f"--checkpoints {tmp_path}/no does not exist": ["--checkpoints", tmp_path / "no", *sums, *out],
        "'/none.jsonl' does not exist": [*model, "--data", "/none.jsonl", *out],
        "row 1 (counted from 0), field 'answer'": [*model, "--data", rows, *out],
        "fix: --column answer=NAME": [*model, "--data", rows, *out],
        "column 'gone' is missing": [*model, "--data", rows, *out, "--column", "answer=gone"],
        "--column 'answer' must look like": [*model, *sums, *out, "--column", "answer"],
        "unknown placeholder {solutoin}": [*model, *sums, *out, "--template", "{problem} {solutoin}"],
        "must not read {solution}": [*model, *sums, *out, "--template", "{problem} {solution}"],
        "top_p must be above 0": [*model, *sums, *out, "--top-p", 0],
        "max_new_tokens must be at least 1": [*model, *sums, *out, "--max-new-tokens", 0],
        "--samples must be at least 1, got 0": [*model, *sums, "--samples", 0, "--output", tmp_path / "out"],
        "--seed and --data-seed": [*model, *sums, *out, "--seed", -1],
    }
    for part, argv in cases.items():
        assert part in error_of(capsys, *argv)
    assert not (tmp_path / "out").exists()


def test_a_damaged_line_is_named_and_a_second_writer_refused(tmp_path, capsys):
    import fcntl

    argv = ["--model", "builtin:sums", "--data", "sums:test", "--limit", 1, "--samples", 1, "--output", tmp_path]
    (tmp_path / "generations.jsonl").write_text("{}\n")
    assert "has generations.jsonl but no settings.json" in error_of(capsys, *argv)
    (tmp_path / "generations.jsonl").unlink()
    from eval.records import open_records

    for damage in ("{}\n", '{"row": 0\n'):
        (tmp_path / "generations.jsonl").unlink(missing_ok=True)
        (tmp_path / "settings.json").unlink(missing_ok=True)
        with open_records(tmp_path, {"seed": 0}):
            pass
        (tmp_path / "generations.jsonl").write_text(damage)
        with pytest.raises(ValueError, match="line 1 is damaged"), open_records(tmp_path, {"seed": 0}):
            pass
    with open(tmp_path / "generations.jsonl", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another evaluation is writing"):
            with open_records(tmp_path, {"seed": 0}):
                pass


def test_a_folder_in_which_nothing_was_drawn_takes_other_settings(tmp_path):
    from eval.records import Record, claim_server, open_records, read_folder
    from jopsd.sampling.wire import Description

    served = Description("a", 128, 64, 4, 8, 0, "one")
    for tokens in (44, 40):
        with open_records(tmp_path, {"max_new_tokens": tokens}, [{"problem": str(tokens)}]) as (records, add):
            assert records == {}
            claim_server(tmp_path, served._replace(fingerprint=str(tokens)))
            if tokens == 40:
                add(Record(0, 0, "0", True, True, "1", "eos", 3, "x"))
    settings, problems, records = read_folder(tmp_path)
    assert (settings, problems, len(records)) == ({"max_new_tokens": 40}, [{"problem": "40"}], 1)
    with pytest.raises(ValueError, match="another max_new_tokens: 40 then, 44 now"):
        with open_records(tmp_path, {"max_new_tokens": 44}):
            pass


def test_rates_are_of_the_whole_time_that_was_spent_drawing(monkeypatch):
    from eval import progress
    from eval.records import Record

    clock = iter([100.0, 150.0, 150.0, 160.0])  # the start; two samples that finish together; the last
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines = []
    with progress.show_progress({}, 4, lines.append) as advance:
        for number in range(3):
            advance(Record(number, 0, "0", True, True, "1", "eos", 500, "x"))
    assert "10 tok/s" in lines[0] and "about 150 s left" in lines[0]  # 500 tokens, one sample in 50 s
    assert "25 tok/s" in lines[-1] and "about 5 s left" in lines[-1]  # 1500 in 60 s; two samples in the last 10 s


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["compar", "x"], "did you mean compare?"),
        (["--model", "none", "--benchmark", "aime2024", "--output", "o"], "--samples"),
        (["--model", "none", "--benchmark", "aime2024", "--output", "o"], "did you mean aime24?"),
        (["--model", "none", "--benchmark", "aime2024", "--output", "o"], "--model 'none' is not a directory"),
    ],
)
def test_all_that_is_wrong_with_the_names_is_said_at_once(capsys, argv, told):
    assert main(argv) != 0
    assert told in capsys.readouterr().err


def test_a_request_refuses_samples_it_does_not_have():
    params = SamplingParams(4)
    assert Request((1,), 4, 0, params, indices=(0, 3)).indices == (0, 3)
    for indices in ((4,), (-1,), (1, 1)):
        with pytest.raises(ValueError, match="indices must be different"):
            Request((1,), 4, 0, params, indices=indices)
