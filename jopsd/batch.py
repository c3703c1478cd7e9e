"""The arrays of one optimiser step, and how rollouts become them.

Prompts are left-padded so that all completions start in one column; completions are right-padded. Every view of a
rollout (the student's, each teacher's) shares the same completion columns, so that hidden states line up by slicing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import numpy as np


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class View:
    """One reading of the batch: a prompt of its own, then the shared completion.

    Attributes:
      tokens: [B,P+T] int32, prompts left-padded to P, completions right-padded to T.
      segments: [B,P+T] int32, 1 on real tokens, 0 on padding. Positions count real tokens, so padding moves nothing.
    """

    tokens: jax.Array
    segments: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainBatch:
    """Everything `weigh` and the update read, over a whole optimiser step. B rows, T completion columns.

    Attributes:
      targets: [B,T] int32 completion tokens, stop token included.
      mask: [B,T] nonzero on completion tokens that count. A row of padding has none.
      views: "student" and each teacher view.
      sampler_logprobs: [B,T] float32, the sampler's log-probability of each token, at the sampling temperature.
      old_logprobs: [B,T] log-probabilities before the first update on these rollouts; None on policy.
      reward: [B] float32. group: [B] int32, equal for rollouts of one prompt.
    """

    targets: jax.Array
    mask: jax.Array
    views: dict[str, View] = field(default_factory=dict)
    sampler_logprobs: jax.Array | None = None
    old_logprobs: jax.Array | None = None
    reward: jax.Array | None = None
    group: jax.Array | None = None


def pad_length(longest: int, step: int) -> int:
    """The smallest multiple of `step` that holds `longest`; at least one step. Few widths, few compilations."""
    return max(-(-longest // step), 1) * step


def make_view(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], width: int, length: int) -> View:
    """Rows of prompt and completion ids as one `View` of numpy arrays [B,width+length].

    Raises:
      ValueError: a prompt or completion that does not fit.
    """
    tokens = np.zeros((len(prompts), width + length), np.int32)
    segments = np.zeros_like(tokens)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if len(prompt) > width or len(completion) > length:
            raise ValueError(
                f"row {row}: prompt of {len(prompt)} tokens and completion of {len(completion)} do not fit "
                f"{width} + {length} columns"
            )
        start, end = width - len(prompt), width + len(completion)
        tokens[row, start:end] = [*prompt, *completion]
        segments[row, start:end] = 1
    return View(tokens, segments)


def make_batch(
    prompts: dict[str, Sequence[Sequence[int]]],
    completions: Sequence[Sequence[int]],
    *,
    pad_to: int,
    rows: int | None = None,
    sampler_logprobs: Sequence[Sequence[float]] | None = None,
    rewards: Sequence[float] | None = None,
    groups: Sequence[int] | None = None,
) -> TrainBatch:
    """A `TrainBatch` of numpy arrays.

    Args:
      prompts: token ids per view and row; "student" is always there.
      completions: token ids per row, shared by all views.
      pad_to: prompt and completion widths are rounded up to multiples of this.
      rows: total rows; missing ones are filled with rows that hold nothing and weigh nothing.
      sampler_logprobs, rewards, groups: per row, as in `TrainBatch`.
    """
    count = len(completions)
    spare = (rows or count) - count
    if spare < 0:
        raise ValueError(f"{count} completions do not fit a batch of {rows} rows")
    # A padding row holds one token, so that no row is without anything to attend to.
    completions = [list(c) for c in completions] + [[]] * spare
    length = pad_length(max((len(c) for c in completions), default=1), pad_to)
    views = {}
    for view, ids in prompts.items():
        ids = [list(p) for p in ids] + [[0]] * spare
        views[view] = make_view(ids, completions, pad_length(max(map(len, ids)), pad_to), length)

    def filled(ragged, dtype):
        out = np.zeros((len(completions), length), dtype)
        for row, values in enumerate(ragged):
            out[row, : len(values)] = values
        return out

    return TrainBatch(
        targets=filled(completions, np.int32),
        mask=filled([[1] * len(c) for c in completions], np.int32),
        views=views,
        sampler_logprobs=None if sampler_logprobs is None else filled(sampler_logprobs, np.float32),
        reward=np.asarray([*(rewards if rewards is not None else [0.0] * count), *[0.0] * spare], np.float32),
        group=np.asarray([*(groups if groups is not None else range(count)), *[-1] * spare], np.int32),
    )
