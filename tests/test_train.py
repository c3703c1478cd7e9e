"""A whole run in a process of its own: what it writes, what it computes, and that killing it changes nothing."""

import json
import math
import random
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from tests import runs
from tests.runs import TINY, assert_same_run, environment, kill_when, rows, run, series, write_config


@pytest.fixture(scope="module")
def tensorflow_trap(tmp_path_factory) -> Path:
    """A folder with a `tensorflow` that notes that somebody imported it."""
    folder = tmp_path_factory.mktemp("trap")
    (folder / "tensorflow").mkdir()
    note = f"open({str(folder / 'imported')!r}, 'w').close()"
    (folder / "tensorflow/__init__.py").write_text(f"{note}\nraise ImportError('a trap')\n")
    return folder


@pytest.fixture(scope="module")
def env(tensorflow_trap) -> dict[str, str]:
    return environment(PYTHONPATH=f"{runs.REPO}:{tensorflow_trap}")


@pytest.fixture(scope="module")
def base(tmp_path_factory, env) -> Path:
    """The directory of an undisturbed run."""
    folder = tmp_path_factory.mktemp("base")
    run(write_config(folder), env)
    return folder / "run"


def test_a_run_writes_its_metrics_summary_curve_config_samples_and_events(base):
    summary = json.loads((base / "summary.json").read_text())
    assert summary["method"] == "opsd" and summary["steps"] == 4 and summary["seconds"] > 0
    for moment in ("base", "final"):
        low, high = summary[f"{moment}_interval"]
        assert 0 <= low <= summary[f"{moment}_accuracy"] <= high <= 1
    assert (base / "curve.png").read_bytes().startswith(b"\x89PNG")
    resolved = yaml.safe_load((base / "config.yaml").read_text())
    assert resolved["optimizer"]["b1"] == 0.9 and resolved["train"]["steps"] == 4, "defaults are spelt out"
    assert sorted(p.name for p in (base / "samples").iterdir()) == [f"step_00000{i}.jsonl" for i in (1, 2, 4)]
    assert list((base / "tensorboard").glob("events.*"))
    assert sorted(p.name for p in (base / "checkpoints").iterdir()) == list("1234")


def test_metrics_are_finite_and_sampler_and_trainer_agree(base):
    assert [(row["step"], "loss" in row) for row in rows(base)] == [
        (0, False), (1, True), (2, True), (2, False), (3, True), (4, True), (4, False),
    ]  # fmt: skip
    assert all(math.isfinite(value) for row in rows(base) for value in row.values())
    assert max(series(base, "sampler_gap")) < 1e-4
    assert max(series(base, "sampler_gap_max")) < 1e-3
    assert min(series(base, "loss")) > 0
    assert series(base, "skipped_updates") == [0] * 4


def test_the_first_loss_equals_the_formula_on_the_logits_of_transformers(base):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from jopsd.data.sums import problems

    folder = runs.REPO / "jopsd/data/sums_base"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    solutions = {p.id: p.solution for p in problems("train", TINY["data"]["limit"], 0)}
    samples = [json.loads(line) for line in (base / "samples/step_000001.jsonl").read_text().splitlines()]
    assert len(samples) == 4

    def logprobs(text: str, completion: list[int]):
        prompt = tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits.double() / 1.1, -1)

    divergences, advantages = [], []
    for sample in samples:
        completion = tokenizer.encode(sample["completion"])
        if sample["finish"] == "eos":
            completion.append(tokenizer.eos_token_id)
        assert len(completion) == sample["tokens"]
        student = logprobs(f"Problem: {sample['problem']}", completion)
        reference = solutions[sample["problem_id"]]
        teacher = logprobs(f"Problem: {sample['problem']}\nReference Solution: {reference}", completion)
        divergences.append((student.exp() * (student - teacher)).sum(-1))
        index = torch.tensor(completion)[:, None]
        advantages.append((teacher - student).gather(-1, index)[:, 0])
    first = next(row for row in rows(base) if "loss" in row)
    np.testing.assert_allclose(first["loss"], torch.cat(divergences).mean(), rtol=2e-4)
    np.testing.assert_allclose(first["teacher_advantage"], torch.cat(advantages).mean(), rtol=2e-4)
    right = [s["prediction"] == str(sum(map(int, s["problem"].split("+")))) for s in samples]
    assert first["reward"] == np.mean(right)
    assert first["tokens"] == sum(map(len, divergences))


