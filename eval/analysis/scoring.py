"""What a model thinks of given tokens: log-probabilities, entropies and divergences, without ever holding [B,T,V]."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from eval.analysis.rollouts import Saved
from eval.options import Options
from eval.subject import find_subjects
from jopsd.batch import View
from jopsd.layout import completion_hidden
from jopsd.losses import divergence, entropy, fused_statistics, token_logprobs
from jopsd.mesh import make_mesh, token_shards
from jopsd.models.tokenizer import eos_ids, load_tokenizer
from jopsd.policies import load_policy
from jopsd.sampling import Policy

CHUNK = 1024  # tokens per pass of the vocabulary kernel
NARROWEST = 32

Pair = tuple[Sequence[int], Sequence[int]]  # ids of a prompt and of the completion after it


@dataclass(frozen=True)
class Scorer:
    """A model that scores. student: the policy asked for; base: what its run started from, else the same.

    batch: rows per call, a multiple of the devices of `mesh`. stop_id: the token that ends a completion.
    """

    tokenizer: object
    stop_id: int
    student: Policy
    base: Policy
    batch: int
    mesh: Mesh


class Scores(NamedTuple):
    """Of one completion: token ids int32 [T], their log-probabilities and the entropies there, float32 [T], in nats.

    truncated: the prompt was cut on the left to fit.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    entropies: np.ndarray
    truncated: bool


