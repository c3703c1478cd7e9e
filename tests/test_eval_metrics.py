"""The scores of `eval`: against the published evaluators, brute force, closed forms, scipy and simulations."""

import json
import math
import random
import sys
from collections import Counter
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

from eval import language, metrics
from eval.metrics import Average, avg_at_n, best_at_k, maj_at_k, majority_correct, paired, pass_at_k, worst_at_k
from eval.report import NO_ANSWER
from jopsd.evaluate import wilson_interval
from jopsd.rewards.math import grade

REPO = Path(__file__).resolve().parent.parent
GOLDEN = json.loads((REPO / "tests" / "golden" / "eval.json").read_text())
Z = 1.959963984540054


def same(one: str, other: str) -> bool:
    return bool(other) and grade(one, other).correct


def drawn_flags(seed: int, problems: int, samples: int, chance: float = 0.4) -> list[list[bool]]:
    return (np.random.default_rng(seed).random((problems, samples)) < chance).tolist()


# ----------------------------------------------------------------------------------------------------- one benchmark


@pytest.mark.parametrize("name", GOLDEN["evaluators"])
def test_scores_equal_those_of_the_published_evaluators(name):
    case = GOLDEN["evaluators"][name]
    problems, summary = case["per_problem"], case["summary"]
    correct = [p["correct"] for p in problems]
    predictions = [
        [answer if formatted else None for answer, formatted in zip(p["predicted"], p["formatted"], strict=True)]
        for p in problems
    ]
    predictions = [["" if answer == NO_ANSWER else answer for answer in answers] for answers in predictions]
    rule = "invalid" if name.startswith("pwopsd") else "string"
    for p, answers in zip(problems, predictions, strict=True):
        assert majority_correct(answers, p["correct"], same, rule) == p["majority_vote_correct"], p["name"]
    assert 100 * avg_at_n(correct).mean == pytest.approx(summary["average_at_n_pct"], abs=1e-9)
    assert 100 * metrics.pass_at_n(correct).mean == pytest.approx(summary["pass_at_n_pct"], abs=1e-9)
    majority = metrics.maj_at_n(predictions, correct, same, rule)
    assert 100 * majority.mean == pytest.approx(summary["majority_vote_at_n_pct"])
    assert 100 * metrics.format_rate(predictions) == pytest.approx(summary["format_rate"])


def faults_of_real_samples(golden: dict) -> list[str]:
    """Every number of the golden file, none left unread."""
    correct = [p["correct"] for p in golden["per_problem"]]
    predictions = [p["preds"] for p in golden["per_problem"]]
    ours = {"n_problems": len(correct), "N": len(correct[0]), "format_rate": metrics.format_rate(predictions)}
    ours |= {"avg@8": avg_at_n(correct).mean, "any_correct": metrics.pass_at_n(correct).mean}
    ours |= {f"pass@{k}": pass_at_k(correct, k) for k in (1, 2, 4, 8)}
    ours["maj@8_cluster_with_INVALID"] = metrics.maj_at_n(predictions, correct, same).mean
    ours["maj@8_exact_string_formatted_only"] = metrics.maj_at_n(predictions, correct, rule="string").mean
    for k in (2, 4, 8):
        ours[f"verl_best@{k}_expectation"] = metrics.expected_best_at_k(correct, k)
        ours[f"verl_worst@{k}_expectation"] = metrics.expected_worst_at_k(correct, k)
    assert set(ours) == set(golden) - {"grader", "per_problem"}
    faults = [key for key, value in ours.items() if abs(value - golden[key]) > 1e-12]
    for i, p in enumerate(golden["per_problem"]):
        votes = [majority_correct(p["preds"], p["correct"], *rule) for rule in ((same,), (None, "string"))]
        if votes != [p["maj_cluster"], p["maj_string"]] or p.get("c", sum(p["correct"])) != sum(p["correct"]):
            faults.append(f"problem {i}")
        if p.get("formatted", len(p["preds"])) != sum(answer is not None for answer in p["preds"]):
            faults.append(f"formatted of problem {i}")
    return faults


