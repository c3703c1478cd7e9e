"""JetStream in this process: its Driver schedules, our engine computes, token ids and log-probs come out.

One sample is one JetStream request. The caller's thread submits tickets and reads completions from a queue; JetStream's
threads prefill, insert and decode. What a chunk drew is handled on the generate thread itself, before its next insert
phase: a freed slot is refilled at once, and the only thread that returns slots is the one that counts them.
"""

import atexit
import contextlib
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from jopsd.sampling.engine import Engine, Row, chunk_columns, expand
from jopsd.sampling.jetstream_compat import engine_api, orchestrator
from jopsd.sampling.sampler import Completion, Policy, Request, SamplerError, Stream
from jopsd.sampling.seats import Seats

_POLL = 1.0  # seconds between two looks at the health of the threads while waiting for a completion


class _Batch:
    """The tickets of one `sample` call.

    Attributes:
      waiting: rows not submitted yet. running: tickets submitted and not ended.
      results: what the iterator reads: a Completion, the exception that ends it, or None once it is cancelled.
    """

    def __init__(self, rows: list[Row]):
        self.waiting, self.running, self.size = deque(rows), 0, len(rows)
        self.results: queue.SimpleQueue = queue.SimpleQueue()
        self.cancelled = False


class _Ticket:
    """A row and the batch it belongs to; what the Driver carries as the content of its request."""

    def __init__(self, row: Row, batch: _Batch):
        self.row, self.batch = row, batch


class JetStreamEngine(engine_api.Engine):
    """JetStream's Engine interface over `jopsd.sampling.engine.Engine`.

    `params` is ignored: the Driver captures it when its threads start, so the policy is read from the engine per call.
    """

    def __init__(self, engine: Engine):
        self.core = engine
        # Touched by the generate thread only: tickets by slot, and what is drawn but not collected.
        self._tickets: dict[int, _Ticket] = {}
        self._drawn: tuple[Seats, jax.Array | None] | None = None

    def prefill(self, *, params=None, existing_prefix=None, padded_tokens: _Ticket, true_length: int):
        """The ticket as it is: its prompt is read with others of the next `generate`, into the pages of its row."""
        return padded_tokens

    def insert(self, prefix: _Ticket, decode_state: Seats, slot: int) -> Seats:
        """Seats the ticket's row in a free slot; a cancelled one leaves the slot as it is."""
        if not prefix.batch.cancelled:
            self._tickets[slot] = prefix
            decode_state.seat(prefix.row, slot)
        return decode_state

    def generate(self, params, decode_state: Seats):
        """Reads prompts and draws up to `chunk` tokens; log-probs ride in columns JetStream does not read."""
        cancelled = [slot for slot, ticket in self._tickets.items() if ticket.batch.cancelled]
        if cancelled:
            decode_state.cancel(cancelled)
            for slot in cancelled:
                del self._tickets[slot]
        packed = decode_state.advance()
        self._drawn = decode_state, packed
        column = chunk_columns(self.core.chunk)
        data = np.zeros((self.core.slots, column["length"][1]), np.int32) if packed is None else packed
        return decode_state, engine_api.ResultTokens(data, column["tokens"], column["valid"], column["length"], 1)

    def collect(self) -> None:
        """Hands what the last `generate` drew to its rows; waits for the device."""
        (seats, packed), self._drawn = self._drawn, None
        for slot, _ in () if packed is None else seats.collect(packed):
            del self._tickets[slot]

    def sits(self, slot: int) -> bool:
        """Whether a row that has not ended is in this slot."""
        return slot in self._tickets

    def init_decode_state(self, *args, **kwargs) -> Seats:
        """The slots, all of them free."""
        return Seats(self.core)

    def load_params(self, *args, **kwargs):
        """Nothing: the core engine holds the policy."""

    def get_prefix_destination_sharding(self):
        """Only asked for when prefill and decode run on different engines."""

    def get_tokenizer(self):
        """Nothing: requests are token ids."""

    def build_tokenizer(self, metadata):
        """Nothing: requests are token ids."""

    @property
    def max_concurrent_decodes(self) -> int:
        """Slots."""
        return self.core.slots

    @property
    def samples_per_slot(self) -> int:
        """One: a slot is freed when all its rows are done."""
        return 1

    @property
    def max_prefill_length(self) -> int:
        """Longest prompt in tokens."""
        return self.core.max_length

    @property
    def mesh(self):
        """The mesh of the core engine, or None."""
        return self.core.mesh

    @property
    def colocated_cpus(self):
        """None."""


