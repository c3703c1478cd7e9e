"""`python -m eval compare`: tables against numbers by hand, from small results.json trees written here."""

import csv
import io
import json
import statistics
from itertools import product
from pathlib import Path

import pytest

from eval import compare as command
from eval.comparison import compare
from eval.curves import draw, lines
from eval.metrics import avg_at_n
from eval.read_results import CLUSTERS, STRING, find, read, split_column
from eval.report import NO_ANSWER
from eval.scores import tabulate

GOLDEN = json.loads((Path(__file__).parent / "golden" / "eval.json").read_text())
# Four problems, two samples: Avg@2 5/8, Pass@2 3/4.
BASE = [[1, 1], [1, 0], [0, 0], [1, 1]]
BETTER = [[1, 1], [1, 1], [1, 0], [1, 1]]


def result(key, flags, gold="7", majority=None, predictions=None, **extra) -> dict:
    answers = predictions or [gold if flag else "8" for flag in flags]
    generations = [
        {
            "predicted_answer": NO_ANSWER if answer is None else answer,
            "full_generation": "...",
            "correct": bool(flag),
            "formatted": answer is not None,
        }
        | {name: values[i] for name, values in extra.items()}
        for i, (flag, answer) in enumerate(zip(flags, answers, strict=True))
    ]
    majority = bool(flags[0]) if majority is None else majority
    return {
        "problem_id": key,
        "ground_truth": gold,
        "generations": generations,
        "majority_vote_correct": majority,
    }


def content(results, model="models/base", seed: int | None = 0, **keys) -> dict:
    """What the published evaluators write."""
    n = len(results[0]["generations"])
    correct = [[g["correct"] for g in r["generations"]] for r in results]
    return {
        "base_model": model,
        "dataset": "aime24",
        "enable_thinking": True,
        "temperature": 1.0,
        "top_p": 0.95,
        "top_k": -1,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "max_new_tokens": 1024,
        "val_n": n,
        **({} if seed is None else {"seed": seed}),
        "num_problems": len(results),
        "pass_at_n": sum(map(any, correct)),
        "average_at_n": sum(map(sum, correct)),
        "majority_vote_at_n": sum(r["majority_vote_correct"] for r in results),
        **keys,
        "results": results,
    }


def write(folder: Path, correct, benchmark="aime24", model="models/base", step=None, checkpoint=None, seed=0, **keys):
    """An evaluation of ours. correct: flags per problem, or finished results."""
    rows = [result(f"p{i}", row) if isinstance(row, list) else row for i, row in enumerate(correct)]
    own = {"model": model, "checkpoint": checkpoint, "step": step, "benchmark": benchmark, "data": "somewhere.jsonl"}
    own |= {"max_length": None, "reward": "math", "template": None, "limit": None} | keys.pop("settings", {})
    keys = {"majority_vote_at_n_method": CLUSTERS} | keys
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    path.write_text(json.dumps(content(rows, model, seed, settings=own, **keys)))
    return path


def told(*argv) -> str:
    return command.main(list(map(str, argv)))


def cells(text: str) -> dict[str, dict[str, str]]:
    """The first Markdown table: by name of row, then column."""
    grid = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.split("\n\n")[0].splitlines()]
    head, _, *rows = grid
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def score(table, row, column):
    return table.scores[row][column]


# ------------------------------------------------------------------------------------------------------------ tables


def test_rows_are_labels_and_columns_are_benchmark_parts(tmp_path):
    write(tmp_path / "a" / "aime24" / "seed_0", BASE)
    write(tmp_path / "a" / "math500" / "seed_0", [[1, 0], [0, 0]], "math500")
    write(tmp_path / "b", BETTER, model="models/other")
    text = told(f"base={tmp_path / 'a'}", f"other={tmp_path / 'b' / 'results.json'}", "--metric", "avg")
    # Avg@2 and its interval by hand: shares 1, .5, 0, 1 have mean .625 and variance .2291667
    half = 100 * 1.959964 * (0.2291666667 / 4) ** 0.5
    assert cells(text) == {
        "base": {
            "aime24": f"62.50 ({62.5 - half:.1f} to 100.0)",
            "math500": "25.00 (0.0 to 74.0)",  # shares .5 and 0: half 1.959964 * sqrt(.125 / 2) = .49
        },
        "other": {"aime24": "87.50 (63.0 to 100.0)", "math500": "-"},
    }


