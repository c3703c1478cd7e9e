"""The contract of every sampler: what is asked, what comes back, which weights made it.

A draw depends only on (request seed, sample index, token position), never on the slot a sample ran in or on what else
was in flight. So the same requests under the same policy give the same tokens, from any sampler built on one engine
with the same slot count.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import numpy as np

from jopsd.models.decoder import Decoder
from jopsd.models.lora import Adapter


class SamplerError(RuntimeError):
    """The sampler cannot go on. Its cause, where there is one, is chained as `__cause__`."""


@dataclass(frozen=True)
class SamplingParams:
    """How to draw.

    Attributes:
      max_new_tokens: upper limit on completion tokens, the stop token included.
      temperature: logits are divided by it; 0 is greedy.
      top_p: keep the smallest set of most probable tokens with at least this mass (ties kept); 1 keeps all.
      top_k: keep the k most probable tokens (ties kept) before top_p is applied to the renormalised rest; 0 keeps all.
      stop_ids: a completion ends with the first of these it draws.

    Raises:
      ValueError: a value out of its range, by name.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "stop_ids", tuple(int(i) for i in self.stop_ids))
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be a finite number of at least 0, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0 (0 keeps every token), got {self.top_k}")

    def truncates(self, vocab_size: int) -> bool:
        """Whether draws come from less than the full softmax. Greedy decoding never does."""
        return self.temperature > 0 and (self.top_p < 1.0 or 0 < self.top_k < vocab_size)


@dataclass(frozen=True)
class Request:
    """n samples of one prompt. `id` is handed back untouched in each completion.

    Attributes:
      indices: which of the n samples to draw; None is all of them.

    Raises:
      ValueError: an empty prompt, n below 1, a seed outside [0, 2**32), or indices that repeat or are not in [0, n).
    """

    prompt_ids: tuple[int, ...]
    n: int
    seed: int
    params: SamplingParams
    id: Any = None
    indices: tuple[int, ...] | None = None

    def __post_init__(self):
        object.__setattr__(self, "prompt_ids", tuple(int(i) for i in self.prompt_ids))
        if not self.prompt_ids:
            raise ValueError(f"request {self.id!r} has an empty prompt; give it at least one token")
        if self.n < 1:
            raise ValueError(f"request {self.id!r}: n must be at least 1, got {self.n}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"request {self.id!r}: seed must be in [0, 2**32), got {self.seed}")
        if self.indices is not None and len(set(self.indices) & set(range(self.n))) != len(self.indices):
            raise ValueError(f"request {self.id!r}: indices must be different and in [0, {self.n}), got {self.indices}")


@dataclass(frozen=True, eq=False)
class Completion:
    """One finished sample.

    Attributes:
      index: which of the request's n samples, 0..n-1.
      completion_ids: int32 [T], the stop token included.
      logprobs: float32 [T], nats, of each token under the full softmax at the sampling temperature (at temperature 1
        when greedy), whatever top_p and top_k cut away.
      finish: "eos" if the last token is one of the request's stop ids, else "length".
      policy_version: version of the weights that drew it.
      truncated: True if top_p or top_k made the distribution drawn from differ from that full softmax.
    """

    request_id: Any
    index: int
    prompt_ids: tuple[int, ...]
    completion_ids: np.ndarray
    logprobs: np.ndarray
    finish: Literal["eos", "length"]
    policy_version: int
    truncated: bool


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Policy:
    """The weights that draw: a decoder, and the adapter on top of it if there is one."""

    model: Decoder
    adapter: Adapter | None


class Sampler(Protocol):
    """Draws completions from one policy at a time."""

    def sample(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Validates all requests at once, then yields each completion as it finishes, in no particular order.

        Closing or dropping the iterator cancels what is left of it.

        Raises:
          ValueError: a request this sampler can never serve.
          SamplerError: the sampler is closed or broken; also raised by the iterator.
        """

    def update(self, policy: Policy, version: int) -> None:
        """Makes later calls of `sample` draw from `policy`. No array is copied.

        Raises:
          ValueError: a policy of another shape.
          SamplerError: an iterator of `sample` is neither exhausted nor closed.
        """

    def close(self) -> None:
        """Ends the sampler; open iterators raise SamplerError. May be called again."""


class Stream(Iterator[Completion]):
    """The iterator `sample` returns: calls `on_end` once, when exhausted, failed, closed or dropped."""

    def __init__(self, source: Iterator[Completion], on_end: Callable[[], None]):
        self._source, self._on_end = source, on_end

    def __next__(self) -> Completion:
        try:
            return next(self._source)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancels what has not been yielded yet."""
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            self._source = iter(())
            on_end()

    def __del__(self):
        self.close()


def validate(requests: Sequence[Request], vocab_size: int, max_length: int, max_stop_ids: int) -> None:
    """Checks requests against the limits of an engine.

    Raises:
      ValueError: naming the request by position and id, the value and the limit.
    """
    for number, request in enumerate(requests):
        name = f"request {number} (id {request.id!r})"
        prompt, new = len(request.prompt_ids), request.params.max_new_tokens
        if prompt + new > max_length:
            raise ValueError(
                f"{name}: prompt of {prompt} tokens + max_new_tokens {new} = {prompt + new} is more than the sampler's "
                f"max_length {max_length}; ask for fewer new tokens (--max-new-tokens), or start the sampler with a "
                "larger max_length (--max-length, of `jopsd.serve` where that draws)"
            )
        if len(request.params.stop_ids) > max_stop_ids:
            raise ValueError(
                f"{name}: {len(request.params.stop_ids)} stop_ids, but the sampler's max_stop_ids is {max_stop_ids}"
            )
        for key, ids in (("prompt_ids", request.prompt_ids), ("stop_ids", request.params.stop_ids)):
            if ids and not (0 <= min(ids) and max(ids) < vocab_size):
                bad = min(ids) if min(ids) < 0 else max(ids)
                raise ValueError(f"{name}: {key} has token {bad}, outside the vocabulary of {vocab_size}")
