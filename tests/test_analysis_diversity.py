"""Diversity of rollouts: every measure against brute force or a closed form, and the analysis from file to table."""

import csv
import json
import math
import random
import time
from collections import Counter
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path

import pytest

from eval.analysis import diversity
from eval.analysis.__main__ import main
from eval.analysis.diversity import (
    MEASURES,
    Limits,
    Read,
    answer_of,
    averages,
    clusters,
    common_length,
    distinct_n,
    entropy,
    jaccard,
    mean_jaccard,
    mean_sequence_similarity,
    measures,
    of_problem,
    self_bleu,
    sequence_similarity,
    solution_of,
    words_of,
)
from eval.analysis.rollouts import read_rollouts
from eval.records import Record, open_records

PAIRWISE = ("answer_entropy_normalised", "jaccard", "sequence", "self_bleu")


def texts_of(seed: int, count: int, longest: int = 14, vocabulary: int = 5) -> list[list[str]]:
    draw = random.Random(seed)
    return [[f"w{draw.randrange(vocabulary)}" for _ in range(draw.randint(0, longest))] for _ in range(count)]


def rollout(answer: str | None, text: str, right: bool | None = True) -> Read:
    return Read(answer, solution_of(text), words_of(text), right)


# ------------------------------------------------------------------------------------------------- what is compared


def test_answers_are_compared_without_blanks_and_none_or_a_whole_text_is_invalid():
    assert answer_of(r"\frac {1} {2}", "...") == answer_of(r"\frac{1}{2}", "...")
    assert answer_of("1/2", "") != answer_of("0.5", "")
    assert answer_of(None, "text") is answer_of(" \n", "text") is None
    assert answer_of("so\nit is 4", "so\nit is 4\n") is None
    assert answer_of("4", "4") == "4"


def test_solutions_differ_by_wording_alone():
    assert solution_of("<think>\nA  b\n</think>\n\nc") == solution_of("A b c") == "A b c"
    assert solution_of("A b") != solution_of("a b")


def test_words_have_no_case_and_unspaced_scripts_are_read_by_character():
    assert words_of("<think>Thus X=4.</think> Done") == ["thus", "x", "=", "4", ".", "done"]
    assert words_of("答案是42") == ["答", "案", "是", "42"]
    assert words_of("naïve") == ["naïve"]


# --------------------------------------------------------------------------------------------------------- measures


def test_entropy_of_equal_shares_is_the_log_of_their_number():
    assert entropy([None, "a", "b", "c"]) == pytest.approx(math.log(4))
    assert entropy("aab") == pytest.approx(math.log(3) - 2 / 3 * math.log(2))
    assert entropy(["a"] * 5) == 0 and math.copysign(1, entropy(["a"] * 5)) == 1


def test_jaccard_is_intersection_over_union():
    assert jaccard(frozenset("abc"), frozenset("bcde")) == 2 / 5
    assert jaccard(frozenset(), frozenset()) == 1 and jaccard(frozenset(), frozenset("a")) == 0
    sets = [frozenset(text) for text in ("ab", "bc", "ab")]
    assert mean_jaccard(sets) == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)


def test_clusters_are_found_in_one_pass_around_first_members():
    chain = [frozenset("abcd"), frozenset("bcde"), frozenset("cdef")]  # neighbours 3/5, ends 2/6
    assert clusters(chain, 0.6) == [0, 0, 1]
    assert clusters([chain[1], chain[0], chain[2]], 0.6) == [0, 0, 0]
    assert clusters(chain, 0.61) == [0, 1, 2]
    assert clusters(chain, 0) == [0, 0, 0]


def longest_common(one: list, other: list) -> int:
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one, start=1):
        for j, b in enumerate(other, start=1):
            table[i][j] = table[i - 1][j - 1] + 1 if a == b else max(table[i - 1][j], table[i][j - 1])
    return table[-1][-1]


def test_common_length_is_that_of_the_table_of_dynamic_programming():
    for seed in range(60):
        one, other = texts_of(seed, 2, longest=90, vocabulary=2 + seed % 9)
        assert common_length(one, other) == longest_common(one, other) == common_length(other, one)


def test_sequence_similarity_is_at_least_the_ratio_of_difflib():
    greater = 0
    for seed in range(60):
        one, other = texts_of(seed, 2, longest=40)
        ratio, found = SequenceMatcher(None, one, other, autojunk=False).ratio(), sequence_similarity(one, other)
        assert ratio - 1e-12 <= found <= 1
        greater += found > ratio + 1e-12
    assert greater  # it is not the same
    assert sequence_similarity("abcd", "bcde") == SequenceMatcher(None, "abcd", "bcde").ratio() == 0.75
    assert sequence_similarity([], []) == 1 and sequence_similarity([], ["a"]) == 0


