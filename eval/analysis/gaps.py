"""The privileged gap of saved rollouts: what a teacher that read more makes of every token, beside the student.

The gap of a token is log teacher - log student, in nats (the evidence of RLSD and RLCSD): positive where what the
teacher read makes the token likelier. Rollouts are saved as text and tokenised again, so a rollout whose tokens were
not those that its text gives is scored as the text.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from eval.analysis.rollouts import Saved, read_rollouts
from eval.analysis.scoring import Pair, Scorer, Scores, divergences, load_scorer, pair_of, score

VIEWS = ("student", "teacher", "negative")


class Gaps(NamedTuple):
    """One rollout of T tokens as student and teacher read it; log-probabilities and entropies in nats.

    ids: int32 [T], stop token included where it ended with one. student, teacher: log-probabilities, float32 [T], and
    the entropies of the distributions there. negative: log-probabilities after each of K wrong hints, float32 [K,T];
    K is 0 where none were asked for. divergence: float32 [T], or None where not asked for. truncated: a prompt was cut.
    """

    saved: Saved
    ids: np.ndarray
    student: np.ndarray
    student_entropy: np.ndarray
    teacher: np.ndarray
    teacher_entropy: np.ndarray
    negative: np.ndarray
    divergence: np.ndarray | None = None
    truncated: bool = False

    @property
    def gap(self) -> np.ndarray:
        """log teacher - log student, float64 [T]."""
        return self.teacher.astype(float) - self.student


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What all analyses of the gap take."""
    add = parser.add_argument
    add(
        "--teacher-weights",
        choices=("student", "base"),
        default="base",
        help="what reads the teacher's prompts: the model before training (the fixed teacher, default), or the student "
        "itself (the live one)",
    )
    add("--temperature", type=float, default=1.0, help="of all log-probabilities and entropies")
    add("--max-length", type=int, metavar="TOKENS", help="prompt and rollout together; prompts lose their beginning")
    add("--limit", type=int, metavar="N", help="rollouts, spread evenly over those there are; default all")
    add("--steps", type=int, nargs=2, metavar=("A", "B"), help="rollouts of training steps A to B; default all")
    add("--batch", type=int, default=8, metavar="ROWS", help="rollouts read at once")


def load_gaps(
    args: argparse.Namespace, alpha: float | None = None, hints: bool = False
) -> tuple[list[Gaps], dict, Any]:
    """The gaps of the rollouts asked for, their settings and counts for the summary, and the tokenizer.

    Args:
      args: what `add_arguments` adds, with rollouts, model and checkpoint.
      alpha: of the divergence, see `jopsd.losses.divergence`; None: it is not taken.
      hints: read the wrong hints too. Where any rollout has them, those without are left out.

    Raises:
      ValueError, OSError: an argument out of range, or no rollout that both have read, before any weight is loaded.
      CheckpointError: no such checkpoint.
    """
    _check(args)
    chosen, left_out = choose(read_rollouts(args.rollouts), args.steps, hints)
    chosen = spread(chosen, args.limit)
    scorer = load_scorer(args.model, args.checkpoint, args.batch)
    found, more = measure(
        scorer, chosen, args.teacher_weights, args.temperature, args.max_length, alpha=alpha, hints=hints
    )
    names = ("rollouts", "model", "checkpoint", "teacher_weights", "temperature", "max_length", "limit", "steps")
    about = {
        "settings": {name: getattr(args, name) for name in names},
        "rollouts": len(found),
        "tokens": sum(len(own.ids) for own in found),
        "truncated": sum(own.truncated for own in found),
        "left_out": dict(left_out + more),
    }
    return found, about, scorer.tokenizer


def choose(
    saved: Sequence[Saved], steps: Sequence[int] | None = None, hints: bool = False
) -> tuple[list[Saved], Counter[str]]:
    """The rollouts of these training steps that student and teacher have read, and how many were left out, by reason.

    Raises:
      ValueError: none is left; it says which steps or views there are.
    """
    if steps is not None:
        there = sorted({own.step for own in saved if own.step is not None})
        known = f"they are of steps {there[0]} to {there[-1]}" if there else "their steps are not known"
        saved = [own for own in saved if own.step is not None and steps[0] <= own.step <= steps[1]]
        if not saved:
            raise ValueError(f"no rollouts of steps {steps[0]} to {steps[1]}: {known}; change --steps")
    views = Counter(view for own in saved for view, texts in own.prompts.items() if texts)
    wanted = [view for view in VIEWS if view != "negative" or (hints and views[view])]
    left_out: Counter[str] = Counter()
    kept = []
    for own in saved:
        missing = next((view for view in wanted if not own.prompts.get(view)), None)
        if missing is None:
            kept.append(own)
        else:
            left_out[f"without view {missing}"] += 1
    if not kept:
        found = ", ".join(f"{view} ({count} of {len(saved)})" for view, count in views.items()) or "none"
        raise ValueError(
            f"no rollout has the views {' and '.join(wanted)}; views that there are: {found}. A run whose method has a "
            "teacher saves them (log.samples)"
        )
    return kept, left_out


