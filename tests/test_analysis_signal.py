"""The teacher-signal study: measures against the published ones and brute force, contexts against training's own."""

import argparse
import csv
import json
from itertools import combinations
from math import exp, sqrt
from pathlib import Path

import numpy as np
import pytest

from eval.analysis import signal
from eval.analysis.rollouts import Saved, read_rollouts
from eval.analysis.signal_contexts import SPECIAL, make_variants, parse_condition
from eval.analysis.signal_data import dataset_rows, dataset_summary, make_groups
from eval.analysis.signal_metrics import (
    METRICS,
    Scored,
    average_ranks,
    by_condition,
    kendall,
    paired,
    prompt_metrics,
    spearman,
    study,
    success_auc,
    top1_hit,
)
from eval.analysis.signal_report import csv_text, draw, draw_buckets, markdown
from jopsd.config import load_config
from jopsd.contexts import Attempt, PlainContext
from jopsd.data.problem import Problem
from jopsd.data.sums import problems, right_totals, sloppy_totals, worked
from jopsd.models.tokenizer import load_tokenizer
from jopsd.prompts import Tokenizers, group_prompts
from jopsd.schema import Reading
from jopsd.setup import BUILTIN
from tests.groups import peers

REPO = Path(__file__).resolve().parent.parent
GOLDEN = json.loads((REPO / "tests" / "golden" / "b" / "mopd_analysis_metrics.json").read_text())
PUBLISHED = (
    "base,base_raw,base_reprompt,solution,another_solution,solution+another_solution,failure_solution,"
    "solution+failure_solution,failure_only,feedback,solution+feedback,summary_success_k2,solution+summary_success_k2,"
    "solution+feedback+summary_all_k2,random_summary_control"
).split(",")


def scored(prompt, number, score, reward, condition="base", effective=True, bucket="easy") -> Scored:
    return Scored(condition, prompt, f"r{number}", score, reward, reward >= 1, bucket, 10, False, effective)


def saved(prompt, number, reward, text=None, **keys) -> Saved:
    """Rollout `number` of a prompt says `<prompt><number>` and was drawn from the prompt `[<prompt>]`."""
    text = f"{prompt}{number}" if text is None else text
    given = {"prompts": {"student": f"[{prompt}]"}, "source": f"file:{number + 1}", **keys}
    return Saved(prompt, f"r{number}", prompt.upper(), text, reward, None, None, None, **given)


def rollouts(prompt, rewards, **keys) -> list[Saved]:
    return [saved(prompt, number, reward, **keys) for number, reward in enumerate(rewards)]


def read(name, groups, words=None, **keys) -> list[str]:
    """What the teacher reads of each rollout: the last turn."""
    variants = make_variants(groups, [parse_condition(name)], words or peers(), **keys)
    return [v.prompt if isinstance(v.prompt, str) else v.prompt.messages[-1]["content"] for v in variants]


# The measures.


def test_the_published_rule_gives_the_published_numbers():
    keys = ("condition", "prompt_id", "response_id", "teacher_score", "reward", "success", "difficulty_bucket")
    more = ("teacher_prompt_len", "teacher_prompt_truncated", "effective_for_condition")
    result = study([Scored(*(row[key] for key in keys + more)) for row in GOLDEN["rows"]], "zero")
    golden_pairs = GOLDEN["paired_all"]["self_response"]
    compared = 0
    for ours, theirs in (
        (result["all"]["conditions"], GOLDEN["all_samples"]),
        (result["effective_only"]["conditions"], GOLDEN["effective_only"]),
        (result["all"]["paired"], golden_pairs["conditions"]),
    ):
        assert list(ours) == list(theirs)
        for condition, golden in theirs.items():
            own, buckets = ours[condition], golden["by_bucket"]
            assert set(own["by_bucket"]) == set(buckets)
            overall = {key: value for key, value in golden.items() if key != "by_bucket"}
            for measured, wanted in [(own, overall), *((own["by_bucket"][b], buckets[b]) for b in buckets)]:
                assert {key: measured[key] for key in wanted} == pytest.approx(wanted, abs=1e-9)
                compared += len(wanted)
    assert compared > 200
    assert result["all"]["paired_prompts"] == golden_pairs["paired_prompt_count"]