def test_scores_of_real_samples_equal_the_golden_ones():
    assert not faults_of_real_samples(GOLDEN["math100x8"])


def test_the_whole_golden_file_of_real_samples_comes_out(shared):
    golden = json.loads((shared / "golden" / "metrics_golden.json").read_text())
    assert {"idx", "c", "formatted", "clusters"} <= set(golden["per_problem"][0])
    assert not faults_of_real_samples(golden)
    for p in golden["per_problem"]:  # the sizes of the clusters, which majorities do not show
        first = {}
        for answer in p["preds"]:
            joined = next((f for f in first if f == answer or same(answer, f) or same(f, answer)), answer)
            first[joined] = first.get(joined, 0) + 1
        assert sorted(first.values()) == sorted(size for _, size in p["clusters"])


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample():
    draw = random.Random(0)
    correct = [[draw.random() < 0.3 for _ in range(6)] for _ in range(5)]
    for k in range(1, 7):
        subsets = [any(chosen) for flags in correct for chosen in combinations(flags, k)]
        assert pass_at_k(correct, k) == pytest.approx(sum(subsets) / len(subsets))
    with pytest.raises(ValueError, match="pass@7 needs k between 1 and the number of samples, 6"):
        pass_at_k(correct, 7)


def test_the_majority_is_the_largest_class_and_the_earliest_of_equals():
    draw, gold = random.Random(1), 2
    for _ in range(300):
        answers = [draw.choice([None, "1", "1.0", "2", "2.0", "02", "3"]) for _ in range(draw.randint(1, 9))]
        classes = [None if answer is None else float(answer) for answer in answers]
        correct = [value == gold for value in classes]
        equal = lambda one, other: float(one) == float(other)  # noqa: E731
        sizes = Counter(classes)  # keeps the order of first appearance, and max takes the first of equals
        assert majority_correct(answers, correct, equal) == (max(sizes, key=sizes.get) == gold)
        strings = Counter(answer for answer in answers if answer is not None)
        winner = max(strings, key=strings.get) if strings else None
        assert majority_correct(answers, correct, rule="string") == (winner is not None and float(winner) == gold)


def test_equality_in_one_direction_is_enough_to_join_a_cluster():
    one_way = lambda one, other: (one, other) == ("b", "a")  # noqa: E731
    assert majority_correct(["c", "a", "b"], [False, True, False], one_way)
    assert majority_correct(["c", "b", "a"], [False, True, False], one_way)
    assert not majority_correct([], [], one_way)


def test_an_unknown_majority_rule_is_refused():
    with pytest.raises(ValueError, match="'plurality' is not 'string'"):
        majority_correct(["1"], [True], same, "plurality")


def test_lengths_are_averaged_apart_by_grade_without_those_that_are_not_known():
    assert metrics.mean_lengths([10, 20, None, 60], [True, False, True, False]) == (30, 10, 40)
    assert metrics.mean_lengths([4, None], [True, False]) == (4, 4, None)
    assert metrics.mean_length([]) is None


def test_truncation_is_counted_among_samples_whose_end_is_known():
    assert metrics.truncation_rate(["length", "eos", None, "prompt_too_long", "length"]) == 0.5
    assert metrics.truncation_rate([None]) is None


def test_labels_split_the_problems_and_each_part_is_scored_alone():
    correct, labels = drawn_flags(2, 9, 4), ["hard", "easy", "easy"] * 3
    found = metrics.by_label(labels, correct)
    assert list(found) == ["hard", "easy"]
    assert found["hard"] == avg_at_n(correct[::3])
    shares = [sum(flags) / 4 for flags, label in zip(correct, labels, strict=True) if label == "easy"]
    assert found["easy"].mean == pytest.approx(sum(shares) / 6)
    with pytest.raises(ValueError):
        metrics.by_label(labels[:-1], correct)


