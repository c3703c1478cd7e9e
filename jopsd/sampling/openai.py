"""A client of OpenAI-compatible servers (vLLM, SGLang): token ids in, token ids out, one sample per HTTP request.

What such a server draws is its own affair: its kernels, its random numbers and, without the flags that each has for it,
its batches decide the tokens. The seed of a sample still depends on nothing but the request's seed and the index.
"""

import hashlib
import math
import queue
import ssl
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jopsd.sampling.calls import BrokenOff, Calls, Refused, parse_endpoint
from jopsd.sampling.sampler import Completion, Policy, Request, SamplerError, Stream, validate

_UNKNOWN = sys.maxsize  # a limit that the server does not tell
_TOKEN = "token_id:"


class _Batch:
    """The samples of one `sample` call: those not asked for yet, and what the iterator reads."""

    def __init__(self, rows: Sequence[tuple[int, Request, int]], calls: Calls):
        self.waiting, self.size, self.calls = deque(rows), len(rows), calls
        self.results: queue.SimpleQueue = queue.SimpleQueue()

    def cancel(self) -> None:
        self.waiting.clear()
        self.calls.break_off()


class OpenAISampler:
    """A `Sampler` over /v1/completions.

    `Completion.logprobs` are the server's. vLLM gives those of the logits as they are, before temperature (its
    logprobs_mode can change that), and SGLang those at the temperature; both before top-p and top-k. nan where the
    server gives none, as for a stop token that it leaves out. `Completion.policy_version` is 0 unless `draw_from` says
    otherwise.

    Args:
      url: http://host:port.
      model: name that the server knows it by; None where it serves one, adapters aside.
      concurrency: requests in flight for one call of `sample`; the server makes batches of them.
      timeout: seconds that one completion may take.
      api_key: sent as a bearer token, and never shown.
      retries, backoff: tries after a failure that may pass (no connection, 429, 5xx), and the seconds before the first.
      ca_file: certificate (PEM) that an https server's is checked against; None for those that the host trusts.

    Attributes:
      model, max_length: as served; max_length is None where the server does not tell.

    Raises:
      ValueError: a value out of its range, or a model that is not served.
      SamplerError: no such server answers.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        concurrency: int = 32,
        timeout: float = 3600.0,
        api_key: str | None = None,
        retries: int = 5,
        backoff: float = 1.0,
        ca_file: str | None = None,
    ):
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {concurrency}")
        if not 0 < timeout < threading.TIMEOUT_MAX:
            raise ValueError(f"timeout must be a positive number of seconds, got {timeout}")
        if retries < 0 or backoff < 0:
            raise ValueError(f"retries and backoff must be at least 0, got {retries} and {backoff}")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key):
            raise ValueError("api_key holds blanks at its ends, or what no key does; check how it was read")
        endpoint = parse_endpoint(url)
        self.url, self.concurrency = endpoint.url, concurrency
        tls = None if ca_file is None else ssl.create_default_context(cafile=ca_file)
        self.new_calls = lambda seconds=timeout: Calls(endpoint, api_key or None, seconds, retries, backoff, tls)
        self._extra, self._version = {}, 0
        self._open: set[_Batch] = set()
        self._closed = False
        self.model, self.max_length = self._find(model)

    def sample(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """See `Sampler.sample`. Sampling starts at once, not with the first `next`."""
        if self._closed:
            raise SamplerError("the sampler is closed")
        requests = list(requests)
        validate(requests, _UNKNOWN, self.max_length or _UNKNOWN, _UNKNOWN)
        wanted = ((p, r, range(r.n) if r.indices is None else r.indices) for p, r in enumerate(requests))
        batch = _Batch([(p, r, i) for p, r, indices in wanted for i in indices], self.new_calls())
        self._open.add(batch)
        for _ in range(min(self.concurrency, batch.size)):
            threading.Thread(target=self._work, args=(batch,), daemon=True).start()
        return Stream(_read(batch), lambda: self._cancel(batch))

    def draw_from(self, model: str, version: int, **extra: str) -> None:
        """Later samples name this model in their requests, with these keys beside it, and bear this version."""
        self.model, self._version, self._extra = model, version, extra

    def update(self, policy: Policy, version: int) -> None:
        """Raises SamplerError: see `Sampler.update`."""
        raise SamplerError(f"the weights of the server at {self.url} cannot be set from here")

    def close(self) -> None:
        """See `Sampler.close`. The server goes on."""
        self._closed = True
        for batch in list(self._open):
            batch.results.put(SamplerError("the sampler was closed with samples in flight"))
            self._cancel(batch)

    def _cancel(self, batch: _Batch) -> None:
        self._open.discard(batch)
        batch.cancel()

    def _find(self, model: str | None) -> tuple[str, int | None]:
        """The model to name in requests, and its max_model_len if the server tells."""
        try:
            answer = self.new_calls().ask("/v1/models")
        except Refused as refused:
            if refused.status == 404 and model is not None:
                return model, None
            raise _refusal(f"{self.url}/v1/models", refused) from None
        try:
            served = {entry["id"]: entry for entry in answer["data"]}
        except (TypeError, KeyError):
            raise SamplerError(f"{self.url}/v1/models does not list models as OpenAI's API does") from None
        bases = [name for name, entry in served.items() if not entry.get("parent")]  # what is not an adapter
        if model is None and len(bases) == 1:
            (model,) = bases
        if model not in served:
            asked = "give the name of one" if model is None else f"not {model!r}"
            raise ValueError(f"{self.url} serves {sorted(served)}; {asked}")
        base = served.get(served[model].get("parent"), {})  # an adapter is as long as its base
        length = served[model].get("max_model_len") or base.get("max_model_len")
        return model, length if isinstance(length, int) and length > 0 else None

    def _work(self, batch: _Batch) -> None:
        while True:
            try:
                position, request, index = batch.waiting.popleft()
            except IndexError:
                return
            try:
                batch.results.put(self._draw(batch.calls, f"request {position} (id {request.id!r})", request, index))
            except BrokenOff:
                return
            except BaseException as error:
                batch.results.put(error)
                return

    def _draw(self, calls: Calls, name: str, request: Request, index: int) -> Completion:
        try:
            answer = calls.ask("/v1/completions", completion_body(self.model, request, index) | self._extra)
        except Refused as refused:
            if refused.status in (400, 413, 422):
                raise ValueError(f"{name}: {self.url} refuses it (status {refused.status}): {refused}") from None
            raise _refusal(f"{self.url}/v1/completions", refused) from None
        try:
            return read_completion(answer, request, index, self._version)
        except SamplerError as error:
            raise SamplerError(f"{self.url}, {name}, sample {index}: {error}") from None


def _refusal(url: str, refused: Refused) -> SamplerError:
    fix = "; give a valid api_key" if refused.status in (401, 403) else ""
    return SamplerError(f"{url}: status {refused.status}: {refused}{fix}")


def _read(batch: _Batch) -> Iterator[Completion]:
    for _ in range(batch.size):
        result = batch.results.get()
        if isinstance(result, BaseException):
            raise result
        yield result


def sample_seed(seed: int, index: int) -> int:
    """The seed of one sample in [0, 2**63), the same in every process."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:8], "big") >> 1


