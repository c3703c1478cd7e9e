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
      tokens: [B,P+T] int32, prompts left-padded to P, completions right-padded to T. Of a view with several readings
        of each row (wrong hints), [B,K,P+T].
      segments: like tokens, 1 on real tokens, 0 on padding. Positions count real tokens, so padding moves nothing.
      positions, place: of packed rows only, see `jopsd.packing`; None in others. Packed, tokens are [Q,C], or [Q,K,C],
        with sequences numbered from 1 in `segments`; `positions`, like tokens, count from 0 in each. place: like
        the student's tokens, where the token that the student predicts in a column is predicted in this view, as
        row * C + column within a device and micro-batch; None in the student's.
    """

    tokens: jax.Array
    segments: jax.Array
    positions: jax.Array | None = None
    place: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainBatch:
    """Everything `weigh` and the update read, over a whole optimiser step. B rows, T completion columns.

    Attributes:
      targets: [B,T] int32 completion tokens, stop token included.
      mask: [B,T] nonzero on completion tokens that count. A row of padding has none.
      views: "student" and each teacher view.
      present: by teacher view, [B] nonzero where the rollout has that reading, or [B,K] which of K readings it has.
        Views that every rollout has need not be named.
      sampler_logprobs: [B,T] float32, the sampler's log-probability of each token, at the sampling temperature.
      old_logprobs: [B,T] log-probabilities before the first update on these rollouts; None on policy.
      reward: [B] float32. group: [B] int32, equal for rollouts of one prompt.
      route: [B] int32, which of several external teachers reads the row.
      limit: [B] int32, the length at which completions are cut.
      steps: [B,T] int32, number of the reasoning step that each token belongs to, where a method asks for it.
      source, inverse: of packed rows only. source: like the student's tokens [Q,C], which completion token a column
        predicts, as row * T + column of `targets`; B*T where none. inverse: [B,T], its inverse; Q*C where none.
      micro_batches: backward passes that packed rows were dealt to; static.
    """

    targets: jax.Array
    mask: jax.Array
    views: dict[str, View] = field(default_factory=dict)
    present: dict[str, jax.Array] = field(default_factory=dict)
    sampler_logprobs: jax.Array | None = None
    old_logprobs: jax.Array | None = None
    reward: jax.Array | None = None
    group: jax.Array | None = None
    route: jax.Array | None = None
    steps: jax.Array | None = None
    limit: jax.Array | None = None
    source: jax.Array | None = None
    inverse: jax.Array | None = None
    micro_batches: int | None = field(default=None, metadata={"static": True})


def pad_length(longest: int, step: int, parts: int = 8) -> int:
    """The width for `longest` tokens: a multiple of `step`, coarser for long ones. Few widths, few compilations.

    From `parts` steps on the multiple doubles with each octave, so at most 2 / parts of the width is added.
    """
    while longest > parts * step:
        step *= 2
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


def longest(prompts: Sequence) -> int:
    """Tokens of the longest prompt, where each row has one or several."""
    return max(len(ids) for row in prompts for ids in ([row] if isinstance(row[0], int) else row))


def _padded_view(prompts, completions, spare: int, width: int, length: int) -> View:
    """A view of one prompt per row, or of K, [B,K,...]. A padding row holds one token: it must attend to something."""
    several = not isinstance(prompts[0][0], int)
    k = len(prompts[0]) if several else 1
    flat = [list(p) for row in prompts for p in (row if several else [row])] + [[0]] * (spare * k)
    repeated = [c for c in completions for _ in range(k)]
    view = make_view(flat, repeated, width, length)
    return jax.tree.map(lambda x: x.reshape(-1, k, x.shape[-1]), view) if several else view


def make_batch(
    prompts: dict[str, Sequence],
    completions: Sequence[Sequence[int]],
    *,
    pad_to: int,
    rows: int | None = None,
    widths: dict[str, int] | None = None,
    length: int = 1,
    sampler_logprobs: Sequence[Sequence[float]] | None = None,
    rewards: Sequence[float] | None = None,
    groups: Sequence[int] | None = None,
    counts: Sequence[bool] | None = None,
    present: dict[str, Sequence] | None = None,
    route: Sequence[int] | None = None,
    steps: Sequence[Sequence[int]] | None = None,
    limit: int | None = None,
) -> TrainBatch:
    """A `TrainBatch` of numpy arrays.

    Args:
      prompts: token ids per view and row; "student" is always there. A row of a view may hold K prompts, in every row.
      completions: token ids per row, shared by all views.
      pad_to: widths are rounded up to multiples of this, see `pad_length`.
      rows: total rows; missing ones are filled with rows that hold nothing and weigh nothing.
      widths, length: tokens of the longest prompt by view, and of the longest completion, where rows of other batches
        with these widths are longer.
      counts: per row, whether its tokens train. Default all.
      limit: the length at which completions are cut.
      sampler_logprobs, rewards, groups, present, route, steps: per row, as in `TrainBatch`.
    """
    count = len(completions)
    spare = (rows or count) - count
    if spare < 0:
        raise ValueError(f"{count} completions do not fit a batch of {rows} rows")
    completions = [list(c) for c in completions] + [[]] * spare
    length = pad_length(max([length, *map(len, completions)]), pad_to)
    width = lambda view: pad_length(max(longest(prompts[view]), (widths or {}).get(view, 1)), pad_to)  # noqa: E731
    views = {view: _padded_view(ids, completions, spare, width(view), length) for view, ids in prompts.items()}
    trains = [*(counts if counts is not None else [True] * count), *[False] * spare]

    def filled(ragged, dtype):
        out = np.zeros((len(completions), length), dtype)
        for row, values in enumerate(ragged):
            out[row, : len(values)] = values
        return out

    def per_row(values, dtype, empty=0):
        values = np.asarray(values, dtype)
        return np.concatenate([values, np.full((spare, *values.shape[1:]), empty, dtype)])

    return TrainBatch(
        targets=filled(completions, np.int32),
        mask=filled([[1] * len(c) if train else [] for c, train in zip(completions, trains, strict=True)], np.int32),
        views=views,
        present={view: per_row(flags, np.int32) for view, flags in (present or {}).items()},
        sampler_logprobs=None if sampler_logprobs is None else filled(sampler_logprobs, np.float32),
        reward=per_row(rewards if rewards is not None else [0.0] * count, np.float32),
        group=per_row(groups if groups is not None else range(count), np.int32, empty=-1),
        route=None if route is None else per_row(route, np.int32),
        steps=None if steps is None else filled(steps, np.int32),
        limit=None if limit is None else np.full(len(completions), limit, np.int32),
    )