def brute_force(scores, rewards, success) -> dict[str, float]:
    """The eight measures from their definitions, pair by pair."""
    n = len(scores)
    pairs = [(scores[i] - scores[j], rewards[i] - rewards[j]) for i, j in combinations(range(n), 2)]
    agree, oppose = sum(s * r > 0 for s, r in pairs), sum(s * r < 0 for s, r in pairs)
    told = [(s, r) for s, r in pairs if r]
    duels = [(x, y) for x, a in zip(scores, success, strict=True) if a for y, b in zip(scores, success) if not b]  # noqa: B905
    rank = lambda v: [sum(w < x for w in v) + (sum(w == x for w in v) + 1) / 2 for x in v]  # noqa: E731
    low, high = min(scores), max(scores)
    stretched = [(x - low) / (high - low) if high > low else 0.5 for x in scores]
    best = scores.index(high)
    return {
        "mean_spearman": correlation(rank(scores), rank(rewards)),
        "mean_kendall_tau": (agree - oppose) / (agree + oppose) if agree + oppose else 0.0,
        "pairwise_accuracy": sum(s * r > 0 for s, r in told) / len(told),
        "success_auc": sum(1.0 if x > y else 0.5 if x == y else 0.0 for x, y in duels) / len(duels),
        "success_point_biserial": correlation(scores, success),
        "success_brier_sigmoid": sum((1 / (1 + exp(-x)) - s) ** 2 for x, s in zip(scores, success, strict=True)) / n,
        "success_brier_minmax": sum((x - s) ** 2 for x, s in zip(stretched, success, strict=True)) / n,
        "top1_hit_rate": float(success[best] or rewards[best] == max(rewards)),
    }


def correlation(x, y) -> float:
    mx, my = sum(x) / len(x), sum(y) / len(y)
    covered = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    spread = sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))
    return covered / spread if spread else 0.0