# ----------------------------------------------------------------------------------------------- drawn with replacement


def drawn_one_by_one(values: list, k: int, reduce) -> tuple[float, float]:
    """verl's bootstrap as its description reads: numpy seeded once, then a thousand draws of k."""
    state = np.random.get_state()
    try:
        np.random.seed(42)
        picks = [np.random.choice(len(values), size=k, replace=True) for _ in range(1000)]
    finally:
        np.random.set_state(state)
    results = [reduce([values[i] for i in pick]) for pick in picks]
    return float(np.mean(results)), float(np.std(results))


@pytest.mark.parametrize(("samples", "k"), [(1, 2), (3, 1), (7, 3), (8, 8), (13, 5)])
def test_best_and_worst_read_the_stream_of_one_draw_after_another(samples, k):
    scores = np.random.default_rng(samples).random((3, samples)).tolist()  # scores: flags would hide an order
    for ours, reduce in ((best_at_k, max), (worst_at_k, min)):
        own = [drawn_one_by_one(values, k, reduce) for values in scores]
        assert ours(scores, k) == pytest.approx(np.mean(own, axis=0).tolist(), abs=1e-12)


def test_a_bootstrap_leaves_the_global_random_state_alone():
    np.random.seed(5)
    expected = np.random.random(3).tolist()
    np.random.seed(5)
    best_at_k([[True, False]], 2)
    assert np.random.random(3).tolist() == expected


def first_of_the_most_frequent(pairs: list[tuple]) -> float:
    sizes = Counter(answer for answer, _ in pairs)
    winner = max(sizes, key=sizes.get)
    return float(next(flag for answer, flag in pairs if answer == winner))


@pytest.mark.parametrize(("samples", "k"), [(2, 2), (5, 3), (8, 8)])
def test_the_bootstrapped_majority_is_the_first_of_the_most_frequent_string(samples, k):
    draw = random.Random(samples)
    answers = [[draw.choice(["1", "2", "", None]) for _ in range(samples)] for _ in range(4)]
    flags = [[draw.random() < 0.5 for _ in range(samples)] for _ in range(4)]  # unlike within one answer, too
    rows = [list(zip(a, f, strict=True)) for a, f in zip(answers, flags, strict=True)]
    own = [drawn_one_by_one(row, k, first_of_the_most_frequent) for row in rows]
    assert maj_at_k(answers, flags, k) == pytest.approx(np.mean(own, axis=0).tolist(), abs=1e-12)


def test_closed_forms_of_best_and_worst_are_the_means_over_all_equally_likely_draws():
    correct = drawn_flags(3, 5, 4)
    for k in (1, 2, 3, 5):
        draws = [pick for flags in correct for pick in product(flags, repeat=k)]
        assert metrics.expected_best_at_k(correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))
        assert metrics.expected_worst_at_k(correct, k) == pytest.approx(sum(map(all, draws)) / len(draws))


def test_a_bootstrap_is_near_its_expectation_and_below_pass_at_k():
    correct = drawn_flags(4, 40, 8, 0.2)
    for k in (2, 4, 8):  # one seed serves all problems, so their errors add up: one problem's is the bound
        tolerance = 4 * 0.5 / math.sqrt(1000)
        assert best_at_k(correct, k).mean == pytest.approx(metrics.expected_best_at_k(correct, k), abs=tolerance)
        assert worst_at_k(correct, k).mean == pytest.approx(metrics.expected_worst_at_k(correct, k), abs=tolerance)
        assert metrics.expected_best_at_k(correct, k) < pass_at_k(correct, k)
    assert metrics.expected_best_at_k([[True] + [False] * 7], 8) == pytest.approx(0.656, abs=5e-4)  # pass@8 is 1


def test_verls_deviation_is_the_mean_of_the_problems_own():
    correct = [[True, False, False, False], [True, True, True, True]]
    assert metrics.std_at_n(correct) == pytest.approx(math.sqrt(3) / 4 / 2)


