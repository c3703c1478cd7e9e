"""Packed rows against the rows they were packed from: every token where the index says, and little padding."""

import numpy as np
import pytest

from jopsd.batch import make_batch
from jopsd.packing import Packing, deal, fill, pack, shapes

LONGEST = {"student": 60, "teacher": 90}


def ragged(rows=32, seed=0, hints=None):
    """A batch of lognormal completions; some rows do not train."""
    rng = np.random.default_rng(seed)
    ids = lambda n: rng.integers(1, 1000, n).tolist()  # noqa: E731
    lengths = np.clip(rng.lognormal(np.log(40), 0.8, rows), 1, 200).astype(int)
    prompts = {
        name: [ids(rng.integers(1, most)) for _ in range(rows)] for name, most in (("student", 60), ("teacher", 90))
    }
    if hints:
        prompts["negative"] = [[ids(rng.integers(1, 50)) for _ in range(hints)] for _ in range(rows)]
    return make_batch(prompts, [ids(n) for n in lengths], pad_to=16, counts=[i % 7 != 3 for i in range(rows)])


HOW = {
    "one row": Packing(shards=2, micro_batches=2, tokens=None, one_row=True, multiple=16),
    "rows": Packing(shards=2, micro_batches=2, tokens=None, one_row=False, multiple=16),
    "budget": Packing(shards=1, micro_batches=None, tokens=512, one_row=True, multiple=16),
    "rows by budget": Packing(shards=2, micro_batches=None, tokens=640, one_row=False, multiple=16),
}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_every_token_of_every_view_is_where_the_index_says(how):
    batch = ragged(hints=3)
    (packed,) = pack([batch], how)
    parts, length = packed.micro_batches, batch.mask.shape[1]
    grid = lambda x: x.reshape(how.shards, -1, parts, *x.shape[1:])  # noqa: E731
    trains = np.flatnonzero((batch.mask != 0).any(axis=1))
    assert len(trains) < len(batch.mask)
    assert (packed.source < batch.mask.size).sum() == (batch.mask != 0).sum()
    for row, t in zip(*np.nonzero(batch.mask), strict=True):
        place = packed.inverse[row, t]
        assert packed.source.reshape(-1)[place] == row * length + t
        shard, line, part, column = np.unravel_index(place, grid(packed.source).shape)
        for name, view in packed.views.items():
            whole = batch.views[name]
            for k in range(3 if name == "negative" else 1):
                pick = (lambda x, k=k: x[:, k]) if name == "negative" else (lambda x: x)
                tokens, segments, positions = (
                    grid(pick(x))[shard, :, part] for x in (view.tokens, view.segments, view.positions)
                )
                at = (line, column)
                if view.place is not None:
                    at = np.unravel_index(grid(pick(view.place))[shard, line, part, column], tokens.shape)
                own = segments[at[0]] == segments[at]
                here = own & (np.arange(len(own)) <= at[1])
                seen = pick(whole.tokens)[row][pick(whole.segments)[row] != 0]
                prompt = len(seen) - (batch.mask[row] != 0).sum()
                np.testing.assert_array_equal(tokens[at[0]][here], seen[: prompt + t], err_msg=f"{name} {row} {t}")
                np.testing.assert_array_equal(positions[at[0]][here], np.arange(prompt + t))


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_packed_rows_hold_little_padding_and_keep_to_the_budget(how):
    batches = [ragged(rows=64, seed=seed) for seed in (0, 1)]
    packed = pack(batches, how)
    shapes = [{name: view.tokens.shape for name, view in one.views.items()} for one in packed]
    assert shapes[0] == shapes[1], "one program serves all updates of a step"
    for batch, one in zip(batches, packed, strict=True):
        for name, view in one.views.items():
            real = (view.segments != 0).sum()
            before = batch.views[name].tokens.size
            assert real > 0.6 * view.tokens.size > 0, f"{name}: {real} of {view.tokens.size}, unpacked {before}"
            if how.tokens:
                rows = view.tokens.size // (how.shards * one.micro_batches)
                assert rows <= how.tokens


def test_a_rollout_beyond_the_budget_is_refused():
    with pytest.raises(ValueError, match=r"a rollout of \d+ tokens .* 64 columns of train.micro_batch_tokens"):
        pack([ragged()], HOW["budget"]._replace(tokens=64))


def test_nothing_to_train_on_packs_into_nothing():
    empty = make_batch({"student": [[1, 2]], "teacher": [[3]]}, [[4, 5]], pad_to=8, counts=[False])
    (packed,) = pack([empty], HOW["one row"]._replace(shards=1, micro_batches=1))
    assert not (packed.views["student"].segments != 0).any()
    assert (packed.source == empty.mask.size).all()


def test_costs_are_dealt_evenly_and_nothing_is_dealt_for_nothing():
    costs = np.random.default_rng(0).integers(0, 1000, 200)
    bins = deal(costs, 8)
    assert ((bins == -1) == (costs == 0)).all()
    sums = np.bincount(bins[bins >= 0], costs[bins >= 0])
    assert sums.max() - sums.min() <= costs.max()
    assert sums.max() <= 4 / 3 * costs.sum() / 8 + 1, "Graham's bound for the longest first"


def test_rows_are_filled_without_overlap():
    rng = np.random.default_rng(0)
    lengths, bins = rng.integers(1, 50, 100), rng.integers(-1, 3, 100)
    rows, starts = fill(lengths, bins, 64)
    taken = set()
    for place in np.flatnonzero(bins >= 0):
        cells = {(bins[place], rows[place], c) for c in range(starts[place], starts[place] + lengths[place])}
        assert max(c for *_, c in cells) < 64 and not cells & taken
        taken |= cells


@pytest.mark.parametrize("how", ["one row", "rows"])
def test_shapes_seen_before_serve_where_they_hold_a_step_with_little_padding(how):
    seen, fills = [], []
    for seed in range(40):
        (packed,) = pack([ragged(rows=64, seed=seed)], HOW[how], seen)
        seen += [new for new in [shapes(packed)] if new not in seen]
        fills.append((packed.views["student"].segments != 0).mean())
    assert len(seen) <= 6 and np.mean(fills) > 0.7, (len(seen), np.mean(fills))
    (few,) = pack([ragged(rows=16)], HOW[how], seen)
    assert shapes(few) not in seen, "a quarter of the tokens takes no larger program"
