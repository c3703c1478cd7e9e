"""What the teacher says token by token: figures against brute force, and the three analyses from file to table."""

import argparse
import csv
import json
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from eval.analysis import entropy, gaps, position, style
from eval.analysis.__main__ import main
from eval.analysis.gaps import Gaps, choose, measure, spread
from eval.analysis.rollouts import Saved
from eval.analysis.scoring import Scores
from eval.analysis.style_classes import classes_of, last_box
from jopsd.data.chat import render_text
from jopsd.data.sums import problems, right_totals, worked
from jopsd.models.tokenizer import load_tokenizer
from jopsd.setup import BUILTIN

RAMP = {"w_min": 0.25, "tau": 0.3, "s": 0.1}


def saved(number=0, reward=1.0, step=None, text="1+1=2", **prompts) -> Saved:
    return Saved("p", f"r{number}", "1+1", text, reward, None, None, step, prompts)


def rollout(rng, length, reward, hints=0) -> Gaps:
    """Numbers on a coarse grid, so that there are ties."""
    draw = lambda *shape: -rng.integers(0, 5, shape or length).astype(np.float32) / 4  # noqa: E731
    return Gaps(
        saved(reward=reward),
        np.arange(length, dtype=np.int32),
        *(draw(), -draw(), draw(), -draw(), draw(hints, length), -draw()),
    )


def made(seed=0, hints=0) -> list[Gaps]:
    rng = np.random.default_rng(seed)
    rewards = [1.0, 0.0, 1.0, None, 0.0, 0.5]
    return [rollout(rng, length, r, hints) for length, r in zip((1, 7, 12, 5, 33, 2), rewards, strict=True)]


# Which rollouts.


def test_rollouts_without_a_view_or_of_other_steps_are_left_out_and_counted():
    both = {"student": "s", "teacher": "t"}
    rows = [saved(0, step=1, **both), saved(1, step=2, student="s"), saved(2, step=2, **both), saved(3, **both)]
    assert choose(rows) == ([rows[0], rows[2], rows[3]], {"without view teacher": 1})
    assert choose(rows, steps=[2, 9]) == ([rows[2]], {"without view teacher": 1})
    hinted = saved(4, **both, negative=["n"])
    assert choose([*rows, hinted]) == ([rows[0], rows[2], rows[3], hinted], {"without view teacher": 1})
    assert choose([*rows, hinted], hints=True)[0] == [hinted]
    assert len(choose(rows, hints=True)[0]) == 3


def test_no_rollout_left_says_what_there_is():
    rows = [saved(student="s", step=3), saved(student="s", negative=["n"], step=5), saved(student="s", teacher="")]
    with pytest.raises(ValueError, match=r"views student and teacher; .*: student \(3 of 3\), negative \(1 of 3\)"):
        choose(rows)
    with pytest.raises(ValueError, match=r"steps 7 to 8: they are of steps 3 to 5; change --steps"):
        choose(rows, steps=[7, 8])
    with pytest.raises(ValueError, match="their steps are not known"):
        choose([saved(student="s", teacher="t")], steps=[0, 1])


def test_a_limit_takes_rollouts_from_all_over_the_file():
    rows = [saved(i) for i in range(10)]
    assert [own.rollout_id for own in spread(rows, 4)] == ["r0", "r2", "r5", "r7"]
    assert spread(rows, None) == spread(rows, 10) == spread(rows, 99) == rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "--temperature must be above 0"),
        ({"max_length": 0}, "--max-length must be at least 1, got 0"),
        ({"limit": 0}, "--limit must be at least 1"),
        ({"steps": [3, 2]}, "--steps 3 2"),
        ({"bins": 0}, "--bins must be at least 1"),
        ({"alpha": 2.0}, r"--alpha must be in \[0, 1\]"),
        ({"tau": 1.5}, r"tau must be in \[0, 1\]"),
    ],
)
def test_bad_arguments_are_errors_before_anything_is_read(changes, message):
    parser = argparse.ArgumentParser()
    position.add_arguments(parser)
    args = vars(parser.parse_args([])) | {"rollouts": "missing", "model": None, "checkpoint": None, "output": "x"}
    with pytest.raises(ValueError, match=message):
        position.run(argparse.Namespace(**args | changes))


