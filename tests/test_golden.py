"""Our losses and documents against what the published code gave: every case of both golden directories."""

import json
from collections import Counter
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest

from jopsd.methods import Opsd
from tests.golden.__main__ import ADAPTERS, Entry, check, main, read_entries
from tests.golden.documents import DOCUMENTS, importance_tables

GOLDEN = Path(__file__).parent / "golden"
# Documents that other tests read.
NO_CHECKER = {"a": {"rollout_alignment"}, "b": {"mopd_analysis_metrics"}}
EQUAL = {"a": 57, "b": 97}
INFORMATIONAL = {"a": {"opsd_bf16_logits_beta0_clip005", "opsd_bf16_logits_beta05"}, "b": set()}

CASES = [(folder, entry) for folder in ("a", "b") for entry in read_entries(GOLDEN / folder)]
verdict = cache(lambda folder, stem: check(next(e for f, e in CASES if f == folder and e.file.stem == stem)))


def expected(folder: str, stem: str) -> str:
    if stem in NO_CHECKER[folder]:
        return "skip"
    return "info" if stem in INFORMATIONAL[folder] else "ok"


def by_cost():
    """A second each: some of every kind, the others in the slow tests."""
    seen = Counter()
    for folder, entry in CASES:
        seen[folder, entry[1]] += 1
        slow = seen[folder, entry[1]] > 4 and entry[1] != "document"
        yield pytest.param(folder, entry.file.stem, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(("folder", "stem"), by_cost())
def test_a_golden_case_comes_out_as_the_published_code_computed_it(folder, stem):
    outcome = verdict(folder, stem)
    assert outcome.status == expected(folder, stem), outcome.detail


@pytest.mark.parametrize("folder", ["a", "b"])
def test_no_golden_case_is_lost(folder):
    expectations = [expected(folder, entry.file.stem) for f, entry in CASES if f == folder]
    assert expectations.count("ok") == EQUAL[folder]
    files = {file.stem for file in (GOLDEN / folder).iterdir()} - {"manifest"}
    assert files == {entry.file.stem for f, entry in CASES if f == folder}


def test_a_wrong_loss_or_gradient_fails(tmp_path):
    entry = next(e for _, e in CASES if e.file.stem == "rlcsd_small_gap")
    with np.load(entry.file) as stored:
        arrays = dict(stored)
    for key in ("loss", "grad_student_logits"):
        np.savez(tmp_path / "wrong.npz", **{**arrays, key: arrays[key] + 1e-6})
        assert check(entry._replace(file=tmp_path / "wrong.npz")).status == "FAIL"
    np.savez(tmp_path / "right.npz", **arrays)
    assert check(entry._replace(file=tmp_path / "right.npz")).status == "ok"


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_every_document_that_has_a_checker_is_in_a_golden_directory(name):
    assert name in {entry.file.stem for _, entry in CASES}


def test_a_wrong_table_of_weights_has_a_fault():
    entry = next(e for _, e in CASES if e.file.stem == "rollout_correction_gopd")
    with np.load(entry.file) as stored:
        arrays = dict(stored)
    for key in ("w_sequence_5p0_bn", "rsmask_geometric_2p0"):
        wrong = arrays | {key: arrays[key] + np.where(np.arange(arrays[key].size) == 3, 0.5, 0).reshape(6, 17)}
        with jax.enable_x64(True):
            faults = importance_tables(wrong)
        assert len(faults) == 1 and key in faults[0]


def test_wrong_advantages_have_a_fault():
    document = json.loads((GOLDEN / "a" / "grpo_advantages.json").read_text())
    document["cases"][1]["advantages"][0] += 1e-4
    assert len(DOCUMENTS["grpo_advantages"](document)) == 1


@pytest.mark.parametrize("flag", ["correct", "formatted"])
def test_a_sample_that_was_graded_otherwise_has_faults(flag):
    document = json.loads((GOLDEN / "a" / "eval_aggregation.json").read_text())
    flags = document["runs"]["opsd_eval_n4"]["per_problem"][0][flag]
    flags[0] = not flags[0]
    faults = DOCUMENTS["eval_aggregation"](document)
    assert faults and all("opsd_eval_n4" in fault for fault in faults)


def test_a_bootstrap_of_another_seed_has_faults(monkeypatch):
    document = json.loads((GOLDEN / "b" / "validation_metrics_rlcsd.json").read_text())
    monkeypatch.setattr("eval.metrics.BOOTSTRAP_SEED", 43)
    faults = DOCUMENTS["validation_metrics_rlcsd"](document | {"bootstrap": {"n": 1000, "seed": 43, "replace": True}})
    assert {fault.split("@")[0] for fault in faults} == {"best", "worst"}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"loss_agg_mode": "median"}, "median"),
        ({"micro_batch_size": 2}, "micro_batch_size 2"),
        ({"multi_teacher_distill": True, "opd_teacher": ["math"] * 6, "kl_loss_coef": 0.1}, "kl_loss_coef"),
        ({"lambda_vals": -1.0}, "greater than or equal to 0"),
    ],
)
def test_a_case_that_cannot_be_read_is_skipped_with_the_key_and_never_passed(change, key):
    entry = next(e for _, e in CASES if e.file.stem == "gopd_exopd_125")
    outcome = check(entry._replace(hyperparameters=entry.hyperparameters | change))
    assert outcome.status == "skip" and key in outcome.detail


