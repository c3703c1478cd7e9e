"""Rollouts: sampled completions with their grades, and how they become a `TrainBatch`."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from jopsd.batch import TrainBatch, make_batch
from jopsd.prompts import Item
from jopsd.rewards.score import Score
from jopsd.sampling.sampler import Completion, Request, Sampler, SamplingParams

Grade = Callable[[str, str], "Future[Score]"]


@dataclass(frozen=True, eq=False)
class Rollout:
    """One completion of one problem.

    Attributes:
      item: the problem and its prompts. completion_ids: int32 [T], stop token included.
      sampler_logprobs: float32 [T], full softmax at the sampling temperature.
      finish: "eos" or "length". text: the completion without special tokens. score: None without a reward.
      group: index of the problem within its batch. policy_version: weights that drew it.
    """

    item: Item
    completion_ids: np.ndarray
    sampler_logprobs: np.ndarray
    finish: str
    text: str
    score: Score | None
    group: int
    policy_version: int


def request_seed(*parts: int) -> int:
    """A sampling seed in [0, 2**32) that depends on every part, such as (run seed, step, row)."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def sample_rollouts(
    sampler: Sampler,
    items: Sequence[Item],
    params: SamplingParams,
    n: int,
    seed: tuple[int, ...],
    tokenizer,
    grade: Grade | None,
) -> list[Rollout]:
    """n rollouts of each item, in order, graded while later ones are still being drawn.

    seed: with the item's place it decides every draw. grade: `(text, gold) -> Future[Score]`, or None.
    """
    requests = [
        Request(tuple(item.prompts["student"]), n, request_seed(*seed, row), params, id=row)
        for row, item in enumerate(items)
    ]
    pending: dict[tuple[int, int], tuple[Completion, str, Future | None]] = {}
    for completion in sampler.sample(requests):
        text = tokenizer.decode(completion.completion_ids.tolist(), skip_special_tokens=True)
        gold = items[completion.request_id].problem.answer
        graded = grade(text, gold) if grade is not None and gold is not None else None
        pending[completion.request_id, completion.index] = completion, text, graded
    return [_rollout(items[row], row, *pending[row, index]) for row in range(len(items)) for index in range(n)]


def _rollout(item: Item, group: int, completion: Completion, text: str, graded: Future | None) -> Rollout:
    return Rollout(
        item=item,
        completion_ids=completion.completion_ids,
        sampler_logprobs=completion.logprobs,
        finish=completion.finish,
        text=text,
        score=None if graded is None else graded.result(),
        group=group,
        policy_version=completion.policy_version,
    )


def solution_rollouts(items: Sequence[Item], tokenizer, eos_id: int, tokens: str, max_tokens: int) -> Iterator[Rollout]:
    """The dataset's solutions in the place of sampled completions, for methods that train on them.

    tokens: "completion" trains on the solution; "all" on the prompt too (all tokens that have a predecessor).
    Solutions are cut at max_tokens, and then have no stop token.
    """
    for group, item in enumerate(items):
        prompt = item.prompts["student"]
        ids = [*tokenizer.encode(item.problem.solution, add_special_tokens=False), eos_id]
        finish = "eos" if len(ids) <= max_tokens else "length"
        ids = ids[:max_tokens]
        if tokens == "all":
            prompt, ids = prompt[:1], [*prompt[1:], *ids]
        yield Rollout(
            item=Item(item.problem, {**item.prompts, "student": prompt}),
            completion_ids=np.asarray(ids, np.int32),
            sampler_logprobs=np.zeros(len(ids), np.float32),
            finish=finish,
            text=item.problem.solution,
            score=None,
            group=group,
            policy_version=-1,
        )


def batch_of(rollouts: Sequence[Rollout], rows: int, pad_to: int, sampled: bool) -> TrainBatch:
    """The arrays of one optimiser step. sampled: the rollouts carry log-probabilities of a sampler."""
    views = rollouts[0].item.prompts
    return make_batch(
        {view: [r.item.prompts[view] for r in rollouts] for view in views},
        [r.completion_ids for r in rollouts],
        pad_to=pad_to,
        rows=rows,
        sampler_logprobs=[r.sampler_logprobs for r in rollouts] if sampled else None,
        rewards=[r.score.reward if r.score else 0.0 for r in rollouts],
        groups=[r.group for r in rollouts],
    )


def rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over rollouts: reward, share with an extractable answer, length in tokens, share cut by the limit."""
    mean = lambda values: float(np.mean(list(values)))  # noqa: E731
    metrics = {
        "length": mean(len(r.completion_ids) for r in rollouts),
        "truncated": mean(r.finish == "length" for r in rollouts),
    }
    graded = [r.score for r in rollouts if r.score is not None]
    if graded:
        metrics |= {"reward": mean(s.reward for s in graded), "formatted": mean(s.formatted for s in graded)}
    return metrics


def dump(rollout: Rollout) -> dict:
    """A JSON-ready record of one rollout."""
    return {
        "problem_id": rollout.item.problem.id,
        "problem": rollout.item.problem.problem,
        "completion": rollout.text,
        "finish": rollout.finish,
        "tokens": len(rollout.completion_ids),
        "reward": rollout.score.reward if rollout.score else None,
        "prediction": rollout.score.prediction if rollout.score else None,
        "policy_version": rollout.policy_version,
    }
