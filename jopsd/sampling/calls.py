"""JSON over HTTP with bounded retries, and calls that another thread can break off. Standard library only."""

import contextlib
import http.client
import json
import re
import ssl
import threading
from typing import NamedTuple
from urllib.parse import urlsplit

from jopsd.sampling.sampler import SamplerError

CONNECT_SECONDS = 30.0
LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for
_TRANSIENT = (408, 425, 429)
_MESSAGE = 500  # characters of a server's own words in an error


class Endpoint(NamedTuple):
    """Where a server's API begins. path: what stands before /v1."""

    scheme: str
    host: str
    port: int | None
    path: str

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{'' if self.port is None else f':{self.port}'}{self.path}"


class Refused(Exception):
    """The server answered with a client error (4xx). The message is the server's own."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class BrokenOff(Exception):
    """`Calls.break_off` ended the call."""


class _Again(Exception):
    """What another try may better. wait: seconds that the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


def parse_endpoint(url: str) -> Endpoint:
    """Reads `http://host:port`, also without the scheme or with a trailing /v1.

    Raises:
      ValueError: anything else; a URL with a user or password in it, without repeating it.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if "@" in parts.netloc:
        raise ValueError("the server's URL holds a user or password; give the key by itself, as api_key")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.query or parts.fragment:
        raise ValueError(f"server {url!r} must look like http://host:port, for example http://127.0.0.1:8000")
    return Endpoint(parts.scheme, parts.hostname, port, parts.path.rstrip("/").removesuffix("/v1"))


class Calls:
    """The calls in flight for one purpose, each on a connection of its own.

    Args:
      timeout: seconds without a byte before a call counts as lost; a completion is one answer, however long it takes.
      key: sent as a bearer token, and cut out of every message.
      retries: tries after the first. backoff: seconds before the first of them, doubled each time.
      tls: for https; None trusts what the host trusts.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        key: str | None,
        timeout: float,
        retries: int,
        backoff: float,
        tls: ssl.SSLContext | None = None,
    ):
        self._endpoint, self._key, self._timeout, self._tls = endpoint, key, timeout, tls
        self._retries, self._backoff = retries, backoff
        self._open: set[http.client.HTTPConnection] = set()
        self._lock, self._broken_off = threading.Lock(), threading.Event()

    def ask(self, path: str, body: dict | None = None, is_text: bool = False):
        """The JSON (or text) that a GET, or a POST of `body`, answers.

        Raises:
          Refused: a 4xx that no other try would better, at once.
          SamplerError: the same trouble after every retry, or silence; names URL and status.
          BrokenOff: see `break_off`.
        """
        url = f"{self._endpoint.url}{path}"
        payload = None if body is None else json.dumps(body).encode()
        for number in range(self._retries + 1):
            try:
                return self._exchange(path, payload, is_text)
            except _Again as error:
                last, wait = str(error), max(error.wait, self._backoff * 2**number)
            if number < self._retries and self._broken_off.wait(min(wait, LONGEST_WAIT)):
                raise BrokenOff
        raise SamplerError(f"{url}: {last}; gave up after {self._retries + 1} tries")

    def break_off(self) -> None:
        """Ends every call, now and later; the server sees its clients gone."""
        with self._lock:
            self._broken_off.set()
            for connection in self._open:
                if connection.sock is not None:
                    with contextlib.suppress(OSError):
                        connection.sock.shutdown(2)  # unlike close, this wakes the thread that reads

    def _exchange(self, path: str, payload: bytes | None, is_text: bool):
        where, wait = (self._endpoint.host, self._endpoint.port), min(self._timeout, CONNECT_SECONDS)
        if self._endpoint.scheme == "https":
            connection = http.client.HTTPSConnection(*where, timeout=wait, context=self._tls)
        else:
            connection = http.client.HTTPConnection(*where, timeout=wait)
        headers = {"Accept": "application/json"}
        if payload is not None:
            headers["Content-Type"] = "application/json"
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            connection.connect()
            self._enter(connection)
            connection.request("GET" if payload is None else "POST", self._endpoint.path + path, payload, headers)
            response = connection.getresponse()
            data = response.read()
        except TimeoutError as error:
            if connection not in self._open:
                raise _Again("no connection in time") from error
            raise SamplerError(
                f"{self._endpoint.url}{path}: no answer within {self._timeout:g} s; raise timeout, or lower concurrency"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            if self._broken_off.is_set():
                raise BrokenOff from None
            raise _Again(f"{type(error).__name__}: {error}") from error
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        return self._read(response, data, is_text)

    def _enter(self, connection: http.client.HTTPConnection) -> None:
        connection.sock.settimeout(self._timeout)
        with self._lock:
            if self._broken_off.is_set():
                raise BrokenOff
            self._open.add(connection)

    def _read(self, response: http.client.HTTPResponse, data: bytes, is_text: bool):
        status = response.status
        if status == 200:
            try:
                return data.decode(errors="replace") if is_text else json.loads(data)
            except (ValueError, RecursionError):
                raise _Again(f"status 200 with a body that is not JSON: {self._words(data)!r}") from None
        trouble = f"status {status}: {self._words(data)}"
        if status in _TRANSIENT or status >= 500:
            after = response.getheader("Retry-After") or ""
            raise _Again(trouble, float(after) if re.fullmatch(r"\d{1,9}(\.\d*)?", after) else 0.0)
        if 400 <= status < 500:
            raise Refused(status, self._words(data))
        raise SamplerError(f"{self._endpoint.url}: {trouble}; give the URL of the API itself")

    def _words(self, data: bytes) -> str:
        """A server's own words, from where vLLM, SGLang and OpenAI put them."""
        text = data.decode(errors="replace")
        with contextlib.suppress(ValueError):
            parsed = json.loads(text)
            if isinstance(parsed, dict):
                inner = parsed.get("error", parsed)
                inner = inner.get("message", inner.get("detail", inner)) if isinstance(inner, dict) else inner
                text = inner if isinstance(inner, str) else json.dumps(inner)
        return (text.replace(self._key, "***") if self._key else text)[:_MESSAGE]