# ---------------------------------------------------------------------------------- several seeds, several benchmarks


def test_seeds_have_a_sample_deviation_and_one_seed_has_none():
    spread = metrics.over_seeds([52.0, 54.0, 59.0])
    assert spread.mean == pytest.approx(55) and spread.std == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert metrics.over_seeds([3.5]) == (3.5, None)


def test_samples_of_a_problem_from_all_seeds_are_one_cluster():
    seeds = [drawn_flags(seed, 12, 4) for seed in range(3)]
    pooled = metrics.pool_seeds(seeds)
    table = np.array(seeds)
    shares = table.mean(axis=(0, 2))
    half = Z * shares.std(ddof=1) / math.sqrt(12)
    assert avg_at_n(pooled) == pytest.approx((table.mean(), shares.mean() - half, shares.mean() + half))
    assert pooled[3] == [flag for seed in seeds for flag in seed[3]]
    with pytest.raises(ValueError, match=r"same problems, in one order; they have \[12, 12, 11\]"):
        metrics.pool_seeds([*seeds[:2], seeds[2][:11]])


def test_pooled_seeds_cover_the_truth_where_an_interval_over_samples_would_not():
    generator, clustered, naive = np.random.default_rng(7), 0, 0
    for _ in range(300):
        difficulty = generator.beta(0.4, 0.4, size=(50, 1))
        estimate = avg_at_n(metrics.pool_seeds([(generator.random((50, 4)) < difficulty).tolist() for _ in range(3)]))
        clustered += estimate.low <= 0.5 <= estimate.high
        over_samples = wilson_interval(round(600 * estimate.mean), 600)
        naive += over_samples.low <= 0.5 <= over_samples.high
    assert 0.91 < clustered / 300 < 0.98 and naive / 300 < 0.7


def test_an_average_over_benchmarks_adds_independent_errors_in_squares():
    generator = np.random.default_rng(8)
    sizes, chances = (30, 60, 120), (0.2, 0.5, 0.8)
    means, errors = [], []
    for _ in range(400):
        sets = [generator.random((n, 2)) < chance for n, chance in zip(sizes, chances, strict=True)]
        found = metrics.average([Average(s.mean(), metrics.standard_error(s.tolist())) for s in sets])
        means.append(found.mean)
        errors.append(found.error)
    exact = math.sqrt(sum(p * (1 - p) / 2 / n for n, p in zip(sizes, chances, strict=True))) / 3
    assert np.mean(means) == pytest.approx(0.5, abs=4 * exact / 20)
    assert np.std(means) == pytest.approx(exact, rel=0.15) and np.mean(errors) == pytest.approx(exact, rel=0.05)


def test_a_single_problem_has_no_standard_error_nor_has_an_average_with_it():
    assert metrics.standard_error([[True, False]]) is None
    assert metrics.average([Average(0.5, None), Average(0.75, 0.1)]) == (0.625, None)


def test_difficulty_weighs_1_2_4_8_exactly_or_rounded_as_published():
    shares = {"low": 0.9136, "medium": 0.4444, "high": 0.25, "top": 0.1264}
    exact = (0.9136 + 2 * 0.4444 + 4 * 0.25 + 8 * 0.1264) / 15
    assert metrics.difficulty_weighted(shares) == pytest.approx(exact, abs=1e-12)
    tenths = round((91.4 + 2 * 44.4 + 4 * 25.0 + 8 * 12.6) / 15, 1)
    assert metrics.difficulty_weighted(dict(reversed(shares.items())), rounding=True) == pytest.approx(tenths / 100)
    assert metrics.difficulty_weighted(dict.fromkeys(shares, 1.0)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("levels", "message"),
    [(("low", "high", "top"), "lacks medium"), (("low", "middle", "medium", "high", "top"), "does not know middle")],
)
def test_a_level_that_is_missing_or_unknown_is_named(levels, message):
    with pytest.raises(ValueError, match=message):
        metrics.difficulty_weighted(dict.fromkeys(levels, 0.5))


