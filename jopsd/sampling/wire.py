"""Messages between a sampling server and its clients: a JSON header, then raw little-endian arrays.

Log-probs travel as the 32 bits they are. Prompts go one way only: a completion names its request by position.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from jopsd.sampling.sampler import Completion, Request, SamplingParams

SERVICE = "jopsd.Sampler"
MAX_REQUEST_BYTES = 256 << 20
MAX_COMPLETION_BYTES = 64 << 20
MAX_SAMPLES = 1 << 20  # of one call
_HEADER = struct.Struct("<I")
_TOKENS, _LOGPROBS = np.dtype("<i4"), np.dtype("<f4")


class Description(NamedTuple):
    """What a server serves.

    Attributes:
      fingerprint, base: of the weights with and without their adapter; equal for equal weights, in whatever process and
        on whatever mesh. shape: of the config and the shapes alone.
      dtype, param_dtype: of its computation and its weights.
      takes_weights: whether clients may have it load others.
    """

    model: str
    vocab_size: int
    max_length: int
    slots: int
    max_stop_ids: int
    policy_version: int
    fingerprint: str
    base: str = ""
    shape: str = ""
    dtype: str = ""
    param_dtype: str = ""
    takes_weights: bool = False


class Load(NamedTuple):
    """Asks a server to serve what is at `path` as `version`. fingerprint: what it must prove to be, or ""."""

    version: int
    path: str
    fingerprint: str = ""


def encode_load(load: Load) -> bytes:
    return json.dumps(load._asdict()).encode()


def decode_load(data: bytes) -> Load:
    """Raises ValueError for anything else."""
    try:
        load = Load(**json.loads(data))
        _whole(load.version)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not a request to load weights: {error}") from None
    if not 0 <= load.version < 2**31 or not all(isinstance(text, str) for text in load[1:]):
        raise ValueError("not a request to load weights: version is a number from 0 on, path and fingerprint are text")
    return load


def encode_description(description: Description) -> bytes:
    return json.dumps(description._asdict()).encode()


def decode_description(data: bytes) -> Description:
    """Raises ValueError for anything else."""
    try:
        return Description(**json.loads(data))
    except TypeError as error:
        raise ValueError(f"not a description of a sampler: {error}") from None


def encode_requests(requests: Sequence[Request], fingerprint: str, version: int) -> bytes:
    """One call of `sample`. fingerprint, version: the weights the caller wants.

    Raises:
      ValueError: more than one call may carry; says how many to send.
    """
    samples = sum(request.n if request.indices is None else len(request.indices) for request in requests)
    if samples > MAX_SAMPLES:
        raise ValueError(f"{samples} samples in one call of sample(); a server takes {MAX_SAMPLES}: make several calls")
    header = {
        "fingerprint": fingerprint,
        "version": version,
        "requests": [
            {
                "prompt": len(request.prompt_ids),
                "n": request.n,
                "seed": request.seed,
                "indices": request.indices,
                "params": asdict(request.params),
            }
            for request in requests
        ],
    }
    data = _pack(header, *(np.asarray(request.prompt_ids, _TOKENS) for request in requests))
    if len(data) > MAX_REQUEST_BYTES:
        raise ValueError(
            f"the requests of one call of sample() take {len(data)} bytes; a server takes {MAX_REQUEST_BYTES}: "
            "make several calls"
        )
    return data


def decode_requests(data: bytes) -> tuple[str, int, list[Request]]:
    """Fingerprint and version of the weights wanted, and the requests with their positions as ids.

    Raises:
      ValueError: not such a message, or one with a value that would bring the server down, by request.
    """
    header, body = _unpack(data)
    requests, offset = [], 0
    try:
        entries, fingerprint, version = header["requests"], header["fingerprint"], _whole(header["version"])
        lengths = [_whole(entry["prompt"]) for entry in entries]
    except (TypeError, KeyError) as error:
        raise ValueError(f"not requests to a sampler: {error!r}") from None
    if any(length < 0 for length in lengths) or sum(lengths) * _TOKENS.itemsize != len(body):
        raise ValueError("not requests to a sampler: the prompts are not as long as the message says")
    if len(entries) > MAX_SAMPLES:
        raise ValueError(f"{len(entries)} requests, but one call may have {MAX_SAMPLES}")
    left = MAX_SAMPLES
    for position, (entry, length) in enumerate(zip(entries, lengths, strict=True)):
        prompt = np.frombuffer(body, _TOKENS, length, offset)
        offset += prompt.nbytes
        try:
            # Request and SamplingParams check ranges; what has another type would only fail deep inside the engine.
            n, indices = _whole(entry["n"]), entry["indices"]
            left -= n if indices is None else len(indices)
            if n > MAX_SAMPLES or left < 0:
                raise ValueError(f"n is {n}, but one call may have {MAX_SAMPLES} samples")
            indices = None if indices is None else tuple(map(_whole, indices))
            params = _params(entry["params"])
            requests.append(Request(tuple(prompt.tolist()), n, _whole(entry["seed"]), params, position, indices))
        except (TypeError, KeyError, ValueError) as error:
            reason = str(error) if isinstance(error, ValueError) else repr(error)
            raise ValueError(f"request {position}: {reason.removeprefix(f'request {position}: ')}") from None
    return fingerprint, version, requests


def encode_completion(completion: Completion) -> bytes:
    """One completion of a request whose id is its position."""
    header = {
        "request": completion.request_id,
        "index": completion.index,
        "tokens": len(completion.completion_ids),
        "finish": completion.finish,
        "version": completion.policy_version,
        "truncated": completion.truncated,
    }
    return _pack(header, completion.completion_ids.astype(_TOKENS), completion.logprobs.astype(_LOGPROBS))


def decode_completion(data: bytes, requests: Sequence[Request]) -> tuple[int, Completion]:
    """The position of its request in `requests`, and the completion with that request's own id.

    Raises:
      ValueError: not such a message, or no such request.
    """
    header, body = _unpack(data)
    try:
        position, tokens = header["request"], header["tokens"]
        request = requests[position]
        ids = np.frombuffer(body, _TOKENS, tokens)
        return position, Completion(
            request_id=request.id,
            index=header["index"],
            prompt_ids=request.prompt_ids,
            completion_ids=ids.astype(np.int32),
            logprobs=np.frombuffer(body, _LOGPROBS, tokens, ids.nbytes).astype(np.float32),
            finish=header["finish"],
            policy_version=header["version"],
            truncated=header["truncated"],
        )
    except (TypeError, KeyError, IndexError) as error:
        raise ValueError(f"not a completion: {error!r}") from None


def _pack(header: dict, *arrays: np.ndarray) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    return b"".join([_HEADER.pack(len(text)), text, *(array.tobytes() for array in arrays)])


def _unpack(data: bytes) -> tuple[dict, memoryview]:
    try:
        (size,) = _HEADER.unpack_from(data)
        if size > len(data) - _HEADER.size:
            raise ValueError("it is cut off")
        header = json.loads(data[_HEADER.size : _HEADER.size + size])
    except (struct.error, ValueError, RecursionError) as error:
        raise ValueError(f"a message that cannot be read: {error}") from None
    return header, memoryview(data)[_HEADER.size + size :]


def _params(entry: dict) -> SamplingParams:
    return SamplingParams(
        max_new_tokens=_whole(entry["max_new_tokens"]),
        temperature=_number(entry["temperature"]),
        top_p=_number(entry["top_p"]),
        top_k=_whole(entry["top_k"]),
        stop_ids=tuple(map(_whole, entry["stop_ids"])),
    )


def _whole(value) -> int:
    if type(value) is not int:
        raise ValueError(f"expected a whole number, got {value!r}"[:200])
    return value


def _number(value) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"expected a number, got {value!r}"[:200])
    return float(value)
