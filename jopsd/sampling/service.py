"""What a sampling server does, without the wire: samples of one version of the weights at a time, and new weights.

Samples in flight when weights change are cut off, never continued with the new ones; their clients are told.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from jopsd.checkpoint import first_line
from jopsd.sampling.fingerprint import fingerprint, model_fingerprint, shape_fingerprint
from jopsd.sampling.loop import LoopSampler
from jopsd.sampling.sampler import Completion, Policy, Request, Sampler, SamplerError
from jopsd.sampling.server_metrics import server_metrics
from jopsd.sampling.wire import Description, Load

CALLS = 256  # of `sample` at once; one more is refused rather than left waiting without a word

Read = Callable[[str, Policy], Policy]


class Refusal(Exception):
    """Why a call is not served. status: the name of a gRPC status."""

    def __init__(self, status: str, message: object):
        super().__init__(str(message))
        self.status = status


class _Call:
    """One call of `sample`.

    Attributes:
      samples: how many it asks for. cut: why it may not go on, once that is so. left: whether its client has gone.
    """

    def __init__(self, requests: Sequence[Request], hang_up: Callable[[], None]):
        self.samples = sum(r.n if r.indices is None else len(r.indices) for r in requests)
        self.hang_up, self.stream, self.cut, self.left = hang_up, None, None, False

    def begin(self, sample: Callable, requests: Sequence[Request]) -> None:
        self.stream = sample(requests)
        if self.left:
            self.leave()

    def leave(self) -> None:
        """Ends the samples, from any thread; the thread that reads them wakes."""
        self.left = True
        if self.stream is not None:
            with contextlib.suppress(ValueError):  # a plain generator that is running ends with its next sample
                self.stream.close()


def describe(sampler: Sampler, model: str) -> Description:
    """What clients are told of a sampler of this process (one of `make_sampler`), under the name `model`."""
    engine = sampler.engine
    base = model_fingerprint(engine.policy.model)
    return Description(
        model=model,
        vocab_size=engine.cfg.vocab_size,
        max_length=engine.max_length,
        slots=engine.slots,
        max_stop_ids=engine.max_stop_ids,
        policy_version=engine.version,
        fingerprint=fingerprint(engine.policy, base),
        base=base,
        shape=shape_fingerprint(engine.policy.model),
        dtype=engine.cfg.dtype,
        param_dtype=engine.cfg.param_dtype,
    )


class Service:
    """Methods may be called from any thread. description: what is served now.

    Args:
      read: gives the policy at a path, on the model of the one that is served, or raises; None refuses to load any.
    """

    def __init__(self, sampler: Sampler, description: Description, read: Read | None = None):
        self.sampler, self.metrics, self._read = sampler, server_metrics(), read
        version = sampler.engine.version
        self.description = description._replace(policy_version=version, takes_weights=read is not None)
        self._calls: set[_Call] = set()
        self._switching = self._stopping = self._broken = False
        self._lock, self._loading, self._turn = threading.Lock(), threading.Lock(), threading.Lock()
        # Calls share the slots of JetStream's sampler. They take turns at the plain loop, where each would need the
        # memory of a whole pool.
        self._takes_turns = isinstance(sampler, LoopSampler)
        self.metrics.policy_version.set(self.description.policy_version)

    @property
    def serving(self) -> bool:
        """Whether samples are to be had now."""
        return not (self._switching or self._stopping or self._broken)

    def sample(
        self, wanted: tuple[str, int], requests: Sequence[Request], hang_up: Callable[[], None], alive: Callable
    ) -> Iterator[Completion]:
        """The samples, as they finish.

        Args:
          wanted: fingerprint and version of the weights. hang_up: ends the call as its client would.
          alive: called with what to do when the client leaves; False where it has left already.

        Raises:
          Refusal: other weights are served, or it stops; also in the middle.
          ValueError: a request that does not fit.
        """
        call, done, metrics = _Call(requests, hang_up), 0, self.metrics
        self._enter(call, wanted)
        metrics.requests.inc(len(requests))
        metrics.in_flight.inc(call.samples)
        try:
            with self._turn_of(call, alive) as mine:
                if not mine or not alive(call.leave):
                    return
                with self._lock:
                    if call.cut is None:
                        call.begin(self.sampler.sample, requests)
                for completion in call.stream or ():
                    if call.cut is not None:
                        break
                    done += 1
                    metrics.samples.inc()
                    metrics.tokens.inc(len(completion.completion_ids))
                    metrics.in_flight.dec()
                    yield completion
            if call.cut is not None:
                raise Refusal("ABORTED", call.cut)
        except SamplerError as error:
            self._broken |= not self._stopping
            raise Refusal("UNAVAILABLE", error) from error
        finally:
            call.leave()
            metrics.in_flight.dec(call.samples - done)
            with self._lock:
                self._calls.discard(call)

    def load(self, wanted: Load) -> Description:
        """Serves what is published at a path from now on; nothing to do where it is served already.

        Raises:
          Refusal: it may not, or cannot. What was served before still is.
        """
        if self._read is None:
            raise Refusal("PERMISSION_DENIED", "this server takes no weights: start it with --weights-root DIR")
        with self._loading:
            now = self.description
            if self._stopping:
                raise Refusal("UNAVAILABLE", "the server is stopping")
            same = (wanted.version, wanted.fingerprint) == (now.policy_version, now.fingerprint)
            if same and not self._broken:
                return now
            began = time.monotonic()
            try:
                policy = self._read(wanted.path, self.sampler.engine.policy)
            except PermissionError as error:
                raise Refusal("PERMISSION_DENIED", error) from error
            except FileNotFoundError as error:
                raise Refusal("NOT_FOUND", error) from error
            except Exception as error:
                raise Refusal("FAILED_PRECONDITION", first_line(error)) from error
            self._switch(policy, wanted.version, wanted.fingerprint)
            self.metrics.load_seconds.observe(time.monotonic() - began)
            return self.description

    def take(self, policy: Policy, version: int) -> None:
        """Serves a policy of this process from now on.

        Raises:
          Refusal: the sampler cannot.
        """
        with self._loading:
            self._switch(policy, version, "")

    def stop(self) -> None:
        """Takes no more calls, and ends those in flight."""
        self._stopping = True
        self.sampler.close()

    def _enter(self, call: _Call, wanted: tuple[str, int]) -> None:
        with self._lock:
            now = self.description
            if self._switching or self._stopping:
                why = "is stopping" if self._stopping else "takes new weights just now"
                raise Refusal("UNAVAILABLE", f"the server {why}")
            if wanted != (now.fingerprint, now.policy_version):
                raise Refusal(
                    "FAILED_PRECONDITION",
                    f"it serves other weights now ({now.model}, version {now.policy_version}, fingerprint "
                    f"{now.fingerprint}; not version {wanted[1]}, {wanted[0]}); connect again to sample from them",
                )
            if len(self._calls) >= CALLS:
                raise Refusal("RESOURCE_EXHAUSTED", f"{CALLS} calls are in flight")
            self._calls.add(call)

    def _switch(self, policy: Policy, version: int, expected: str) -> None:
        """Changes the weights with nothing in flight: only then may this thread compute on the sampler's devices."""
        engine, kept = self.sampler.engine, self.description
        self._switching = True
        turn = self._turn if self._takes_turns else contextlib.nullcontext()
        try:
            self._cut(f"version {version} of the weights replaces version {engine.version}, which drew this")
            with turn:
                old = engine.policy, engine.version
                self.sampler.update(policy, version)
                base = kept.base if policy.model is old[0].model else model_fingerprint(policy.model)
                found = fingerprint(policy, base)
                if expected and found != expected:
                    self.sampler.update(*old)
                    raise Refusal("DATA_LOSS", f"the weights read have fingerprint {found}, not {expected}")
            self.description = kept._replace(policy_version=version, fingerprint=found, base=base)
            self._broken = False
            self.metrics.policy_version.set(version)
        except (SamplerError, ValueError) as error:
            raise Refusal("UNAVAILABLE", error) from error
        finally:
            self._switching = False

    def _cut(self, why: str) -> None:
        with self._lock:
            calls = list(self._calls)
            for call in calls:
                call.cut = why
        for call in calls:
            call.leave()
            if self._takes_turns:
                call.hang_up()  # its turn must end even if its client reads nothing

    @contextlib.contextmanager
    def _turn_of(self, call: _Call, alive: Callable) -> Iterator[bool]:
        """Whether it is this call's turn now; False for one that was cut, or whose client has left, in the queue."""
        if not self._takes_turns:
            yield True
            return
        while not self._turn.acquire(timeout=0.5):
            if call.cut is not None or not alive(None):
                yield False
                return
        try:
            yield True
        finally:
            self._turn.release()
