"""The side-by-side benchmark: its cases, its order, its arithmetic, and whole quick runs of our side."""

import json
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench.peers import __main__ as bench
from bench.peers import training
from bench.peers.ours_step import config_of
from bench.peers.sampling import WORKS, Case, batches_of, make_cases, make_prompts, ragged, repetitions, warm_lengths
from jopsd.config import validate_config
from tests.runs import environment

# Answers without drawing anything: 0.5 s, 0.25 s, 0.5 s, ... of which 0.125 s are the base's.
STUB = """
import json, sys
for line in sys.stdin:
    question = json.loads(line)
    answer = {"seconds": 1.0}
    if "run" in question:
        base = 0.125 if case.get("base") else 0.0
        wall = 0.5 if question["number"] % 2 else 0.25
        answer = {"wall": wall, "cpu": wall, "base_wall": base, "base_cpu": base}
        answer |= {"compile": 0, "peak_mb": 7.0, "others": 0}
    elif "case" in question:
        case = question["case"]
    print(json.dumps(answer), flush=True)
"""


def case_of(work: str) -> Case:
    return make_cases(work, "float32", "model", 128, 1024)[0]


@pytest.mark.parametrize("work", WORKS)
def test_a_case_fits_its_cache_also_when_shrunk(work):
    for case in make_cases(work, "bfloat16", "model", 128, 1024):
        for one in (case, case.shrunk()):
            assert one.prompt + max(one.new) <= one.max_length and 0 <= one.base < max(one.new)
            assert Case(**json.loads(json.dumps(one._asdict()))).dtype == "bfloat16"


def test_lengths_are_ragged_with_a_mean_of_0_28_of_the_longest():
    lengths = ragged(20_000, 1024)
    assert sum(lengths) / len(lengths) == pytest.approx(0.28 * 1024, rel=0.02) and max(lengths) == 1024
    assert ragged(128, 1024) == ragged(128, 1024) and min(ragged(128, 4)) == 1


def test_the_warm_up_is_as_uneven_but_shorter_and_has_the_longest_in_full():
    assert warm_lengths((10, 512, 1024, 1024)) == (2, 64, 1024, 128)
    assert warm_lengths((33, 33)) == (33, 33)


def test_prompts_are_the_same_for_both_sides_and_others_in_every_run():
    case = case_of("decode")
    assert make_prompts(case, 4) == make_prompts(case, 4) != make_prompts(case, 5)
    assert [len(prompt) for prompt in make_prompts(case, 4)] == [40] * 16
    assert [len(new) for _, new in batches_of(16, range(40), range(40))] == [16, 16, 8]


@pytest.mark.parametrize(("work", "expected"), [("decode", 1e3 * 2 / 32), ("generate", 64 * 32), ("prefill", 1600)])
def test_seconds_become_the_unit_of_the_case(work, expected):
    assert case_of(work).value(2.0) == expected


def test_ours_and_theirs_alternate_and_who_begins_changes():
    names = ("loop", "jetstream", "batches", "dynamic", "static")
    assert bench.order_of(names, 1) == ["loop", "dynamic", "jetstream", "static", "batches"]
    assert bench.order_of(names, 2) == ["dynamic", "loop", "static", "jetstream", "batches"]


def test_a_row_compares_our_loop_with_the_better_of_the_peer_and_takes_the_base_off():
    def replies(*walls):
        rest = {"cpu": 2.0, "base_cpu": 1.0, "compile": 0.0, "peak_mb": 1.0, "others": 0.0}
        return [{"wall": wall, "base_wall": base, **rest} for wall, base in walls]

    found = {"loop": replies((2.5, 0.5), (9, 1)), "dynamic": replies((1.5, 0.5), (1.5, 0.5)), "static": replies((5, 1))}
    row = bench.make_row(case_of("decode"), found, dict.fromkeys(found, 1.0))
    assert row["ratio"] == 0.5 and row["ratio_median"] == pytest.approx(1 / 5) and row["jetstream_over_loop"] is None
    assert row["entrants"]["static"]["best"] == 1e3 * 4 / 32 and row["entrants"]["loop"]["cpu_seconds"] == 1.0