def spread(saved: Sequence[Saved], limit: int | None) -> list[Saved]:
    """So many of them at equal distances, so that all steps have a share."""
    if limit is None or limit >= len(saved):
        return list(saved)
    return [saved[number * len(saved) // limit] for number in range(limit)]


def measure(
    scorer: Scorer,
    rollouts: Sequence[Saved],
    weights: str = "base",
    temperature: float = 1.0,
    max_length: int | None = None,
    alpha: float | None = None,
    hints: bool = False,
) -> tuple[list[Gaps], Counter[str]]:
    """The gaps of rollouts that have the views, and how many could not be read.

    Args:
      weights: what reads the teacher's prompts, "student" or "base".

    Raises:
      ValueError: none could be read.
    """
    kept, tasks, left_out = _tasks(scorer, rollouts, max_length, VIEWS if hints else VIEWS[:2])
    student = _scores(scorer, tasks, "student", "student", temperature)
    teacher, negative = (_scores(scorer, tasks, view, weights, temperature) for view in VIEWS[1:])
    apart: Sequence[np.ndarray | None] = [None] * len(kept)
    if alpha is not None:
        read = {view: [task.prompts[view][0] for task in tasks] for view in VIEWS[:2]}
        completions = [task.completion for task in tasks]
        policies = ("student", weights)
        apart = divergences(scorer, read["student"], read["teacher"], completions, alpha, policies, temperature)
    found = []
    for number, own in enumerate(kept):
        (mine,), (told,) = student[number], teacher[number]
        wrong = [each.logprobs for each in negative[number]]
        found.append(
            Gaps(
                saved=own,
                ids=mine.ids,
                student=mine.logprobs,
                student_entropy=mine.entropies,
                teacher=told.logprobs,
                teacher_entropy=told.entropies,
                negative=np.stack(wrong) if wrong else np.zeros((0, len(mine.ids)), np.float32),
                divergence=apart[number],
                truncated=tasks[number].truncated,
            )
        )
    return found, left_out


def joined(gaps: Sequence[Gaps], name: str) -> np.ndarray:
    """One field of all rollouts, token after token: float64 [N]."""
    return np.concatenate([np.asarray(getattr(own, name), float) for own in gaps])


class _Task(NamedTuple):
    """Token ids of one rollout and of its prompts by view, as far as they fit."""

    completion: Sequence[int]
    prompts: Mapping[str, Sequence[Sequence[int]]]
    truncated: bool


def _tasks(
    scorer: Scorer, rollouts: Sequence[Saved], max_length: int | None, views: Sequence[str]
) -> tuple[list[Saved], list[_Task], Counter[str]]:
    left_out: Counter[str] = Counter()
    kept, tasks = [], []
    for own in rollouts:
        pairs = {view: [pair_of(scorer, text, own) for text in _texts(own, view)] for view in views}
        completion = pairs["student"][0][1]
        room = float("inf") if max_length is None else max_length - len(completion)
        if not completion:
            left_out["without tokens"] += 1
        elif room < 1:
            left_out[f"of {max_length} tokens or more"] += 1
        else:
            read = {view: [prompt for prompt, _ in each] for view, each in pairs.items()}
            fitted = {view: [ids[-min(room, len(ids)) :] for ids in each] for view, each in read.items()}
            kept.append(own)
            tasks.append(_Task(completion, fitted, fitted != read))
    if not kept:
        raise ValueError(f"no rollout can be read: {', '.join(f'{n} {why}' for why, n in left_out.items())}")
    return kept, tasks, left_out


def _texts(own: Saved, view: str) -> list[str]:
    """The prompts of a view; student and teacher have one."""
    texts = own.prompts.get(view) or []
    texts = [texts] if isinstance(texts, str) else list(texts)
    return texts if view == "negative" else texts[:1]


def _scores(scorer: Scorer, tasks: Sequence[_Task], view: str, weights: str, temperature: float) -> list[list[Scores]]:
    """Per rollout, of each prompt of a view."""
    pairs: list[Pair] = [(prompt, task.completion) for task in tasks for prompt in task.prompts.get(view, ())]
    flat = iter(score(scorer, pairs, weights, temperature))
    return [list(islice(flat, len(task.prompts.get(view, ())))) for task in tasks]


def _check(args: argparse.Namespace) -> None:
    if not 0 < args.temperature < float("inf"):
        raise ValueError(f"--temperature must be above 0, got {args.temperature}")
    for name in ("max_length", "limit", "batch"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if args.steps is not None and args.steps[0] > args.steps[1]:
        raise ValueError(f"--steps {args.steps[0]} {args.steps[1]}: the first must not be above the second")