def test_rollouts_that_do_not_fit_are_an_error_that_counts_them():
    tokenizer = load_tokenizer(BUILTIN["builtin:sums"])
    scorer = SimpleNamespace(tokenizer=tokenizer, stop_id=tokenizer.eos_token_id)
    both = {"student": "s", "teacher": "t"}
    with pytest.raises(ValueError, match="no rollout can be read: 1 of 5 tokens or more, 1 without tokens"):
        measure(scorer, [saved(**both), saved(text="", **both)], max_length=5)


def test_each_view_is_read_by_its_weights_with_the_ends_of_prompts_that_fit(monkeypatch):
    """A stand-in for the model gives every token the length of its prompt, so that who read what can be told."""
    asked = []

    def fake_score(scorer, pairs, weights, temperature):
        asked.append((weights, temperature, [(prompt[0], len(prompt)) for prompt, _ in pairs]))
        filled = [np.full(len(ids), len(prompt), np.float32) for prompt, ids in pairs]
        return [Scores(np.array(ids), x, -x, False) for (_, ids), x in zip(pairs, filled, strict=True)]

    def fake_divergences(scorer, students, teachers, completions, *rest):
        asked.append(([*map(len, students)], [*map(len, teachers)], rest))
        return [np.zeros(len(ids)) for ids in completions]

    monkeypatch.setattr(gaps, "score", fake_score)
    monkeypatch.setattr(gaps, "divergences", fake_divergences)
    scorer = SimpleNamespace(tokenizer=SimpleNamespace(encode=lambda text, **_: [*text.encode()]), stop_id=0)
    rows = [
        saved(0, text="12345", student="ss", teacher="tttT", negative=["n", "abcdefgh"]),
        saved(1, text="123", student="sss", teacher="tt", negative=["nn"]),
    ]
    found, left_out = measure(scorer, rows, "base", 0.5, max_length=8, alpha=0.1, hints=True)
    assert not left_out
    t, n, f = b"tnf"
    assert asked[0] == ("student", 0.5, [(115, 2), (115, 3)])
    assert asked[1] == ("base", 0.5, [(t, 3), (t, 2)])
    assert asked[2] == ("base", 0.5, [(n, 1), (f, 3), (n, 2)])
    assert asked[3] == ([2, 3], [3, 2], (0.1, ("student", "base"), 0.5))
    assert [own.truncated for own in found] == [True, False]
    assert [own.negative.tolist() for own in found] == [[[1] * 5, [3] * 5], [[2] * 3]]
    assert [own.gap.tolist() for own in found] == [[1] * 5, [-1] * 3]
    assert found[0].student_entropy.tolist() == [-2] * 5 and found[0].teacher_entropy.tolist() == [-3] * 5


# By position.


@pytest.mark.parametrize("bins", [1, 3, 20])
def test_a_token_is_in_the_bin_that_holds_its_position(bins):
    for length in (1, 2, 7, 20, 41):
        for token, place in enumerate(position.relative_bins(length, bins)):
            at = (token + Fraction(1, 2)) / length
            assert Fraction(int(place), bins) <= at < Fraction(int(place) + 1, bins)
    assert position.absolute_bins(9).tolist() == [0, 1, 1, 2, 2, 2, 2, 3, 3]
    assert position.absolute_bins(2**20)[-2:].tolist() == [19, 20]


def test_weights_are_the_ramp_of_the_paper():
    lengths = [5, 1, 8, 5]
    for length, weights in zip(lengths, position.weights_of(lengths, **RAMP), strict=True):
        ramp = [0.25 + 0.75 / (1 + math.exp(-((t + 0.5) / length - 0.3) / 0.1)) for t in range(length)]
        np.testing.assert_allclose(weights, ramp, rtol=1e-5)


def auc(right, wrong):
    return sum((x > y) + (x == y) / 2 for x in right for y in wrong) / (len(right) * len(wrong))