def test_failures_and_then_the_slowest_come_first():
    def row(name, seconds):
        answer = {"wall": seconds, "base_wall": 0, "cpu": 1, "base_cpu": 0, "compile": 0, "peak_mb": 1, "others": 0}
        found = {"loop": [answer], "dynamic": [answer | {"wall": 1.0}]}
        return bench.make_row(case_of("prefill")._replace(name=name), found, dict.fromkeys(found, 1.0))

    broken = {**bench.titles(case_of("decode")), "error": "out of\nmemory"}
    lines = bench.make_table([row("faster", 0.5), row("slower", 4.0), row("slow", 2.0), broken]).splitlines()
    assert [line.split(",")[0] for line in lines[2:]] == [
        "| decode: SmolLM2", "| prefill: slower", "| prefill: slow", "| prefill: faster",
    ]  # fmt: skip
    assert lines[2].endswith("| out of |") and "0.25 (0.25; 1)" in lines[3]
    assert {line.count("|") for line in lines if "decode" not in line} == {10}  # no column of an absent entrant


def test_a_sampler_that_draws_too_little_is_no_repetition():
    case = case_of("generate")._replace(new=(4, 4), prompt=3)
    assert repetitions(lambda prompts, new, number: sum(new), case)(1).keys() == {"wall", "cpu"}
    with pytest.raises(ValueError, match="7 tokens were drawn, not 8"):
        repetitions(lambda prompts, new, number: sum(new) - 1, case)(1)


def test_what_a_repetition_tells_beside_its_time_stands_beside_it_as_a_median():
    def replies(wall, *firsts):
        rest = {"cpu": 1.0, "compile": 0, "peak_mb": 1, "others": 0}
        return [{"wall": wall, **rest, "first": first} for first in firsts]

    case = training.make_cases("step", "bfloat16", "model")[0]
    row = bench.make_row(
        case, {"jopsd": replies(4.0, 9.0, 30.0, 8.0), "trl": replies(2.0, 5.0)}, {"jopsd": 1, "trl": 1}
    )
    assert row["ratio"] == 0.5 and row["jetstream_over_loop"] is None
    table = bench.make_table([row])
    assert "| 4 (4; first 9) | 2 (2; first 5) | s | 0.5 (0.5; 1) |" in table and "JetStream" not in table


