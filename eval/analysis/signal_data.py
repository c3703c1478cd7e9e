"""MOPD's teacher-signal study, its data: saved rollouts by prompt, and prompts in buckets by difficulty."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from eval.analysis.rollouts import Saved
from eval.analysis.signal_metrics import BUCKETS
from jopsd.data.problem import Problem

EASY = 4  # successes of a prompt that is easy; one that is hard has none

# A chat prompt whose special tokens were dropped in decoding: roles are left as words on lines of their own.
_DECODED = re.compile(
    r"(?:system\n(?P<system>.*?)\n)?user\n(?P<user>.*)\nassistant\n(?:<think>\s*(?:</think>\s*)?)?", re.DOTALL
)


class Group(NamedTuple):
    """A prompt with its rollouts, in the order in which they may be shown.

    turn: whether the problem's text is the user's whole turn, instruction included (of a decoded chat prompt).
    """

    prompt_id: str
    problem: Problem
    turn: bool
    bucket: str
    rollouts: tuple[Saved, ...]


def make_groups(
    saved: Sequence[Saved], success: float = 1.0, most: int = 8, max_prompts: int | None = None, seed: int = 42
) -> tuple[list[Group], Counter]:
    """Rollouts by prompt, and how many were left out and why.

    Of each prompt at most `most` rollouts are kept, drawn at random, and prompts with fewer than two are left out.
    Bucket, by number of kept rollouts with reward `success` or more: 4 easy, 1 medium, 0 hard. `max_prompts` is shared
    equally between the buckets, and what one cannot fill stays unused. All draws depend on seed and prompt alone.

    Raises:
      ValueError: a rollout twice, or no prompt is left.
    """
    by_prompt: dict[str, dict[str, Saved]] = {}
    left_out: Counter = Counter()
    for rollout in saved:
        prompt_id = rollout.prompt_id
        members = by_prompt.setdefault(prompt_id, {})
        if rollout.rollout_id in members:
            raise ValueError(
                f"{rollout.source}: rollout {rollout.rollout_id} of prompt {rollout.prompt_id} is repeated"
            )
        members[rollout.rollout_id] = rollout
    groups = []
    for prompt_id, members in by_prompt.items():
        usable = [r for r in members.values() if r.reward is not None and np.isfinite(r.reward) and r.text.strip()]
        left_out["rollouts without text or reward"] += len(members) - len(usable)
        if len(usable) < 2:
            left_out["prompts with fewer than two rollouts"] += 1
            continue
        drawn = sorted(generator(seed, "rollouts", prompt_id).permutation(len(usable))[:most])
        left_out[f"rollouts beyond {most} of a prompt"] += len(usable) - len(drawn)
        groups.append(_group(prompt_id, [usable[i] for i in drawn], success))
    if not groups:
        raise ValueError("no prompt has two rollouts with text and reward")
    kept = groups if max_prompts is None else _capped(groups, max_prompts, seed)
    left_out["prompts beyond the limit"] += len(groups) - len(kept)
    return kept, +left_out


def dataset_rows(groups: Sequence[Group], success: float) -> list[dict]:
    """One JSON-ready row per rollout."""
    return [
        {
            "prompt_id": group.prompt_id,
            "rollout_id": rollout.rollout_id,
            "bucket": group.bucket,
            "system": group.problem.system,
            "problem": group.problem.problem,
            "text": rollout.text,
            "reward": rollout.reward,
            "success": rollout.reward >= success,
            "prediction": rollout.prediction,
            "feedback": rollout.feedback,
            "finish": rollout.finish,
            "step": rollout.step,
            "source": rollout.source,
        }
        for group in groups
        for rollout in group.rollouts
    ]


def dataset_summary(groups: Sequence[Group], left_out: Mapping[str, int], success: float, tag: str = "summary") -> dict:
    """Counts: prompts by bucket, rollouts, and the evidence that there is to show."""
    wins = [[rollout.reward >= success for rollout in group.rollouts] for group in groups]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    evidence = {
        "successes": sum(map(sum, wins)),
        "failures": sum(len(own) - sum(own) for own in wins),
        "feedback": sum(bool((r.feedback or "").strip()) for r in rollouts),
        "tagged_summaries": sum(f"<{tag}>" in r.text and f"</{tag}>" in r.text for r in rollouts),
        "prompts_with_a_success": sum(any(own) for own in wins),
        "prompts_with_two_successes": sum(sum(own) > 1 for own in wins),
        "prompts_with_a_failure": sum(not all(own) for own in wins),
        "prompts_with_both": sum(any(own) and not all(own) for own in wins),
    }
    return {
        "prompts": len(groups),
        "rollouts": len(rollouts),
        "prompts_by_bucket": {bucket: sum(group.bucket == bucket for group in groups) for bucket in BUCKETS},
        "success_threshold": success,
        "evidence": evidence,
        "left_out": dict(left_out),
    }


def generator(seed: int, *names: str) -> np.random.Generator:
    """Chance that depends on the seed and these names alone."""
    return np.random.default_rng((seed, int.from_bytes(hashlib.sha1("\0".join(names).encode()).digest()[:8], "big")))


def _group(prompt_id: str, rollouts: Sequence[Saved], success: float) -> Group:
    first = rollouts[0]
    texts = (first.problem, first.prompts.get("student"))
    decoded = next((m for text in texts if isinstance(text, str) and (m := _DECODED.fullmatch(text))), None)
    if decoded:
        problem = Problem(prompt_id, decoded["user"], system=decoded["system"], source=first.source)
    else:
        problem = Problem(prompt_id, first.problem, source=first.source)
    wins = sum(rollout.reward >= success for rollout in rollouts)
    bucket = "easy" if wins >= EASY else "medium" if wins else "hard"
    return Group(prompt_id, problem, decoded is not None, bucket, tuple(rollouts))


def _capped(groups: Sequence[Group], most: int, seed: int) -> list[Group]:
    """At most so many prompts, in their order: the first buckets get what does not divide by three."""
    kept: set[str] = set()
    for number, bucket in enumerate(BUCKETS):
        quota = most // len(BUCKETS) + (number < most % len(BUCKETS))
        own = [group.prompt_id for group in groups if group.bucket == bucket]
        kept |= {own[i] for i in generator(seed, "prompts", bucket).permutation(len(own))[:quota]}
    return [group for group in groups if group.prompt_id in kept]