def test_each_metric_equals_its_count_by_hand(tmp_path):
    rows = [
        result("p0", [1, 0, 0], predictions=["7", "8", "8"], majority=False, finish=["eos", "length", "eos"]),
        result("p1", [1, 0, 1], predictions=["7", None, "7.0"], majority=True, finish=["eos", "length", "eos"]),
        result("p2", [0, 0, 0], predictions=["8", None, None], majority=False, finish=["length", "eos", "eos"]),
    ]
    for row, lengths in zip(rows, ([10, 20, 30], [1, 2, 3], [4, 5, 6]), strict=True):
        for generation, length in zip(row["generations"], lengths, strict=True):
            generation["tokens"] = length
    write(tmp_path, rows)
    evaluations = find([str(tmp_path)]).evaluations
    expected = {
        "avg": 100 * 3 / 9,
        "pass": 100 * 2 / 3,
        "maj": 100 / 3,
        "maj-string": 100 / 3,  # p0: 8 wins; p1: 7 and 7.0 are tied and 7 is first; p2: 8
        "format": 100 * 6 / 9,
        "truncated": 100 * 3 / 9,
        "tokens": 81 / 9,
        "pass@1": 100 * 3 / 9,
        "pass@2": 100 * (2 / 3 + 1 + 0) / 3,  # of the three pairs of p0 two hold its correct sample, of p1 all three
    }
    for metric, value in expected.items():
        table = tabulate(compare(evaluations).rows, metric)
        assert score(table, "base", "aime24").value == pytest.approx(value, abs=1e-9), metric


def test_a_metric_that_a_file_does_not_know_is_left_out_not_zero(tmp_path):
    write(tmp_path, BASE)
    assert cells(told(tmp_path, "--metric", "truncated"))["base"]["aime24"] == "-"
    assert cells(told(tmp_path, "--metric", "tokens"))["base"]["aime24"] == "-"


def test_an_unknown_metric_lists_the_known_ones(tmp_path):
    write(tmp_path, BASE)
    with pytest.raises(ValueError, match=r"'best' is not one of avg, pass, maj.*pass@K, best@K"):
        told(tmp_path, "--metric", "best")


def test_more_samples_than_there_are_is_an_error_for_pass_at_k_and_fine_for_the_bootstrap(tmp_path):
    path = write(tmp_path, [[1, 0], [0, 0]])
    with pytest.raises(ValueError, match="pass@3 needs at least 3 samples") as error:
        told(tmp_path, "--metric", "pass@3")
    assert str(path) in str(error.value)
    (table,) = compare(find([str(tmp_path)]).evaluations, ("best@3",)).tables
    # Three draws of two samples, one of them right: 1 - (1/2)^3, and nothing of the other problem.
    assert score(table, "base", "aime24").value == pytest.approx(100 * 7 / 8 / 2, abs=2)


def test_seeds_share_a_cell_with_their_mean_sample_deviation_and_an_interval_over_all_samples(tmp_path):
    flags = [BASE, BETTER, [[0, 0], [1, 0], [0, 0], [1, 1]]]
    for seed, own in enumerate(flags):
        write(tmp_path / "aime24" / f"seed_{seed}", own, seed=seed)
    (table,) = compare(find([str(tmp_path)]).evaluations).tables
    cell = score(table, "base", "aime24")
    each = [62.5, 87.5, 37.5]
    assert cell.value == pytest.approx(statistics.mean(each))
    assert cell.std == pytest.approx(statistics.stdev(each)) == pytest.approx(25.0)
    assert cell.by_seed == pytest.approx(dict(enumerate(each)))
    shares = [4 / 6, 4 / 6, 1 / 6, 1.0]  # each problem's six samples are one cluster
    half = 195.9964 * (statistics.variance(shares) / 4) ** 0.5
    assert cell.low == pytest.approx(62.5 - half, abs=1e-3)
    assert cell.high == pytest.approx(62.5 + half, abs=1e-3)
    assert cells(told(tmp_path, "--metric", "avg"))["base"]["aime24"].startswith("62.50 ± 25.00 (")


