"""Programs in a box as the parent sees them: one that is run on inputs, and one whose functions are called."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from jopsd.rewards.sandbox import guest, values, wire

if TYPE_CHECKING:
    from jopsd.rewards.sandbox.box import Sandbox

GRACE_SECONDS = 1.0  # beyond a program's limit, for starting it
MAX_SOURCE = 1 << 20  # bytes of a program
TOO_LONG = f"the program has over {MAX_SOURCE} bytes"
_EXITS = {guest.MEMORY_EXIT: "memory"}


class SandboxError(RuntimeError):
    """The sandbox itself failed or may not be used; no verdict on any program."""


class Limits(NamedTuple):
    """Of one run or call: seconds on the clock, memory beyond an idle interpreter's, bytes written to any one file."""

    seconds: float = 6.0
    memory_mb: int = 1024
    output_bytes: int = 4 << 20


class Outcome(NamedTuple):
    """How a run or call ended.

    status: ok; error (an exception, or an exit code that is not 0); timeout; memory; output (over its limit); crash
    (ended by a signal); unreadable (a result that is no plain data). value: printed text or result, None unless ok.
    message: the program's own words, at most 2,000 characters.
    """

    status: str
    value: Any = None
    message: str = ""


class Module:
    """A loaded program whose functions can be called; from `Sandbox.module`.

    A call that ends the process or its time is answered, and the next one meets a fresh process.
    """

    def __init__(self, sandbox: "Sandbox", source: str, limits: Limits):
        self._sandbox, self._source, self._limits = sandbox, source, limits
        self._channel: socket.socket | None = None

    def call(self, name: str, args: list, kwargs: dict | None = None) -> Outcome:
        """The result of one function. Raises NotPlainError for arguments that are no plain data."""
        given = {"args": list(args), "kwargs": kwargs or {}}
        message = {key: values.encode(value, values.MAX_TRUSTED_CHARS) for key, value in given.items()}
        message["call"] = name
        answer = self._asked(message)
        if answer["status"] != "ok":
            return Outcome(answer["status"], message=words_of(answer.get("message")))
        try:
            return Outcome("ok", values.decode(answer["value"]))
        except (values.NotPlainError, KeyError, TypeError) as error:
            return Outcome("unreadable", message=str(error))

    def _asked(self, message: dict) -> dict:
        """A message's answer; where there is none, why."""
        if _too_long(self._source):
            return {"status": "error", "message": TOO_LONG}
        end = time.monotonic() + self._limits.seconds
        if self._channel is None:
            self._channel = self._sandbox._start("module", self._source, self._limits)
            end += GRACE_SECONDS
        try:
            wire.send(self._channel, message, end=end)
            answer = wire.receive(self._channel, end)
            if answer.get("status") not in _ANSWERS:
                raise wire.BadMessageError
            return answer
        except TimeoutError:
            self.close()
            return {"status": "timeout", "message": f"no result within {self._limits.seconds:g} s"}
        except wire.BadMessageError:
            self.close()
            return {"status": "unreadable", "message": "the program wrote something else than a result"}
        except (EOFError, OSError):
            try:
                ended = self._sandbox._ended(GRACE_SECONDS)  # a program that only closed its channel still runs
            finally:
                self.close()
            return {"status": how(ended, "crash"), "message": in_words(ended)}

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
            self._sandbox._close_box()


_ANSWERS = ("ok", "error", "memory", "unreadable")


class Script:
    """A whole program; from `Sandbox.script`. Its runs share a box, and so what they leave in its directories."""

    def __init__(self, sandbox: "Sandbox", source: str):
        self._sandbox, self._source = sandbox, source
        self._is_open = False

    def run(self, stdin: str = "", limits: Limits = Limits()) -> Outcome:  # noqa: B008
        """One run. ok: it ended by itself with exit code 0; value: what it printed."""
        if _too_long(self._source):
            return Outcome("error", message=TOO_LONG)
        with _memory_file(stdin.encode("utf-8", "replace")) as given, _memory_file() as out, _memory_file() as err:
            if not self._is_open:
                self._sandbox._open_box(limits)
                self._is_open = True
            try:
                self._sandbox._request("script", self._source, limits, (given, out, err))
                ended = self._sandbox._ended(limits.seconds + GRACE_SECONDS)
            except SandboxError:
                self._is_open = False
                raise
            if ended is None:
                self.close()
            printed, complaint = _content(out, limits.output_bytes), _content(err, limits.output_bytes)
            words = complaint.decode(errors="replace")[-values.MAX_TEXT :]
        if max(len(printed), len(complaint)) >= limits.output_bytes:
            return Outcome("output", message=f"over {limits.output_bytes} bytes of output")
        if ended is None:
            return Outcome("timeout", message=f"not finished within {limits.seconds:g} s")
        status = how(ended, "ok")
        return Outcome(status, printed.decode(errors="replace") if status == "ok" else None, words or in_words(ended))

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._sandbox._close_box()


@contextlib.contextmanager
def _memory_file(content: bytes = b"") -> Iterator[int]:
    descriptor = os.memfd_create("jopsd")
    try:
        with open(descriptor, "r+b", closefd=False) as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _content(descriptor: int, most: int) -> bytes:
    return os.pread(descriptor, most, 0)


def _too_long(source: str) -> bool:
    return len(source.encode("utf-8", "surrogatepass")) > MAX_SOURCE


def words_of(message: Any) -> str:
    """A program's own words, fit for a log."""
    return message[: values.MAX_TEXT].encode(errors="replace").decode() if isinstance(message, str) else ""


def how(exit_code: int | None, if_zero: str) -> str:
    """The status that an exit code means; a kill that we did not order comes from a memory limit."""
    if exit_code is None:
        return "timeout"
    if exit_code == 0:
        return if_zero
    if exit_code < 0:
        return {-9: "memory", -24: "timeout", -25: "output"}.get(exit_code, "crash")
    return _EXITS.get(exit_code, "error")


def in_words(exit_code: int | None) -> str:
    if exit_code is None:
        return "still running"
    return f"ended by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