@pytest.mark.parametrize("seed", range(3))
def test_figures_by_position_are_what_their_definitions_say(seed):
    found, bins = made(seed), 4
    rows = position.by_position(found, bins, success=1.0, **RAMP)
    expected = {}
    for own in found:
        length = len(own.ids)
        for t in range(length):
            weight = 0.25 + 0.75 / (1 + math.exp(-((t + 0.5) / length - 0.3) / 0.1))
            token = (
                own,
                float(own.teacher[t]) - float(own.student[t]),
                own.divergence[t],
                own.teacher_entropy[t],
                weight,
            )
            expected.setdefault(("relative", math.floor((t + 0.5) / length * bins) / bins), []).append(token)
            expected.setdefault(("absolute", 2 ** math.floor(math.log2(t + 1))), []).append(token)
    assert {(row["scale"], row["low"]) for row in rows} == set(expected)
    assert sum(row["tokens"] for row in rows) == 2 * 60
    for row in rows:
        tokens = expected[row["scale"], row["low"]]
        owners = {id(own): own for own, *_ in tokens}
        mean = {key: np.mean([gap for own, gap, *_ in tokens if id(own) == key]) for key in owners}
        right = [mean[key] for key, own in owners.items() if own.saved.reward == 1]
        wrong = [mean[key] for key, own in owners.items() if own.saved.reward in (0.0, 0.5)]
        assert (row["tokens"], row["rollouts"]) == (len(tokens), len(owners))
        _, signed, apart, entropies, weights = zip(*tokens, strict=True)
        wanted = {"gap": signed, "abs_gap": np.abs(signed), "divergence": apart, "teacher_entropy": entropies}
        for name, values in {**wanted, "weight": weights}.items():
            assert row[name] == pytest.approx(np.mean(values), rel=1e-5, abs=1e-9), name
        assert row["reliability"] == (pytest.approx(auc(right, wrong)) if right and wrong else None)
    assert {row["reliability"] is None for row in rows} == {True, False}


# By entropy.


@pytest.mark.parametrize("seed", range(3))
def test_figures_by_entropy_are_what_their_definitions_say(seed):
    rng = np.random.default_rng(seed)
    gap, student, teacher = rng.normal(size=53), rng.permutation(53) / 10, rng.random(53)
    rows = entropy.by_entropy(gap, student, teacher, 4)
    order = np.argsort(student)
    for row, own in zip(rows, (order[:13], order[13:26], order[26:40], order[40:]), strict=True):  # 53 / 4 = 13.25
        assert (row["low"], row["high"], row["tokens"]) == (student[own].min(), student[own].max(), len(own))
        assert row["gap"] == pytest.approx(gap[own].mean())
        assert row["abs_gap"] == pytest.approx(np.abs(gap[own]).mean())
        assert row["share_abs_gap"] == pytest.approx(np.abs(gap[own]).sum() / np.abs(gap).sum())
        assert row["raised"] == pytest.approx(sum(gap[own] > 0) / len(own))
        assert row["teacher_entropy"] == pytest.approx(teacher[own].mean())
    assert sum(row["share_abs_gap"] for row in rows) == pytest.approx(1)


def test_equal_entropies_are_never_parted():
    values = np.array([0.0] * 7 + [1.0, 2.0, 2.0])
    place = entropy.quantile_bins(values, 5)
    assert place.tolist() == [1] * 7 + [3] + [4] * 2
    assert entropy.quantile_bins(np.zeros(9), 4).tolist() == [2] * 9


def test_correlations_agree_with_scipy_and_say_nothing_of_a_constant():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    gap, student = rng.integers(-3, 4, 200) / 2, rng.integers(0, 5, 200) / 4
    found = entropy.correlations(gap, student)
    assert found["pearson"] == pytest.approx(stats.pearsonr(student, np.abs(gap)).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(student, np.abs(gap)).statistic)
    assert entropy.correlations(np.zeros(5), student[:5]) == {"pearson": None, "spearman": None, "top_share": None}


def test_the_top_share_is_the_mean_over_all_orders_of_ties():
    sizes, entropies = np.array([4.0, 1.0, 2.0, 3.0, 10.0, 5.0]), np.array([9.0, 1.0, 5.0, 5.0, 5.0, 0.0])
    assert entropy.top_share(sizes, entropies) == pytest.approx((4 + (2 + 3 + 10) / 3) / 25)  # 2 of 6
    rng = np.random.default_rng(1)
    sizes, entropies = rng.random(50), rng.random(50)
    assert entropy.top_share(sizes, entropies) == pytest.approx(sizes[np.argsort(entropies)[-10:]].sum() / sizes.sum())


# By class of token.