def load_scorer(model: str | None, checkpoint: str | None, batch: int = 8) -> Scorer:
    """The scorer of a model directory, or of a run's checkpoint (RUN_DIR[:STEP]) with its base.

    Raises:
      ValueError, CheckpointError: no such model or checkpoint, or neither is given.
    """
    (subject,) = find_subjects(Options(output=Path(), model=model, checkpoint=checkpoint))
    tokenizer = load_tokenizer(subject.directory)
    mesh = make_mesh()
    batch = -(-batch // token_shards(mesh)) * token_shards(mesh)
    weights = partial(load_policy, str(subject.directory), subject.run_dir, mesh=mesh)
    policy = weights(subject.step).policy
    base = policy
    if policy.adapter is not None:
        base = Policy(policy.model, None)
    elif subject.step:
        base = weights(0).policy
    return Scorer(tokenizer, eos_ids(subject.directory, tokenizer)[0], policy, base, batch, mesh)


def pair_of(scorer: Scorer, prompt: str, rollout: Saved) -> Pair:
    """Ids of a rendered prompt and of a rollout's completion; text that was saved has lost its stop token.

    Raises ValueError for text with characters that the tokenizer does not have.
    """
    encode = partial(scorer.tokenizer.encode, add_special_tokens=False)
    stop = [scorer.stop_id] if rollout.finish == "eos" else []
    try:
        return encode(prompt), [*encode(rollout.text), *stop]
    except Exception as error:  # the tokenizers library raises no other
        raise ValueError(f"{rollout.source}: the tokenizer cannot encode it: {error}") from None


def score(
    scorer: Scorer,
    pairs: Sequence[Pair],
    policy: str = "student",
    temperature: float = 1.0,
    max_length: int | None = None,
) -> list[Scores]:
    """Scores of each completion after its prompt, under the full softmax at `temperature`.

    policy: "student" or "base". max_length: a longer prompt loses its beginning.

    Raises:
      ValueError: a completion that leaves no room for a prompt, or an empty prompt or completion, by number.
    """
    cut = [_fitted(number, pair, max_length) for number, pair in enumerate(pairs)]
    views = {"student": [prompt for prompt, _ in cut]}
    completions = [completion for _, completion in pairs]
    found = _statistics(scorer, views, {"student": policy}, completions, _token_scores, temperature)
    return [
        Scores(np.asarray(ids, np.int32), row["logprob"], row["entropy"], truncated)
        for ids, row, (_, truncated) in zip(completions, found, cut, strict=True)
    ]


def divergences(
    scorer: Scorer,
    student_prompts: Sequence[Sequence[int]],
    teacher_prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    alpha: float = 0.5,
    policies: tuple[str, str] = ("student", "base"),
    temperature: float = 1.0,
) -> list[np.ndarray]:
    """Divergence of student and teacher at each token, over the full vocabulary: float32 [T] per completion.

    alpha: see `jopsd.losses.divergence`. policies: whose weights read the two prompts.
    """
    views = {"student": student_prompts, "teacher": teacher_prompts}
    weights = dict(zip(("student", "teacher"), policies, strict=True))
    rows = _statistics(scorer, views, weights, completions, _Divergence(alpha), temperature)
    return [row["divergence"] for row in rows]


def _token_scores(student, teachers, targets, vocab_axis=None):
    return {
        "logprob": token_logprobs(student, targets, vocab_axis),
        "entropy": entropy(student, vocab_axis),
    }


@dataclass(frozen=True)
class _Divergence:
    alpha: float

    def __call__(self, student, teachers, targets, vocab_axis=None):
        return {"divergence": divergence(student, teachers["teacher"], self.alpha, vocab_axis=vocab_axis)}


def _statistics(
    scorer: Scorer,
    prompts: Mapping[str, Sequence[Sequence[int]]],
    weights: Mapping[str, str],
    completions: Sequence[Sequence[int]],
    statistics,
    temperature: float,
) -> list[dict[str, np.ndarray]]:
    """Per completion {name: [T]}. Rows of like widths go together, so that few programs are compiled."""
    widths = [
        (_bucket(max(len(own[row]) for own in prompts.values())), _bucket(len(ids)))
        for row, ids in enumerate(completions)
    ]
    found: list[dict[str, np.ndarray]] = [{} for _ in completions]
    policies = {view: getattr(scorer, name) for view, name in weights.items()}
    for width in sorted(set(widths)):
        rows = [row for row, own in enumerate(widths) if own == width]
        for first in range(0, len(rows), scorer.batch):
            part = rows[first : first + scorer.batch]
            own = [completions[row] for row in part]
            views = {
                view: _view([texts[row] for row in part], own, width, scorer.batch) for view, texts in prompts.items()
            }
            targets, mask = _targets(own, width[1], scorer.batch)
            with jax.set_mesh(scorer.mesh):
                out = _score(statistics, temperature, scorer.mesh, policies, views, targets, mask)
            out = jax.device_get(out)
            for place, row in enumerate(part):
                found[row] = {name: x[place, : len(completions[row])] for name, x in out.items()}
    return found


@partial(jax.jit, static_argnums=(0, 1, 2))
def _score(statistics, temperature: float, mesh: Mesh, policies, views, targets, mask):
    hidden = {view: completion_hidden(policies[view], own, targets.shape[1]) for view, own in views.items()}
    heads = {view: policies[view].model.head for view in views}
    return fused_statistics(statistics, hidden, heads, targets, mask, temperature=temperature, chunk=CHUNK, mesh=mesh)


def _view(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], width: tuple[int, int], rows: int
) -> View:
    """Prompts to the left of where completions begin; rows that are missing are padding."""
    tokens = np.zeros((rows, sum(width)), np.int32)
    segments = np.zeros_like(tokens)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        here = slice(width[0] - len(prompt), width[0] + len(completion))
        tokens[row, here], segments[row, here] = [*prompt, *completion], 1
    return View(tokens, segments)


def _targets(completions: Sequence[Sequence[int]], width: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    targets, mask = np.zeros((rows, width), np.int32), np.zeros((rows, width), np.float32)
    for row, ids in enumerate(completions):
        targets[row, : len(ids)], mask[row, : len(ids)] = ids, 1
    return targets, mask


def _fitted(number: int, pair: Pair, max_length: int | None) -> tuple[Sequence[int], bool]:
    """The prompt as far as it fits, and whether it was cut."""
    prompt, completion = pair
    if not prompt or not completion:
        raise ValueError(f"row {number} (counted from 0) has an empty {'completion' if prompt else 'prompt'}")
    room = len(prompt) if max_length is None else max_length - len(completion)
    if room < 1:
        raise ValueError(
            f"row {number} (counted from 0): its completion of {len(completion)} tokens leaves no room for a prompt in "
            f"max_length {max_length}"
        )
    return prompt[-room:], len(prompt) > room


def _bucket(length: int) -> int:
    """The power of two that holds so many tokens."""
    return max(NARROWEST, 1 << (length - 1).bit_length())