@pytest.mark.slow
def test_the_same_config_gives_the_same_bits_from_either_sampler_backend(tmp_path, env, base):
    run(write_config(tmp_path, "loop", sampling={"backend": "loop"}), env)
    assert_same_run(base, tmp_path / "loop")


@pytest.mark.slow
def test_the_same_run_twice_gives_the_same_bits_with_and_without_a_compilation_cache(tmp_path, env, base):
    compiled = lambda: set(Path(env["JAX_COMPILATION_CACHE_DIR"]).glob("jit__update-*"))  # noqa: E731
    before = compiled()
    run(write_config(tmp_path, "again"), env)
    assert before and compiled() == before, "the first run has kept its update, and the second has found it"
    run(write_config(tmp_path, "fresh"), env | {"JOPSD_COMPILE_CACHE": "off"})
    assert_same_run(base, tmp_path / "again")
    assert_same_run(base, tmp_path / "fresh")


def test_tensorflow_is_never_imported(base, tensorflow_trap):
    assert not (tensorflow_trap / "imported").exists()


# --------------------------------------------------------------------------------------------- other ways to train


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fixed", "live"])
def test_training_all_weights_starts_at_the_loss_of_lora_and_then_differs(tmp_path, env, base, kind):
    run(write_config(tmp_path, lora=None, teacher={"kind": kind}, optimizer={"learning_rate": 1e-4}), env)
    losses = series(tmp_path / "run", "loss")
    # A fresh adapter adds nothing, and a live teacher is the fixed one until the first update.
    assert losses[0] == pytest.approx(series(base, "loss")[0], rel=1e-5)
    assert losses[1] != pytest.approx(series(base, "loss")[1], rel=1e-3)
    assert np.isfinite(losses).all() and max(series(tmp_path / "run", "sampler_gap")) < 1e-4


@pytest.mark.slow
def test_a_run_starts_from_the_adapter_of_another_and_the_teacher_stays_the_base(tmp_path, env, base):
    from jopsd.models.families import FAMILIES
    from jopsd.models.peft import save_adapter
    from jopsd.policies import restore_policy

    save_adapter(restore_policy(base).policy.adapter, tmp_path / "adapter", FAMILIES["Qwen3ForCausalLM"].tensors)
    start = {"rank": 4, "alpha": 8, "path": str(tmp_path / "adapter")}
    run(write_config(tmp_path, "next", lora=start, train={"steps": 1}), env)
    first, last = rows(tmp_path / "next")[0], rows(base)[-1]
    assert first["step"] == 0 and last["step"] == 4
    assert {k: v for k, v in first.items() if k != "step"} == {k: v for k, v in last.items() if k != "step"}
    # On the first batch of the same seed, the loss is that of the adapter against the same base.
    assert 0 < series(tmp_path / "next", "loss")[0] < series(base, "loss")[0]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [{"rank": 4, "alpha": 8}, None], ids=["lora", "full"])
def test_an_int8_sampler_reports_its_gap_and_evaluation_reads_the_exact_weights(tmp_path, env, base, lora):
    text = run(write_config(tmp_path, lora=lora, train={"steps": 1}, sampling={"weights": "int8"}), env)
    assert "rollouts are drawn with int8 projections" in text
    [gap] = series(tmp_path / "run", "sampler_gap")
    assert max(series(base, "sampler_gap")) < 1e-4 < gap < 0.1
    assert rows(tmp_path / "run")[0] == rows(base)[0], "the first evaluation"


@pytest.mark.slow
def test_micro_batches_change_no_loss(tmp_path, env, base):
    run(write_config(tmp_path, train={"micro_batch_size": 1}), env)
    np.testing.assert_allclose(series(tmp_path / "run", "loss"), series(base, "loss"), rtol=1e-5)
    np.testing.assert_allclose(series(tmp_path / "run", "grad_norm"), series(base, "grad_norm"), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [TINY["lora"], None], ids=["lora", "full"])
def test_eight_devices_give_the_losses_of_one(tmp_path, env, base, lora):
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    calm = {"lora": lora, "optimizer": {"learning_rate": 1e-4}}
    run(write_config(tmp_path, "one", **calm), env)
    eight = environment(8, **{key: env[key] for key in env if key.startswith("JAX_")})
    run(write_config(tmp_path, "eight", mesh=mesh, **calm), eight)
    np.testing.assert_allclose(series(tmp_path / "eight", "loss"), series(tmp_path / "one", "loss"), rtol=1e-4)
    assert max(series(tmp_path / "eight", "sampler_gap")) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["completion", "all"])
