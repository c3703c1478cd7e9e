"""Continuous batching in one plain loop on the caller's thread: the oracle for every other driver of the engine."""

from collections import deque
from collections.abc import Iterator, Sequence

import jax

from jopsd.sampling.engine import Engine, Row, expand
from jopsd.sampling.sampler import Completion, Policy, Request, SamplerError, Stream
from jopsd.sampling.seats import Seats


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

    def _run(self, rows: list[Row]) -> Iterator[Completion]:
        engine, waiting = self.engine, deque(rows)
        seats, free = Seats(engine), deque(range(engine.slots))
        while waiting or len(free) < engine.slots:
            if self._closed:
                raise SamplerError("the sampler was closed with samples in flight")
            while waiting and free:
                seats.seat(waiting.popleft(), free.popleft())
            finished = seats.collect(seats.advance())
            free.extend(slot for slot, _ in finished)
            for _, row in finished:
                yield row.completion(engine.version, engine.cfg.vocab_size)