def test_the_mean_of_sequences_reads_the_first_words_and_no_more_pairs_than_asked():
    texts = texts_of(1, 7, longest=30)
    pairs = [sequence_similarity(one[:9], other[:9]) for one, other in combinations(texts, 2)]
    assert mean_sequence_similarity(texts, 9, 21, seed=0) == pytest.approx(sum(pairs) / 21)
    one = {mean_sequence_similarity(texts, 9, 1, seed) for seed in range(40)}
    assert one <= set(pairs) and len(one) > 5
    for few in (1, 5, 20):
        drawn = [mean_sequence_similarity(random.Random(s).sample(texts, 7), 9, few, seed=3) for s in range(4)]
        assert drawn == pytest.approx([drawn[0]] * 4)


def slow_self_bleu(texts: list[list[str]]) -> float:
    """As the docstring says it, n-gram by n-gram."""
    scores = []
    for i, text in enumerate(texts):
        others = texts[:i] + texts[i + 1 :]
        precisions = []
        for n in range(1, min(4, len(text)) + 1):
            grams = [tuple(text[k : k + n]) for k in range(len(text) - n + 1)]
            matches = 0
            for gram in set(grams):
                most = max(sum(tuple(o[k : k + n]) == gram for k in range(len(o) - n + 1)) for o in others)
                matches += min(grams.count(gram), most)
            precisions.append((matches or (0.1 if n > 1 else 0)) / len(grams))
        nearest = min((abs(len(o) - len(text)), len(o)) for o in others)[1]
        if not text:
            scores.append(float(nearest == 0))
            continue
        brevity = 1 if len(text) >= nearest else math.exp(1 - nearest / len(text))
        scores.append(brevity * math.prod(precisions) ** (1 / len(precisions)))
    return sum(scores) / len(scores)


@pytest.mark.parametrize(("count", "longest", "vocabulary"), [(2, 6, 3), (3, 14, 4), (5, 14, 2), (6, 30, 12)])
def test_self_bleu_is_that_of_counting_each_n_gram(count, longest, vocabulary):
    for seed in range(25):
        texts = texts_of(seed, count, longest, vocabulary)
        assert self_bleu(texts) == pytest.approx(slow_self_bleu(texts), abs=1e-12)


def test_self_bleu_by_hand():
    one, other = "the cat sat on the mat".split(), "the cat sat on a mat".split()
    # unigrams 5/6 both ways ("the" clipped at one), bigrams 3/5, trigrams 2/4, fourgrams 1/3
    assert self_bleu([one, other]) == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert self_bleu([["a", "b"], ["c", "d"]]) == 0
    assert self_bleu([["a"], ["a"]]) == self_bleu([[], []]) == 1


def test_distinct_n_counts_different_n_grams_of_all_texts_together():
    for seed in range(20):
        texts = texts_of(seed, 4)
        for n in (1, 2, 3):
            grams = [tuple(text[k : k + n]) for text in texts for k in range(len(text) - n + 1)]
            assert distinct_n(texts, n) == (len(set(grams)) / len(grams) if grams else None)
    assert distinct_n([["a"], []], 2) is None


# ------------------------------------------------------------------------------------------- problems and averages


def test_identical_rollouts_are_one_solution_with_similarity_one():
    found = measures([rollout("4", "<think>so it\nis</think> 4")] * 3 + [rollout("4", "so it is 4")], Limits())
    ones = ("distinct_answers", "distinct_solutions", "clusters", "jaccard", "sequence", "self_bleu")
    assert [found[key] for key in ones] == pytest.approx([1] * 6)
    assert found["answer_entropy"] == found["answer_entropy_normalised"] == 0
    assert found["distinct_1"] == 4 / 16 and found["distinct_2"] == 3 / 12


def test_rollouts_without_a_common_word_differ_as_much_as_can_be():
    found = measures([rollout("1", "a b c"), rollout("2", "d e f"), rollout(None, "g h i")], Limits(threshold=0.01))
    assert [found[key] for key in ("distinct_answers", "distinct_solutions", "clusters")] == [3, 3, 3]
    assert [found[key] for key in ("jaccard", "sequence", "self_bleu")] == [0, 0, 0]
    assert found["answer_entropy_normalised"] == pytest.approx(1) and found["distinct_1"] == 1
    assert found["invalid"] == pytest.approx(1 / 3)


def test_the_order_of_rollouts_does_not_matter():
    rollouts = [rollout(f"{i % 3}", " ".join(text), i % 2 == 0) for i, text in enumerate(texts_of(5, 9))]
    limits, first = Limits(max_pairs=7), None
    for seed in range(4):
        found = of_problem(random.Random(seed).sample(rollouts, 9), limits)
        kept = {key: value for key, value in found.items() if not key.endswith("clusters")}  # which it does for
        first = first or kept
        assert kept == pytest.approx(first)


