"""How much the rollouts of one problem differ: answers, wording, and both over training; of right rollouts apart.

Of every problem, and averaged over problems with equal weight:

    rollouts           how many
    accuracy           share of right rollouts, of those with a reward
    distinct_answers   how many different final answers; all rollouts without one count as one more answer
    invalid            share of rollouts without an answer
    answer_entropy     entropy of the answers, nats
    answer_entropy_normalised   the same over the log of the number of rollouts: 1 where all answers differ
    distinct_solutions how many different texts
    clusters           how many groups of similar texts, see `clusters`
    jaccard, sequence  mean similarity of two rollouts: of their sets of words, and of their words in order
    self_bleu          how well each rollout's n-grams are found in the others, see `self_bleu`
    distinct_1, distinct_2   different words, and pairs of words, over all: both fall with longer and with more texts

correct_ stands before the same among right rollouts alone, over the problems that have one. Problems with one rollout
count in what needs no pair and are left out of answer_entropy_normalised, jaccard, sequence and self_bleu. Numbers of
different answers and texts grow with the number of rollouts: compare what has equally many. No model is needed.
"""

import argparse
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eval.analysis.output import figure, markdown, write_csv, write_tables
from eval.analysis.rollouts import Saved, read_rollouts
from eval.progress import Say, say_to_stderr

ORDERS = 4  # of n-grams in BLEU
EPSILON = 0.1  # matches that an order above the first is given where it has none
EXCERPT = 80  # characters of a problem that table_by_problem.csv shows

ANSWERS = ("distinct_answers", "invalid", "answer_entropy", "answer_entropy_normalised")
WORDINGS = ("distinct_solutions", "clusters", "jaccard", "sequence", "self_bleu", "distinct_1", "distinct_2")
MEASURES = (*ANSWERS, *WORDINGS)
RIGHT = "correct_"

# Scripts without blanks between words (Thai, Han, Kana) are read character by character.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
_THINK_TAG = re.compile(r"</?think>")


class Read(NamedTuple):
    """What is compared of a rollout. right: None where it has no reward."""

    answer: str | None
    solution: str
    words: Sequence[str]
    right: bool | None


class Limits(NamedTuple):
    """threshold: of `clusters`. The others bound the cost of `mean_sequence_similarity`."""

    threshold: float = 0.5
    max_words: int = 8192
    max_pairs: int = 100
    seed: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, default = parser.add_argument, Limits()
    add("--success", type=float, default=1.0, metavar="REWARD", help="a rollout with this or more is right")
    add("--threshold", type=float, default=default.threshold, help="solutions with this Jaccard similarity are alike")
    add("--max-words", type=int, default=default.max_words, metavar="N", help="first words that `sequence` compares")
    add("--max-pairs", type=int, default=default.max_pairs, metavar="N", help="pairs of a problem that it compares")
    add("--seed", type=int, default=default.seed, help="of the choice of pairs, where there are more")


def run(args: argparse.Namespace, say: Say = say_to_stderr) -> None:
    """Writes the tables and the figure. Raises ValueError: an argument out of range, or nothing to read."""
    limits = Limits(*(getattr(args, name) for name in Limits._fields))
    if not 0 <= limits.threshold <= 1:
        raise ValueError(f"--threshold must be in [0, 1], got {limits.threshold}")
    for name in ("max_words", "max_pairs"):
        if getattr(limits, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(limits, name)}")
    saved = read_rollouts(args.rollouts)
    if not saved:
        raise ValueError(f"{args.rollouts} holds no rollouts")
    problems = by_problem_and_step(saved, args.success, limits)
    rows = averages(problems)
    settings = {"rollouts": str(args.rollouts), "success": args.success, **limits._asdict()}
    counts = {
        "problems_with_one_rollout": sum(row["single"] for row in rows),
        "rollouts_without_reward": sum(rollout.reward is None for rollout in saved),
        "rollouts_cut_at_max_words": sum(len(words_of(rollout.text)) > limits.max_words for rollout in saved),
        "problems_with_more_pairs": sum(math.comb(own["rollouts"], 2) > limits.max_pairs for own in problems),
    }
    output = Path(args.output)
    write_tables(output, rows, {"settings": settings, **counts, "rows": rows})
    write_csv(output / "table_by_problem.csv", problems)
    _draw(rows, problems, output / "figure.png")
    say(_shown(rows, counts))


