"""Who may use a sampling server, how its bytes travel, and what it may read: a token, TLS, paths below one folder."""

import hmac
import ipaddress
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc

from jopsd.sampling import health

_HEADER = "authorization"


def is_loopback(host: str) -> bool:
    """Whether an address reaches this host alone. A name other than localhost might be anywhere."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def require_guarded(host: str, token: bool, tls: bool, insecure: bool) -> None:
    """Raises ValueError for a server that others than this host reach without a token and TLS, unless that is meant."""
    if insecure and (token or tls):
        raise ValueError("--insecure is a server without token and TLS; leave it out, or the others")
    if not is_loopback(host) and not insecure and not (token and tls):
        raise ValueError(
            f"--host {host} is reached from other hosts: give --token-file, --tls-cert and --tls-key; or --insecure, "
            "so that whoever reaches the port may sample and have weights loaded, and read what is sent"
        )


def read_token(file: str | Path) -> str:
    """The secret in a file, without the line's end.

    Raises:
      ValueError, OSError: none is there, or not one that a header can carry.
    """
    token = Path(file).read_text(encoding="utf-8").strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"{file} must hold a token of printable ASCII without blanks, for example 32 hex digits")
    return token


def bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata of a call."""
    return () if token is None else ((_HEADER, f"Bearer {token}"),)


class TokenCheck(grpc.ServerInterceptor):
    """Refuses every call without the token but those of the health service, before their messages are read."""

    def __init__(self, token: str, refused: Callable[[], None] = lambda: None):
        self._expected = f"Bearer {token}".encode()

        def refuse(messages, context: grpc.ServicerContext):
            refused()
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong")

        self._refusal = grpc.stream_stream_rpc_method_handler(refuse)  # reads no message unless asked to

    def intercept_service(self, continuation, handler_call_details):
        if handler_call_details.method.startswith(f"/{health.SERVICE}/"):
            return continuation(handler_call_details)
        given = dict(handler_call_details.invocation_metadata).get(_HEADER, "")
        given = given if isinstance(given, bytes) else given.encode()
        known = hmac.compare_digest(given, self._expected)
        return continuation(handler_call_details) if known else self._refusal


def server_credentials(cert: str | Path, key: str | Path) -> grpc.ServerCredentials:
    """TLS from PEM files. Raises OSError where one cannot be read."""
    return grpc.ssl_server_credentials([(Path(key).read_bytes(), Path(cert).read_bytes())])


def open_channel(address: str, token: str | None, ca_file: str | Path | None, options: Sequence) -> grpc.Channel:
    """A channel to host:port; TLS with a ca_file.

    Raises:
      ValueError: a token that would cross a network in the clear. OSError: the ca_file cannot be read.
    """
    if ca_file is not None:
        credentials = grpc.ssl_channel_credentials(Path(ca_file).read_bytes())
        return grpc.secure_channel(address, credentials, options=options)
    if token is not None and not is_loopback(address.rpartition(":")[0]):
        raise ValueError(f"the token would go to {address} in the clear: set sampling.access.ca_file for TLS")
    return grpc.insecure_channel(address, options=options)


def below(root: Path, path: str) -> Path:
    """The real place of `path`, which may be relative to `root`.

    Raises:
      PermissionError: it is not below `root`, once links and dots are followed, or holds a link.
      FileNotFoundError: no such folder.
    """
    root = root.resolve()
    try:
        found = (root / path).resolve()
        is_folder = found.is_dir()
    except (ValueError, OSError, RuntimeError):
        raise PermissionError("not a path") from None
    if found == root or not found.is_relative_to(root):
        raise PermissionError(f"{path[:500]} is not below the server's --weights-root")
    if not is_folder:
        raise FileNotFoundError(f"{found} is not a folder that this server sees")
    if any(inner.is_symlink() for inner in found.rglob("*")):
        raise PermissionError(f"{found} holds a link")
    return found