def test_one_seed_has_the_interval_of_its_results_and_no_deviation(tmp_path):
    write(tmp_path, BASE)
    (table,) = compare(find([str(tmp_path)]).evaluations).tables
    cell = score(table, "base", "aime24")
    assert cell.std is None
    assert (cell.low, cell.high) == pytest.approx(tuple(100 * x for x in avg_at_n(BASE)[1:]))


def test_the_same_evaluation_twice_is_an_error_that_names_both_files(tmp_path):
    first, second = write(tmp_path / "one", BASE), write(tmp_path / "two", BASE)
    with pytest.raises(ValueError, match="both with seed 0") as error:
        told(first, second)
    assert str(first) in str(error.value) and str(second) in str(error.value)


def test_seeds_with_other_settings_or_problems_are_no_cell(tmp_path):
    write(tmp_path / "one", BASE)
    hot = write(tmp_path / "two", BASE, seed=1, temperature=0.6)
    with pytest.raises(ValueError, match="differ in temperature"):
        told(tmp_path)
    hot.unlink()
    write(tmp_path / "two", [result(f"q{i}", row) for i, row in enumerate(BASE)], seed=1)
    with pytest.raises(ValueError, match="other problems or answers"):
        told(tmp_path)


def test_one_label_for_two_models_is_an_error(tmp_path):
    write(tmp_path / "one", BASE)
    write(tmp_path / "two", BASE, model="models/other")
    with pytest.raises(ValueError, match="label 'x' covers models/base and models/other"):
        told(f"x={tmp_path}")


def test_rows_without_a_label_have_the_shortest_name_that_tells_them_apart(tmp_path):
    for i, run in enumerate(("runs/a/out", "runs/b/out", "runs/c")):
        write(tmp_path / str(i), BASE, checkpoint=run, step=100)
    assert list(cells(told(tmp_path))) == ["a/out step 100", "b/out step 100", "c step 100"]


def test_a_wide_table_lies_on_its_side(tmp_path):
    for i in range(9):
        write(tmp_path / str(i), BASE, benchmark=f"bench{i}")
    turned = cells(told(tmp_path, "--metric", "avg"))
    assert list(turned) == [*(f"bench{i}" for i in range(9)), "average"]
    assert all(list(row) == ["base"] for row in turned.values())


# ---------------------------------------------------------------------------------------------------------- averages


def polymath(folder: Path, language: str, percent: dict[str, int], **keys) -> None:
    """One sample of a hundred problems each, so many of them correct."""
    for level, correct in percent.items():
        flags = [[int(i < correct)] for i in range(100)]
        write(folder / f"{language}-{level}", flags, f"polymath-{language}-{level}", **keys)


def test_difficulty_weighted_accuracy_is_there_for_languages_with_all_levels(tmp_path):
    polymath(tmp_path, "sw", {"low": 80, "medium": 60, "high": 40, "top": 20})
    polymath(tmp_path, "te", {"low": 80, "medium": 60})
    (table,) = compare(find([str(tmp_path)]).evaluations).tables
    own = table.scores["base"]
    assert own["polymath-sw DW-ACC"].value == pytest.approx((80 + 2 * 60 + 4 * 40 + 8 * 20) / 15)
    halves = [195.9964 * (p * (1 - p) / 100) ** 0.5 for p in (0.8, 0.6, 0.4, 0.2)]  # Wald's, near Wilson's here
    half = sum((w / 15 * h) ** 2 for w, h in zip((1, 2, 4, 8), halves, strict=True)) ** 0.5
    assert (own["polymath-sw DW-ACC"].high - own["polymath-sw DW-ACC"].low) / 2 == pytest.approx(half, rel=0.1)
    assert "polymath-te DW-ACC" not in own
    assert own["polymath-low mean"].value == pytest.approx(80) and own["polymath-medium mean"].low is None
    assert "polymath-high mean" not in own
    assert list(table.columns)[:6] == [
        *(f"polymath-sw-{k}" for k in ("low", "medium", "high", "top")),
        *table.columns[4:6],
    ]