def by_problem_and_step(saved: Sequence[Saved], success: float, limits: Limits) -> list[dict]:
    """A row per problem and step, steps in order. Where no rollout has an answer, measures of answers are None."""
    known = any(answer_of(rollout.prediction, rollout.text) is not None for rollout in saved)
    groups: dict[tuple[int | None, str], list[Saved]] = {}
    for rollout in saved:
        groups.setdefault((rollout.step, rollout.prompt_id), []).append(rollout)
    rows = []
    for (step, prompt_id), own in sorted(groups.items(), key=lambda group: (group[0][0] is not None, group[0][0] or 0)):
        excerpt = " ".join(own[0].problem.split())[:EXCERPT]
        about = {"step": step, "prompt_id": prompt_id, "problem": excerpt}
        rows.append({**about, **of_problem([read(rollout, success) for rollout in own], limits, known)})
    return rows


def read(rollout: Saved, success: float) -> Read:
    right = None if rollout.reward is None else rollout.reward >= success
    answer = answer_of(rollout.prediction, rollout.text)
    return Read(answer, solution_of(rollout.text), words_of(rollout.text), right)


def of_problem(rollouts: Sequence[Read], limits: Limits, answers: bool = True) -> dict:
    """All columns of one problem; its right rollouts' are None where there is none. answers: whether they are known."""
    graded = [rollout.right for rollout in rollouts if rollout.right is not None]
    right = [rollout for rollout in rollouts if rollout.right]
    everything = measures(rollouts, limits, answers)
    of_right = everything if len(right) == len(rollouts) else measures(right, limits, answers)
    return {
        "rollouts": len(rollouts),
        "accuracy": sum(graded) / len(graded) if graded else None,
        **everything,
        f"{RIGHT}rollouts": len(right),
        **{RIGHT + key: value for key, value in of_right.items()},
    }


def measures(rollouts: Sequence[Read], limits: Limits, answers: bool = True) -> dict[str, float | int | None]:
    """`MEASURES` of rollouts of one problem: all None without a rollout, those of pairs None with one."""
    if not rollouts:
        return dict.fromkeys(MEASURES)
    texts = [rollout.words for rollout in rollouts]
    sets = [frozenset(text) for text in texts]
    pairs = len(texts) > 1
    wordings = (
        len({rollout.solution for rollout in rollouts}),
        1 + max(clusters(sets, limits.threshold)),
        mean_jaccard(sets) if pairs else None,
        mean_sequence_similarity(texts, limits.max_words, limits.max_pairs, limits.seed) if pairs else None,
        self_bleu(texts) if pairs else None,
        distinct_n(texts, 1),
        distinct_n(texts, 2),
    )
    found = _answers([rollout.answer for rollout in rollouts]) if answers else [None] * len(ANSWERS)
    return dict(zip(MEASURES, (*found, *wordings), strict=True))


def averages(problems: Sequence[Mapping]) -> list[dict]:
    """A row per step, "all" where there are none: counts, and unweighted means over problems that have the measure.

    rollouts and correct_rollouts are sums; single and correct_single are problems with one rollout, and with one right.
    """
    rows, steps = [], dict.fromkeys(problem["step"] for problem in problems)
    for step in steps:
        own = [problem for problem in problems if problem["step"] == step]
        row = {"step": "all" if list(steps) == [None] else step, "problems": len(own)}
        for prefix in ("", RIGHT):
            numbers = [problem[f"{prefix}rollouts"] for problem in own]
            if prefix:
                row[f"{prefix}problems"] = sum(number > 0 for number in numbers)
            row |= {f"{prefix}rollouts": sum(numbers), f"{prefix}single": numbers.count(1)}
            for key in (*(() if prefix else ("accuracy",)), *MEASURES):
                values = [problem[prefix + key] for problem in own if problem[prefix + key] is not None]
                row[prefix + key] = float(np.mean(values)) if values else None
        rows.append(row)
    return rows


# ------------------------------------------------------------------------------------------------- what is compared


def answer_of(prediction: str | None, text: str) -> str | None:
    """The answer without blanks, so 1/2 and 0.5 are two; None, the class of invalid ones, where nothing is left.

    A grader that finds no answer may hand back the whole text (MOPD's does). Several lines of it are none.
    """
    if prediction is None or ("\n" in prediction.strip() and prediction.strip() == text.strip()):
        return None
    return "".join(prediction.split()) or None


def solution_of(text: str) -> str:
    """Without the tags of thinking, every run of blanks and line ends one blank."""
    return " ".join(_THINK_TAG.sub(" ", text).split())


