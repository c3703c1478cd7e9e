"""Packs the sequences of an update into rows without padding between them.

A packed row holds several sequences, each a segment of its own with positions from 0. Rollouts are dealt to devices and
micro-batches so that all hold about as many tokens; the sequences of a view that fall to one device in one micro-batch
then fill its rows. Student and teacher are packed apart, because their prompts differ in length: per-token quantities
stand in the student's columns, and an index says where the same completion token is predicted in another view.

Everything here is numpy on the host.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from jopsd.batch import TrainBatch, View, pad_length


class Packing(NamedTuple):
    """How updates are packed.

    Attributes:
      shards: devices that rows are split over. micro_batches: backward passes of an update; None is as many as
        `tokens` asks for.
      tokens: the most columns that a device reads in one view of a micro-batch, or None.
      one_row: one row per device and micro-batch, for attention whose cost follows the segments. Else rows as long as
        the longest sequence, for kernels whose cost follows the row.
      multiple: widths are multiples of this.
    """

    shards: int
    micro_batches: int | None
    tokens: int | None
    one_row: bool
    multiple: int


_SPARE = 1.2  # a size seen before may be so much larger than what is needed
_SPARE_BLOCKS = 4  # or by so many multiples in each view: small programs cost less than their compilation
_ROOM = 1.05  # and a new one is
_PARTS = "micro_batches"


Shapes = Mapping[str, Sequence[int]]  # [rows, columns] by view, and [micro-batches] under _PARTS


class _Layout(NamedTuple):
    """Where the sequences of an update stand.

    Attributes:
      bins: [B] device * micro_batches + micro-batch; -1 for rollouts that do not train.
      rows, starts: by view, [B,K] of K readings: the row among those of the bin, and the first column.
    """

    bins: np.ndarray
    rows: dict[str, np.ndarray]
    starts: dict[str, np.ndarray]


class _Size(NamedTuple):
    rows: int  # of each bin
    width: int


def pack(batches: Sequence[TrainBatch], how: Packing, seen: Sequence[Shapes] = ()) -> list[TrainBatch]:
    """The updates of a step, packed, all in arrays of one shape. Rollouts without a token that counts are left out.

    Args:
      batches: of numpy arrays, as `make_batch` gives them, of one shape.
      seen: `shapes` of earlier steps. The smallest that holds this one with little padding is taken, because another
        shape is another compilation.

    Raises:
      ValueError: a rollout longer than `how.tokens`.
    """
    lengths = [_lengths(batch) for batch in batches]
    longest = max((int(n.max(initial=1)) for own in lengths for n in own.values()), default=1)
    if how.tokens is not None and pad_length(longest, how.multiple, parts=16) > how.tokens:
        raise ValueError(
            f"a rollout of {longest} tokens with its prompt takes more than the {how.tokens} columns of "
            "train.micro_batch_tokens; raise that, or lower data.max_prompt_tokens or sampling.max_new_tokens"
        )
    rollouts = max((int((batch.mask != 0).any(axis=1).sum()) for batch in batches), default=0)
    parts = how.micro_batches or _fewest(lengths, how)
    while True:
        layouts, sizes = _lay_out(lengths, how, parts, {})
        most = max(size.rows * size.width for size in sizes.values())
        if how.micro_batches or most <= how.tokens or parts >= rollouts:
            break
        parts = pad_length(parts + 1, 1)
    layouts, sizes = _familiar(lengths, how, parts, sizes, seen)
    return [_packed(batch, layout, sizes, how.shards, parts) for batch, layout in zip(batches, layouts, strict=True)]


def _familiar(
    lengths: list[dict[str, np.ndarray]], how: Packing, parts: int, least: dict[str, _Size], seen: Sequence[Shapes]
) -> tuple[list[_Layout], dict[str, _Size]]:
    """The layout in sizes of `seen`, or in new ones with a little room. least: the sizes without any."""
    columns = lambda sizes: sum(size.rows * size.width for size in sizes.values())  # noqa: E731
    known = [
        {view: _Size(size[0] // (how.shards * parts), size[1]) for view, size in one.items() if view != _PARTS}
        for one in seen
        if one[_PARTS] == [parts]
    ]
    most = max(_SPARE * columns(least), columns(least) + _SPARE_BLOCKS * how.multiple * len(least))
    for sizes in sorted((one for one in known if columns(one) <= most), key=columns):
        widths = {view: size.width for view, size in sizes.items()}
        if all(size.width <= widths.get(view, 0) for view, size in least.items()):
            layouts, needed = _lay_out(lengths, how, parts, widths)
            if all(size.rows <= sizes[view].rows for view, size in needed.items()):
                return layouts, sizes
    new = {view: _with_room(how, size) for view, size in least.items()}
    layouts, needed = _lay_out(lengths, how, parts, {view: size.width for view, size in new.items()})
    return layouts, {view: _Size(max(size.rows, needed[view].rows), size.width) for view, size in new.items()}


def _with_room(how: Packing, size: _Size) -> _Size:
    """A little more than the size, within `how.tokens`."""
    most = how.tokens or math.inf
    if how.one_row:
        more = -(-math.ceil(_ROOM * size.width) // how.multiple) * how.multiple
        return _Size(1, more if more <= most else size.width)
    return _Size(max(min(math.ceil(_ROOM * size.rows), int(min(most, 2**31)) // size.width), size.rows), size.width)


def shapes(batch: TrainBatch) -> Shapes:
    """The shapes of a packed update that decide which program runs: rows and columns by view, and micro-batches."""
    found = {name: [len(view.tokens), view.tokens.shape[-1]] for name, view in batch.views.items()}
    return found | {_PARTS: [batch.micro_batches]}


def _lengths(batch: TrainBatch) -> dict[str, np.ndarray]:
    """Tokens of each reading [B,K] by view: the last completion token predicts nothing. 0 where nothing trains."""
    tokens = (batch.mask != 0).sum(axis=1)
    found = {}
    for view, (prompt, _) in _prompts(batch).items():
        found[view] = np.where(tokens[:, None] > 0, prompt + tokens[:, None] - 1, 0)
    return found


def _prompts(batch: TrainBatch) -> dict[str, tuple[np.ndarray, View]]:
    """By view: the tokens of the prompts [B,K], and the view as [B,K,P+T]."""
    found = {}
    for name, view in batch.views.items():
        tokens, segments = (x if x.ndim == 3 else x[:, None] for x in (view.tokens, view.segments))
        width = tokens.shape[-1] - batch.mask.shape[1]
        found[name] = segments[..., :width].sum(axis=-1), View(tokens, segments)
    return found


def _fewest(lengths: list[dict[str, np.ndarray]], how: Packing) -> int:
    """The fewest micro-batches that could hold an update."""
    most = max(int(n.sum(axis=0).max(initial=1)) for own in lengths for n in own.values())
    return pad_length(math.ceil(most / (how.shards * how.tokens)), 1)


def _lay_out(
    lengths: list[dict[str, np.ndarray]], how: Packing, parts: int, widths: Mapping[str, int]
) -> tuple[list[_Layout], dict[str, _Size]]:
    """Where everything stands with so many micro-batches, and the sizes it takes. widths: of rows by view, if given."""
    dealt = [deal(sum(n.sum(axis=1) for n in own.values()), how.shards * parts) for own in lengths]
    layouts, sizes = [_Layout(bins, {}, {}) for bins in dealt], {}
    for view in lengths[0]:
        width, rows = widths.get(view) or _width(how, view, lengths, dealt), 1
        for layout, own in zip(layouts, lengths, strict=True):
            filled = [fill(column, layout.bins, width) for column in own[view].T]
            layout.rows[view], layout.starts[view] = (np.stack(x, axis=1) for x in zip(*filled, strict=True))
            rows = max(rows, int(layout.rows[view].max(initial=0)) + 1)
        sizes[view] = _Size(rows, width)
    return layouts, sizes


def _width(how: Packing, view: str, lengths: list[dict[str, np.ndarray]], dealt: list[np.ndarray]) -> int:
    """Columns of a view's rows: what any bin needs for all it holds, or the longest sequence."""
    if not how.one_row:
        longest = max(int(own[view].max(initial=1)) for own in lengths)
        return pad_length(longest, how.multiple, parts=16)
    sums = [
        np.bincount(bins[bins >= 0], column[bins >= 0], minlength=1).max()
        for bins, own in zip(dealt, lengths, strict=True)
        for column in own[view].T
    ]
    return -(-max(int(max(sums, default=1)), 1) // how.multiple) * how.multiple


def deal(costs: np.ndarray, bins: int) -> np.ndarray:
    """Deals what costs [B] to bins of about the same sum, the costliest first: [B], -1 where the cost is 0."""
    dealt = np.full(len(costs), -1)
    heap = [(0, place) for place in range(bins)]
    for row in np.argsort(-costs, kind="stable"):
        if costs[row]:
            total, place = heapq.heappop(heap)
            dealt[row] = place
            heapq.heappush(heap, (total + int(costs[row]), place))
    return dealt


def fill(lengths: np.ndarray, bins: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts sequences of `lengths` [B] into rows of their bin, the longest first, each into the first with room.

    Returns:
      (row within the bin, first column), both [B].
    """
    rows, starts = np.zeros(len(lengths), int), np.zeros(len(lengths), int)
    used: dict[int, list[int]] = {}
    for place in np.argsort(-lengths, kind="stable"):
        if bins[place] < 0:
            continue
        taken, length = used.setdefault(int(bins[place]), []), int(lengths[place])
        row = next((row for row, columns in enumerate(taken) if columns + length <= width), len(taken))
        if row == len(taken):
            taken.append(0)
        rows[place], starts[place] = row, taken[row]
        taken[row] += length
    return rows, starts


class _Slot(NamedTuple):
    """Where one sequence stands: `at` is (device, row, micro-batch) of its grid, `start` the first column."""

    row: int  # of the batch
    at: tuple[int, int, int]
    start: int
    prompt: int
    tokens: int

    @property
    def columns(self) -> slice:
        return slice(self.start, self.start + self.prompt + self.tokens - 1)

    @property
    def predicts(self) -> slice:
        """The columns whose hidden states predict the completion."""
        return slice(self.start + self.prompt - 1, self.columns.stop)


def _slots(batch: TrainBatch, layout: _Layout, name: str, reading: int, parts: int) -> list[_Slot]:
    """The sequences of one reading of a view, in order of the batch."""
    prompts, tokens = _prompts(batch)[name][0][:, reading], (batch.mask != 0).sum(axis=1)
    found = []
    for row in np.flatnonzero(layout.bins >= 0):
        shard, part = divmod(int(layout.bins[row]), parts)
        line, start = (int(x[name][row, reading]) for x in (layout.rows, layout.starts))
        found.append(_Slot(int(row), (shard, line, part), start, int(prompts[row]), int(tokens[row])))
    return found


def _packed(batch: TrainBatch, layout: _Layout, sizes: dict[str, _Size], shards: int, parts: int) -> TrainBatch:
    """One update in its layout. Rows of a micro-batch stand `parts` apart, so that each stays on its device."""

    def grid(size: _Size, fill: int = 0) -> np.ndarray:
        return np.full((shards, size.rows, parts, size.width), fill, np.int32)

    students = _slots(batch, layout, "student", 0, parts)
    source = grid(sizes["student"], batch.mask.size)
    inverse = np.full(batch.mask.shape, source.size, np.int32)
    flat = np.arange(source.size, dtype=np.int32).reshape(source.shape)
    for slot in students:
        source[slot.at][slot.predicts] = slot.row * batch.mask.shape[1] + np.arange(slot.tokens)
        inverse[slot.row, : slot.tokens] = flat[slot.at][slot.predicts]

    def packed_view(name: str, whole: View, reading: int) -> View:
        size, slots = sizes[name], _slots(batch, layout, name, reading, parts)
        made = View(grid(size), grid(size), grid(size), None if name == "student" else grid(sizes["student"]))
        for slot, student in zip(slots, students, strict=True):
            begin = whole.tokens.shape[-1] - batch.mask.shape[1] - slot.prompt
            length = slot.prompt + slot.tokens - 1
            made.tokens[slot.at][slot.columns] = whole.tokens[slot.row, reading, begin : begin + length]
            made.segments[slot.at][slot.columns] = made.segments[slot.at].max() + 1
            made.positions[slot.at][slot.columns] = np.arange(length)
            if made.place is not None:
                first = slot.at[1] * size.width + slot.predicts.start
                made.place[student.at][student.predicts] = first + np.arange(slot.tokens)
        return made

    views = {}
    for name, (prompts, whole) in _prompts(batch).items():
        readings = [packed_view(name, whole, reading) for reading in range(prompts.shape[1])]
        single = batch.views[name].tokens.ndim == 2
        views[name] = jax.tree.map(lambda *x, single=single: _joined(x, single), *readings)
    return replace(batch, views=views, source=_joined([source], True), inverse=inverse, micro_batches=parts)


def _joined(arrays: Sequence[np.ndarray], single: bool) -> np.ndarray:
    """[shards,rows,parts,C] of each reading as [Q,C], or as [Q,K,C]."""
    flat = [x.reshape(-1, x.shape[-1]) for x in arrays]
    return flat[0] if single else np.stack(flat, axis=1)