# -------------------------------------------------------------------------------------------------- two models


def test_a_pair_has_the_normal_interval_of_its_per_problem_differences():
    a, b = drawn_flags(9, 20, 4, 0.6), drawn_flags(10, 20, 3)  # unequal N
    shares = np.array([np.mean(x) - np.mean(y) for x, y in zip(a, b, strict=True)])
    found = paired(a, b)
    half = Z * shares.std(ddof=1) / math.sqrt(20)
    assert (found.difference, found.low, found.high) == pytest.approx(
        (shares.mean(), shares.mean() - half, found.low + 2 * half)
    )
    assert found.difference == pytest.approx(avg_at_n(a).mean - avg_at_n(b).mean)
    assert (found.better, found.worse, found.equal) == ((shares > 0).sum(), (shares < 0).sum(), (shares == 0).sum())
    back = paired(b, a)
    assert (back.difference, back.low, back.high) == pytest.approx((-found.difference, -found.high, -found.low))
    assert back.p_value == found.p_value and (back.better, back.worse) == (found.worse, found.better)


@pytest.mark.parametrize("seed", range(4))
def test_an_exact_p_value_is_the_share_of_all_sign_flips_that_are_as_far_from_nought(seed):
    a, b = drawn_flags(seed, 10, 3, 0.7), drawn_flags(seed + 50, 10, 3, 0.4)
    thirds = [sum(x) - sum(y) for x, y in zip(a, b, strict=True)]  # whole numbers: no rounding hides a tie
    sums = [abs(sum(s * d for s, d in zip(signs, thirds, strict=True))) for signs in product((1, -1), repeat=10)]
    assert paired(a, b).p_value == sum(each >= abs(sum(thirds)) for each in sums) / 1024


def test_with_one_sample_each_the_p_value_is_the_exact_mcnemar_test():
    stats = pytest.importorskip("scipy.stats")
    for better, worse in ((0, 0), (1, 0), (5, 1), (9, 3), (6, 6), (40, 22)):
        pairs = [(1, 0)] * better + [(0, 1)] * worse + [(1, 1)] * 3
        found = paired([[a] for a, _ in pairs], [[b] for _, b in pairs])
        exact = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
        assert found.p_value == pytest.approx(exact, abs=1e-12 if better + worse <= 16 else 4e-3)
        assert (found.better, found.worse, found.equal) == (better, worse, 3)