class _Inline(queue.Queue):
    """A backlog whose items are handled where they are put, so the Driver runs no result ahead of them."""

    def __init__(self, handle: Callable):
        super().__init__()
        self._handle = handle

    def put(self, item, block=True, timeout=None):
        """Handles the item now; None, the stop signal, concerns no one."""
        if item is not None:
            self._handle(*item)


class OpsdDriver(orchestrator.Driver):
    """JetStream's Driver for tickets, with failures reported instead of fatal.

    Args:
      on_done: called on the generate thread with each ticket that has ended, before its slot is free.
      on_error: called once, on the thread that failed, with the exception; the Driver is no longer live then.
    """

    def __init__(
        self,
        engine: JetStreamEngine,
        on_done: Callable[[_Ticket], None],
        on_error: Callable[[BaseException], None],
    ):
        self._on_done, self._on_error, self._engine = on_done, on_error, engine
        self._running: dict[int, _Ticket] = {}
        self._coming: deque[_Ticket] = deque()  # submitted, and not in a slot yet
        super().__init__(
            prefill_engines=[engine],
            generate_engines=[engine],
            prefill_params=[None],
            generate_params=[None],
            interleaved_mode=True,
            jax_padding=False,
        )
        # The Driver fills its free slots as long as this backlog says there is more. A ticket in the hands of a thread
        # is in no backlog: without it the first rows would draw a chunk before the others start.
        coming = self._coming
        self._prefill_backlog.empty = lambda: not coming

    def submit(self, ticket: _Ticket) -> None:
        """Queues a ticket for prefill."""
        self._coming.append(ticket)
        self.place_request_on_prefill_queue(
            orchestrator.ActiveRequest(
                max_tokens=1 << 30,  # the engine keeps each row's own limit
                return_channel=None,
                prefill_content=ticket,
                is_client_side_tokenization=True,
            )
        )

    def stop(self, timeout: float = 60.0) -> bool:
        """Ends the threads after what they are doing now; False if one is still busy after `timeout` seconds."""
        self.live = False
        backlogs = [self._prefill_backlog, *self._transfer_backlogs, *self._generate_backlogs.values()]
        give_up = time.monotonic() + timeout
        while any(thread.is_alive() for thread in self._all_threads):
            if time.monotonic() > give_up:
                return False
            for backlog in backlogs:
                with contextlib.suppress(queue.Empty):
                    while True:
                        backlog.get_nowait()
            time.sleep(0.001)  # lets a thread that waits to put go first; it then sees that the Driver is not live
            for backlog in backlogs:
                with contextlib.suppress(queue.Full):
                    backlog.put_nowait(None)
            time.sleep(0.001)
        return True

    def alive(self) -> bool:
        """Whether the threads that every ticket passes through all run."""
        return self.live and all(
            t.is_alive() for t in (*self._prefill_threads, *self._transfer_threads, *self._generate_threads)
        )

    def _process_prefill_content(self, request, tokenizer, is_bos, max_prefill_length):
        ticket = request.prefill_content
        return ticket, len(ticket.row.request.prompt_ids)

    def _prefill_thread(self, idx: int):
        self._reporting(super()._prefill_thread, idx)

    def _transfer_thread(self, idx: int):
        self._reporting(super()._transfer_thread, idx)

    def _generate_thread(self, idx: int):
        self._detokenize_backlogs[idx] = _Inline(self._take)
        self._reporting(super()._generate_thread, idx)

    def _detokenize_thread(self, idx: int):
        """Nothing: `_take` does it on the generate thread."""

    def _reporting(self, run: Callable[[int], None], idx: int) -> None:
        try:
            run(idx)
        except BaseException as error:
            self.live = False
            self._on_error(error)

    def _take(self, tag: int, payload) -> None:
        """Handles (slot, request) after an insert and (step, results) after a generate."""
        if isinstance(payload, orchestrator.ActiveRequest):
            self._running[tag] = payload.prefill_content
            self._coming.popleft()
            return
        self._engine.collect()
        for slot, ticket in list(self._running.items()):
            if not self._engine.sits(slot):
                self._on_done(ticket)
                del self._running[slot]
                self._generate_slots[0].put(slot, block=False)


