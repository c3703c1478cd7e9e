"""Runs whose teacher reads the group, follows the student, or is another model, each in a process of its own."""

import json
import math

import numpy as np
import pytest

from jopsd.data.sums import problems
from tests.runs import (
    TINY,
    assert_same_run,
    environment,
    kill_when,
    rows,
    run,
    series,
    write_config,
    write_rows,
)

HINTS = {
    "name": "hints",
    "negatives": 2,
    "student_template": "Problem: {problem}",
    "teacher_template": "Problem: {problem}\nReference Solution: {solution}",
    "instruction": "",
}
GROUPS = {
    "method": {"name": "rlcsd"},
    "context": HINTS,
    "teacher": {"kind": "ema", "decay": 0.5},
    "sampling": {"n": 4, "slots": 8},
    "train": {"steps": 3, "batch_size": 4, "mini_batch_size": 2, "micro_batch_size": 4},
}


@pytest.fixture(scope="module")
def env() -> dict[str, str]:
    return environment()


@pytest.fixture(scope="module")
def grouped(tmp_path_factory, env):
    """An undisturbed run of RLCSD: two updates per batch, a moving teacher that reads peers."""
    folder = tmp_path_factory.mktemp("grouped")
    run(write_config(folder, **GROUPS), env)
    return folder / "run"


def samples(run_dir, step: int = 1) -> list[dict]:
    return [json.loads(line) for line in (run_dir / f"samples/step_{step:06d}.jsonl").read_text().splitlines()]


def test_a_group_of_rollouts_is_shown_to_the_teacher_and_those_without_one_are_counted(tmp_path, env):
    train = {"steps": 1, "mini_batch_size": 4, "micro_batch_size": 8, "passes": 3}
    run(write_config(tmp_path, **GROUPS | {"train": train, "log": {"samples": 16}}), env)
    dumped, first = samples(tmp_path / "run"), next(row for row in rows(tmp_path / "run") if "loss" in row)
    assert len(dumped) == 16
    missing = {name.removeprefix("without_teacher/"): n for name, n in first.items() if name.startswith("without_")}
    assert sum(missing.values()) == sum(sample["without_teacher"] is not None for sample in dumped)
    assert 0 < sum(missing.values()) < 16, "this test needs groups of both kinds"
    trained = [sample for sample in dumped if sample["without_teacher"] is None]
    assert first["tokens"] == 3 * sum(sample["tokens"] for sample in trained), "gone through three times"
    for sample in trained:
        others = [s for s in dumped if s["problem_id"] == sample["problem_id"] and s is not sample]
        shown = sample["prompts"]["teacher"].partition("Reference Solution: ")[2].partition("<|im_end|>")[0]
        assert any(s["completion"] == shown and s["reward"] == 1 for s in others)
        for wrong in sample["prompts"]["negative"]:
            shown = wrong.partition("Reference Solution: ")[2].partition("<|im_end|>")[0]
            assert any(s["completion"] == shown and s["reward"] == 0 for s in others)


def test_several_updates_per_batch_of_rollouts_stay_finite_and_start_on_policy(grouped):
    losses = series(grouped, "loss")
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    assert max(series(grouped, "sampler_gap")) < 1e-4, "of the first update, where the policy is the sampler's"


@pytest.mark.slow
def test_a_killed_run_with_a_moving_teacher_and_several_updates_ends_in_the_same_bits(tmp_path, env, grouped):
    config = write_config(tmp_path, **GROUPS)
    saved = tmp_path / "run/checkpoints/1"
    assert kill_when(config, env, saved.is_dir)
    assert "resuming" in run(config, env) and "after step" in (config.with_suffix(".log")).read_text()
    assert_same_run(grouped, tmp_path / "run")


@pytest.mark.slow
def test_a_snapshot_teacher_is_the_fixed_one_until_it_is_taken(tmp_path, env):
    """With LoRA both start as the initial model; two updates per step, a snapshot after the third."""
    changes = GROUPS | {"method": {"name": "rlsd"}, "context": TINY["context"]}
    changes["train"] = GROUPS["train"] | {"steps": 3}
    run(write_config(tmp_path, "fixed", **changes | {"teacher": {"kind": "fixed"}}), env)
    run(write_config(tmp_path, "snapshot", **changes | {"teacher": {"kind": "snapshot", "every": 3}}), env)
    fixed, snapshot = (series(tmp_path / name, "loss") for name in ("fixed", "snapshot"))
    assert fixed[0] == snapshot[0]
    assert fixed[2] != snapshot[2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["live", "trust_region"])
def test_other_teacher_kinds_train(tmp_path, env, kind):
    changes = {"teacher": {"kind": kind}, "method": {"name": "sdpo"}, "context": {**HINTS, "negatives": 0}}
    run(write_config(tmp_path, **GROUPS | changes), env)
    assert np.isfinite(series(tmp_path / "run", "loss")).all()


def labelled(path, labels):
    table = [
        {"problem": p.problem, "answer": p.answer, "extra_info": {"opd_teacher": label}}
        for p, label in zip(problems("train", len(labels), 0), labels, strict=True)
    ]
    return str(write_rows(path, table))


OPD = {
    "method": {"name": "opd", "lam": 1.25},
    "context": {"name": "plain", "student_template": "Problem: {problem}", "instruction": ""},
    "teacher": {"kind": "external", "models": {"base": "builtin:sums", "expert": "builtin:sums_expert"}},
}


@pytest.mark.slow
def test_rows_go_to_the_teacher_of_their_label(tmp_path, env):
    """A row for the base has no advantage under lam 1.25 with the base as reference, whatever the expert says."""
    base = {"data": {"source": labelled(tmp_path / "base.jsonl", ["base"] * 4), "limit": None}}
    run(write_config(tmp_path, "only_base", **OPD | base | {"train": {"steps": 1}}), env)
    mixed = {"data": {"source": labelled(tmp_path / "mixed.jsonl", ["base", "expert"] * 2), "limit": None}}
    run(write_config(tmp_path, "mixed", **OPD | mixed | {"train": {"steps": 1}}), env)
    assert max(map(abs, series(tmp_path / "only_base", "loss"))) < 1e-5
    assert min(map(abs, series(tmp_path / "mixed", "loss"))) > 1e-4
