"""Several sampling servers as one `Sampler`: work in small pieces to whoever has room, and none of it lost.

A sample's draw depends on its seed and index alone, so what a server leaves unfinished is drawn anew by another, with
the same tokens; each sample is kept once, by request and index.
"""

import math
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Protocol

from jopsd.distributed import is_first, wait_for_all
from jopsd.sampling.publish import Published, Publisher
from jopsd.sampling.remote import ServerBusy
from jopsd.sampling.sampler import Completion, Policy, Request, SamplerError, Stream, validate

_LANES = 8  # pieces that one server works on at once
_POLL = 0.5  # seconds between two looks at whether any server is left
_PAUSE = 0.25  # seconds in which a busy server is left alone
_RETRY = (0.2, 5.0)  # seconds before a server that left is tried again: at first, at most
_CONNECT = 10.0  # seconds in which such a server must answer
_REFUSALS, _FAILURES = 2, 8  # of one piece: refused as faulty, or failed, so often, it is the piece that is to blame


class Link(Protocol):
    """One server, as the pool uses it. Each method raises SamplerError where the server fails."""

    address: str
    slots: int  # samples it decodes at once; known once connected

    def connect(self, timeout: float) -> None:
        """Reaches the server. Raises ValueError if it is not one for this run."""

    def load(self, published: Published, timeout: float) -> None:
        """Has it serve these weights. Returns at once where it does."""

    def sample(self, requests: Sequence[Request]) -> Stream:
        """See `Sampler.sample`; from the weights of the last `load`. Closing it from another thread ends it too."""

    def close(self) -> None:
        """Lets go of the server."""


class _Batch:
    """The samples of one `sample` call.

    Attributes:
      pieces: those that no server has. given: those that one has.
      missing: samples not there yet, as (request position, index).
      results: what the iterator reads: a Completion, or the exception that ends it.
    """

    def __init__(self, requests: Sequence[Request], size: int):
        self.requests, self.over = requests, False
        keys = [(p, i) for p, r in enumerate(requests) for i in (range(r.n) if r.indices is None else r.indices)]
        self.missing, self.size = set(keys), len(keys)
        self.pieces = deque(_Piece(self, keys[at : at + size]) for at in range(0, len(keys), size))
        self.given: set[_Piece] = set()
        self.results: queue.SimpleQueue = queue.SimpleQueue()


class _Piece:
    """A few samples that go to a server together. refused, failed: how often a server called them faulty, or failed."""

    def __init__(self, batch: _Batch, keys: Sequence[tuple[int, int]], refused: int = 0, failed: int = 0):
        self.batch, self.keys, self.refused, self.failed = batch, tuple(keys), refused, failed
        self.stream: Stream | None = None

    def requests(self) -> list[Request]:
        """One request per prompt, with its position as id."""
        wanted: dict[int, list[int]] = {}
        for position, index in self.keys:
            wanted.setdefault(position, []).append(index)
        return [replace(self.batch.requests[p], id=p, indices=tuple(i)) for p, i in wanted.items()]


class _Member:
    """A server in the pool.

    Attributes:
      reached, up: connected; and serving the weights of the last `update`. error: why not.
      tries: failures to bring it up, in a row. flaps: how often it left since it last did any work.
      awaited: whether an `update` waits for it. paused: until when it gets no work.
      lanes, busy: threads that work with it, and those at work. outstanding: samples it has.
    """

    def __init__(self, link: Link):
        self.link, self.reached, self.up, self.awaited = link, False, False, False
        self.lanes, self.busy, self.outstanding, self.paused = 0, 0, 0, 0.0
        self.error, self.tries, self.flaps = "it was not reached yet", 0, 0
        self.wakes = threading.Event()

    @property
    def load(self) -> float:
        return self.outstanding / self.link.slots