def test_a_file_that_the_manifest_names_and_that_is_not_here_is_skipped(tmp_path):
    assert check(Entry(tmp_path / "gone.npz", "rlsd", {})).status == "skip"


@pytest.mark.parametrize("layout", ["files", "cases"])
def test_both_manifest_layouts_are_read_and_json_beside_them_too(tmp_path, layout, capsys):
    entry = next(e for _, e in CASES if e.file.stem == "rlsd_default")
    (tmp_path / "rlsd_default.npz").write_bytes(entry.file.read_bytes())
    (tmp_path / "grpo_advantages.json").write_bytes((GOLDEN / "a" / "grpo_advantages.json").read_bytes())
    case = {"method": "rlsd", "hyperparameters": entry.hyperparameters}
    named = {"rlsd_default.npz": case} if layout == "files" else {"any": case | {"file": "rlsd_default.npz"}}
    (tmp_path / "manifest.json").write_text(json.dumps({layout: named}))
    assert main([str(tmp_path)]) == 0
    assert "2 equal, 0 different, 0 informational, 0 skipped" in capsys.readouterr().out


def test_a_step_level_case_without_stored_steps_is_the_plain_one_and_with_them_too():
    entry = next(e for _, e in CASES if e.file.stem == "sdpo_alpha025")
    with np.load(entry.file) as stored:
        arrays = dict(stored)
    published = entry.hyperparameters | {"step_level_kl": True}
    steps = np.cumsum(np.random.default_rng(0).integers(0, 2, arrays["response_mask"].shape), axis=1)
    without, given = (ADAPTERS["sdpo_mopd"](published, x) for x in (arrays, arrays | {"step_ids": steps}))
    np.testing.assert_array_equal(without.batch["steps"], 0)
    np.testing.assert_array_equal(given.batch["steps"], steps)
    assert check(entry._replace(hyperparameters=published)).status == "ok"


def test_stored_weights_without_the_sampler_become_its_log_probabilities():
    entry = next(e for _, e in CASES if e.file.stem == "opsd_default")
    with np.load(entry.file) as stored:
        arrays = dict(stored)
    weights = np.random.default_rng(0).uniform(0.1, 2, arrays["responses"].shape)
    case = ADAPTERS["opsd"](
        entry.hyperparameters | {"rollout_is_threshold": 2.0}, arrays | {"rollout_is_weights": weights}
    )
    assert isinstance(case.method, Opsd) and case.method.correction.threshold == 2.0
    gap = case.batch["old_logprobs"] - case.batch["sampler_logprobs"]
    np.testing.assert_allclose(np.exp(gap)[case.mask], weights[case.mask], rtol=1e-12)