def completion_body(model: str, request: Request, index: int) -> dict[str, Any]:
    """The body of a request for one sample.

    What is switched off is said too: vLLM and SGLang fill gaps from the model's generation_config.json.
    """
    params = request.params
    return {
        "model": model,
        "prompt": list(request.prompt_ids),
        "n": 1,
        "seed": sample_seed(request.seed, index),
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k or -1,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": list(params.stop_ids),
        "ignore_eos": not params.stop_ids,  # SGLang would ignore stop_token_ids with it
        "logprobs": 1,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "stream": False,
    }


def read_completion(answer: Any, request: Request, index: int, version: int = 0) -> Completion:
    """The one choice of a server's answer.

    A stop token that the server leaves out is put back: its stop_reason (SGLang: matched_stop) where that is a token,
    which may be an end token of the server's own, else the first of the request's stop ids.

    Raises:
      SamplerError: not such an answer, one without token ids, or one that ends for another reason.
    """
    try:
        (choice,) = answer["choices"]
        reason, logprobs = choice["finish_reason"], choice.get("logprobs") or {}
        ids = _token_ids(choice.get("token_ids"), logprobs.get("tokens"))
        values = [math.nan if value is None else float(value) for value in logprobs.get("token_logprobs") or ()]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise SamplerError(f"the answer is not a completion of OpenAI's API: {error!r}") from None
    stop_ids, limit = request.params.stop_ids, request.params.max_new_tokens
    if reason == "stop":
        ids = _with_stop(ids, choice, stop_ids)
    elif reason != "length":
        raise SamplerError(f"it ended with finish_reason {reason!r}, neither 'stop' nor 'length'")
    elif len(ids) < limit:
        raise SamplerError(
            f"the server cut it off at {len(ids)} tokens of max_new_tokens {limit}, prompt {len(request.prompt_ids)}: "
            "start the server with a longer context"
        )
    if not 0 < len(ids) <= limit:
        raise SamplerError(f"it has {len(ids)} tokens with max_new_tokens {limit}")
    values = (values + [math.nan] * len(ids))[: len(ids)]
    return Completion(
        request_id=request.id,
        index=index,
        prompt_ids=request.prompt_ids,
        completion_ids=np.array(ids, np.int32),
        logprobs=np.array(values, np.float32),
        finish="eos" if reason == "stop" else "length",
        policy_version=version,
        truncated=request.params.truncates(_UNKNOWN),
    )


def _token_ids(ids: list | None, tokens: Sequence[str] | None) -> list[int]:
    """Token ids as such, or from logprobs.tokens where each is "token_id:<id>"."""
    if ids is None and tokens is not None and all(token.startswith(_TOKEN) for token in tokens):
        ids = [int(token.removeprefix(_TOKEN)) for token in tokens]
    if ids is None:
        raise SamplerError(
            "the server gives no token ids, so its tokens are unknown: it must honour return_token_ids (vLLM from "
            "0.10.2 on, recent SGLang), or return_tokens_as_token_ids with logprobs (older vLLM)"
        )
    if any(type(token) is not int or not 0 <= token < 2**31 for token in ids):
        raise ValueError("token_ids holds what is no token")
    return ids


def _with_stop(ids: list[int], choice: Mapping, stop_ids: Sequence[int]) -> list[int]:
    reason = choice.get("stop_reason", choice.get("matched_stop"))
    if ids and ids[-1] in stop_ids:
        return ids
    if type(reason) is int:
        return ids if ids and ids[-1] == reason else [*ids, reason]
    if not stop_ids:
        raise SamplerError("it stopped although the request has no stop ids, and the server does not say at what")
    return [*ids, stop_ids[0]]