def words_of(text: str) -> list[str]:
    """Words and single signs, without case, of what `solution_of` leaves; Thai, Han and Kana by character."""
    return _WORD.findall(_THINK_TAG.sub(" ", text).casefold())


# ------------------------------------------------------------------------------------------------------- measures


def entropy(values: Sequence[Hashable]) -> float:
    """Entropy of the observed shares, nats."""
    shares = [count / len(values) for count in Counter(values).values()]
    return -sum(share * math.log(share) for share in shares) + 0.0  # no -0.0


def jaccard(one: frozenset, other: frozenset) -> float:
    """Size of the intersection over that of the union; 1 for two empty sets."""
    union = len(one | other)
    return len(one & other) / union if union else 1.0


def mean_jaccard(sets: Sequence[frozenset]) -> float:
    """Mean over all pairs of two sets or more."""
    return _mean([jaccard(one, other) for one, other in combinations(sets, 2)])


def clusters(sets: Sequence[frozenset], threshold: float) -> list[int]:
    """Cluster of each, numbered from 0: one pass in the order given, which the result depends on.

    A text joins the first cluster whose first member has Jaccard similarity `threshold` or more, or begins one. Long
    rollouts are seldom alike: of one problem, those that MOPD's code publishes (chemistry) have 0.33 to 0.58.
    """
    first, labels = [], []
    for own in sets:
        label = next((n for n, member in enumerate(first) if jaccard(own, member) >= threshold), len(first))
        if label == len(first):
            first.append(own)
        labels.append(label)
    return labels


