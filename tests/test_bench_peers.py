"""The side-by-side benchmark of sampling: its cases, its order, its arithmetic, and a whole quick run."""

import json
import sys
import textwrap

import pytest

from bench.peers import __main__ as bench
from bench.peers.works import WORKS, Case, batches_of, make_cases, make_prompts, ragged, shrunk, value, warm_lengths
from tests.runs import environment

# Answers without drawing anything: 0.5 s, 0.25 s, 0.5 s, ... of which 0.125 s are the base's.
STUB = """
import json, sys
for line in sys.stdin:
    question = json.loads(line)
    answer = {"seconds": 1.0}
    if "run" in question:
        base = 0.125 if case["base"] else 0.0
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
        for one in (case, shrunk(case)):
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
    assert value(case_of(work), 2.0) == expected


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
    assert {line.count("|") for line in lines if "decode" not in line} == {14}


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
