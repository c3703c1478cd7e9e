"""Rollouts: sampled completions with their grades, and how they become a `TrainBatch`."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import groupby

import jax
import numpy as np

from jopsd.batch import TrainBatch, longest, make_batch
from jopsd.contexts import Absent, Attempt
from jopsd.data.problem import Problem
from jopsd.distributed import exchange, share_of
from jopsd.lengths import Lengths
from jopsd.methods import Method
from jopsd.models.tokenizer import completion_text, solution_ids
from jopsd.preemption import Notice, Preempted
from jopsd.prompts import Item, PromptIds, Tokenizers, group_prompts
from jopsd.rewards.score import Score
from jopsd.sampling.sampler import Completion, Request, Sampler, SamplingParams
from jopsd.schema import Config

Grade = Callable[[str, Problem], "Future[Score]"]


@dataclass(frozen=True, eq=False)
class Rollout:
    """One completion of one problem.

    Attributes:
      item: the problem and its prompts. prompts: token ids of all views; the teacher's are missing where it has none.
      absent: why it has no teacher, or None. completion_ids: int32 [T], stop token included.
      sampler_logprobs: float32 [T], full softmax at the sampling temperature.
      finish: "eos" or "length". text: the completion without its end, see `completion_text`. score: None where it is
        not graded.
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
    prompts: PromptIds = field(default_factory=dict)
    absent: str | None = None


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
    notice: Notice,
    lengths: Lengths | None = None,
) -> list[Rollout]:
    """n rollouts of each of this process's items, in order, graded while later ones are still being drawn.

    items: of all processes, see `distributed.share_of`. seed: with the item's place it decides every draw.
    grade: `(text, problem) -> Future[Score]`, or None. lengths: what is asked for first; the draws are the same.

    Raises:
      Preempted: this process was told to end. Not where all processes draw as one: there they must keep step.
    """
    requests = [
        Request(tuple(item.prompts["student"]), n, request_seed(*seed, row), params, id=row)
        for row, item in enumerate(items)
    ]
    mine = share_of(len(items))
    # A sampler over the devices of all processes draws everything everywhere.
    collective = getattr(sampler, "collective", False)
    asked = requests if collective else [requests[row] for row in mine]
    if lengths is not None:
        asked = [asked[place] for place in lengths.order([items[request.id].problem for request in asked])]
    with closing(draw_rollouts(sampler, asked, items, tokenizer, grade, mine)) as stream:
        drawn = {}
        for index, rollout in stream:
            drawn[rollout.group, index] = rollout
            if not collective:
                notice.check()
    return [drawn[row, index] for row in mine for index in range(n)]


def gather_rollouts(own: Callable[[], list[Rollout]], items: Sequence[Item], notice: Notice) -> list[Rollout]:
    """The rollouts of all processes, in order of the items. A collective.

    own: waits for this process's.

    Raises:
      Preempted: some process was told to end.
    """
    try:
        rollouts = own()
    except Preempted:
        rollouts = []  # the others have to hear of it where they meet
    notice.meet()

    def packed(rollout: Rollout) -> Rollout:
        own = {view: ids for view, ids in rollout.prompts.items() if ids is not rollout.item.prompts.get(view)}
        return replace(rollout, item=None, prompts=own)

    def unpacked(rollout: Rollout) -> Rollout:
        item = items[rollout.group]
        return replace(rollout, item=item, prompts={**item.prompts, **rollout.prompts})

    if jax.process_count() == 1:
        return rollouts
    return [unpacked(rollout) for theirs in exchange([packed(r) for r in rollouts]) for rollout in theirs]


