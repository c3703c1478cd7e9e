"""The training stream: an endless, reshuffled, resumable order over problems, split over processes (grain)."""

from collections.abc import Sequence

import grain

from jopsd.data.problem import Problem


def training_iterator(
    problems: Sequence[Problem],
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    epochs: int | None = None,
) -> grain.DatasetIterator:
    """Iterator over this process's rows of each global batch: lists of ``batch_size // process_count`` problems.

    Every epoch is a fresh permutation drawn from ``seed`` and the epoch's number. ``epochs=None`` is endless: a batch
    may span two epochs, so no row is left out. With a number, the last rows that do not fill a batch are dropped.
    Global batch k is the same for every process count, so a run may resume on another number of hosts.

    ``get_state()`` gives a small JSON-serialisable dict and ``set_state()`` continues from it exactly.

    Raises ValueError for an empty list, a batch size that the process count does not divide, or fewer rows in all
    epochs than one batch needs.
    """
    if not problems:
        raise ValueError("no problems to train on")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"batch size {batch_size} must be a positive multiple of the process count {process_count}")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process index {process_index} is outside 0..{process_count - 1}")
    if epochs is not None and len(problems) * epochs < batch_size:
        raise ValueError(f"{len(problems)} rows x {epochs} epochs do not fill one batch of {batch_size}")
    share = batch_size // process_count
    mine = slice(process_index * share, (process_index + 1) * share)
    stream = (
        grain.MapDataset.source(problems)
        .shuffle(seed=seed)
        .repeat(epochs)
        .batch(batch_size, drop_remainder=True, batch_fn=list)
        .map(lambda batch: batch[mine])
    )
    # No threads: a batch is a list of references, and the state must not depend on what was prefetched.
    return iter(stream.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))