class PoolSampler:
    """A `Sampler` whose weights are in servers, which `update` sets.

    Args:
      links: the servers. limits: (vocab_size, max_length, max_stop_ids) of requests.
      publisher: writes the weights; on several processes all call `update`, and the first one tells the servers.
      timeout: seconds in which a server must come up, or take new weights, and in which one must be left.
      say: told when a server leaves or comes back.

    Raises:
      ValueError: a server that is not one for this run. SamplerError: none can be reached.
    """

    def __init__(
        self,
        links: Sequence[Link],
        limits: tuple[int, int, int],
        publisher: Publisher,
        timeout: float,
        say: Callable[[str], None] = lambda text: print(f"sampling: {text}", file=sys.stderr, flush=True),
    ):
        self._members = [_Member(link) for link in links]
        self._limits, self._publisher, self._timeout, self._say = limits, publisher, timeout, say
        self._open: list[_Batch] = []
        self._target, self._closed, self._last_up = None, False, time.monotonic()
        self._changed = threading.Condition(threading.RLock())
        try:
            self._connect_all()
        except BaseException:
            self.close()
            raise
        for member in self._members:
            threading.Thread(target=self._keep, args=(member,), daemon=True).start()

    def sample(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """See `Sampler.sample`. Sampling starts at once, not with the first `next`."""
        requests = list(requests)
        validate(requests, *self._limits)
        with self._changed:
            if self._closed:
                raise SamplerError("the sampler is closed")
            if self._target is None:
                raise SamplerError("the servers have no weights of this run yet: update() the sampler first")
            slots = min((m.link.slots for m in self._members if m.up), default=1)
            batch = _Batch(requests, max(slots // 4, 1))
            self._open.append(batch)
            self._changed.notify_all()
        return Stream(self._read(batch), lambda: self._end(batch))

    def update(self, policy: Policy, version: int) -> None:
        """See `Sampler.update`. Writes the weights once and has every server take them; does nothing for the version
        that they serve. On several processes all must call it.

        Raises:
          SamplerError: the weights cannot be written, or no server takes them in time.
        """
        with self._changed:
            if self._closed:
                raise SamplerError("the sampler is closed")
            if self._open:
                raise SamplerError(f"update() with {len(self._open)} open iterators of sample(): exhaust or close them")
            if self._target is not None and self._target.version == version:
                return
        published = self._publisher.publish(policy, version)
        try:
            if is_first():
                self._hand_over(published)
        finally:
            wait_for_all(f"weights served {version}")
        if not is_first():  # the servers have them by now; this says so to this process's own links
            self._hand_over(published)
        self._publisher.forget()

    def close(self) -> None:
        """See `Sampler.close`. The servers go on."""
        with self._changed:
            self._closed = True
            for batch in list(self._open):
                batch.results.put(SamplerError("the sampler was closed with samples in flight"))
                self._end(batch)
            self._changed.notify_all()
        for member in self._members:
            member.wakes.set()
            member.link.close()

    # ---- servers come and go

    def _connect_all(self) -> None:
        """Waits for every server; those that do not come up in time are left to `_keep`."""
        faults: list[Exception] = []

        def connect(member: _Member) -> None:
            try:
                member.link.connect(self._timeout)
                member.reached = True
            except SamplerError as error:
                member.error = str(error)
            except Exception as error:
                faults.append(error)

        threads = [threading.Thread(target=connect, args=(member,), daemon=True) for member in self._members]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if faults:
            raise faults[0]
        if not any(member.reached for member in self._members):
            raise SamplerError(self._nobody())
        for member in self._members:
            if not member.reached:
                self._say(f"goes on without {member.link.address} for now: {member.error}")

    def _hand_over(self, published: Published) -> None:
        """Every server that is there takes the weights; returns when each has, or has failed to, and one has."""
        with self._changed:
            self._target = published
            for member in self._members:
                member.awaited = member.reached
                member.up = False
                member.wakes.set()
            end = time.monotonic() + self._timeout
            while any(member.awaited for member in self._members) or not any(member.up for member in self._members):
                if time.monotonic() > end:
                    break
                self._changed.wait(_POLL)
            if not any(member.up for member in self._members):
                raise SamplerError(self._nobody())
            self._last_up = time.monotonic()

    def _keep(self, member: _Member) -> None:
        """Brings a server up whenever it is not."""
        wait = 0.0
        while not self._closed:
            target = self._target
            if target is None or member.up:
                member.wakes.wait()
                member.wakes.clear()
                wait = _RETRY[0] * 2**member.flaps if member.flaps > 1 else 0.0
                member.wakes.wait(min(wait, _RETRY[1]))
                continue
            try:
                if not member.reached:
                    member.link.connect(min(self._timeout, _CONNECT))
                    member.reached = True
                member.link.load(target, self._timeout)
            except Exception as error:
                self._not_yet(member, target, error)
                wait = min(max(wait * 2, _RETRY[0]), _RETRY[1])
                member.wakes.wait(wait)
                member.wakes.clear()
            else:
                self._came_up(member, target)

    def _not_yet(self, member: _Member, target: Published, error: Exception) -> None:
        with self._changed:
            member.error, member.reached = str(error), False
            member.tries += 1
            if target is self._target:
                member.awaited = False
            if member.tries == 1 and not self._closed:
                self._say(f"{member.link.address} did not take version {target.version}, and is tried again: {error}")
            self._changed.notify_all()

    def _came_up(self, member: _Member, target: Published) -> None:
        with self._changed:
            if target is not self._target or self._closed:
                return
            if member.tries:
                self._say(f"{member.link.address} serves version {target.version} now")
            member.up, member.awaited, member.tries, self._last_up = True, False, 0, time.monotonic()
            while member.lanes < _LANES:
                member.lanes += 1
                threading.Thread(target=self._work, args=(member,), daemon=True).start()
            self._changed.notify_all()

    def _leave(self, member: _Member, error: Exception) -> None:
        """The server failed: what it has goes elsewhere, and `_keep` brings it back if it can."""
        if member.up and not self._closed:
            self._say(f"{member.link.address} left, and its samples go elsewhere: {error}")
            member.up, member.reached, member.tries, member.error = False, False, 1, str(error)
            member.flaps += 1
            self._last_up = time.monotonic()
            member.wakes.set()

    def _nobody(self) -> str:
        """Why no server is left, of each."""
        each = "; ".join(f"{member.link.address}: {member.error}" for member in self._members)
        return f"no sampling server is left after {self._timeout:g} s (sampling.access.timeout): {each}"

    # ---- work

    def _work(self, member: _Member) -> None:
        """One lane of a server: takes a piece, hands on its samples, takes the next."""
        while (piece := self._take(member)) is not None:
            failure = None
            try:
                with closing(member.link.sample(piece.requests())) as stream:
                    piece.stream = stream
                    for completion in () if piece.batch.over else stream:
                        self._arrived(piece, completion)
            except Exception as error:
                failure = error
            self._return(member, piece, failure)

    def _take(self, member: _Member) -> _Piece | None:
        """The next piece for this server, once there is one and none has more room; None when the pool is closed."""
        with self._changed:
            while not self._closed:
                pause = member.paused - time.monotonic()
                batch = next((batch for batch in self._open if batch.pieces), None)
                if batch is not None and pause <= 0 and self._has_most_room(member, len(batch.pieces[0].keys)):
                    piece = batch.pieces.popleft()
                    batch.given.add(piece)
                    member.outstanding += len(piece.keys)
                    member.busy += 1
                    self._changed.notify_all()
                    return piece
                self._changed.wait(pause if pause > 0 else None)
        return None

    def _has_most_room(self, member: _Member, samples: int) -> bool:
        if not member.up or (member.outstanding and member.outstanding + samples > 2 * member.link.slots):
            return False
        now = time.monotonic()
        others = (m for m in self._members if m.up and m.busy < m.lanes and m.paused <= now)
        return member.load <= min((other.load for other in others), default=math.inf)

    def _arrived(self, piece: _Piece, completion: Completion) -> None:
        batch, key = piece.batch, (completion.request_id, completion.index)
        with self._changed:
            if self._target is None or completion.policy_version != self._target.version:
                raise SamplerError(f"it sent a sample of version {completion.policy_version}, which was not asked for")
            if key in batch.missing and not batch.over:
                batch.missing.remove(key)
                batch.results.put(replace(completion, request_id=batch.requests[key[0]].id))

    def _return(self, member: _Member, piece: _Piece, failure: Exception | None) -> None:
        """What is left of a piece goes back to the front; a server that failed leaves."""
        batch = piece.batch
        with self._changed:
            member.outstanding -= len(piece.keys)
            member.busy -= 1
            batch.given.discard(piece)
            left = [key for key in piece.keys if key in batch.missing]
            if not left:
                member.flaps = 0
            elif failure is None:
                failure = SamplerError(f"it ended with {len(left)} samples missing")
            if failure is not None and not batch.over:
                busy, faulty = isinstance(failure, ServerBusy), isinstance(failure, ValueError)
                again = _Piece(batch, left, piece.refused + faulty, piece.failed + (not busy))
                known = isinstance(failure, SamplerError | ValueError | OSError)
                if not known or again.refused >= _REFUSALS or again.failed >= _FAILURES:
                    batch.results.put(failure)
                elif left:
                    batch.pieces.appendleft(again)
                if busy:
                    member.paused = time.monotonic() + _PAUSE
                else:
                    self._leave(member, failure)
            self._changed.notify_all()

    def _read(self, batch: _Batch) -> Iterator[Completion]:
        for _ in range(batch.size):
            while True:
                try:
                    result = batch.results.get(timeout=_POLL)
                    break
                except queue.Empty:
                    self._require_one()
            if isinstance(result, BaseException):
                raise result
            yield result

    def _require_one(self) -> None:
        with self._changed:
            if not any(member.up for member in self._members):
                if time.monotonic() - self._last_up > self._timeout:
                    raise SamplerError(self._nobody())

    def _end(self, batch: _Batch) -> None:
        """The iterator of a batch is over, for whatever reason: servers stop what is left of it."""
        with self._changed:
            batch.over = True
            batch.pieces.clear()
            if batch in self._open:
                self._open.remove(batch)
            streams = [piece.stream for piece in batch.given if piece.stream is not None]
        for stream in streams:
            stream.close()