@pytest.mark.parametrize("seed", range(40))
def test_every_measure_is_what_its_definition_says(seed):
    """Scores and rewards on a coarse grid, so that there are ties of every kind."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 9))
    rewards = [0.0, 1.0, *(rng.integers(0, 5, n - 2) / 4)]
    scores = (-rng.integers(0, 1 if seed == 0 else 5, n) / 2).tolist()
    rows = [scored("p", i, *pair) for i, pair in enumerate(zip(scores, rewards, strict=True))]
    measured = prompt_metrics(rows)
    assert measured == pytest.approx(brute_force(scores, rewards, [r >= 1 for r in rewards]), abs=1e-12)
    assert list(measured) == list(METRICS)
    assert measured == prompt_metrics(rows, "zero")


@pytest.mark.slow  # imports
def test_rank_correlations_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, rewards = rng.integers(0, 4, 8), rng.permutation([0, 0, 1, 1, 1, 0, 1, 0])
        assert average_ranks(scores) == pytest.approx(stats.rankdata(scores))
        if len(set(scores)) > 1:
            assert spearman(scores, rewards) == pytest.approx(stats.spearmanr(scores, rewards).statistic)
        untied = rng.permutation(8)
        assert kendall(untied, scores) == pytest.approx(stats.somersd(scores, untied).statistic)
        u = stats.mannwhitneyu(scores[rewards == 1], scores[rewards == 0]).statistic
        assert success_auc(scores, rewards == 1) == pytest.approx(u / 16)


def test_a_prompt_of_one_class_is_left_out_of_ranking_and_counted():
    rows = [scored("mixed", 0, -0.1, 1.0), scored("mixed", 1, -0.5, 0.0)]
    rows += [scored("failed", i, -0.1 * i, 0.0, bucket="hard") for i in range(3)]
    measured, published = by_condition(rows)["base"], by_condition(rows, "zero")["base"]
    assert [measured[k] for k in ("count_prompts", "count_ranked", "count_two_class")] == [2, 1, 1]
    for key in ("mean_spearman", "mean_kendall_tau", "pairwise_accuracy", "success_auc", "success_point_biserial"):
        assert (measured[key], published[key]) == pytest.approx((1.0, 0.5))
        assert measured["by_bucket"]["hard"][key] is None
    assert measured["success_brier_sigmoid"] == published["success_brier_sigmoid"]
    assert measured["top1_hit_rate"] == 1 and measured["by_bucket"]["hard"]["top1_hit_rate"] is None
    # Partial rewards of failures rank, and say nothing of success.
    partial = by_condition([scored("p", 0, -1.0, 0.2), scored("p", 1, -2.0, 0.8)])["base"]
    assert (partial["pairwise_accuracy"], partial["success_auc"], partial["count_ranked"]) == (0.0, None, 1)


def test_the_first_of_equal_scores_is_the_top_one():
    assert top1_hit([-1, -1, -2], [0, 1, 0], [False, True, False]) == 0
    assert top1_hit([-2, -1, -1], [0, 1, 0], [False, True, False]) == 1


def test_a_prompt_with_one_rollout_counts_nowhere():
    alone = [scored("p", 0, -1.0, 1.0)]
    assert by_condition(alone)["base"]["count_prompts"] == 0
    assert by_condition(alone)["base"]["mean_prompt_length"] is None


def test_sample_sets_and_pairs_keep_the_rollouts_they_name():
    rows = [scored("p", i, -float(i), float(i < 2)) for i in range(4)]
    rows += [row._replace(condition="solution", effective=row.rollout_id != "r0") for row in rows]
    result = study(rows)
    assert result["all"]["paired_rollouts"] == 4
    effective = result["effective_only"]
    assert effective["paired_rollouts"] == 3
    # Paired, base is measured without the rollout that solution lacks.
    assert (
        effective["conditions"]["base"]["success_brier_minmax"] != effective["paired"]["base"]["success_brier_minmax"]
    )
    assert effective["paired"]["base"]["success_brier_minmax"] == pytest.approx((0 + 0.25 + 0) / 3)
    assert {row.rollout_id for row in paired([row for row in rows if row.effective])} == {"r1", "r2", "r3"}
    assert result["reward0"]["conditions"]["base"]["success_auc"] is None
    assert result["reward0_effective_only"]["paired_rollouts"] == 2


# The data.


def test_prompts_fall_into_buckets_by_their_successes():
    made, left_out = make_groups(
        [
            *rollouts("easy", [1, 1, 1, 1, 0]),
            *rollouts("medium", [0, 1, 1, 1]),
            *rollouts("hard", [0, 0.9]),
            *rollouts("lone", [1]),
            *rollouts("ungraded", [1, None]),
            saved("medium", 9, 1.0, text=" "),
        ]
    )
    assert {group.prompt_id: group.bucket for group in made} == {k: k for k in ("easy", "medium", "hard")}
    assert left_out == {"prompts with fewer than two rollouts": 2, "rollouts without text or reward": 2}
    summary = dataset_summary(made, left_out, 1.0)
    assert summary["prompts_by_bucket"] == {"easy": 1, "medium": 1, "hard": 1}
    assert (summary["rollouts"], summary["evidence"]["successes"], summary["evidence"]["failures"]) == (11, 7, 4)
    assert summary["evidence"]["prompts_with_both"] == 2
    assert [row["success"] for row in dataset_rows(made, 0.9)][-2:] == [False, True]
    assert make_groups(rollouts("hard", [0, 0.9]), success=0.9)[0][0].bucket == "medium"


def test_at_most_so_many_rollouts_are_kept_and_the_seed_decides_which():
    all_of_them = rollouts("p", [1] * 12) + rollouts("q", [0] * 12)
    kept = [[r.rollout_id for r in group.rollouts] for group in make_groups(all_of_them)[0]]
    assert [len(set(ids)) for ids in kept] == [8, 8] and kept[0] != kept[1]
    order = [f"r{i}" for i in range(12)]
    assert all(ids == sorted(ids, key=order.index) for ids in kept)
    assert kept == [[r.rollout_id for r in group.rollouts] for group in make_groups(all_of_them)[0]]
    # A prompt's rollouts do not depend on which other prompts there are.
    assert kept[1] == [r.rollout_id for r in make_groups(all_of_them[12:])[0][0].rollouts]
    assert make_groups(all_of_them, seed=1)[0] != make_groups(all_of_them)[0]


def test_a_limit_on_prompts_is_shared_equally_and_what_a_bucket_lacks_stays_unused():
    everything = [r for i in range(5) for r in rollouts(f"e{i}", [1] * 4)]
    everything += [r for i in range(5) for r in rollouts(f"h{i}", [0, 0])] + rollouts("m", [0, 1])
    kept, left_out = make_groups(everything, max_prompts=7)
    assert [sum(group.bucket == b for group in kept) for b in ("easy", "medium", "hard")] == [3, 1, 2]
    assert left_out["prompts beyond the limit"] == 5


def test_a_rollout_that_is_there_twice_and_data_without_a_group_are_errors():
    with pytest.raises(ValueError, match="file:1: rollout r0 of prompt p is repeated"):
        make_groups([*rollouts("p", [1, 0]), saved("p", 0, 1.0)])
    with pytest.raises(ValueError, match="no prompt has two rollouts"):
        make_groups(rollouts("p", [1]))


def test_a_decoded_chat_prompt_is_taken_apart_into_its_turns():
    prompt = "system\nBe brief.\nuser\nHow many?\nuser\nof them\nassistant\n"
    (made,), _ = make_groups([saved("p", i, 1.0, prompts={"student": prompt}) for i in range(2)])
    assert (made.problem.system, made.problem.problem, made.turn) == ("Be brief.", "How many?\nuser\nof them", True)
    variant = make_variants([made], [parse_condition("base")])[0]
    assert [m["role"] for m in variant.prompt.messages] == ["system", "user"]
    assert variant.prompt.messages[-1]["content"] == "How many?\nuser\nof them"  # no second instruction
    (plain,), _ = make_groups(rollouts("p", [1, 1]))
    assert not plain.turn and plain.problem.system is None


# The contexts.


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("base", ["P", "P", "P", "P"]),
        ("base_raw", ["[p]"] * 4),
        ("solution", ["P S:p2", "P S:p0", "P S:p0", "P S:p0"]),
        ("another_solution", ["P", "P A:p2", "P", "P A:p2"]),
        ("solution+another_solution", ["P S:p2", "P S:p0 A:p2", "P S:p0", "P S:p0 A:p2"]),
        ("failure_only", ["P", "P", "P", "P"]),
        ("feedback", ["P", "P E:wrong", "P", "P"]),
        ("solution+feedback", ["P S:p2", "P S:p0 E:wrong", "P S:p0", "P S:p0"]),
        ("summary_success_k2", ["P", "P Y:p2", "P", "P Y:p2"]),
        ("solution+summary_failure_k1", None),
    ],
)
def test_each_condition_shows_what_its_name_says(condition, expected):
    given = rollouts("p", [1, 0, 1, 0])
    given[1] = given[1]._replace(feedback="wrong")
    shown = read(condition, make_groups(given)[0])
    if expected is None:  # drawn at random
        assert all(text.startswith("P S:p") and text[6:] in (" N:p1", " N:p3") for text in shown)
    else:
        assert shown == expected


def test_a_failed_peer_is_shown_to_successes_too_and_is_the_same_beside_a_solution():
    groups, _ = make_groups(rollouts("p", [1, 0, 0, 0, 0, 1]))
    alone, beside = read("failure_solution", groups), read("solution+failure_solution", groups)
    assert alone[0] in {f"P F:p{i}" for i in range(1, 5)}
    assert [text[1:] for text in alone] == [text[6:] for text in beside]
    assert all(f"F:p{i}" not in text for i, text in enumerate(alone))
    failed, _ = make_groups(rollouts("p", [0, 0]))
    assert read("failure_only", failed) == ["P F:p1", "P F:p0"]


def test_the_control_shows_summaries_of_other_problems_successes_alone():
    groups, _ = make_groups([*rollouts("p", [1, 0]), *rollouts("q", [1, 1, 0]), *rollouts("s", [1, 0])])
    for group, own in zip(groups, (2, 3, 2), strict=True):
        texts = [t for t in read("random_summary_control", groups) if t.startswith(group.prompt_id.upper())]
        assert len(texts) == own
        for text in texts:
            names = text.split(" Y:")[1:]
            assert len(names) <= 2 and names
            assert {name[0] for name in names} <= {"p", "q", "s"} - {group.prompt_id}
            assert set(names) <= {"p0", "q0", "q1", "s0"}
    lonely = make_variants(groups[:1], [parse_condition("random_summary_control")], peers())
    assert [variant.effective for variant in lonely] == [False, False]


@pytest.mark.parametrize("form", ["training", "published"])
@pytest.mark.parametrize("condition", PUBLISHED)
def test_evidence_and_sections_are_those_that_the_prompt_shows(condition, form):
    """Every text and feedback is a word of its own, so what is shown can be read off the prompt."""
    given = [r for p, rewards in (("p", [1, 0, 1, 0, 1]), ("q", [0, 0]), ("s", [1, 1])) for r in rollouts(p, rewards)]
    given = [r._replace(feedback=f"said{r.text}" if r.reward == 0 else None) for r in given]
    given[4] = given[4]._replace(text="<think>p4</think>")  # nothing to show without its thinking
    groups, _ = make_groups(given)
    parsed = parse_condition(condition)
    marks = {"S": "solution", "Y": "summary", "N": "summary", "A": "another_solution", "F": "failure_solution"}
    for variant in make_variants(groups, [parsed], peers(), form=form):
        prompt = variant.prompt if isinstance(variant.prompt, str) else variant.prompt.messages[-1]["content"]
        shown: dict[str, list[str]] = {}
        for mark, _, word in (part.partition(":") for part in prompt.split(" ")[1:]):
            if mark == "E":
                assert word == f"said{variant.prompt_id}{variant.rollout_id[1:]}"
                shown["feedback"] = [variant.rollout_id]
            else:
                word = word.removeprefix("<think>").removesuffix("</think>")
                own = f"r{word[1:]}" if word[0] == variant.prompt_id else f"{word[0]}/r{word[1:]}"
                shown.setdefault(marks[mark], []).append(own)
        assert {name: list(ids) for name, ids in variant.evidence.items()} == shown
        assert variant.sections_used == {name: name in shown for name in variant.sections_used}
        assert variant.effective == all(name in shown for name in parsed.required)


def test_the_teacher_reads_what_it_reads_in_training():
    """The way of a training step, from rewards to token ids, in the recipe of MOPD for the embedded task."""
    tokenizer = load_tokenizer(BUILTIN["builtin:sums"])
    config = load_config(REPO / "configs" / "tiny" / "mopd.yaml")
    texts = ["1+1=2", "1+1=3", "1+1=1"]
    given = [
        saved("p", i, float(i == 0), text=text)._replace(problem="1+1", finish="eos") for i, text in enumerate(texts)
    ]
    groups, _ = make_groups(given)
    variants = make_variants(groups, [parse_condition("solution+failure_solution")], config.context)
    jobs = signal.make_jobs(
        tokenizer, tokenizer.eos_token_id, groups, variants, Reading(thinking=config.teacher.thinking)
    )
    attempts = [Attempt(text, float(i == 0)) for i, text in enumerate(texts)]
    trained = group_prompts(config, Tokenizers(tokenizer), Problem("p", "1+1"), attempts, np.random.default_rng(0))
    # Of two failures each is shown the other, so nothing is left to chance. Training leaves the lone success out.
    assert [job.prompt_ids for job in jobs[1:]] == [read["teacher"] for read in trained[1:]]
    assert jobs[1].completion_ids == [*tokenizer.encode("1+1=3"), tokenizer.eos_token_id]


def test_rollouts_drawn_from_another_prompt_are_counted():
    tokenizer = load_tokenizer(BUILTIN["builtin:sums"])
    same = "<|im_start|>user\nProblem: P<|im_end|>\n<|im_start|>assistant\n"
    given = [saved("p", i, 1.0, prompts={"student": same} if i else {}) for i in range(3)]
    given[2] = given[2]._replace(prompts={"student": same.replace("Problem: ", "")})
    groups, _ = make_groups(given)
    variants = make_variants(groups, [parse_condition("base")], peers(student_template="Problem: {problem}"))
    jobs = signal.make_jobs(tokenizer, tokenizer.eos_token_id, groups, variants, Reading())
    assert signal.unlike_saved(tokenizer, groups, jobs) == 1


def test_the_student_s_turn_is_the_run_s_own_whatever_the_condition():
    groups, _ = make_groups(rollouts("p", [1, 1, 1]))
    asking = peers(summaries={"tag": "gist"}, summary_instruction=" ({tag})")
    assert read("base", groups, asking)[0] == "P (gist)"
    assert read("solution", groups, asking)[0] == "P (gist) S:p1"
    assert read("summary_success_k1", groups, asking)[0] == "P (gist) Y:p2"
    tagged = make_groups([r._replace(text=f"{r.text} <gist>g{r.text}</gist>") for r in rollouts("p", [1, 1, 1])])[0]
    assert read("summary_success_k1", tagged, asking)[0] == "P (gist) Y:gp2"
    other = PlainContext(student_template="Solve {problem}!")
    assert read("base", groups, other)[0] == "Solve P!"
    assert read("base_reprompt", groups, other)[0].startswith("Solve P!\n\n")


def test_the_published_form_adds_to_the_saved_prompt_and_shows_the_first_by_name():
    thought = "<think>hm</think>"
    given = [saved("p", i, float(i in (10, 2)), text=f"{thought}p{i}") for i in (2, 3, 10, 11)]
    groups, _ = make_groups(given)
    assert read("solution+failure_solution", groups, form="published") == [
        f"[p] S:{thought}p2 F:{thought}p11",  # of r10: "r10" < "r11" < "r2" < "r3"
        f"[p] S:{thought}p10 F:{thought}p3",
        f"[p] S:{thought}p10 F:{thought}p11",
        f"[p] S:{thought}p10 F:{thought}p11",
    ]
    assert read("solution", groups)[0] == "P S:p10"
    with pytest.raises(ValueError, match="--format published reads the prompt .* file:1 has none"):
        read("base", make_groups(rollouts("p", [1, 0], prompts={}))[0], form="published")


@pytest.mark.parametrize(
    "name", ["all_solutions", "solution+solution", "summary", "summary_success_k0", "", "base+solution"]
)
def test_an_unknown_condition_is_an_error_that_lists_the_known(name):
    with pytest.raises(ValueError, match="unknown condition") as caught:
        parse_condition(name)
    assert all(
        known in str(caught.value) for known in (*SPECIAL, "another_solution", "summary_{success,all,failure}_kN")
    )


def test_a_context_without_a_place_for_a_section_is_an_error_that_names_the_condition():
    words = load_config(REPO / "configs" / "tiny" / "mopd.yaml").context
    with pytest.raises(ValueError, match=r"condition feedback: teacher_template has no \{feedback\}"):
        make_variants(make_groups(rollouts("p", [1, 0]))[0], [parse_condition("feedback")], words)


def test_the_published_rollouts_fall_into_their_published_buckets(shared):
    lines = (shared / "data" / "mopd_chemistry_rollouts.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    groups, left_out = make_groups(read_rollouts(shared / "data" / "mopd_chemistry_rollouts.jsonl"))
    assert not left_out and sum(len(group.rollouts) for group in groups) == len(rows) == 160
    assert {g.prompt_id: g.bucket for g in groups} == {row["prompt_id"]: row["difficulty_bucket"] for row in rows}
    evidence = dataset_summary(groups, left_out, 1.0)["evidence"]
    assert evidence["successes"] == sum(row["success"] for row in rows)
    assert evidence["tagged_summaries"] == sum(row["summary_has_tag"] for row in rows)
    variants = make_variants(groups, [parse_condition(name) for name in PUBLISHED])
    assert len(variants) == 160 * len(PUBLISHED)
    effective = {name: sum(v.effective for v in variants if v.condition == name) for name in PUBLISHED}
    peers_left = {row["response_id"]: row["prompt_success_count"] - row["success"] for row in rows}
    assert effective["solution"] == sum(left > 0 for left in peers_left.values())
    assert effective["solution+another_solution"] == sum(left > 1 for left in peers_left.values())
    failed = [row["prompt_failure_count"] - (not row["success"]) > 0 for row in rows]
    assert effective["failure_solution"] == sum(failed) and effective["feedback"] == 0
    base = next(variant for variant in variants if variant.condition == "base").prompt.messages
    assert [message["role"] for message in base] == ["system", "user"]
    assert base[0]["content"] in rows[0]["prompt"] and base[1]["content"] in rows[0]["prompt"]


# The whole study.


def study_args(**changes) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    signal.add_arguments(parser)
    given = {"model": "builtin:sums", "checkpoint": None, "config": REPO / "configs" / "tiny" / "mopd.yaml"}
    return argparse.Namespace(**{**vars(parser.parse_args([])), **given, **changes})


def write_rollouts(folder: Path) -> Path:
    """A sum that is always wrong, and three that are each worked out twice rightly and twice with slips."""
    rng, lines = np.random.default_rng(3), []
    for number, problem in enumerate(problems("test", 4, 1)):
        numbers = [int(n) for n in problem.problem.split("+")]
        right = right_totals(numbers)
        slips: list[list[int]] = []
        for sample in range(4):
            totals = right
            if sample > 1 or number == 0:
                while totals[-1] == right[-1] or totals in slips:
                    totals = sloppy_totals(rng, numbers)
                slips.append(totals)
            lines.append(
                {
                    "problem_id": problem.id,
                    "problem": problem.problem,
                    "completion": worked(numbers, totals),
                    "finish": "eos",
                    "reward": float(totals == right),
                    "prediction": str(totals[-1]),
                    "prompts": {},
                }
            )
    (folder / "samples").mkdir(parents=True)
    path = folder / "samples" / "step_000001.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def start(args: argparse.Namespace, figures: bool = False) -> int:
    """Runs the study, without its figures unless asked. Returns how many pairs were scored."""
    pairs: list = []
    score = signal.score
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "score", lambda scorer, given, *rest: pairs.extend(given) or score(scorer, given, *rest))
        for name in () if figures else ("draw", "draw_buckets"):
            patch.setattr(signal, name, lambda conditions, path: None)
        signal.run(args, say=lambda text: None)
    return len(pairs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A study in two starts: the second has a condition more, and finds the last line of the first torn."""
    folder = tmp_path_factory.mktemp("study")
    args = study_args(rollouts=write_rollouts(folder / "run"), output=folder / "out", conditions="base,solution")
    start(args)
    path = folder / "out" / signal.SCORES
    path.write_bytes(path.read_bytes()[:-30])
    args.conditions = "base,solution,failure_solution"
    (folder / "second.json").write_text(json.dumps(start(args, figures=True)))
    return folder


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_a_teacher_that_reads_a_right_peer_knows_right_from_wrong(finished):
    summary = json.loads((finished / "out" / "summary.json").read_text())
    all_of_them = summary["all"]["conditions"]
    assert list(all_of_them) == ["base", "solution", "failure_solution"]
    assert all_of_them["solution"]["success_auc"] == 1.0 > all_of_them["base"]["success_auc"]
    assert all_of_them["base"]["count_two_class"] == 3 and all_of_them["base"]["count_prompts"] == 4
    assert summary["effective"]["solution"] == {"variants": 16, "effective": 12}
    assert set(all_of_them["base"]["by_bucket"]) == {"medium", "hard"}