def common_length(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence.

    A bit per word of `other` holds a row of the table of lengths, so that an addition goes over all of it at once
    (Hyyrö 2004): len(one) x len(other) / 64 machine steps. 38,912 words each take 0.2 to 0.4 s.
    """
    places: dict[Hashable, int] = {}
    for place, word in enumerate(other):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(other)) - 1
    row = every  # a 0 where the length grows by one
    for word in one:
        if (hits := row & places.get(word, 0)) != 0:
            row = (row + hits | row - hits) & every
    return len(other) - row.bit_count()


def sequence_similarity(one: Sequence[Hashable], other: Sequence[Hashable]) -> float:
    """2 L / (n + m) with the longest common subsequence L of n and m words; 1 for two empty texts.

    difflib's ratio is the same of the matches that it finds greedily: it is never above this, and depends on which
    text comes first, as this does not.
    """
    total = len(one) + len(other)
    return 2 * common_length(one, other) / total if total else 1.0


def mean_sequence_similarity(texts: Sequence[Sequence[str]], max_words: int, max_pairs: int, seed: int) -> float:
    """Mean over pairs of `sequence_similarity`, bounded in cost: of the first `max_words` words of each text.

    Where there are more than `max_pairs` pairs, so many are drawn, from the sorted texts and thus whatever their order.
    """
    ordered = sorted(list(text[:max_words]) for text in texts)
    pairs = list(combinations(range(len(ordered)), 2))
    if len(pairs) > max_pairs:
        drawn = np.random.default_rng(seed).choice(len(pairs), max_pairs, replace=False)
        pairs = [pairs[i] for i in sorted(drawn)]
    return _mean([sequence_similarity(ordered[i], ordered[j]) for i, j in pairs])


def self_bleu(texts: Sequence[Sequence[str]]) -> float:
    """Mean BLEU-4 of each of two texts or more with all others as references (Self-BLEU, arXiv 1802.01886).

    Matches are clipped at the most that one reference has. Smoothing: an order of n-grams above the first without a
    match counts `EPSILON` matches (Chen and Cherry 2014, method 1); without a common word the score is 0. Orders longer
    than the text are left out, so that equal short texts have 1. Brevity is against the reference of the nearest
    length, of two the shorter. An empty text has 1 if another is empty too, else 0.
    """
    lengths = np.array([len(text) for text in texts])
    logs, orders = np.zeros(len(texts)), np.zeros(len(texts))
    for n, codes in enumerate(_grams(texts, ORDERS), start=1):
        totals = np.maximum(lengths - n + 1, 0)
        matched = np.where(totals > 0, np.maximum(_clipped(codes), EPSILON if n > 1 else 0), 1)
        with np.errstate(divide="ignore"):
            logs += np.log(matched / np.maximum(totals, 1))
        orders += totals > 0
    scores = []
    for i, length in enumerate(lengths):
        others = np.delete(lengths, i)
        nearest = min(others, key=lambda other, own=length: (abs(other - own), other))
        if length == 0:
            scores.append(float(nearest == 0))
        else:
            scores.append(math.exp(min(0.0, 1 - nearest / length)) * math.exp(logs[i] / orders[i]))
    return _mean(scores)


def distinct_n(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """Different n-grams over all n-grams of all texts together (arXiv 1510.03055); None where there is none."""
    codes = np.concatenate(list(_grams(texts, n))[-1])
    return len(np.unique(codes)) / len(codes) if len(codes) else None


# ---------------------------------------------------------------------------------------------------------- inside


def _answers(answers: Sequence[str | None]) -> tuple[int, float, float, float | None]:
    nats = entropy(answers)
    normalised = nats / math.log(len(answers)) if len(answers) > 1 else None
    return len(set(answers)), answers.count(None) / len(answers), nats, normalised


def _grams(texts: Sequence[Sequence[str]], most: int) -> Iterator[list[np.ndarray]]:
    """For n = 1 to `most`: per text a number for each of its n-grams, equal for equal ones, [max(len - n + 1, 0)]."""
    numbers: dict[str, int] = {}
    words = [np.array([numbers.setdefault(word, len(numbers)) for word in text], np.int64) for text in texts]
    codes = words
    yield codes
    for n in range(2, most + 1):
        longer = [own[:-1] * len(numbers) + text[n - 1 :] for own, text in zip(codes, words, strict=True)]
        _, flat = np.unique(np.concatenate(longer), return_inverse=True)  # small numbers again
        codes = np.split(flat, np.cumsum([len(own) for own in longer])[:-1])
        yield codes


def _clipped(codes: Sequence[np.ndarray]) -> np.ndarray:
    """Per text: how many of its n-grams are matched, each up to the most that one other text has. [N]"""
    count = len(codes)
    owner = np.repeat(np.arange(count), [len(own) for own in codes])
    keys, times = np.unique(np.concatenate(codes) * count + owner, return_counts=True)
    gram, text = np.divmod(keys, count)
    order = np.lexsort((times, gram))
    gram, text, times = gram[order], text[order], times[order]
    last = np.append(gram[1:] != gram[:-1], True)[: len(gram)]  # the text that has most of the n-gram
    top = np.flatnonzero(last)[np.cumsum(last) - last]
    second = np.where((top > 0) & (gram[top - 1] == gram[top]), times[top - 1], 0)
    others = np.where(last, second, times[top])
    return np.bincount(text, np.minimum(times, others), minlength=count)


def _mean(values: Sequence[float]) -> float:
    return float(math.fsum(values) / len(values))


def _shown(rows: Sequence[Mapping], counts: Mapping[str, int]) -> str:
    """All rollouts and right ones as two tables, which a terminal has room for, and what was left out."""
    everything = [{key: value for key, value in row.items() if not key.startswith(RIGHT)} for row in rows]
    columns = ("problems", "rollouts", "single", *MEASURES)
    right = [{"step": row["step"], **{key: row[RIGHT + key] for key in columns}} for row in rows]
    notes = [f"{name.replace('_', ' ')}: {count}" for name, count in counts.items() if count]
    parts = ("all rollouts", markdown(everything), "right rollouts", markdown(right), ", ".join(notes))
    return "\n\n".join(part for part in parts if part)


def _draw(rows: Sequence[Mapping], problems: Sequence[Mapping], path: Path) -> None:
    """Each measure of all and of right rollouts: by step, or where there is one step a histogram over problems."""
    stepped = [row for row in rows if isinstance(row["step"], int)]
    with figure(path, columns=4, rows=3, size=(3.4, 2.6)) as axes:
        for axis, key in zip(axes.flat, ("accuracy", *MEASURES), strict=True):
            prefixes = {"all": ""} if key == "accuracy" else {"all": "", "right": RIGHT}
            if len(stepped) > 1:
                for label, prefix in prefixes.items():
                    values = [np.nan if row[prefix + key] is None else row[prefix + key] for row in stepped]
                    axis.plot([row["step"] for row in stepped], values, marker="o", markersize=3, label=label)
            else:
                named = [[own[p + key] for own in problems if own[p + key] is not None] for p in prefixes.values()]
                axis.hist(named, bins=10, label=list(prefixes))
            axis.set_title(key.replace("_", " "), fontsize=9)
            axis.tick_params(labelsize=7)
        for axis in axes[-1]:
            axis.set_xlabel("step" if len(stepped) > 1 else "", fontsize=8)
        for axis in axes[:, 0]:
            axis.set_ylabel("" if len(stepped) > 1 else "problems", fontsize=8)
        axes.flat[1].legend(fontsize=7)