def test_rows_of_one_length_are_compared_with_ragged_ones():
    case = training.make_cases("update", "float32", "model")[-1]
    answer = {"wall": 3.0, "cpu": 1.0, "compile": 0, "peak_mb": 1, "others": 0}
    row = bench.make_row(case, {"jopsd": [answer], "equal": [answer | {"wall": 1.0}]}, {"jopsd": 1, "equal": 1})
    assert case.entrants == ("jopsd", "equal") and row["ratio"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("work", training.WORKS)
def test_a_training_case_goes_through_json_and_has_its_lengths_for_every_rollout(work):
    for case in training.make_cases(work, "bfloat16", "model"):
        for one in (case, case.shrunk()):
            again = training.Case(**json.loads(json.dumps(one._asdict())))
            assert again.shrunk().entrants == list(one.entrants) and again.value(2.0) in (2.0, 2e3)
            if work != "loss":
                assert len(one.student) == len(one.teacher) == len(one.new) and len(one.new) % one.micro == 0


@pytest.mark.parametrize("work", ["step", "update"])
def test_every_case_is_a_config_that_the_trainer_takes(work, tmp_path):
    for case in training.make_cases(work, "bfloat16", "model"):
        tree = config_of(case, "model", tmp_path / "rows.jsonl", tmp_path / "run", 3)
        config = validate_config(tree, "the case's config")
        assert config.rows_per_step == len(case.new) and (config.lora is None) == (case.lora == 0)


def test_ragged_rollouts_leave_about_a_fifth_of_the_columns_empty_and_equal_ones_have_as_many_tokens():
    small, _, large = training.make_cases("update", "float32", "model")
    for prompts in (small.student, small.teacher):
        real = sum(prompts) + sum(small.new)
        assert 0.75 < real / (len(prompts) * (max(prompts) + max(small.new))) < 0.9
    assert max(large.new) == 512 and np.mean(large.new) == pytest.approx(0.3 * 512, rel=0.1)
    one, equal = (training.make_tokens(large, 3, 4096, equal) for equal in (False, True))
    assert one == training.make_tokens(large, 3, 4096) != training.make_tokens(large, 4, 4096)
    for lengths in zip(*[[len(ids) for ids in tokens] for tokens in equal], strict=True):
        assert len(set(lengths)) == 1
    count = lambda tokens: sum(len(ids) for rollout in tokens for ids in rollout)  # noqa: E731
    assert count(equal) == pytest.approx(count(one), rel=0.01)
    assert max(max(ids) for rollout in training.make_tokens(large, 3, 40) for ids in rollout) < 40


def test_completions_end_only_by_length_where_a_case_says_so(tmp_path):
    fixed, ends = (case.shrunk() for case in training.make_cases("step", "float32", "model"))
    assert training.model_directory(ends, tmp_path) == ends.model
    made = tmp_path / "model"
    assert training.model_directory(fixed, tmp_path) == str(made)
    read = lambda folder, name: json.loads((folder / name).read_text())  # noqa: E731
    source, last = training.TOY_DIRECTORY, read(training.TOY_DIRECTORY, "tokenizer.json")["added_tokens"][-1]
    assert read(source, "generation_config.json")["eos_token_id"] != last["id"]
    assert {read(made, name)["eos_token_id"] for name in ("config.json", "generation_config.json")} == {last["id"]}
    assert read(made, "tokenizer_config.json")["eos_token"] == last["content"]
    assert (made / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_a_start_tells_its_first_step_apart_and_refuses_other_numbers_of_tokens():
    steps = [{"wall": wall, "cpu": 2 * wall, "sampling": 1.0, "tokens": 512} for wall in (90.0, 4.0, 6.0)]
    fixed, ends = training.make_cases("step", "float32", "model")
    found = training.step_answer(fixed, steps, 123.0)
    assert found == {"wall": 5, "cpu": 10, "first_ended": 123.0, "step": 5, "sampling": 1, "tokens": 512}
    assert training.step_answer(fixed, steps[:1], 1.0)["wall"] == 90
    steps[2]["tokens"] = 511
    assert training.step_answer(ends, steps, 1.0)["wall"] == pytest.approx(10 / 1023)
    with pytest.raises(ValueError, match=r"\[512, 512, 511\] tokens, not 512 each"):
        training.step_answer(fixed, steps, 1.0)


def test_values_are_rounded_to_the_nearest_bfloat16():
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32) * 100
    x[:4] = [1 + 2**-8, 1 + 3 * 2**-8, -0.0, 0.0]  # the first two lie in the middle
    np.testing.assert_array_equal(training.rounded_to_bfloat16(x), x.astype(jnp.bfloat16).astype(np.float32))


@pytest.mark.parametrize("alpha", [0, 1])
def test_the_exact_gradient_is_that_of_the_divergence(alpha):
    case = training.make_cases("loss", "bfloat16", "model")[0]
    case = case._replace(model={"vocab_size": 10_000, "hidden_size": 16}, new=(24,))
    inputs = training.loss_inputs(case)
    exact, divergence = training.exact_gradient(inputs, alpha, count=5)
    head = np.concatenate([block for _, block in inputs.head()])
    with jax.enable_x64(True):

        def loss(student):
            logs = (jax.nn.log_softmax(jnp.asarray(x, float) @ head.T) for x in (student, inputs.teacher))
            s, t = logs
            return (jnp.exp(t) * (t - s) if alpha == 0 else jnp.exp(s) * (s - t)).sum(-1)

        by_student = jax.grad(lambda x: loss(x).mean())(jnp.asarray(inputs.student, float))
        np.testing.assert_allclose(exact, by_student[:5], rtol=1e-9, atol=1e-14)
        assert divergence == pytest.approx(float(loss(inputs.student)[:5].mean())) and 2e-4 < divergence < 5e-3
    assert training.relative_error(np.asarray(by_student) * 1.5, exact) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="0 and 1 alone"):
        training.exact_gradient(inputs, 0.5)