def test_every_variant_has_one_line_and_nothing_is_scored_twice(finished):
    lines = jsonl(finished / "out" / signal.SCORES)
    keys = [(line["condition"], line["prompt_id"], line["rollout_id"]) for line in lines]
    assert len(keys) == len(set(keys)) == 3 * 16
    variants = jsonl(finished / "out" / signal.VARIANTS)
    assert set(keys) == {(row["condition"], row["prompt_id"], row["rollout_id"]) for row in variants}
    digests = [line["digest"] for line in lines]
    kept = set(digests[:31])  # of 32 lines of the first start, one was torn
    assert digests[31] not in kept
    assert json.loads((finished / "second.json").read_text()) == len(set(digests)) - len(kept)


@pytest.mark.slow  # imports
def test_scores_are_those_of_transformers(finished):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BUILTIN["builtin:sums"], dtype=torch.float32).eval()
    tokenizer = load_tokenizer(BUILTIN["builtin:sums"])
    texts = {(row["prompt_id"], row["rollout_id"]): row["text"] for row in jsonl(finished / "out" / signal.DATASET)}
    scores = {
        (line["condition"], line["prompt_id"], line["rollout_id"]): line
        for line in jsonl(finished / "out" / signal.SCORES)
    }
    for row in jsonl(finished / "out" / signal.VARIANTS)[::7]:
        prompt = tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
        read = tokenizer.encode(prompt, add_special_tokens=False)
        said = tokenizer.encode(texts[row["prompt_id"], row["rollout_id"]] + "<|im_end|>", add_special_tokens=False)
        with torch.no_grad():
            logprobs = model(torch.tensor([[*read, *said]])).logits[0].log_softmax(-1)
        each = [float(logprobs[len(read) - 1 + place, token]) for place, token in enumerate(said)]
        line = scores[row["condition"], row["prompt_id"], row["rollout_id"]]
        assert (line["prompt_tokens"], line["tokens"], line["truncated"]) == (len(read), len(said), False)
        assert line["sum"] == pytest.approx(sum(each), abs=1e-3)
        assert line["score"] == pytest.approx(sum(each) / len(said), abs=1e-4)