EXAMPLES = {
    "number": (("86", "+67"), ("1,000.5", " is"), ("7", "x = 0")),
    "mathematics": (
        (r"\frac", "{1}{2}"),
        ("=", " 5"),
        ("x", " = 5"),
        ("x", "^2"),
        (" -", " 5"),
        ("f", "(x)"),
        ("(", "3+4)"),
        ("xy", r"$"),
        ("+", "67"),
        (r"\boxed{", "3}"),
    ),
    "connective": (("Wait", ", no"), ("so", " it is"), (" Let's", " see"), ("therefore", "."), ("Hmm", "...")),
    "formatting": (("\n\n", "A"), ("- ", "item"), ("1.", " first"), ("##", " Step"), ("<think>", "\n"), ("**", "Step")),
    "punctuation": ((",", " it"), (".\n", "A"), ("(", "see above)"), ("-", "word"), ("?", "")),
    "other": (("apples", " and"), ("I", " think"), ("a", " number"), ("cat", "alogue")),
}


@pytest.mark.parametrize(("name", "token", "after"), [(n, t, a) for n, each in EXAMPLES.items() for t, a in each])
def test_a_token_has_the_class_that_a_reader_would_give_it(name, token, after):
    before = {"xy": "take $", "-": "well", " -": "x"}.get(token, "")
    spans = [(len(before), len(before) + len(token))]
    assert classes_of(before + token + after, spans) == [name]


def test_the_answer_is_what_the_last_box_holds():
    text = r"\boxed{1} so \boxed{\frac{1}{2}}."
    assert text[slice(*last_box(text))] == r"\frac{1}{2}"
    assert classes_of(text, [(7, 8), (20, 25), (26, 27), (31, 32)]) == ["number", "answer", "answer", "mathematics"]
    assert last_box("no box") == (0, 0) and last_box(r"\boxed{12") == (7, 9)


def test_a_token_over_a_border_is_what_most_of_it_is_and_one_without_text_is_formatting():
    assert classes_of("so, 12 ab", [(0, 4), (1, 3), (3, 6), (9, 9)]) == ["connective"] * 2 + ["number", "formatting"]


def test_wrong_hints_are_averaged_as_probabilities_whatever_their_number():
    rng = np.random.default_rng(0)
    each = [-rng.random((k, t)).astype(np.float32) * 8 for k, t in ((1, 4), (3, 2), (2, 5))]
    wanted = np.concatenate([np.log(np.mean(np.exp(own.astype(float)), axis=0)) for own in each])
    np.testing.assert_allclose(style.wrong_logprobs(each), wanted, atol=1e-5)


def test_shares_by_class_are_sums_over_its_tokens():
    found = made(hints=2)
    sizes = style.sizes_of(found)
    classes = np.random.default_rng(1).choice(["number", "answer", "connective", "other"], 60)
    rows = {row["class"]: row for row in style.by_class(sizes, classes)}
    assert list(rows) == ["number", "answer", "connective", "other", "task", "style", "all"]
    tokens = [
        (own.teacher[t] - own.student[t], wrong - own.student[t], own.teacher[t] - wrong)
        for own in found
        for t in range(len(own.ids))
        for wrong in [math.log(sum(math.exp(each[t]) for each in own.negative) / 2)]
    ]
    members = {"task": ("number", "answer"), "style": ("connective",), "all": tuple(set(classes))}
    for name, row in rows.items():
        here = np.isin(classes, members.get(name, (name,)))
        for column, hint in enumerate(("right", "wrong", "contrast")):
            values = np.abs([token[column] for token in tokens])
            assert row[hint] == pytest.approx(values[here].mean(), rel=1e-5)
            assert row[f"share_{hint}"] == pytest.approx(values[here].sum() / values.sum(), rel=1e-5)
    assert list(style.sizes_of([*found, *made()])) == ["right"]


# From file to table.