def draw_rollouts(
    sampler: Sampler,
    requests: Sequence[Request],
    items: Sequence[Item],
    tokenizer,
    grade: Grade | None,
    wanted: range | None = None,
) -> Iterator[tuple[int, Rollout]]:
    """Each sample with its index among those of its request, once it is graded. Ids of requests are rows of `items`.

    wanted: the rows to keep, where others are drawn along with them; None keeps all.
    """
    pending: deque[tuple[Completion, str, Future | None]] = deque()
    stops = {request.id: request.params.stop_ids for request in requests}

    def first() -> tuple[int, Rollout]:
        completion, text, graded = pending.popleft()
        row = completion.request_id
        return completion.index, _rollout(items[row], row, completion, text, graded)

    for completion in sampler.sample(requests):
        if wanted is not None and completion.request_id not in wanted:
            continue
        text = completion_text(tokenizer, completion.completion_ids, stops[completion.request_id])
        item = items[completion.request_id]
        graded = None if grade is None or not item.graded else grade(text, item.problem)
        pending.append((completion, text, graded))
        while pending and (pending[0][-1] is None or pending[0][-1].done()):
            yield first()
    while pending:
        yield first()


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
        prompts=item.prompts,
    )


def with_teachers(
    config: Config, tokenizers: Tokenizers, rollouts: Sequence[Rollout], seed: tuple[int, ...]
) -> list[Rollout]:
    """The rollouts with the teacher's prompts that show it the other rollouts of their group.

    seed: with the group it decides which are shown. Rollouts of a context that shows none come back as they are.
    """
    if not (config.method.teacher_views and config.context.reads_attempts):
        return list(rollouts)
    told = []
    for group, members in groupby(rollouts, key=lambda rollout: rollout.group):
        members = list(members)
        rng = np.random.default_rng((*seed, group))
        made = group_prompts(config, tokenizers, members[0].item.problem, [_attempt(r) for r in members], rng)
        told += [_told(rollout, prompts) for rollout, prompts in zip(members, made, strict=True)]
    return told


def _attempt(rollout: Rollout) -> Attempt:
    score = rollout.score
    cut = "The attempt was cut off at its length limit." if rollout.finish == "length" and not score.correct else None
    feedback = " ".join(text for text in (score.feedback, cut) if text)
    return Attempt(rollout.text, score.reward, score.prediction, feedback or None)


def _told(rollout: Rollout, prompts: PromptIds | Absent) -> Rollout:
    if isinstance(prompts, Absent):
        return replace(rollout, absent=prompts.reason)
    return replace(rollout, prompts={**rollout.item.prompts, **prompts})


def solution_rollouts(items: Sequence[Item], tokenizer, eos_id: int, tokens: str, max_tokens: int) -> Iterator[Rollout]:
    """The dataset's solutions in the place of sampled completions, for methods that train on them.

    tokens: "completion" trains on the solution and the end of its turn; "all" on the prompt too (all tokens that have a
    predecessor). Solutions are cut at max_tokens, and then have no stop token. eos_id: see `solution_ids`.
    """
    for group, item in enumerate(items):
        prompt = item.prompts["student"]
        ids = solution_ids(tokenizer, item.problem.solution, eos_id)
        finish = "eos" if len(ids) <= max_tokens else "length"
        ids = ids[:max_tokens]
        if tokens == "all":
            prompt, ids = prompt[:1], [*prompt[1:], *ids]
        yield Rollout(
            item=item,
            completion_ids=np.asarray(ids, np.int32),
            sampler_logprobs=np.zeros(len(ids), np.float32),
            finish=finish,
            text=item.problem.solution,
            score=None,
            group=group,
            policy_version=-1,
            prompts={**item.prompts, "student": prompt},
        )


def batch_of(
    rollouts: Sequence[Rollout], config: Config, tokenizer, like: Sequence[Rollout] | None = None
) -> TrainBatch:
    """The arrays of an update. Rollouts without a teacher do not train, unless the method can without.

    like: all rollouts of the step, of which these are some, so that all parts and processes have arrays of one width.
    """
    method, labels = config.method, list(config.teacher.models or ())
    separator = tokenizer.encode(method.separator, add_special_tokens=False) if method.separator else None
    prompts, present = _readings(rollouts, config)
    every = rollouts if like is None else like
    widths = {view: longest(ids) for view, ids in _readings(every, config)[0].items()}
    return make_batch(
        prompts,
        [r.completion_ids for r in rollouts],
        pad_to=config.train.pad_to,
        widths=widths,
        length=_completion_columns(every, config),
        sampler_logprobs=[r.sampler_logprobs for r in rollouts] if method.trains_on == "rollouts" else None,
        rewards=[r.score.reward if r.score else 0.0 for r in rollouts],
        groups=[r.group for r in rollouts],
        counts=[r.absent is None or method.trains_without_teacher for r in rollouts],
        present=present,
        route=[labels.index(r.item.problem.teacher) for r in rollouts] if labels else None,
        limit=config.sampling.max_new_tokens,
        steps=[step_numbers(r.completion_ids.tolist(), separator) for r in rollouts] if separator else None,
    )