def test_the_tables_hold_the_numbers_of_the_summary(finished):
    summary = json.loads((finished / "out" / "summary.json").read_text())
    rows = list(csv.DictReader((finished / "out" / "table.csv").open()))
    assert {row["sample_set"] for row in rows} == {"all", "effective_only", "reward0", "reward0_effective_only"}
    row = next(r for r in rows if (r["condition"], r["view"], r["bucket"]) == ("solution", "paired", "medium"))
    own = summary["all"]["paired"]["solution"]["by_bucket"]["medium"]
    assert [float(row[key]) for key in METRICS] == [own[key] for key in METRICS]
    assert "| `failure_solution` | 4 | 3 | 3 |" in (finished / "out" / "table.md").read_text()
    for name in ("figure.png", "by_bucket.png"):
        assert (finished / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_a_prompt_that_does_not_fit_loses_its_beginning_and_a_rollout_that_leaves_no_room_is_named(finished):
    args = study_args(rollouts=finished / "run", output=finished / "short", conditions="base,solution", max_length=64)
    start(args)
    lines = jsonl(finished / "short" / signal.SCORES)
    assert {line["truncated"] for line in lines if line["prompt_tokens"] + line["tokens"] > 64} == {True}
    assert {line["truncated"] for line in lines if line["prompt_tokens"] + line["tokens"] <= 64} == {False}
    conditions = json.loads((finished / "short" / "summary.json").read_text())["all"]["conditions"]
    assert (conditions["base"]["truncation_rate"], conditions["solution"]["truncation_rate"]) == (0, 0.75)
    args.max_length, args.output = 38, finished / "shorter"
    with pytest.raises(
        ValueError, match=r"--max-length 38 leaves no room for a prompt beside rollout \w+_r\d of 38 tok"
    ):
        start(args)


def test_a_folder_of_another_scorer_is_refused(finished):
    args = study_args(rollouts=finished / "run", output=finished / "out", temperature=0.5)
    with pytest.raises(ValueError, match="another temperature: 1.0 then, 0.5 now"):
        start(args)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditions": "base,base"}, "--conditions 'base,base' is empty, or has one twice"),
        ({"conditions": ","}, "is empty"),
        ({"conditions": "all_solutions"}, "unknown condition 'all_solutions'"),
        ({"keep": 1}, "--keep must be at least 2, got 1"),
        ({"batch": 0}, "--batch must be at least 1, got 0"),
        ({"max_prompts": 0}, "--max-prompts must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_errors_before_anything_is_read(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        start(study_args(rollouts=tmp_path / "missing", output=tmp_path / "out", **changes))


def test_brier_axes_are_inverted_and_what_is_not_known_is_said(tmp_path, monkeypatch):
    from matplotlib import figure as module
    from matplotlib import pyplot

    conditions = by_condition([scored("p", i, -float(i), 0.0) for i in range(2)])
    figures: list = []
    with monkeypatch.context() as patch:
        patch.setattr(module.Figure, "savefig", lambda figure, path, dpi: figures.append(figure))
        patch.setattr(pyplot, "close", lambda figure: None)
        draw(conditions, tmp_path / "figure.png")
        draw_buckets(conditions, tmp_path / "by_bucket.png")
    assert [len(figure.axes) for figure in figures] == [8, 8]
    for figure in figures:
        inverted = {axis.get_title().split(",")[0] for axis in figure.axes if axis.yaxis_inverted()}
        assert inverted == {"Brier"}
        assert sum(text.get_text() == "none" for axis in figure.axes for text in axis.texts) == 6
        pyplot.close(figure)
    result = study([scored("p", i, -float(i), 0.0) for i in range(2)])
    assert "| `base` | 1 | 0 | 0 | – | – |" in markdown(result, "all")
    assert "all,conditions,base,,1,0,0,,,,,," in csv_text(result)