def test_drawn_p_values_agree_with_enumerated_ones_and_follow_the_seed(monkeypatch):
    differences = np.random.default_rng(11).normal(0.3, 1, 14).round(1)
    exact = metrics.sign_flip_p_value(differences)
    monkeypatch.setattr(metrics, "EXACT_UP_TO", 0)
    drawn = [metrics.sign_flip_p_value(differences, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn == pytest.approx([exact] * 3, abs=4 * math.sqrt(exact * (1 - exact) / 100_000))
    assert metrics.sign_flip_p_value([1.0] * 60, draws=99) == 0.01  # never 0: what was seen is among the draws


def test_p_values_are_even_where_there_is_no_difference():
    generator = np.random.default_rng(12)
    scores = generator.random((400, 2, 12, 1)) * generator.random((400, 1, 12, 1))  # never equal, so no ties
    values = np.array([paired(a, b).p_value for a, b in scores.tolist()])
    for level in (0.05, 0.2, 0.5, 0.8):
        assert np.mean(values <= level) == pytest.approx(level, abs=3 * math.sqrt(level * (1 - level) / 400))


def test_intervals_of_pairs_cover_the_true_difference_and_are_narrower_than_unpaired_ones(monkeypatch):
    monkeypatch.setattr(metrics, "sign_flip_p_value", lambda *_: None)  # for speed: only intervals are looked at
    generator, hits, narrower = np.random.default_rng(13), 0, 0
    for _ in range(300):
        base = generator.beta(0.5, 0.5, size=(60, 1)) * 0.8
        a, b = (generator.random((60, 4)) < base + 0.2).tolist(), (generator.random((60, 4)) < base).tolist()
        found, alone = paired(a, b), [avg_at_n(flags) for flags in (a, b)]
        hits += found.low <= 0.2 <= found.high
        narrower += found.high - found.low < math.hypot(*(each.high - each.low for each in alone))
    assert 0.91 < hits / 300 < 0.98 and narrower > 290


def test_equal_models_are_not_taken_to_be_equal_for_certain():
    flags = [[True]] * 5 + [[False]] * 5
    found = paired(flags, flags)
    bound = wilson_interval(0, 10).high
    assert found == (0, pytest.approx(-bound), pytest.approx(bound), 1.0, 0, 0, 10)
    always = paired([[True]] * 10, [[False]] * 10)
    assert (always.low, always.high) == pytest.approx((1 - 2 * bound, 1))
    assert paired([[True]], [[False]])[:4] == (1, -1, 1, 1)


def test_pairs_need_the_same_number_of_problems():
    with pytest.raises(ValueError, match="2 of the one, 1 of the other"):
        paired([[True], [False]], [[True]])


@pytest.mark.parametrize(
    "score",
    [
        lambda none: pass_at_k(none, 1),
        lambda none: best_at_k(none, 2),
        lambda none: worst_at_k(none, 2),
        lambda none: maj_at_k(none, none, 2),
        lambda none: metrics.expected_best_at_k(none, 2),
        lambda none: metrics.expected_worst_at_k(none, 2),
        metrics.std_at_n,
        metrics.standard_error,
        metrics.format_rate,
        lambda none: paired(none, none),
    ],
)
def test_no_problems_and_problems_without_samples_are_errors_and_never_not_a_number(score):
    with pytest.raises(ValueError, match="no (problems|samples)"):
        score([])
    with pytest.raises(ValueError, match="no samples|number of samples, 0"):
        score([[]])


def test_estimates_of_no_problems_know_nothing_and_seeds_or_benchmarks_must_be_some():
    assert avg_at_n([]) == metrics.pass_at_n([]) == metrics.maj_at_n([], [], same) == (0, 0, 1)
    assert metrics.by_label([], []) == {} and metrics.pool_seeds([]) == []
    with pytest.raises(ValueError, match="problem 1 has no samples"):
        avg_at_n([[True], []])
    for score, what in ((metrics.over_seeds, "seeds"), (metrics.average, "benchmarks")):
        with pytest.raises(ValueError, match=f"no {what}"):
            score([])
    for score in (best_at_k, worst_at_k):
        with pytest.raises(ValueError, match="k = 0"):
            score([[True]], 0)


# -------------------------------------------------------------------------------------------- language consistency

SWAHILI = "Kwanza tunajumlisha namba zote, halafu tunagawanya kwa idadi yake ili kupata wastani."
GERMAN = "Zuerst addieren wir alle Zahlen und teilen dann durch ihre Anzahl, um den Mittelwert zu erhalten."


def by_first_word(text: str) -> list[str]:
    """A detector of texts that say their languages themselves, as in `sw,de: ...`."""
    return text.partition(":")[0].split(",")


LONG = ": and then so many words that it is no short text"


def test_thinking_and_answer_are_judged_apart_at_the_last_closing_tag():
    text = f"sw{LONG} </think> more</think>de{LONG}"
    assert language.consistency([[text]], "sw", by_first_word) == {"thinking": 1, "answer": 0}
    assert language.consistency([[text]], "de", by_first_word) == {"thinking": 0, "answer": 1}


def test_consistency_is_the_mean_over_problems_of_the_mean_over_samples():
    right, wrong, both = f"sw{LONG}", f"en{LONG}", f"sw,en{LONG}"
    found = language.consistency([[right], [right, wrong, both, wrong]], "SWA", by_first_word)
    assert found == {"thinking": None, "answer": pytest.approx((1 + 1 / 4) / 2)}


def test_thinking_that_was_cut_off_is_thinking_where_the_model_thinks():
    done, cut = f"sw{LONG}</think>sw{LONG}", f"<think>de{LONG}"
    assert language.consistency([[done, cut]], "sw", by_first_word) == {"thinking": 0.5, "answer": 1}
    assert language.consistency([[cut]], "de", by_first_word, thinking=True) == {"thinking": 1, "answer": 1}
    assert language.split_thinking("de: so", False) == (None, "de: so")


def test_mathematics_is_no_language_and_what_is_left_may_be_short():
    text = r"Jibu: $$\text{and the same in English}$$ \(x = 1\) \[ \text{or\\ so} \] ni $5$."
    assert language.without_maths(text).split() == ["Jibu:", "ni", "."]
    assert language.is_consistent(text, "sw", by_first_word)
    assert language.is_consistent("x" * 15, "sw", by_first_word) and not language.is_consistent("x" * 16, "sw", list)


def test_maths_are_cut_at_the_nearest_closing_and_unclosed_ones_stay():
    assert language.without_maths("a$b$c$d$e") == "ace"
    assert language.without_maths("$a$b$$c$$d") == "bd"
    assert language.without_maths("$a$$b$ c") == " c"
    assert language.without_maths(r"a \( b $c$ d") == r"a \( b  d"
    assert language.without_maths("a\n$$b\n$ c\n$$\nd") == "a\n\nd"
    assert len(language.without_maths(r"\( \[ " * 50_000)) == 300_000  # at once: a quadratic search takes minutes


@pytest.mark.parametrize("code", ["vai", "yo", "yor", "amh", "ms", "xx", "KIN"])
def test_languages_that_the_detector_does_not_know_are_not_measured(code):
    def never(text):
        raise AssertionError("a language that cannot be told must not be asked for")

    assert language.consistency([[SWAHILI]], code, never) == {"thinking": None, "answer": None}


def test_codes_of_one_language_are_one():
    assert {language.code_of(code) for code in ("sw", "SWA", "swh")} == {"sw"}
    assert {language.code_of(code) for code in ("zh", "zho", "zh-cn", "ZH")} == {"zh-cn"}
    assert (language.code_of("eng"), language.code_of("fra"), language.code_of("pt")) == ("en", "fr", "pt")


def test_consistency_of_nothing_is_an_error():
    for texts in ([], [[]]):
        with pytest.raises(ValueError, match="at least one problem"):
            language.consistency(texts, "sw", by_first_word)


def test_langdetect_tells_languages_the_same_way_every_time():
    factory = pytest.importorskip("langdetect.detector_factory")
    detect = language.load_detector()
    texts = [[SWAHILI, f"{SWAHILI}</think>{GERMAN}"], [f"{GERMAN} {SWAHILI}"], ["12345 67890 12345 67890"]]
    first = language.consistency(texts, "swa", detect, thinking=False)
    assert first == {"thinking": 1, "answer": pytest.approx((1 / 2 + 0 + 0) / 3)}
    assert all(language.consistency(texts, "swa", detect, thinking=False) == first for _ in range(3))
    mixed = f"{GERMAN} {SWAHILI}"
    assert detect(SWAHILI) == ["sw"] and detect(GERMAN) == ["de"] and detect("123 456") == []
    assert len({tuple(detect(mixed)) for _ in range(5)}) == 1
    assert set(factory._factory.get_lang_list()) == language.KNOWN


def test_without_langdetect_nothing_is_measured_and_who_insists_reads_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "langdetect", None)
    assert language.detector() is None
    with pytest.raises(ImportError, match=r"pip install 'jopsd\[language\]'"):
        language.load_detector()
