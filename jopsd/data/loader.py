"""The training stream: an endless, reshuffled, resumable order over problems, split over processes (grain)."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import grain
import numpy as np

from jopsd.data.problem import Problem


class Part(NamedTuple):
    """Consecutive problems that come from one source of a mixture: how many, and the source's weight."""

    rows: int
    weight: float


def training_iterator(
    problems: Sequence[Problem],
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    epochs: int | None = None,
    parts: Sequence[Part] = (),
) -> grain.DatasetIterator:
    """Iterator over this process's rows of each global batch: lists of ``batch_size // process_count`` problems.

    Every epoch is a fresh permutation drawn from ``seed`` and the epoch's number. ``epochs=None`` is endless: a batch
    may span two epochs, so no row is left out. With a number, the last rows that do not fill a batch are dropped.
    Global batch k is the same for every process count, so a run may resume on another number of hosts.

    ``parts`` says which problems belong together. Each part is shuffled and repeated by itself, with a permutation of
    its own, and the parts take turns by weight, without chance: after any number of rows, each part has had its share
    (rounded by less than 1 %) to within a row or two. An epoch is then as many rows as there are problems, of whatever
    part.

    ``get_state()`` gives a small JSON-serialisable dict and ``set_state()`` continues from it exactly.

    Raises ValueError for an empty list, a batch size that the process count does not divide, fewer rows in all epochs
    than one batch needs, or parts that are not the problems.
    """
    if not problems:
        raise ValueError("no problems to train on")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"batch size {batch_size} must be a positive multiple of the process count {process_count}")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process index {process_index} is outside 0..{process_count - 1}")
    if epochs is not None and len(problems) * epochs < batch_size:
        raise ValueError(f"{len(problems)} rows x {epochs} epochs do not fill one batch of {batch_size}")
    if parts and (sum(part.rows for part in parts) != len(problems) or min(part.rows for part in parts) < 1):
        raise ValueError(f"parts of {[part.rows for part in parts]} rows are not the {len(problems)} problems")
    share = batch_size // process_count
    mine = slice(process_index * share, (process_index + 1) * share)
    stream = (
        _rows(problems, seed, epochs, parts)
        .batch(batch_size, drop_remainder=True, batch_fn=list)
        .map(lambda batch: batch[mine])
    )
    # No threads: a batch is a list of references, and the state must not depend on what was prefetched.
    return iter(stream.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def _rows(problems: Sequence[Problem], seed: int, epochs: int | None, parts: Sequence[Part]) -> grain.MapDataset:
    if len(parts) < 2:
        return grain.MapDataset.source(problems).shuffle(seed=seed).repeat(epochs)
    ends = list(accumulate(part.rows for part in parts))
    sources = [problems[end - part.rows : end] for part, end in zip(parts, ends, strict=True)]
    # Seeds of their own: with one, sources of the same length would be permuted alike.
    seeds = np.random.SeedSequence(seed).generate_state(len(parts)).tolist()
    streams = [
        grain.MapDataset.source(source).shuffle(seed=own).repeat() for source, own in zip(sources, seeds, strict=True)
    ]
    mixed = grain.MapDataset.mix(streams, [part.weight for part in parts])
    return mixed if epochs is None else mixed[: len(problems) * epochs]
