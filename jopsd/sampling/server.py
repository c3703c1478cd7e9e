"""A sampler of this process, served to others over gRPC. `remote.py` is the client, `service.py` what is done.

The server listens on 127.0.0.1 unless told otherwise; beyond this host it wants a token and TLS (`access.py`).
"""

from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import closing

import grpc

from jopsd.sampling import health, service
from jopsd.sampling.access import TokenCheck
from jopsd.sampling.fingerprint import fingerprint
from jopsd.sampling.sampler import Sampler
from jopsd.sampling.service import Refusal, Service, describe
from jopsd.sampling.wire import (
    MAX_COMPLETION_BYTES,
    MAX_REQUEST_BYTES,
    SERVICE,
    Description,
    decode_load,
    decode_requests,
    encode_completion,
    encode_description,
)

__all__ = ["HOST", "describe", "fingerprint", "listen", "start"]

HOST = "127.0.0.1"
_SPARE = 8  # calls beside those of `sample`
_DETAILS = 2000  # characters of an error: gRPC carries it in a header of limited size


def start(sampler: Sampler, description: Description, port: int = 0) -> tuple[grpc.Server, int]:
    """A running server for this host, and its port (a free one for 0). Close the sampler before it is stopped.

    Raises:
      OSError: the port is taken.
    """
    return listen(Service(sampler, description), port)


def listen(
    served: Service,
    port: int = 0,
    host: str = HOST,
    token: str | None = None,
    credentials: grpc.ServerCredentials | None = None,
) -> tuple[grpc.Server, int]:
    """A running server, and its port (a free one for 0). Stop the service before the server.

    Args:
      token: what every call but those of the health service must carry.
      credentials: of TLS.

    Raises:
      OSError: the port is taken.
    """
    refused = served.metrics.refusals.labels
    handlers = {
        "Describe": grpc.unary_unary_rpc_method_handler(lambda data, context: encode_description(served.description)),
        "Load": grpc.unary_unary_rpc_method_handler(_loading(served)),
        "Sample": grpc.unary_stream_rpc_method_handler(_sampling(served)),
    }
    threads = service.CALLS + _SPARE
    server = grpc.server(
        futures.ThreadPoolExecutor(threads, thread_name_prefix="jopsd.serve"),
        handlers=[
            grpc.method_handlers_generic_handler(SERVICE, handlers),
            health.handler(lambda: served.serving, SERVICE),
        ],
        interceptors=() if token is None else (TokenCheck(token, lambda: refused("UNAUTHENTICATED").inc()),),
        maximum_concurrent_rpcs=threads,
        options=[
            ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
            ("grpc.max_send_message_length", MAX_COMPLETION_BYTES),
            ("grpc.so_reuseport", 0),  # else a second server would silently share the port
            # A client that vanishes gives its slots back; clients may ask as often whether the server is there.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ],
    )
    address = f"{host}:{port}"
    try:
        bound = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}, where another program may; give another port") from error
    server.start()
    return server, bound


def _abort(served: Service, context: grpc.ServicerContext, status: str, error: object) -> None:
    served.metrics.refusals.labels(status).inc()
    context.abort(grpc.StatusCode[status], str(error)[:_DETAILS])


def _sampling(served: Service) -> Callable:
    """The handler of `Sample`: requests in one message, each completion in one of its own."""

    def handle(data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        def alive(on_leave: Callable[[], None] | None) -> bool:
            return context.is_active() if on_leave is None else context.add_callback(on_leave)

        try:
            *wanted, requests = decode_requests(data)
            with closing(served.sample(tuple(wanted), requests, context.cancel, alive)) as stream:
                for completion in stream:
                    yield encode_completion(completion)
        except Refusal as refusal:
            _abort(served, context, refusal.status, refusal)
        except ValueError as error:
            _abort(served, context, "INVALID_ARGUMENT", error)

    return handle


def _loading(served: Service) -> Callable:
    """The handler of `Load`: answers with what is served then."""

    def handle(data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return encode_description(served.load(decode_load(data)))
        except Refusal as refusal:
            _abort(served, context, refusal.status, refusal)
        except ValueError as error:
            _abort(served, context, "INVALID_ARGUMENT", error)

    return handle
