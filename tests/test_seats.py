"""Pages of a sampler's rows: who has them, what happens when they run out, and that no token depends on it."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jopsd.models.pages import PAGE
from jopsd.sampling import Request, SamplingParams, make_sampler
from jopsd.sampling import engine as engine_module
from jopsd.sampling.capacity import page_bytes, pieces_of, pool_shape
from jopsd.sampling.engine import Engine, expand
from jopsd.sampling.seats import Seats
from tests.test_sampling import CFG, assert_same_bits, collect, make_policy

LONG = 512
POLICY = make_policy()
WINDOWS = replace(CFG, num_layers=4, pattern=("sliding", "full"), window=70)


def prompt(length, seed=0):
    return tuple(np.random.default_rng([seed, length]).integers(0, CFG.vocab_size, length).tolist())


def long_requests():
    """Prompts of 1 to 150 tokens, completions of 3 to 300; one prompt has several samples."""
    return [
        Request(prompt(150), 4, 1, SamplingParams(120), "group"),
        Request(prompt(20), 1, 2, SamplingParams(300, temperature=0.8), "long"),
        Request(prompt(1), 2, 3, SamplingParams(40), "bare"),
        Request(prompt(64), 2, 4, SamplingParams(3, top_p=0.9), "page"),
        Request(prompt(129), 1, 5, SamplingParams(200, top_k=7), "cut"),
    ]


def sampler(name="loop", slots=8, max_length=LONG, chunk=16, cfg=CFG, policy=POLICY, **more):
    return make_sampler(name, cfg, policy, slots, max_length, chunk, **more)


@pytest.fixture(scope="module")
def expected():
    return collect(sampler(), long_requests())


def gigabytes(pages, cfg=CFG):
    return pages * sum(page_bytes(cfg, kind) for kind in sorted(set(cfg.pattern))) / 1e9


# The same tokens


@pytest.mark.parametrize("name", ["loop", "jetstream"])
def test_rows_that_are_put_back_draw_the_same_tokens_again(name, expected):
    found = sampler(name, cache_gb=gigabytes(9.5))
    assert_same_bits(collect(found, long_requests()), expected)
    assert found.engine.putbacks > 0
    found.close()


@pytest.mark.parametrize("change", [{"max_length": 4096}, {"chunk": 5}, {"cache_gb": gigabytes(400)}])
def test_max_length_chunk_and_pool_do_not_change_a_bit(change, expected):
    assert_same_bits(collect(sampler(**change), long_requests()), expected)


def test_a_row_alone_draws_what_it_draws_among_long_neighbours(expected):
    alone = collect(sampler(), [Request(prompt(1), 2, 3, SamplingParams(40), "bare")])
    assert_same_bits(alone, {key: value for key, value in expected.items() if key[0] == "bare"})


def test_rows_start_with_the_longest_limit_and_keep_their_order_within():
    rows = expand(long_requests())
    assert [row.request.id for row in rows] == ["long", "cut", *["group"] * 4, *["bare"] * 2, *["page"] * 2]
    assert [row.index for row in rows if row.request.id == "group"] == [0, 1, 2, 3]


# Pages


def used(seats, kind="full"):
    ledger = seats._ledgers[0][kind]
    return len(ledger._users) - 1 - len(ledger.free)


def test_a_group_shares_the_full_pages_of_its_prompt():
    engine = Engine(CFG, POLICY, slots=8, max_length=LONG, chunk=4)
    seats = Seats(engine)
    for slot, row in enumerate(expand([Request(prompt(2 * PAGE + 10), 8, 1, SamplingParams(20), "x")])):
        seats.seat(row, slot)
    seats.collect(seats.advance())
    assert engine.prefills == 1
    assert used(seats) == 2 + 8  # two pages for all, and the last one of each


def test_all_pages_come_back_when_the_rows_are_done_or_cancelled():
    engine = Engine(CFG, POLICY, slots=8, max_length=LONG, chunk=16)
    seats = Seats(engine)
    rows = expand(long_requests())[:8]
    for slot, row in enumerate(rows):
        seats.seat(row, slot)
    seats.collect(seats.advance())
    seats.cancel([0, 2])
    while (packed := seats.advance()) is not None:
        seats.collect(packed)
    kept = {page for pages in seats._prompts[0].values() for page in pages["full"].values()}
    assert used(seats) == len(kept) > 0
    engine.update(make_policy(seed=3), 0)  # of the same version, as exact and rounded weights are
    seats.seat(expand([Request(prompt(3), 1, 1, SamplingParams(2), "new")])[0], 0)
    seats.collect(seats.advance())
    assert set(seats._prompts[0]) == {prompt(3)[:-1]}  # prompts of older weights are forgotten


def test_pages_behind_the_window_are_given_back_and_nothing_changes():
    policy = make_policy(cfg=WINDOWS)
    requests = [
        Request(prompt(200), 2, 1, SamplingParams(200), "long"),
        Request(prompt(9), 1, 2, SamplingParams(30), "s"),
    ]
    plenty = sampler(slots=3, cfg=WINDOWS, policy=policy, cache_gb=gigabytes(100, WINDOWS))
    expected = collect(plenty, requests)
    engine = Engine(WINDOWS, policy, slots=3, max_length=LONG, chunk=16)
    seats, most = Seats(engine), 0
    for slot, row in enumerate(expand(requests)):
        seats.seat(row, slot)
    found = {}
    while (packed := seats.advance()) is not None:
        most = max(most, *(len(seat.tables["sliding"]) for seat in seats._seats.values()))
        for _, row in seats.collect(packed):
            found[row.request.id, row.index] = row.completion(0, CFG.vocab_size)
    assert_same_bits(found, expected)
    assert most <= 4 < 400 // PAGE  # of 70 columns and a piece or a chunk


# Sizes


def test_pages_for_rows_of_the_expected_length_are_less_than_half_of_a_dense_cache():
    for slots, longest in ((16, 1024), (64, 16384), (8, 18432)):
        pages = dict(pool_shape(CFG, slots, longest, 1, chunk=16).pages)["full"]
        assert pages * PAGE <= 0.45 * slots * longest
    short = dict(pool_shape(CFG, 16, 96, 1, chunk=16).pages)["full"]
    assert short * PAGE >= 16 * 96  # where rows are short they all fit
    windows = dict(pool_shape(WINDOWS, 16, 16384, 1, chunk=16).pages)
    assert windows["sliding"] < windows["full"] / 5


def test_a_cache_that_is_too_small_or_too_large_is_refused_before_anything_compiles():
    with pytest.raises(ValueError, match=r"does not hold one row of 512 tokens .* raise sampling.cache_gb"):
        sampler(cache_gb=gigabytes(7))
    with pytest.raises(ValueError, match=r"more than the .* GB of memory .* lower sampling.cache_gb"):
        sampler(cache_gb=1e6)
    with pytest.raises(ValueError, match="prompt of 513 tokens"):
        list(sampler().sample([Request(prompt(513), 1, 1, SamplingParams(1), "x")]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_program_has_temporaries_of_the_size_of_the_pool(dtype):
    cfg = replace(CFG, num_layers=8, head_dim=32, dtype=dtype)
    engine = Engine(cfg, make_policy(cfg=cfg), slots=16, max_length=4096, chunk=4)
    shape = engine.shape
    state = jax.eval_shape(lambda: engine_module.init_state(cfg, shape))
    pool = shape.pages[0][1] * page_bytes(cfg, "full")
    number = lambda *sizes: np.zeros(sizes, np.int32)  # noqa: E731
    table, one = number(8, 1, shape.table_width), number(8, 1)
    programs = [
        engine_module.decode.lower(engine._drawn_from, state, {"full": number(16, shape.table_width)}, 4),
        engine_module.prefill.lower(
            engine._drawn_from, state, number(8, 1, 64), one, one, {"full": table}, np.int32(1)
        ),
        engine_module.admit.lower(
            state, number(16, 15), np.zeros((16, 2), np.float32), {"full": (number(1, 16), number(1, 16), np.int32(1))}
        ),
    ]
    for program in programs:
        memory = program.compile().memory_analysis()
        assert memory.temp_size_in_bytes < 0.05 * pool
        assert memory.alias_size_in_bytes > pool


def test_pieces_of_a_prompt_cover_it_and_depend_on_its_length_alone():
    for platform, length in (("cpu", 1), ("cpu", 16), ("cpu", 17), ("cpu", 200), ("tpu", 600)):
        pieces = pieces_of(length, platform)
        assert [p.start for p in pieces] == list(np.cumsum([0, *(p.count for p in pieces)])[:-1])
        assert sum(p.count for p in pieces) == length and all(p.start % min(p.width, PAGE) == 0 for p in pieces)
    assert pieces_of(0, "cpu") == []
