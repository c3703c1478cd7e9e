"""Continuous batching in one plain loop on the caller's thread: the oracle for every other driver of the engine."""

from collections import deque
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from jopsd.sampling.engine import Engine, Row, expand, read_chunk
from jopsd.sampling.sampler import Completion, Policy, Request, SamplerError, Stream


class LoopSampler:
    """A `Sampler` that decodes only while its iterator is being read.

    On several processes, each must call it with the same requests; the schedule is then the same everywhere.

    Attributes:
      collective: whether it draws on devices of several processes.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        here = jax.process_index()
        self.collective = engine.mesh is not None and any(d.process_index != here for d in engine.mesh.devices.flat)
        self._open: set[object] = set()
        self._closed = False

    def sample(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """See `Sampler.sample`."""
        if self._closed:
            raise SamplerError("the sampler is closed")
        requests = list(requests)
        self.engine.validate(requests)
        token = object()
        self._open.add(token)
        return Stream(self._run(expand(requests)), lambda: self._open.discard(token))

    def update(self, policy: Policy, version: int) -> None:
        """See `Sampler.update`."""
        if self._open:
            raise SamplerError(f"update() with {len(self._open)} open iterators of sample(): exhaust or close them")
        self.engine.update(policy, version)

    def close(self) -> None:
        """See `Sampler.close`."""
        self._closed = True
        self.engine.forget_prefix()

    def _run(self, rows: list[Row]) -> Iterator[Completion]:
        engine, waiting, live = self.engine, deque(rows), {}
        free, state = deque(range(engine.slots)), engine.init_state()
        while waiting or live:
            if self._closed:
                raise SamplerError("the sampler was closed with samples in flight")
            while waiting and free:
                row, slot = waiting.popleft(), free.popleft()
                state = engine.insert(state, engine.prefill(row.request.prompt_ids), row, slot)
                live[slot] = row
            state, packed = engine.decode(state)
            chunk = read_chunk(np.asarray(packed))
            finished = [slot for slot, row in live.items() if row.extend(chunk, slot)]
            free.extend(finished)
            for row in [live.pop(slot) for slot in finished]:
                yield row.completion(engine.version, engine.cfg.vocab_size)