def lines(tokenizer) -> list[dict]:
    """Right and wrong solutions of five problems, as a run saves them; the last has no teacher."""
    made = []
    render = lambda *parts: render_text(tokenizer, [{"role": "user", "content": "\n".join(parts)}], None)  # noqa: E731
    for number, problem in enumerate(problems("test", 5, seed=1)):
        numbers = [int(n) for n in problem.problem.split("+")]
        totals = right_totals(numbers)
        slips = [worked(numbers, [total - 10 * slip for total in totals]) for slip in (1, 2)]
        ask = f"Problem: {problem.problem}"
        prompts = {
            "student": render(ask),
            "teacher": render(ask, f"Reference Solution: {problem.solution}"),
            "negative": [render(ask, f"Reference Solution: {slip}") for slip in slips[: 1 + number % 2]],
        }
        if number == 4:
            prompts = {"student": prompts["student"]}
        for text, reward in ((problem.solution, 1.0), (slips[0], 0.0)):
            row = {"problem": problem.problem, "completion": text, "finish": "eos", "reward": reward}
            made.append({**row, "policy_version": number // 2, "prompts": prompts})
    return made


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BUILTIN["builtin:sums"])


@pytest.fixture(scope="module")
def rows(tokenizer):
    return lines(tokenizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, rows):
    """All three analyses of one file, with one load of the weights each."""
    made = tmp_path_factory.mktemp("analyses")
    path = made / "rollouts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("position", "style", "entropy"):
        args = [name, "--rollouts", str(path), "--model", "builtin:sums", "--output", str(made / name), "--batch", "8"]
        assert main(args) == 0
    return made


@pytest.fixture(scope="module")
def oracle(tokenizer, rows):
    """Per rollout with a teacher: text, reward, and by view [(log-probability, entropy, distribution)] by torch."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(BUILTIN["builtin:sums"], dtype=torch.float32).eval()

    def read(prompt, ids):
        prompt = tokenizer.encode(prompt, add_special_tokens=False)
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        return logits.double().log_softmax(-1).numpy()

    found = []
    for row in rows[:8]:
        ids = [*tokenizer.encode(row["completion"], add_special_tokens=False), tokenizer.eos_token_id]
        student, teacher = (read(row["prompts"][view], ids) for view in ("student", "teacher"))
        negative = [read(prompt, ids) for prompt in row["prompts"]["negative"]]
        pick = lambda p, ids=ids: p[np.arange(len(ids)), ids]  # noqa: E731
        found.append(
            {
                "text": row["completion"],
                "reward": row["reward"],
                "tokens": [tokenizer.decode([i]) for i in ids],
                "gap": pick(teacher) - pick(student),
                "wrong": np.log(np.mean(np.exp([pick(each) for each in negative]), axis=0)) - pick(student),
                "entropy": -(np.exp(student) * student).sum(-1),
                "teacher_entropy": -(np.exp(teacher) * teacher).sum(-1),
                "divergence": sum(
                    0.5 * (np.exp(p) * (p - np.logaddexp(student, teacher) + math.log(2))).sum(-1)
                    for p in (student, teacher)
                ),
            }
        )
    return found


def table(folder) -> list[dict]:
    with open(folder / "table.csv", newline="") as file:
        return [
            {key: value if key in ("scale", "class") else float(value or "nan") for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def test_all_analyses_count_what_they_read_and_leave_four_files(folder, oracle):
    for name in ("position", "style", "entropy"):
        summary = json.loads((folder / name / "summary.json").read_text())
        assert summary["rollouts"] == 8 and summary["truncated"] == 0
        assert summary["left_out"] == {"without view teacher": 2}
        assert summary["tokens"] == sum(len(own["gap"]) for own in oracle)
        assert summary["settings"]["teacher_weights"] == "base"
        assert (folder / name / "figure.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / name / "table.md").read_text().startswith("| ")


def test_position_of_a_file_is_that_of_transformers(folder, oracle):
    found = table(folder / "position")
    assert [row["scale"] for row in found].count("relative") == 20
    for row in found:
        parts = []
        for own in oracle:
            t = np.arange(len(own["gap"]))
            at = (t + 0.5) / len(t) if row["scale"] == "relative" else t + 1
            parts.append(
                (own, (row["low"] - 1e-9 <= at) & (at < row["high"] + (-1e-9 if "rel" in row["scale"] else 1)))
            )
        for name in ("gap", "divergence", "teacher_entropy"):
            mean = np.concatenate([own[name][here] for own, here in parts]).mean()
            assert row[name] == pytest.approx(mean, abs=2e-4)
        means = {
            reward: [o["gap"][h].mean() for o, h in parts if o["reward"] == reward and h.any()] for reward in (1, 0)
        }
        gaps_of = [x - y for x in means[1] for y in means[0]]  # sampled with certainty, both are 0 but for rounding
        low, high = (np.mean([x > border for x in gaps_of]) for border in (1e-4, -1e-4))
        assert low <= row["reliability"] <= high
    assert any(abs(row["reliability"] - 0.5) > 0.2 for row in found)
    summary = json.loads((folder / "position" / "summary.json").read_text())
    assert (summary["right"], summary["wrong"], summary["not_graded"]) == (4, 4, 0)
    assert {key: summary["settings"][key] for key in RAMP} == RAMP


def test_style_of_a_file_is_that_of_transformers(folder, oracle):
    """The embedded task has few kinds of tokens, so that classes can be told in another way."""
    kinds = {"\n": "formatting", "<|im_end|>": "formatting", "\\boxed{": "mathematics"} | dict.fromkeys(
        "+=}", "mathematics"
    )
    classes, sizes = [], {"right": [], "wrong": [], "contrast": []}
    for own in oracle:
        boxed = own["tokens"].index("\\boxed{")
        classes += [kinds.get(x, "answer" if i > boxed else "number") for i, x in enumerate(own["tokens"])]
        sizes["right"].append(own["gap"])
        sizes["wrong"].append(own["wrong"])
        sizes["contrast"].append(own["gap"] - own["wrong"])
    found = {row["class"]: row for row in table(folder / "style")}
    classes = np.array(classes)
    classes_in = {name: [name] for name in set(classes)} | {"task": ["number", "mathematics", "answer"]}
    assert set(found) == {*classes, "task", "style", "all"}
    for hint, values in sizes.items():
        values = np.abs(np.concatenate(values))
        for name, members in classes_in.items():
            here = np.isin(classes, members)
            assert found[name]["tokens"] == here.sum()
            assert found[name][hint] == pytest.approx(values[here].mean(), abs=2e-4)
            assert found[name][f"share_{hint}"] == pytest.approx(values[here].sum() / values.sum(), abs=1e-4)
    summary = json.loads((folder / "style" / "summary.json").read_text())
    assert summary["task_share"] == {hint: found["task"][f"share_{hint}"] for hint in sizes}
    assert summary["hints"] == [1, 1, 2, 2, 1, 1, 2, 2] and summary["note"] is None


def test_entropy_of_a_file_is_that_of_transformers(folder, oracle):
    found = table(folder / "entropy")
    gap, student = (np.concatenate([own[name] for own in oracle]) for name in ("gap", "entropy"))
    assert len(found) == 10 and sum(row["tokens"] for row in found) == len(gap)
    assert [row["low"] for row in found[1:]] == pytest.approx(np.sort(student)[np.cumsum([r["tokens"] for r in found])[:-1].astype(int)], abs=2e-4)  # fmt: skip  # noqa: E501
    assert sum(row["gap"] * row["tokens"] for row in found) == pytest.approx(gap.sum(), abs=2e-2)
    assert sum(row["abs_gap"] * row["tokens"] for row in found) == pytest.approx(np.abs(gap).sum(), abs=2e-2)
    summary = json.loads((folder / "entropy" / "summary.json").read_text())
    assert summary["pearson"] == pytest.approx(np.corrcoef(student, np.abs(gap))[0, 1], abs=1e-3)
    top = np.argsort(student)[-math.ceil(0.2 * len(gap)) :]
    assert summary["top_share"] == pytest.approx(np.abs(gap[top]).sum() / np.abs(gap).sum(), abs=1e-3)


def test_without_wrong_hints_style_shows_the_right_one_and_says_so(monkeypatch, tmp_path, tokenizer):
    found = made()
    found = [own._replace(saved=own.saved._replace(text="1" * len(own.ids))) for own in found]
    about = {"settings": {}, "rollouts": 6}
    monkeypatch.setattr(gaps, "load_gaps", lambda args, hints: (found, about, tokenizer))
    said = []
    style.run(argparse.Namespace(output=tmp_path), say=said.append)
    assert list(table(tmp_path)[0]) == ["class", "tokens", "right", "share_right"]
    assert "only the right hint is shown" in said[0]
    assert "only the right hint is shown" in json.loads((tmp_path / "summary.json").read_text())["note"]