class JetStreamSampler:
    """A `Sampler` on JetStream's Driver. Its threads start with the first `sample` and run between calls too.

    Completions keep coming while the caller works on earlier ones. An exception in any thread reaches every open
    iterator and every later `sample` as a `SamplerError`. Several iterators may be open at once and share the slots.
    """

    def __init__(self, engine: Engine):
        mesh = engine.mesh
        if mesh is not None and any(d.process_index != jax.process_index() for d in mesh.devices.flat):
            raise ValueError(
                "the JetStream sampler dispatches from two threads, which deadlocks on a mesh that spans processes: "
                'use sampler "loop", or a mesh of this process\'s own devices'
            )
        self.engine = engine
        self._driver: OpsdDriver | None = None
        self._open: set[_Batch] = set()
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition(threading.RLock())
        self._at_exit = _close_at_exit(self)

    def sample(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """See `Sampler.sample`. Sampling starts at once, not with the first `next`."""
        requests = list(requests)
        self.engine.validate(requests)
        with self._changed:
            self._check()
            if self._driver is None:
                self._driver = OpsdDriver(JetStreamEngine(self.engine), self._done, self._fail)
            batch = _Batch(expand(requests))
            self._open.add(batch)
            self._feed(batch)
        return Stream(self._read(batch), lambda: self._cancel(batch))

    def update(self, policy: Policy, version: int) -> None:
        """See `Sampler.update`. Waits for cancelled samples to leave their slots."""
        with self._changed:
            open_batches = sum(not batch.cancelled for batch in self._open)
            if open_batches:
                raise SamplerError(f"update() with {open_batches} open iterators of sample(): exhaust or close them")
            while self._open and not self._changed.wait(_POLL):
                self._check_threads()
            self._check()
            self.engine.update(policy, version)

    def release(self) -> None:
        """Gives back the memory of the slots until the next `sample`. No iterator may be open."""
        with self._changed:
            if any(not batch.cancelled for batch in self._open):
                raise SamplerError("release() with an open iterator of sample(): exhaust or close it first")
            driver, self._driver = self._driver, None
            self._open.clear()
        self._stop(driver)

    def close(self) -> None:
        """See `Sampler.close`. Returns once the threads have ended, at most one chunk (or one compilation) later."""
        with self._changed:
            driver, self._driver, self._closed = self._driver, None, True
            self._end_all(SamplerError("the sampler was closed with samples in flight"))
        atexit.unregister(self._at_exit)
        self._stop(driver)

    def _stop(self, driver: OpsdDriver | None) -> None:
        if driver is not None and not driver.stop():
            raise SamplerError("a sampler thread is still busy on the device 60 s after it was told to stop")

    def _check(self) -> None:
        if self._closed:
            raise SamplerError("the sampler is closed")
        if self._error is not None:
            raise SamplerError(f"the sampler broke earlier: {self._error!r}; build a new one") from self._error

    def _check_threads(self) -> None:
        driver = self._driver
        if driver is not None and not driver.alive():
            self._fail(RuntimeError("a JetStream thread ended without a word"))

    def _read(self, batch: _Batch) -> Iterator[Completion]:
        for _ in range(batch.size):
            while True:
                try:
                    result = batch.results.get(timeout=_POLL)
                    break
                except queue.Empty:
                    self._check_threads()
            if result is None:
                return
            if isinstance(result, BaseException):
                raise SamplerError(str(result)) from result.__cause__
            yield result

    def _feed(self, batch: _Batch) -> None:
        """Submits rows while fewer than two pools full are with the Driver; called with the lock held."""
        while batch.waiting and batch.running < 2 * self.engine.slots:
            batch.running += 1
            self._driver.submit(_Ticket(batch.waiting.popleft(), batch))

    def _done(self, ticket: _Ticket) -> None:
        batch = ticket.batch
        with self._changed:
            batch.running -= 1
            if batch.cancelled:
                self._settle(batch)
                return
            if self._driver is not None:
                self._feed(batch)
        batch.results.put(ticket.row.completion(self.engine.version, self.engine.cfg.vocab_size))

    def _cancel(self, batch: _Batch) -> None:
        """Called when the iterator of a batch is over, for whatever reason."""
        with self._changed:
            batch.cancelled = True
            batch.waiting.clear()
            batch.results.put(None)  # wakes a thread that still reads
            self._settle(batch)

    def _settle(self, batch: _Batch) -> None:
        if batch.running == 0:
            self._open.discard(batch)
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self._error is None and not self._closed:
                self._error = error
            failure = SamplerError(f"sampling failed: {error!r}")
            failure.__cause__ = error
            self._end_all(failure)

    def _end_all(self, failure: SamplerError) -> None:
        for batch in self._open:
            batch.results.put(failure)
        self._open.clear()
        self._changed.notify_all()


def _close_at_exit(sampler: JetStreamSampler) -> Callable[[], None]:
    """Ends the threads before the interpreter takes the backend away under them; does not keep the sampler alive."""
    reference = weakref.ref(sampler)

    def close() -> None:
        living = reference()
        if living is not None:
            living.close()

    atexit.register(close)
    return close