def test_the_first_sft_loss_equals_the_cross_entropy_of_transformers(tmp_path, env, tokens):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from jopsd.data.sums import problems

    changes = {"method": {"name": "sft", "tokens": tokens}, "data": {"limit": 4}, "sampling": {"temperature": 0}}
    run(write_config(tmp_path, **changes, train={"steps": 2}), env)  # a batch is all four rows, in some order
    folder = runs.REPO / "jopsd/data/sums_base"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    losses = []
    for problem in problems("train", 4, 0):
        prompt = tokenizer.encode(f"<|im_start|>user\nProblem: {problem.problem}<|im_end|>\n<|im_start|>assistant\n")
        ids = torch.tensor([prompt + tokenizer.encode(problem.solution) + [tokenizer.eos_token_id]])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].double()
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
        if tokens == "completion":
            losses[-1] = losses[-1][len(prompt) - 1 :]
    first, second = series(tmp_path / "run", "loss")
    assert first == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)
    assert second < first
    assert series(tmp_path / "run", "tokens")[0] == sum(map(len, losses))


def test_pwopsd_trains_and_rows_left_out_are_counted_in_every_line(tmp_path, env):
    good = {"problem": "12+34+56", "solution": "12+34=46\n46+56=102\n\\boxed{102}", "answer": "102"}
    table = [good] * 3 + [{**good, "solution": None}] * 2 + [{**good, "solution": good["solution"] * 4}]
    source = runs.write_rows(tmp_path / "rows.jsonl", table)
    data = {"source": str(source), "on_bad_row": "skip", "on_long_prompt": "skip", "max_prompt_tokens": 100}
    text = run(write_config(tmp_path, data=data, method={"name": "pwopsd"}, train={"steps": 2}), env)
    assert "3 training and 4 held-out problems" in text
    (bad,) = (name for name in rows(tmp_path / "run")[1] if name.startswith("skipped_rows/data: solution: "))
    assert series(tmp_path / "run", bad) == [2, 2]
    assert series(tmp_path / "run", "skipped_rows/data: teacher prompt over 100 tokens") == [1, 1]
    assert f"left out: 2 rows, {bad.removeprefix('skipped_rows/')}" in text
    assert np.isfinite(series(tmp_path / "run", "loss")).all()


# ------------------------------------------------------------------------------------------------ killed and resumed


def partial_checkpoint(run_dir: Path, step: int) -> bool:
    """Whether the checkpoint of a step is being written at this moment."""
    return any((run_dir / "checkpoints").glob(f"{step}.orbax-checkpoint-tmp*"))