def _completion_columns(rollouts: Sequence[Rollout], config: Config) -> int:
    """Columns of per-token arrays: the longest completion, or the limit where rows are packed, of one shape always."""
    longest = max(len(r.completion_ids) for r in rollouts)
    sampled = config.method.trains_on == "rollouts"
    return max(longest, config.sampling.max_new_tokens) if config.train.packing and sampled else longest


def step_numbers(ids: Sequence[int], separator: Sequence[int]) -> list[int]:
    """The reasoning step of each token, from 0; a separator belongs to the step it ends."""
    numbers, step, width, seen = [], 0, len(separator), 0
    for place in range(len(ids)):
        numbers.append(step)
        if place + 1 - seen >= width and list(ids[place + 1 - width : place + 1]) == list(separator):
            step, seen = step + 1, place + 1
    return numbers


def _readings_each(method: Method, config: Config, view: str) -> int | None:
    """How many prompts every rollout has in a view, or None for one."""
    return config.context.negatives if view == "negative" and method.negatives == "all" else None


def _readings(rollouts: Sequence[Rollout], config: Config) -> tuple[dict[str, list], dict[str, list]]:
    """Prompts of the student's and each teacher's view, and present flags of the teacher's."""
    prompts, present = {"student": [r.prompts["student"] for r in rollouts]}, {}
    for view in config.method.teacher_views:
        prompts[view], present[view] = _readings_of(view, rollouts, _readings_each(config.method, config, view))
    return prompts, present


def _readings_of(view: str, rollouts: Sequence[Rollout], count: int | None):
    """(prompts, present flags) of one view per rollout. What is missing is filled with the student's prompt."""
    prompts, present = [], []
    for rollout in rollouts:
        filler, there = rollout.prompts["student"], rollout.prompts.get(view)
        if count is None:
            prompts.append(filler if there is None else there)
            present.append(there is not None)
        else:
            there = there or []
            prompts.append([*there, *[filler] * (count - len(there))])
            present.append([place < len(there) for place in range(count)])
    return prompts, present


def rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over rollouts: reward, share with an extractable answer, length in tokens, share cut by the limit.

    And how many had no teacher, by reason.
    """
    mean = lambda values: float(np.mean(list(values)))  # noqa: E731
    metrics = {
        "length": mean(len(r.completion_ids) for r in rollouts),
        "truncated": mean(r.finish == "length" for r in rollouts),
    }
    for reason, count in Counter(r.absent for r in rollouts if r.absent is not None).items():
        metrics[f"without_teacher/{reason}"] = float(count)
    graded = [r.score for r in rollouts if r.score is not None]
    if graded:
        metrics |= {"reward": mean(s.reward for s in graded), "formatted": mean(s.formatted for s in graded)}
    return metrics


def dump(rollout: Rollout, tokenizer) -> dict:
    """A JSON-ready record of one rollout, with what student and teacher read."""
    texts = {}
    for view, ids in rollout.prompts.items():
        one = not ids or isinstance(ids[0], int)
        texts[view] = tokenizer.decode(ids) if one else [tokenizer.decode(each) for each in ids]
    return {
        "problem_id": rollout.item.problem.id,
        "problem": rollout.item.problem.problem,
        "solution": rollout.item.problem.solution,
        "answer": rollout.item.problem.answer,
        "completion": rollout.text,
        "finish": rollout.finish,
        "tokens": len(rollout.completion_ids),
        "reward": rollout.score.reward if rollout.score else None,
        "prediction": rollout.score.prediction if rollout.score else None,
        "feedback": rollout.score.feedback if rollout.score else None,
        "policy_version": rollout.policy_version,
        "without_teacher": rollout.absent,
        "prompts": texts,
    }