def test_means_over_languages_take_those_that_all_rows_have_and_say_which(tmp_path):
    levels = ("low", "medium", "high", "top")
    polymath(tmp_path / "a", "sw", dict.fromkeys(levels, 50))
    polymath(tmp_path / "a", "te", dict.fromkeys(levels, 70))
    polymath(tmp_path / "a", "bn", dict.fromkeys(levels, 10))
    polymath(tmp_path / "b", "sw", dict.fromkeys(levels, 20), model="other")
    polymath(tmp_path / "b", "te", dict.fromkeys(levels, 40), model="other")
    comparison = compare(find([f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}"]).evaluations)
    (table,) = comparison.tables
    assert score(table, "a", "polymath DW-ACC mean").value == pytest.approx(60)
    assert score(table, "b", "polymath DW-ACC mean").value == pytest.approx(30)
    assert "polymath DW-ACC mean: over the languages that all rows have: sw, te" in comparison.notes


def test_the_average_weighs_benchmarks_equally_over_those_that_all_rows_have(tmp_path):
    for name, percent in (("a", (10, 40, 90)), ("b", (30, 50, None))):
        for benchmark, correct in zip(("aime24", "math500", "amc23"), percent, strict=True):
            if correct is not None:
                size = 20 if benchmark == "aime24" else 100
                flags = [[int(i < correct * size // 100)] for i in range(size)]
                write(tmp_path / name / benchmark, flags, benchmark, model=name)
    comparison = compare(find([str(tmp_path)]).evaluations)
    (table,) = comparison.tables
    assert score(table, "a", "average").value == pytest.approx(25)
    assert score(table, "b", "average").value == pytest.approx(40)
    parts = [score(table, "a", name) for name in ("aime24", "math500")]
    half = sum(((p.high - p.value) / 2) ** 2 for p in parts) ** 0.5  # below the half, Wilson's upper side is wider
    assert score(table, "a", "average").high == pytest.approx(25 + half)
    assert any("over the benchmarks that all rows have: math500; aime24;" in note for note in comparison.notes)


def test_the_average_has_the_deviation_of_the_seeds_own_averages(tmp_path):
    percent = {"aime24": (10, 20, 60), "math500": (50, 30, 40)}
    for benchmark, seed in product(percent, range(3)):
        flags = [[int(i < percent[benchmark][seed])] for i in range(100)]
        write(tmp_path / benchmark / str(seed), flags, benchmark, seed=seed)
    (table,) = compare(find([str(tmp_path)]).evaluations).tables
    assert score(table, "base", "average").std == pytest.approx(statistics.stdev([30, 25, 50]))


def test_a_benchmark_with_several_parts_counts_once_in_the_average(tmp_path):
    polymath(tmp_path, "sw", {"low": 10, "medium": 30})
    write(tmp_path / "aime24", [[1], [1], [1], [0]])
    (table,) = compare(find([str(tmp_path)]).evaluations).tables
    assert score(table, "base", "average").value == pytest.approx((20 + 75) / 2)


@pytest.mark.parametrize(
    "column, parts",
    [
        ("aime24", ("aime24", None, None)),
        ("afrimgsm-swa", ("afrimgsm", "swa", None)),
        ("polymath-sw-low", ("polymath", "sw", "low")),
        ("sciknoweval_biology", ("sciknoweval_biology", None, None)),
        ("my-rows.jsonl", ("my-rows.jsonl", None, None)),
    ],
)
def test_parts_have_a_benchmark_a_language_and_a_level(column, parts):
    assert split_column(column) == parts


# ------------------------------------------------------------------------------------------------- paired comparisons


def test_a_row_is_compared_with_the_baseline_problem_by_problem(tmp_path):
    write(tmp_path / "base", BASE)
    shuffled = [result(f"p{i}", BETTER[i]) for i in (2, 0, 3, 1)]  # matched by id, not by order
    write(tmp_path / "better", shuffled, model="models/better")
    runs = [f"{name}={tmp_path / name}" for name in ("base", "better")]
    (found,) = compare(find(runs).evaluations, baseline="base").differences
    changes = [0, 0.5, 0.5, 0]
    half = 195.9964 * (statistics.variance(changes) / 4) ** 0.5
    assert (found.row, found.baseline, found.column, found.problems) == ("better", "base", "aime24", 4)
    assert found.difference == pytest.approx(25)
    assert (found.low, found.high) == pytest.approx((25 - half, 25 + half), abs=1e-3)
    assert (found.better, found.worse, found.equal) == (2, 0, 2)
    # Of the four ways to sign two differing problems, two are as far from nought as this one.
    assert found.p_value == pytest.approx(0.5)


def test_paired_comparisons_take_all_seeds_and_follow_the_metric(tmp_path):
    for seed in range(2):
        write(tmp_path / "a" / str(seed), BASE, seed=seed)
        write(tmp_path / "b" / str(seed), BETTER if seed else BASE, model="b", seed=seed)
    found = compare(find([str(tmp_path)]).evaluations, ("avg", "pass"), baseline="base").differences
    assert [(each.metric, each.difference) for each in found] == [
        ("avg", pytest.approx(12.5)),
        ("pass", pytest.approx(12.5)),
    ]


def test_other_problems_than_the_baselines_are_an_error_that_counts_the_common_ones(tmp_path):
    write(tmp_path / "a", BASE)
    rows = [result(f"p{i}", flags, gold="7" if i else "5") for i, flags in enumerate(BETTER[:3])]
    write(tmp_path / "b", rows, model="models/b")
    runs = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(
        ValueError, match="aime24: 3 problems of b, 4 of base, 2 the same.*1 with .* another answer.*--comm"
    ):
        told(*runs, "--baseline", "base")
    text = told(*runs, "--baseline", "base", "--common", "--metric", "avg")
    assert "+50.00 (" in text  # p1 and p2: from 1/2 and 0 to 1 and 1/2
    assert "2 the same in id and answer" in text
    write(tmp_path / "b", [result(f"q{i}", flags) for i, flags in enumerate(BETTER)], model="models/b")
    with pytest.raises(ValueError, match="0 the same in id and answer; evaluate both on the same problems"):
        told(*runs, "--baseline", "base", "--common")


def test_the_baseline_is_a_row_a_label_or_a_path(tmp_path):
    write(tmp_path / "a", BASE)
    write(tmp_path / "b", BETTER, model="models/b", checkpoint="runs/b", step=5)
    runs = [f"first={tmp_path / 'a'}", f"second={tmp_path / 'b'}"]
    evaluations = find(runs).evaluations
    for baseline in ("second", "second step 5", str(tmp_path / "b"), str(tmp_path / "b" / "results.json"), runs[1]):
        (found,) = compare(evaluations, baseline=baseline).differences
        assert (found.row, found.baseline, found.difference) == ("first", "second step 5", pytest.approx(-25))
    with pytest.raises(ValueError, match="'third' is no row; the rows are: first; second step 5"):
        compare(evaluations, baseline="third")


# --------------------------------------------------------------------------------------------------------- footnotes


def test_settings_that_differ_are_named_under_the_table_with_their_places(tmp_path):
    write(tmp_path / "a", BASE)
    write(tmp_path / "b", [[*row, 0] for row in BASE], model="b", temperature=0.6, max_new_tokens=2048)
    write(tmp_path / "c", BASE, "math500", max_new_tokens=2048, majority_vote_at_n_method=STRING)
    text = told(tmp_path, "--metric", "avg", "maj")
    assert cells(text)["base"]["aime24"] == "62.50 (15.6 to 100.0)"
    assert "Avg@N" in text.splitlines()[0]
    for note in (
        "val_n is not the same: 3 (b); 2 (base)",
        "temperature is not the same: 0.6 (b); 1.0 (base)",
        "max_new_tokens is not the same: 1024 (base on aime24); 2048 (base on math500, b on aime24)",
        f"majority rule is not the same: {STRING} (math500); {CLUSTERS} (aime24)",
    ):
        assert f"- {note}" in text
    assert "- All: top_p 0.95, top_k off, " in text
    assert "majority rule" not in told(tmp_path, "--metric", "avg")


def test_settings_of_a_benchmark_are_compared_within_its_column(tmp_path):
    write(tmp_path / "a", BASE, settings={"reward": "math"})
    write(tmp_path / "b", BASE, "kk_9", settings={"reward": "kk"})
    assert "reward" not in told(tmp_path)
    write(tmp_path / "c", BASE[:3], model="c", settings={"reward": "gopd", "limit": 3})
    text = told(tmp_path)
    assert "- reward is not the same in aime24: math (base); gopd (c)" in text
    assert "- num_problems is not the same in aime24: 4 (base); 3 (c)" in text
    assert "- limit is not the same in aime24: none (base); 3 (c)" in text


def test_one_setting_that_is_out_of_line_is_named_against_all_others(tmp_path):
    for i in range(4):
        for benchmark in ("aime24", "math500"):
            keys = {"max_new_tokens": 64} if (i, benchmark) == (2, "math500") else {}
            write(tmp_path / str(i) / benchmark, BASE, benchmark, model=f"m{i}", **keys)
    assert "- max_new_tokens is not the same: 64 (m2 on math500); 1024 (all others)" in told(tmp_path)


def test_unequal_numbers_of_seeds_are_named(tmp_path):
    for seed in range(2):
        write(tmp_path / "a" / str(seed), BASE, seed=seed)
    write(tmp_path / "b", BASE, model="b")
    assert "- number of seeds is not the same: 2 (base); 1 (b)" in told(tmp_path)


# -------------------------------------------------------------------------------------------------- files and folders


@pytest.mark.parametrize("name", GOLDEN["evaluators"])
def test_files_of_the_published_evaluators_are_read_with_their_own_numbers(name, tmp_path):
    case = GOLDEN["evaluators"][name]
    rows = [
        {
            "problem_id": i,
            "ground_truth": each["gold"],
            "majority_vote_correct": each["majority_vote_correct"],
            "generations": [
                {"predicted_answer": p, "full_generation": "", "correct": c, "formatted": f}
                for p, c, f in zip(each["predicted"], each["correct"], each["formatted"], strict=True)
            ],
        }
        for i, each in enumerate(case["per_problem"])
    ]
    path = tmp_path / "qwen3_aime25_38k.json"
    path.write_text(json.dumps(case["summary"] | {"results": rows}))
    evaluation = read(path)
    assert (evaluation.column, evaluation.step, evaluation.model) == ("aime25", None, "m")
    assert evaluation.seed == case["summary"].get("seed")
    rows = compare([evaluation]).rows
    named = {
        "avg": "average_at_n_pct",
        "pass": "pass_at_n_pct",
        "maj": "majority_vote_at_n_pct",
        "format": "format_rate",
    }
    for metric, key in named.items():
        assert score(tabulate(rows, metric), "m", "aime25").value == pytest.approx(case["summary"][key]), key
    if len(evaluation.ids) > 1:
        assert evaluation.majority_rule == (CLUSTERS if name.startswith("pwopsd") else STRING)


@pytest.mark.parametrize(
    "keys, column",
    [
        ({"dataset": "hmmt25"}, "hmmt25_feb"),
        ({"dataset": "amo-bench"}, "amo_bench"),
        ({"dataset": "polymath", "language": "SW", "polymath_split": "low"}, "polymath-sw-low"),
        ({"dataset": "afrimgsm", "dataset_config": "swa", "language": "SWA", "afrimgsm_split": "test"}, "afrimgsm-swa"),
    ],
)
def test_published_names_of_benchmarks_become_ours(keys, column, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content([result(3, [1])], **keys)))
    assert read(path).column == column


def test_published_seeds_under_one_label_are_seeds_of_one_cell(tmp_path):
    for seed, flags in enumerate((BASE, BETTER)):
        rows = [result(i, row) for i, row in enumerate(flags)]
        (tmp_path / f"opsd_38k_seed{seed}.json").write_text(json.dumps(content(rows, seed=seed)))
    text = told(*(f"pw={path}" for path in sorted(tmp_path.iterdir())))
    assert cells(text)["pw"]["aime24"].startswith("75.00 ± 17.68 (")


def test_a_file_without_format_flags_has_them_in_its_texts(tmp_path):
    data = content(
        [result(0, [1, 0, 0], predictions=["7", None, "8"]), result(1, [0, 0, 0], predictions=["", "8", "8"])]
    )
    for row in data["results"]:
        for generation in row["generations"]:
            del generation["formatted"]
    (tmp_path / "old.json").write_text(json.dumps(data))
    assert read(tmp_path / "old.json").formatted == ((True, False, True), (False, True, True))


def test_columns_stand_in_the_order_of_the_benchmarks_and_levels(tmp_path):
    names = ["math500", "aime24", "polymath-sw-low", "polymath-sw-medium", "polymath-sw-top", "kk_9", "Alpha"]
    for name in names[::-1]:
        write(tmp_path / name, BASE, name)
    assert list(compare(find([str(tmp_path)]).evaluations).tables[0].columns)[:-1] == names


def test_unfinished_evaluations_are_listed_with_their_samples(tmp_path):
    write(tmp_path / "done", BASE)
    folder = tmp_path / "aime25" / "seed_0"
    folder.mkdir(parents=True)
    (folder / "generations.jsonl").write_text("{}\n" * 5)
    assert f"- {folder}: 5 samples" in told(tmp_path)
    (folder / "settings.json").write_text(json.dumps({"samples": 4}))
    (folder / "problems.jsonl").write_text("{}\n" * 3)
    assert f"- {folder}: 5 of 12 samples" in told(tmp_path)
    assert json.loads(told(tmp_path, "--format", "json"))["unfinished"] == [f"{folder}: 5 of 12 samples"]
    with pytest.raises(ValueError, match="no evaluation is finished: .*aime25/seed_0: 5 of 12 samples"):
        told(tmp_path / "aime25")


def test_bad_files_are_named_with_what_is_wrong(tmp_path):
    path = write(tmp_path, BASE)
    good = json.loads(path.read_text())
    first, *others = good["results"]
    for broken, message in (
        ("{", "is not JSON"),
        ("[]", "has no per-problem `results`"),
        (json.dumps(good | {"results": []}), "has no per-problem `results`"),
        (json.dumps({k: v for k, v in good.items() if k != "val_n"}), "lacks the key 'val_n'"),
        (json.dumps(good | {"average_at_n": 6}), "says average_at_n 6, but its samples give 5"),
        (
            json.dumps(good | {"results": [first | {"generations": first["generations"][:1]}, *others]}),
            r"results\[0\] \(problem 'p0'\) has 1 generations where val_n is 2",
        ),
    ):
        path.write_text(broken)
        with pytest.raises(ValueError, match=message) as error:
            told(tmp_path)
        assert str(path) in str(error.value)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        told(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no results.json"):
        told(tmp_path / "empty")
    with pytest.raises(ValueError, match="must look like PATH or NAME=PATH"):
        told("=x")


def test_repeated_problem_ids_cannot_be_paired(tmp_path):
    write(tmp_path / "a", [result("p", [1]), result("p", [0])])
    write(tmp_path / "b", [[1], [0]], model="b")
    assert cells(told(tmp_path))["base"]["aime24"].startswith("50.00")
    with pytest.raises(ValueError, match="repeats the problem_id 'p'"):
        told(tmp_path, "--baseline", "b")


# ----------------------------------------------------------------------------------------------------------- formats


@pytest.fixture
def two_runs(tmp_path) -> list[str]:
    for seed in range(2):
        write(tmp_path / "a" / str(seed), BETTER if seed else BASE, seed=seed)
        write(tmp_path / "b" / str(seed), BETTER, model="models/b", checkpoint="runs/b", step=25, seed=seed)
    write(tmp_path / "a" / "math500", [[1, 0], [1, 1]], "math500")
    return [f"{name}={tmp_path / name}" for name in "ab"]


def test_csv_and_json_hold_the_numbers_of_the_table(two_runs):
    comparison = compare(find(two_runs).evaluations, ("avg", "pass"), baseline="a")
    rows = list(
        csv.DictReader(io.StringIO(told(*two_runs, "--metric", "avg", "pass", "--baseline", "a", "--format", "csv")))
    )
    tree = json.loads(told(*two_runs, "--metric", "avg", "pass", "--baseline", "a", "--format", "json"))
    by_name = {row["name"]: row for row in tree["rows"]}
    counted = 0
    for table in comparison.tables:
        for name, own in table.scores.items():
            for column, each in own.items():
                (line,) = [r for r in rows if (r["metric"], r["row"], r["column"]) == (table.metric, name, column)]
                node = by_name[name]["scores"][table.metric][column]
                counted += 1
                for field in ("value", "low", "high", "std"):
                    value = getattr(each, field)
                    assert node[field] == value
                    assert (float(line[field]) if line[field] else None) == value
    assert counted == len(rows) == 6
    (line,) = [r for r in rows if r["row"] == "b step 25" and r["metric"] == "avg"]
    (difference,) = [d for d in comparison.differences if d.metric == "avg"]
    assert (line["baseline"], float(line["difference"]), float(line["p_value"])) == (
        "a",
        difference.difference,
        difference.p_value,
    )
    assert (line["step"], line["temperature"], line["majority_rule"], line["seeds"]) == ("25", "1.0", CLUSTERS, "2")
    assert tree["differences"][0]["difference"] == difference.difference
    assert by_name["a"]["settings"]["aime24"]["temperature"] == 1.0
    assert by_name["a"]["scores"]["avg"]["aime24"]["by_seed"] == {"0": 62.5, "1": 87.5}


def test_output_gets_what_is_told(two_runs, tmp_path):
    path = tmp_path / "summary.md"
    text = told(*two_runs, "--output", path)
    assert path.read_text() == text + "\n"
    assert [line.split("|")[1].strip() for line in text.splitlines() if "@2" in line] == ["Avg@2", "Pass@2", "Maj@2"]


def test_published_numbers_stand_apart_with_their_source(tmp_path):
    from eval.paper_tables import read as papers

    known = [row for row in papers() if row.benchmark == "aime24"]
    if not known:
        pytest.skip("no published numbers on aime24")
    write(tmp_path, BASE, model=f"models/{known[0].model}")
    text = told(tmp_path, "--papers")
    assert "Published" in text and known[0].source in text and f"{known[0].value:.2f}" in text
    write(tmp_path, BASE, model="models/a-model-of-nobody")
    assert "Published: no number of these models" in told(tmp_path, "--papers")


# ------------------------------------------------------------------------------------------------------------ sweeps


@pytest.fixture
def sweep(tmp_path) -> Path:
    for step, correct in ((0, 20), (25, 60), (100, 50)):
        for benchmark, more in (("aime24", 0), ("math500", 10)):
            flags = [[int(i < correct + more)] for i in range(100)]
            folder = tmp_path / "sweep" / f"step_{step:06d}" / benchmark / "seed_0"
            write(folder, flags, benchmark, step=step, checkpoint="runs/opsd")
    return tmp_path / "sweep"


def test_a_sweep_has_its_steps_in_order_and_names_the_best_with_a_warning(sweep):
    text = told(sweep, "--metric", "avg")
    assert list(cells(text)) == ["opsd step 0", "opsd step 25", "opsd step 100"]
    best = compare(find([str(sweep)]).evaluations).best
    assert [(each.column, each.step, each.value, each.steps) for each in best] == [
        ("math500", 25, pytest.approx(70), 3),
        ("aime24", 25, pytest.approx(60), 3),
        ("average", 25, pytest.approx(65), 3),
    ]
    assert "optimistic" in text
    assert "optimistic" not in told(sweep / "step_000025")


def test_the_lines_of_a_plot_are_the_scores_by_step(sweep, tmp_path):
    write(tmp_path / "other", [[1], [1], [1], [0]], model="other")
    comparison = compare(find([str(sweep), str(tmp_path / "other")]).evaluations)
    (table,) = comparison.tables
    found = {(line.run, line.column): line for line in lines(comparison.rows, table)}
    assert found["opsd", "aime24"].steps == (0, 25, 100)
    assert found["opsd", "aime24"].values == pytest.approx((20, 60, 50))
    # Wilson's interval of 20 of 100, from its closed form
    assert (found["opsd", "aime24"].low[0], found["opsd", "aime24"].high[0]) == pytest.approx((13.34, 28.88), abs=0.01)
    assert found["other", "aime24"].steps == () and found["other", "aime24"].values == pytest.approx((75,))
    assert ("other", "math500") not in found


def test_curves_are_written_as_a_png(sweep, tmp_path):
    told(sweep, "--metric", "avg", "--curves", tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    write(tmp_path / "other", [[1], [1], [1], [0]], model="other")
    comparison = compare(find([str(sweep), str(tmp_path / "other")]).evaluations)
    draw(lines(comparison.rows, comparison.tables[0]), "Avg@1", tmp_path / "panels.png")
    assert (tmp_path / "panels.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="--curves needs a run at several steps"):
        told(tmp_path / "other", "--curves", tmp_path / "none.png")
