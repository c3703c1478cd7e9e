"""Messages between the processes of the sandbox: a length, a JSON object, and sometimes descriptors."""

import array
import json
import socket
import struct
import time

MAX_BYTES = 8 << 20  # of a message from a program
MAX_TRUSTED_BYTES = 256 << 20  # and of one to it
_LENGTH = struct.Struct("!I")


class BadMessageError(ValueError):
    """What came is no message. A program that has its channel in hand can send anything."""


def send(channel: socket.socket, message: dict, descriptors: tuple[int, ...] = (), end: float | None = None) -> None:
    """Sends a message, and descriptors with its first bytes. Raises TimeoutError past `end` on the monotonic clock."""
    data = json.dumps(message).encode()
    data = _LENGTH.pack(len(data)) + data
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    _wait_until(channel, end)
    sent = channel.sendmsg([data], rights)
    if sent < len(data):  # to send nothing fails once the reader has read all and gone
        channel.sendall(data[sent:])


def receive(channel: socket.socket, end: float | None = None, most: int = MAX_BYTES) -> dict:
    """The next message. Raises EOFError at the end, TimeoutError past `end`, BadMessageError, OSError."""
    return _message(channel, _exactly(channel, _LENGTH.size, end), end, most)


def receive_with_descriptors(channel: socket.socket) -> tuple[dict, list[int]]:
    """The next message and what descriptors came with it."""
    head, descriptors, _, _ = socket.recv_fds(channel, _LENGTH.size, 8)
    head += _exactly(channel, _LENGTH.size - len(head), None) if head else b""
    if not head:
        raise EOFError
    return _message(channel, head, None, MAX_TRUSTED_BYTES), descriptors


def short_int(digits: str) -> int:
    """An integer of few digits: to read many takes time in their square. Raises ValueError."""
    if len(digits) > 20:
        raise ValueError("too many digits")
    return int(digits)


def _message(channel: socket.socket, head: bytes, end: float | None, most: int) -> dict:
    (length,) = _LENGTH.unpack(head)
    if length > most:
        raise BadMessageError(f"a message of {length} bytes")
    try:
        message = json.loads(_exactly(channel, length, end), parse_int=short_int)
    except (ValueError, RecursionError):
        raise BadMessageError("no JSON") from None
    if not isinstance(message, dict):
        raise BadMessageError("no object")
    return message


def _exactly(channel: socket.socket, count: int, end: float | None) -> bytes:
    parts = []
    while count:
        _wait_until(channel, end)
        data = channel.recv(min(count, 1 << 20))
        if not data:
            raise EOFError
        parts.append(data)
        count -= len(data)
    return b"".join(parts)


def _wait_until(channel: socket.socket, end: float | None) -> None:
    if end is not None:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        channel.settimeout(left)