def test_right_rollouts_are_measured_as_if_they_were_alone():
    right = [rollout("4", "two and two"), rollout("4", "twice two"), rollout("4", "twice  two")]
    wrong = [rollout("5", "a guess", False), rollout(None, "no idea", False)]
    found = of_problem([wrong[0], *right, wrong[1], rollout("7", "not graded", None)], Limits())
    alone = measures(right, Limits())
    assert {key: found[f"correct_{key}"] for key in MEASURES} == alone
    assert alone["distinct_solutions"] == 2 and found["distinct_solutions"] == 5
    assert (found["rollouts"], found["correct_rollouts"], found["accuracy"]) == (6, 3, 3 / 5)
    none = of_problem(wrong, Limits())
    assert none["correct_rollouts"] == 0 and {none[f"correct_{key}"] for key in MEASURES} == {None}


def test_a_single_rollout_has_no_pairs_and_answers_that_nobody_gave_are_not_counted():
    found = measures([rollout("4", "a b a")], Limits())
    assert [key for key in MEASURES if found[key] is None] == list(PAIRWISE)
    assert found["distinct_solutions"] == found["distinct_answers"] == 1 and found["distinct_1"] == 2 / 3
    unknown = measures([rollout(None, "a"), rollout(None, "b")], Limits(), answers=False)
    assert [key for key in MEASURES if unknown[key] is None] == [
        "distinct_answers", "invalid", "answer_entropy", "answer_entropy_normalised", "distinct_2",
    ]  # fmt: skip


def test_averages_give_problems_equal_weight_and_leave_out_what_has_no_pair():
    many = of_problem([rollout("4", "a b")] * 5 + [rollout("5", "c d", False)], Limits())
    one = of_problem([rollout("4", "a b")], Limits())
    (row,) = averages([{"step": None, **many}, {"step": None, **one}])
    assert (row["step"], row["problems"], row["rollouts"], row["single"]) == ("all", 2, 7, 1)
    assert (row["correct_problems"], row["correct_rollouts"], row["correct_single"]) == (2, 6, 1)
    assert row["distinct_answers"] == 1.5 and row["accuracy"] == pytest.approx((5 / 6 + 1) / 2)
    assert row["jaccard"] == many["jaccard"] == pytest.approx(10 / 15)
    assert row["correct_distinct_solutions"] == 1 and row["correct_jaccard"] == 1


def test_a_dozen_long_rollouts_take_seconds():
    draw = random.Random(0)
    vocabulary, weights = [f"w{i}" for i in range(4000)], [1 / (i + 1) for i in range(4000)]
    rollouts = [Read("4", str(i), draw.choices(vocabulary, weights, k=38_912), True) for i in range(12)]
    start = time.process_time()
    found = of_problem(rollouts, Limits())
    assert time.process_time() - start < 20  # measured: 2.3; of whole texts 17
    assert 0 < found["sequence"] < 1


# ----------------------------------------------------------------------------------------------------- from a file


def analyse(path: Path, output: Path, *more: str) -> int:
    return main(["diversity", "--rollouts", str(path), "--output", str(output), *more])


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def sample(problem: str, completion: str, prediction: str | None, reward: float, version: int) -> str:
    row = {"problem": problem, "completion": completion, "prediction": prediction, "reward": reward, "prompts": {}}
    return json.dumps({**row, "policy_version": version, "finish": "eos"})


def test_samples_of_a_run_are_compared_within_a_step(tmp_path, capsys):
    folder = tmp_path / "run" / "samples"
    folder.mkdir(parents=True)
    first = [("2+2", "two and two", "4", 1), ("2+2", "it is five", "5", 0), ("3+3", "six", "6", 1)]
    later = [("2+2", "two and two", "4", 1), ("2+2", "two  and two", "4", 1)]
    for version, rows in ((0, first), (9, later)):
        (folder / f"step_{version + 1}.jsonl").write_text("".join(sample(*row, version) + "\n" for row in rows))
    assert analyse(tmp_path / "run", tmp_path / "out") == 0
    early, late = table(tmp_path / "out" / "table.csv")
    assert (early["step"], early["problems"], early["rollouts"], early["single"]) == ("1", "2", "3", "1")
    assert (early["distinct_answers"], early["distinct_solutions"], early["jaccard"]) == ("1.5", "1.5", "0.0")
    assert (late["step"], late["distinct_answers"], late["distinct_solutions"], late["jaccard"]) == (
        "10", "1.0", "1.0", "1.0",
    )  # fmt: skip
    assert (early["correct_distinct_solutions"], early["correct_jaccard"]) == ("1.0", "")
    problems = table(tmp_path / "out" / "table_by_problem.csv")
    assert [(row["step"], row["problem"], row["rollouts"]) for row in problems] == [
        ("1", "2+2", "2"), ("1", "3+3", "1"), ("10", "2+2", "2"),
    ]  # fmt: skip
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["problems_with_one_rollout"] == 1 and summary["settings"]["threshold"] == 0.5
    assert (tmp_path / "out" / "figure.png").stat().st_size > 10_000
    assert "problems with one rollout: 1" in capsys.readouterr().err


