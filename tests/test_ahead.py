"""Rollouts drawn one step ahead, while the update before them runs."""

import json
import signal
import time

import pytest

from jopsd.config import ConfigError, load_config
from tests.runs import assert_same_run, environment, kill_when, rows, run, start, write_config

AHEAD = {
    "method": {"name": "opsd", "alpha": 1.0, "temperature": 1.0, "correction": {"threshold": 2.0}},
    "train": {"steps": 6},
    "checkpoint": {"every": 4},
    "eval": None,
    "log": {"samples_every": 1, "samples": 1, "tensorboard": False},
}


def ahead(folder, name="ahead", **changes):
    return write_config(folder, name, **{**AHEAD, **changes}, sampling={"ahead": 1})


def versions(run_dir):
    """The policy version of each step's rollouts."""
    files = sorted((run_dir / "samples").glob("step_*.jsonl"))
    return [json.loads(file.read_text().splitlines()[0])["policy_version"] for file in files]


@pytest.fixture(scope="module")
def drawn_ahead(tmp_path_factory):
    config = ahead(tmp_path_factory.mktemp("ahead"))
    run(config, environment())
    return config.with_suffix("")


def test_rollouts_are_one_version_old_but_after_a_checkpoint(drawn_ahead):
    # Step 1 has nothing before it; step 5 comes after the checkpoint of step 4, which nothing is drawn across.
    assert versions(drawn_ahead) == [0, 0, 1, 2, 4, 4]
    assert [row["step"] for row in rows(drawn_ahead)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_killed_run_drawn_ahead_goes_on_to_the_same_bits(drawn_ahead, tmp_path):
    config = ahead(tmp_path)
    metrics = config.with_suffix("") / "metrics.jsonl"
    assert kill_when(config, environment(), lambda: metrics.exists() and '"step": 5,' in metrics.read_text())
    run(config, environment())
    assert_same_run(config.with_suffix(""), drawn_ahead)


@pytest.mark.slow
def test_where_the_weights_stand_still_it_is_the_same_run_as_on_policy(tmp_path):
    still = {"optimizer": {"learning_rate": 1e-30}}
    late = ahead(tmp_path, **still)
    now = write_config(tmp_path, "now", **AHEAD, **still)
    run(late, environment())
    run(now, environment())
    assert versions(now.with_suffix("")) == [0, 1, 2, 3, 4, 5]
    assert rows(late.with_suffix("")) == rows(now.with_suffix(""))


@pytest.mark.slow
def test_full_training_ahead_draws_from_a_copy_that_the_update_does_not_overwrite(tmp_path):
    config = ahead(tmp_path, lora=None, optimizer={"learning_rate": 1e-4})
    run(config, environment())
    assert versions(config.with_suffix("")) == [0, 0, 1, 2, 4, 4]


@pytest.mark.slow
def test_told_to_end_it_throws_away_what_was_drawn_ahead(tmp_path):
    config = ahead(tmp_path)
    process, metrics = start(config, environment()), config.with_suffix("") / "metrics.jsonl"
    while not (metrics.exists() and '"step": 2,' in metrics.read_text()):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=100) == 0
    run(config, environment())
    assert [row["step"] for row in rows(config.with_suffix(""))] == [1, 2, 3, 4, 5, 6]


def test_without_a_correction_it_is_refused(tmp_path):
    config = ahead(tmp_path, method={"name": "opsd", "alpha": 1.0, "temperature": 1.0})
    with pytest.raises(ConfigError, match="rollouts of older weights; set method.correction"):
        load_config(config)


def test_over_several_devices_of_this_process_it_is_refused(tmp_path):
    config = ahead(tmp_path)
    assert "needs a single device, not 2" in run(config, environment(2), fails=True)