def rows_written(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_run_killed_before_and_while_it_saves_ends_with_the_same_bits(tmp_path, env, base):
    config, run_dir = write_config(tmp_path), tmp_path / "run"
    # After the evaluation of step 0 was logged: there is no checkpoint yet, so all is done again.
    assert kill_when(config, env, lambda: rows_written(run_dir) > 0)
    assert not (run_dir / "checkpoints/1").exists()
    assert kill_when(config, env, lambda: partial_checkpoint(run_dir, 3))
    assert (run_dir / "checkpoints/2").exists() and not (run_dir / "checkpoints/3").exists()
    text = run(config, env)
    assert f"resuming {run_dir} after step 2" in text
    assert_same_run(base, run_dir)
    assert not list((run_dir / "checkpoints").glob("*tmp*"))
    assert json.loads((run_dir / "summary.json").read_text())["resumed_after_step"] == 2


def test_a_disk_without_room_for_a_checkpoint_is_one_line_with_both_sizes(tmp_path, monkeypatch):
    import jax.numpy as jnp

    from jopsd import checkpoint

    free = [10**9]
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free[0]))
    with checkpoint.open_checkpoints(tmp_path) as manager:
        checkpoint.save(manager, 1, {"x": jnp.zeros(1_000_000)}, {})
        free[0] = 2_500_000
        with pytest.raises(
            checkpoint.CheckpointError, match=r"save step 2 .* needs 4.0 MB and the disk has 2.5 MB free"
        ):
            checkpoint.save(manager, 2, {"x": jnp.zeros(1_000_000)}, {})
        assert manager.all_steps() == [1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tmp_path, env, base, seed):
    config, run_dir = write_config(tmp_path), tmp_path / "run"
    draw, kills = random.Random(seed), 0
    for _ in range(6):
        already, after = rows_written(run_dir), draw.randint(0, 2)
        delay, since = draw.uniform(0, 0.3), []

        def moment(already=already, after=after, delay=delay, since=since):
            if rows_written(run_dir) != already or after == 0:  # started again, rows may be dropped first
                since.append(time.monotonic())
            return bool(since) and time.monotonic() - since[0] >= delay + after * 0.2

        kills += kill_when(config, env, moment)
    run(config, env)
    assert kills >= 2
    assert_same_run(base, run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_run_killed_while_it_writes_any_checkpoint_ends_with_the_same_bits(tmp_path, env, base, step):
    config, run_dir = write_config(tmp_path), tmp_path / "run"
    assert kill_when(config, env, lambda: partial_checkpoint(run_dir, step))
    run(config, env)
    assert_same_run(base, run_dir)


def test_a_finished_run_says_so_a_longer_one_goes_on_and_another_method_is_refused(tmp_path, env):
    short = {"train": {"steps": 1}, "eval": {"every": 9}}
    config, run_dir = write_config(tmp_path, **short), tmp_path / "run"
    run(config, env)
    before, summary = rows(run_dir), (run_dir / "summary.json").read_text()
    text = run(config, env)
    assert (run_dir / "summary.json").read_text() == summary
    assert f"{run_dir} is already trained to step 1; to go on, raise train.steps" in text
    assert rows(run_dir) == before

    text = run(write_config(tmp_path, **short, method={"name": "pwopsd"}), env, fails=True)
    assert error_line(text).startswith(f"error: {run_dir} holds a run with another config: method.name was 'opsd', now")
    assert rows(run_dir) == before

    text = run(write_config(tmp_path, **short), env, "train.steps=2", "optimizer.learning_rate=1e-3")
    assert "resuming" in text and "changed optimizer.learning_rate: 0.005 -> 0.001" in text
    assert rows(run_dir)[: len(before)] == before
    assert [row["step"] for row in rows(run_dir)] == [0, 1, 1, 2, 2]
    assert series(run_dir, "learning_rate")[-1] == pytest.approx(1e-3)


# ----------------------------------------------------------------------------------------- a run that cannot go on


def error_line(text: str) -> str:
    """The one line that says what went wrong; a traceback is a failure."""
    assert "Traceback" not in text, text
    (line,) = (line for line in text.splitlines() if line.startswith("error: "))
    return line


def test_a_loss_that_is_not_finite_stops_the_run_saves_it_and_may_be_skipped_afterwards(tmp_path, env):
    wild = {"optimizer": {"learning_rate": 1e30}, "lora": None, "eval": None, "train": {"steps": 4}}
    config, run_dir = write_config(tmp_path, **wild), tmp_path / "run"
    line = error_line(run(config, env, fails=True))
    assert line.startswith("error: step 2: the loss or its gradient is not finite")
    assert "train.on_nonfinite: skip" in line
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == ["1", "2"]
    assert rows(run_dir)[-1]["skipped_updates"] == 1

    text = run(config, env, "train.on_nonfinite=skip")
    assert "changed train.on_nonfinite: 'error' -> 'skip'" in text
    assert series(run_dir, "skipped_updates") == [0, 1, 2, 3]
    first, last = (runs.checkpoint_arrays(run_dir, step) for step in (1, 4))
    for name in first:
        if "trainable" in name:
            np.testing.assert_array_equal(first[name], last[name], err_msg="a bad update was applied")


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error_and_the_run_resumes_from_the_checkpoint_before(tmp_path, env, base):
    config, run_dir = write_config(tmp_path), tmp_path / "run"
    assert kill_when(config, env, lambda: partial_checkpoint(run_dir, 3))
    # A limit on file sizes stands in for a disk that fills up while a checkpoint is written.
    text = run(config, env, fails=True, file_limit=100_000)
    (line,) = (line for line in text.splitlines() if line.startswith("error: "))  # amid what orbax's threads print
    assert line.startswith(f"error: could not save step 3 to {run_dir / 'checkpoints'}")
    assert "File too large" in line and "the checkpoint of step 2 is intact" in line and "start again" in line
    assert f"resuming {run_dir} after step 2" in run(config, env)
    assert_same_run(base, run_dir)