def test_an_evaluation_is_one_row(tmp_path):
    problems = [{"problem": f"{i}+1", "prompt": None, "ground_truth": str(i + 1)} for i in range(2)]
    with open_records(tmp_path / "seed_0", {"samples": 3}, problems) as (_, add):
        for row in range(2):
            for number, (text, answer) in enumerate([("so 1", "1"), ("so\n1", "1"), ("never ends", None)]):
                right = row == 0 and answer == "1"
                add(Record(row, number, str(row), right, answer is not None, answer, "eos", 3, text))
    assert analyse(tmp_path / "seed_0", tmp_path / "out") == 0
    (row,) = table(tmp_path / "out" / "table.csv")
    assert (row["step"], row["problems"], row["rollouts"], row["single"]) == ("all", "2", "6", "0")
    assert (row["distinct_answers"], row["distinct_solutions"], row["clusters"]) == ("2.0", "2.0", "2.0")
    assert float(row["answer_entropy"]) == pytest.approx(math.log(3) - 2 / 3 * math.log(2))
    assert float(row["jaccard"]) == pytest.approx(1 / 3)
    assert (row["correct_problems"], row["correct_rollouts"], row["correct_distinct_solutions"]) == ("1", "2", "1.0")
    assert (tmp_path / "out" / "figure.png").stat().st_size > 10_000


def test_without_rewards_and_answers_texts_are_compared_all_the_same(tmp_path):
    file = tmp_path / "dump.jsonl"
    file.write_text("".join(json.dumps({"input": "2+2", "output": text}) + "\n" for text in ("four", "4", "four")))
    assert analyse(file, tmp_path / "out") == 0
    (row,) = table(tmp_path / "out" / "table.csv")
    assert (row["distinct_solutions"], row["distinct_answers"], row["accuracy"]) == ("2.0", "", "")
    assert row["correct_problems"] == "0"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--threshold", "1.5"), "--threshold must be in [0, 1], got 1.5"),
        (("--max-pairs", "0"), "--max-pairs must be at least 1, got 0"),
        (("--rollouts", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, capsys, more, said):
    file = tmp_path / "dump.jsonl"
    file.write_text(json.dumps({"input": "2+2", "output": "four"}) + "\n")
    assert analyse(file, tmp_path / "out", *more) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_empty_file_has_no_rollouts(tmp_path, capsys):
    (tmp_path / "dump.jsonl").write_text("\n")
    assert analyse(tmp_path / "dump.jsonl", tmp_path / "out") == 1
    assert "holds no rollouts" in capsys.readouterr().err


def test_published_rollouts_are_counted_as_they_are(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(diversity, "_draw", lambda *rows: None)  # others draw it, and it takes seconds
    file = shared / "data" / "mopd_chemistry_rollouts.jsonl"
    assert analyse(file, tmp_path / "out", "--max-words", "400") == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    problems = {row["prompt_id"]: row for row in table(tmp_path / "out" / "table_by_problem.csv")}
    steps = table(tmp_path / "out" / "table.csv")
    assert len(problems) == 20 and sum(int(row["problems"]) for row in steps) == 20
    assert [int(row["step"]) for row in steps] == sorted({row["rollout_step"] for row in rows})
    for prompt_id, found in problems.items():
        own = [row for row in rows if row["prompt_id"] == prompt_id]
        assert int(found["rollouts"]) == 8
        assert int(found["correct_rollouts"]) == sum(row["reward"] == 1 for row in own)
        assert int(found["distinct_solutions"]) == len({" ".join(row["response_text"].split()) for row in own})
        # A whole response stands for an answer where none was found.
        answers = Counter(row["pred"] if len(row["pred"]) < 1000 else None for row in own)
        assert int(found["distinct_answers"]) == len(answers)
        assert float(found["invalid"]) == answers[None] / 8
    saved = read_rollouts(file)[:8]
    texts = [words_of(own.text)[:60] for own in saved]
    assert self_bleu(texts) == pytest.approx(slow_self_bleu(texts))
