"""The client of `python -m jopsd.serve`: the bits of a sampler in another process."""

from collections.abc import Iterator, Sequence

import grpc

from jopsd.sampling.sampler import Completion, Policy, Request, SamplerError, Stream, validate
from jopsd.sampling.wire import (
    MAX_COMPLETION_BYTES,
    MAX_REQUEST_BYTES,
    SERVICE,
    Description,
    decode_completion,
    decode_description,
    encode_requests,
)

_OPTIONS = (
    ("grpc.max_send_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_receive_message_length", MAX_COMPLETION_BYTES),
    ("grpc.enable_http_proxy", 0),
    # A host that vanishes without a word is noticed within half a minute, however long a completion takes.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)


class RemoteSampler:
    """A `Sampler` whose weights are in a server at `address`. Several clients, and iterators, may share one server.

    Args:
      address: host:port.
      timeout: seconds to wait for the server to come up.
      model: what must be served there, by the name the server gives it; None takes what there is.

    Attributes:
      description: what the server said it serves.

    Raises:
      SamplerError: no server answers there.
      ValueError: not an address, or a server of another model.
    """

    def __init__(self, address: str, timeout: float = 30.0, model: str | None = None):
        host, _, port = address.rpartition(":")
        if not host or "/" in address or not port.isdecimal():
            raise ValueError(f"address {address!r} must look like host:port, for example 127.0.0.1:9000")
        self.address, self._closed = address, False
        self._open: set[grpc.Call] = set()
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._sample = self._channel.unary_stream(f"/{SERVICE}/Sample")
        try:
            self.description = self._describe(timeout)
            if model not in (None, self.description.model):
                raise ValueError(f"the server at {address} serves {self.description.model!r}, not {model!r}")
        except BaseException:
            self._channel.close()
            raise

    def sample(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """See `Sampler.sample`. The server starts at once, not with the first `next`."""
        if self._closed:
            raise SamplerError("the sampler is closed")
        requests, limits = list(requests), self.description
        validate(requests, limits.vocab_size, limits.max_length, limits.max_stop_ids)
        call = self._sample(encode_requests(requests, limits.fingerprint))
        self._open.add(call)
        return Stream(self._read(call, requests), lambda: self._cancel(call))

    def update(self, policy: Policy, version: int) -> None:
        """Raises SamplerError: see `Sampler.update`."""
        raise SamplerError(f"the weights of the server at {self.address} cannot be set from here")

    def close(self) -> None:
        """See `Sampler.close`. The server goes on."""
        self._closed = True
        for call in list(self._open):
            self._cancel(call)
        self._channel.close()

    def _cancel(self, call: grpc.Call) -> None:
        self._open.discard(call)
        call.cancel()

    def _describe(self, timeout: float) -> Description:
        describe = self._channel.unary_unary(f"/{SERVICE}/Describe")
        try:
            return decode_description(describe(b"", timeout=timeout, wait_for_ready=True))
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise SamplerError(
                    f"no sampling server answers at {self.address} within {timeout:g} s; start one with "
                    "python -m jopsd.serve, and wait for it to say that it is ready"
                ) from error
            raise self._failure(error) from error
        except ValueError as error:
            raise SamplerError(f"the server at {self.address} is not one of python -m jopsd.serve: {error}") from error

    def _read(self, call, requests: Sequence[Request]) -> Iterator[Completion]:
        missing = {(p, i) for p, r in enumerate(requests) for i in (range(r.n) if r.indices is None else r.indices)}
        try:
            for data in call:
                position, completion = decode_completion(data, requests)
                missing.remove((position, completion.index))
                yield completion
        except grpc.RpcError as error:
            raise self._failure(error) from error
        except (ValueError, KeyError) as error:
            raise SamplerError(f"the server at {self.address} sent what was not asked for: {error!r}") from error
        if missing:
            raise SamplerError(f"the server at {self.address} ended with {len(missing)} samples missing")

    def _failure(self, error: grpc.RpcError) -> Exception:
        if self._closed:
            return SamplerError("the sampler was closed with samples in flight")
        if error.code() == grpc.StatusCode.INVALID_ARGUMENT:
            return ValueError(f"the server at {self.address} refused: {error.details()}")
        return SamplerError(f"the server at {self.address} failed ({error.code().name}): {error.details()}")