@pytest.fixture
def peer(tmp_path, monkeypatch):
    """A peer's Python that runs the stub, whatever it is asked to run."""
    for name, content in environment().items():
        monkeypatch.setenv(name, content)
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(STUB)}")
    path.chmod(0o755)
    return path


def test_a_quick_run_of_our_worker_and_a_stub(tmp_path, peer, capsys):
    lines = tmp_path / "rows.jsonl"
    quick = ["--quick", "--dtypes", "float32", "--rounds", "2", "--peer-python", str(peer), "--json", str(lines)]
    assert bench.main([*quick, "--work", "decode", "tails"]) == 0
    decode, tails = (json.loads(line) for line in lines.read_text().splitlines())
    assert capsys.readouterr().out.count("\n| ") == 2 + 0
    assert set(tails["entrants"]) == {"loop", "jetstream", "batches", "dynamic", "static"}
    assert decode["entrants"]["dynamic"]["best_seconds"] == 0.125 and tails["entrants"]["static"]["peak_mb"] == 7
    assert tails["ratio"] == pytest.approx(0.25 / tails["entrants"]["loop"]["best_seconds"]) and tails["ratio"] > 0
    for name in ("loop", "jetstream", "batches"):
        assert tails["entrants"][name]["best"] > 0 and tails["entrants"][name]["peak_mb"] > 50


def test_quick_runs_of_our_updates_and_losses(tmp_path, peer):
    lines = tmp_path / "rows.jsonl"
    quick = ["--quick", "--rounds", "1", "--peer-python", str(peer), "--json", str(lines)]
    assert bench.main([*quick, "--work", "update", "--dtypes", "float32", "--only", "rollouts"]) == 0
    assert bench.main([*quick, "--work", "loss", "--entrants", "jopsd", "trl"]) == 0
    *updates, wide, narrow = (json.loads(line) for line in lines.read_text().splitlines())
    assert [set(row["entrants"]) for row in updates] == [{"jopsd", *training.THEIRS}] * 2 + [{"jopsd", "equal"}]
    assert all(row["ratio"] > 0 for row in updates)
    errors = [row["entrants"]["jopsd"]["more"]["gradient error"] for row in (wide, narrow)]
    assert errors[0] < 1e-3 < errors[1] < 1e-2  # float32; bfloat16, where what comes in is rounded alike in the oracle


def test_a_quick_run_of_our_trainer(tmp_path, peer):
    lines = tmp_path / "rows.jsonl"
    quick = ["--quick", "--rounds", "1", "--dtypes", "float32", "--only", "up to", "--json", str(lines)]
    assert bench.main([*quick, "--work", "step", "--peer-python", str(peer)]) == 0
    (row,) = (json.loads(line) for line in lines.read_text().splitlines())
    found = row["entrants"]["jopsd"]
    assert found["more"]["first"] > found["more"]["step"] > found["more"]["sampling"] > 0
    assert 0 < found["more"]["tokens"] <= 4 * 32 and found["warm_up_seconds"] > found["more"]["step"]
    assert found["best"] == pytest.approx(1e3 * found["more"]["step"] / found["more"]["tokens"])
    assert row["entrants"]["trl"]["best_seconds"] == 0.5


def test_a_worker_that_fails_is_a_row_of_its_own(tmp_path, peer, capsys):
    peer.write_text(f'#!{sys.executable}\nprint(\'{{"error": "no torch here"}}\')\n')
    arguments = ["--quick", "--work", "prefill", "--dtypes", "float32", "--entrants", "dynamic"]
    assert bench.main([*arguments, "--peer-python", str(peer)]) == 1
    assert "no torch here" in capsys.readouterr().out


def test_a_missing_environment_or_model_is_refused_before_anything_runs(tmp_path, peer, capsys):
    for arguments in (
        ["--peer-python", str(tmp_path / "none")],
        ["--peer-python", str(peer), "--model", str(tmp_path)],
    ):
        with pytest.raises(SystemExit):
            bench.main(arguments)
        assert "run bench/peers/setup.sh" in capsys.readouterr().err
