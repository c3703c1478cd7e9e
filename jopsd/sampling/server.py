"""A sampler of this process, served to others of the same host over gRPC. `remote.py` is the client.

The server listens on 127.0.0.1 alone: whoever can reach it may sample, and nothing on the wire is secret or signed.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import closing, contextmanager, nullcontext

import grpc
import jax
import jax.numpy as jnp

from jopsd.sampling.loop import LoopSampler
from jopsd.sampling.sampler import Policy, Sampler, SamplerError
from jopsd.sampling.wire import (
    MAX_COMPLETION_BYTES,
    MAX_REQUEST_BYTES,
    SERVICE,
    Description,
    decode_requests,
    encode_completion,
    encode_description,
)

HOST = "127.0.0.1"
CALLS = 64  # at once; one more is refused rather than left waiting without a word
_DETAILS = 2000  # characters of an error: gRPC carries it in a header of limited size


def describe(sampler: Sampler, model: str) -> Description:
    """What clients are told of a sampler of this process (one of `make_sampler`), under the name `model`."""
    engine = sampler.engine
    return Description(
        model=model,
        vocab_size=engine.cfg.vocab_size,
        max_length=engine.max_length,
        slots=engine.slots,
        max_stop_ids=engine.max_stop_ids,
        policy_version=engine.version,
        fingerprint=fingerprint(engine.policy),
    )


def fingerprint(policy: Policy) -> str:
    """16 hex digits that differ where config, names, shapes, dtypes or a weight differ; no proof against malice.

    Sums of the weights' bits, mixed with their places, in wrapping integers: exact in any order of addition, so the
    same on every mesh, and no weight leaves its device.
    """
    scale = None if policy.adapter is None else policy.adapter.scale
    content = hashlib.sha256(repr((policy.model.cfg, scale)).encode())
    for path, leaf in jax.tree_util.tree_flatten_with_path(policy)[0]:
        content.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype} {_digest(leaf).tolist()}".encode())
    return content.hexdigest()[:16]


@jax.jit
def _digest(x: jax.Array) -> jax.Array:
    """Two uint32 of an array of floats. The odd constants are those of the finaliser of MurmurHash3."""
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        place = _mix(place + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) + 1)
    total = lambda terms: jnp.sum(terms, dtype=jnp.uint32)  # noqa: E731
    return jnp.stack([total(_mix(bits + place)), total(_mix(bits ^ (place * jnp.uint32(0xC2B2AE35))))])


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def start(sampler: Sampler, description: Description, port: int = 0) -> tuple[grpc.Server, int]:
    """A running server, and its port (a free one for 0). Close the sampler before it is stopped.

    Calls share the slots of JetStream's sampler. They take turns at the plain loop, where each would need the memory
    of a whole pool.

    Raises:
      OSError: the port is taken.
    """
    turns = _taking_turns(threading.Lock()) if isinstance(sampler, LoopSampler) else lambda context: nullcontext(True)
    handlers = {
        "Describe": grpc.unary_unary_rpc_method_handler(
            lambda data, context: encode_description(description._replace(policy_version=sampler.engine.version))
        ),
        "Sample": grpc.unary_stream_rpc_method_handler(_sampling(sampler, description, turns)),
    }
    server = grpc.server(
        futures.ThreadPoolExecutor(CALLS, thread_name_prefix="jopsd.serve"),
        handlers=[grpc.method_handlers_generic_handler(SERVICE, handlers)],
        maximum_concurrent_rpcs=CALLS,
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
    try:
        bound = server.add_insecure_port(f"{HOST}:{port}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {HOST}:{port}, where another program may; give another port") from error
    server.start()
    return server, bound


def _sampling(sampler, description: Description, turns: Callable) -> Callable:
    """The handler of `Sample`: requests in one message, each completion in one of its own."""

    def handle(data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        def refuse(code: grpc.StatusCode, error: object):
            context.abort(code, str(error)[:_DETAILS])

        try:
            wanted, requests = decode_requests(data)
        except ValueError as error:
            refuse(grpc.StatusCode.INVALID_ARGUMENT, error)
        if wanted != description.fingerprint:
            refuse(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"it serves other weights now ({description.model}, fingerprint {description.fingerprint}, not "
                f"{wanted}); connect again to sample from them",
            )
        with turns(context) as mine:
            if not mine:
                return
            try:
                # A client that leaves is noticed with its next completion: gRPC then drops this generator.
                with closing(sampler.sample(requests)) as stream:
                    for completion in stream:
                        yield encode_completion(completion)
            except ValueError as error:
                refuse(grpc.StatusCode.INVALID_ARGUMENT, error)
            except SamplerError as error:
                refuse(grpc.StatusCode.UNAVAILABLE, error)

    return handle


def _taking_turns(turn: threading.Lock) -> Callable:
    @contextmanager
    def waiting(context: grpc.ServicerContext) -> Iterator[bool]:
        """Whether it is this call's turn now; False for one whose client has left the queue."""
        while not turn.acquire(timeout=0.5):
            if not context.is_active():
                yield False
                return
        try:
            yield True
        finally:
            turn.release()

    return waiting
