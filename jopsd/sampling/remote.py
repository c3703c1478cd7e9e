"""The client of `python -m jopsd.serve`: the bits of a sampler in another process."""

from collections.abc import Iterator, Sequence

import grpc

from jopsd.sampling.access import bearer, open_channel, read_token
from jopsd.sampling.sampler import Completion, Policy, Request, SamplerError, Stream, validate
from jopsd.sampling.wire import (
    MAX_COMPLETION_BYTES,
    MAX_REQUEST_BYTES,
    SERVICE,
    Description,
    Load,
    decode_completion,
    decode_description,
    encode_load,
    encode_requests,
)

_OPTIONS = (
    ("grpc.max_send_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_receive_message_length", MAX_COMPLETION_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # A host that vanishes without a word is noticed within half a minute, however long a completion takes.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)


class ServerBusy(SamplerError):
    """The server has all the calls it takes; it may take this one later."""


class RemoteSampler:
    """A `Sampler` whose weights are in a server at `address`. Several clients, and iterators, may share one server.

    Args:
      address: host:port.
      timeout: seconds to wait for the server to come up.
      model: what must be served there, by the name the server gives it; None takes what there is.
      token_file, ca_file: the secret that the server asks for, and the certificate of its TLS.

    Attributes:
      description: what the server said it serves; requests ask for these weights and no others.

    Raises:
      SamplerError: no server answers there.
      ValueError: not an address, a server of another model, or a token that would travel in the clear.
      OSError: a file cannot be read.
    """

    def __init__(
        self,
        address: str,
        timeout: float = 30.0,
        model: str | None = None,
        token_file: str | None = None,
        ca_file: str | None = None,
    ):
        host, _, port = address.rpartition(":")
        if not host or "/" in address or not port.isdecimal():
            raise ValueError(f"address {address!r} must look like host:port, for example 127.0.0.1:9000")
        self.address, self._closed = address, False
        self._open: set[grpc.Call] = set()
        token = None if token_file is None else read_token(token_file)
        self._metadata = bearer(token)
        self._channel = open_channel(address, token, ca_file, _OPTIONS)
        self._sample = self._channel.unary_stream(f"/{SERVICE}/Sample")
        try:
            self.describe(timeout)
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
        data = encode_requests(requests, limits.fingerprint, limits.policy_version)
        call = self._sample(data, metadata=self._metadata)
        self._open.add(call)
        return Stream(self._read(call, requests), lambda: self._cancel(call))

    def update(self, policy: Policy, version: int) -> None:
        """Raises SamplerError: see `Sampler.update`."""
        raise SamplerError(f"the weights of the server at {self.address} cannot be set from here")

    def describe(self, timeout: float) -> Description:
        """Asks anew what is served, and keeps it.

        Raises:
          SamplerError: no server answers there within so many seconds, or not one of ours.
        """
        try:
            self.description = decode_description(self._ask("Describe", b"", timeout))
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise SamplerError(
                    f"no sampling server answers at {self.address} within {timeout:g} s; start one with "
                    "python -m jopsd.serve, and wait for it to say that it is ready"
                ) from error
            raise self._failure(error) from error
        except ValueError as error:
            raise SamplerError(f"the server at {self.address} is not one of python -m jopsd.serve: {error}") from error
        return self.description

    def load(self, load: Load, timeout: float) -> None:
        """Has the server read and serve published weights; nothing happens where it serves them already.

        Raises:
          SamplerError: it cannot, will not, or takes longer.
        """
        try:
            self.description = decode_description(self._ask("Load", encode_load(load), timeout, wait=False))
        except (grpc.RpcError, ValueError) as error:
            why = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.RpcError) else str(error)
            raise SamplerError(f"the server at {self.address} did not take version {load.version} ({why})") from error

    def _ask(self, method: str, data: bytes, timeout: float, wait: bool = True) -> bytes:
        call = self._channel.unary_unary(f"/{SERVICE}/{method}")
        return call(data, timeout=timeout, wait_for_ready=wait, metadata=self._metadata)

    def close(self) -> None:
        """See `Sampler.close`. The server goes on."""
        self._closed = True
        for call in list(self._open):
            self._cancel(call)
        self._channel.close()

    def _cancel(self, call: grpc.Call) -> None:
        self._open.discard(call)
        call.cancel()

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
        kind = ServerBusy if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED else SamplerError
        return kind(f"the server at {self.address} failed ({error.code().name}): {error.details()}")
