"""The standard health service, grpc.health.v1: what Kubernetes, Envoy and grpc_health_probe ask.

Its two messages have one field each, so they are written by hand. `Watch` is left unimplemented, which the protocol
allows: such clients fall back to asking.
"""

from collections.abc import Callable

import grpc

SERVICE = "grpc.health.v1.Health"
# HealthCheckResponse: field 1, a varint.
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"


def handler(serving: Callable[[], bool], known: str) -> grpc.GenericRpcHandler:
    """Answers for the whole server ("") and for the service `known`.

    Args:
      serving: whether samples are to be had now.
    """

    def check(data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            asked = asked_for(data)
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if asked not in ("", known):
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {asked[:100]!r} here")
        return SERVING if serving() else NOT_SERVING

    return grpc.method_handlers_generic_handler(SERVICE, {"Check": grpc.unary_unary_rpc_method_handler(check)})


def asked_for(data: bytes) -> str:
    """The service of a HealthCheckRequest: field 1, a string of less than 128 bytes; absent is "".

    Raises:
      ValueError: not such a message.
    """
    if not data:
        return ""
    if len(data) < 2 or data[0] != 0x0A or data[1] != len(data) - 2 or data[1] > 127:
        raise ValueError("not a HealthCheckRequest")
    return data[2:].decode(errors="replace")
