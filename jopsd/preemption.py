"""Being told to end: Ctrl-C, SIGTERM, or the notice of maintenance that a cloud host gives beforehand.

A run stops drawing, saves what it has learnt, and leaves with exit code 0; the same command resumes. Told once more, it
ends at once. Of several processes any may be told: they agree where they exchange their rollouts.
"""

import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from jopsd.distributed import exchange

METADATA = "metadata.google.internal"
_NOTICES = {"maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE", "preempted": "TRUE"}
_EVERY = 5.0  # seconds between two looks at the host's metadata
_ECHO = 0.5  # seconds within which a second signal is the first: `timeout` and others send theirs twice
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Preempted(Exception):
    """The run is to end; rollouts that were not trained on yet are thrown away."""


class Notice:
    """Whether the run has been told to end. by: the signal that said so, to this process or to one it met."""

    def __init__(self):
        self._given, self._before = threading.Event(), {}
        self.by: str | None = None

    def give(self, number: int, *_) -> None:
        """Takes the notice."""
        self.by = self.by or _NAMES[number]
        self._given.set()

    def hear(self, number: int) -> None:
        """Takes a signal for the notice, until `leave`; only in the main thread, and unless it is ignored (nohup)."""
        if threading.current_thread() is threading.main_thread() and signal.getsignal(number) is not signal.SIG_IGN:
            self._before[number] = signal.signal(number, self.give)

    def leave(self) -> None:
        """Gives the signals back."""
        for number, before in self._before.items():
            signal.signal(number, before)

    def check(self) -> None:
        """Raises Preempted where this process has been told."""
        if self._given.is_set():
            raise Preempted

    def meet(self) -> None:
        """Raises Preempted where any process has been told. A collective."""
        if told := [by for by in exchange(self.by) if by is not None]:
            self.by = told[0]
            raise Preempted


@contextmanager
def listening() -> Iterator[Notice]:
    """A `Notice` that SIGTERM and the host's metadata give, until the block ends; `hear` adds another signal.

    A handler waits until the call that runs, compilation say, returns. So a thread takes the signals too: it says at
    once that the notice is taken, and ends the process at the second one.
    """
    notice, done, reader = Notice(), threading.Event(), None
    if threading.current_thread() is threading.main_thread():
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        notice.hear(signal.SIGTERM)
        threading.Thread(target=_take, args=(notice, reader), daemon=True, name="jopsd.signals").start()
    if host := metadata_host():
        threading.Thread(target=_watch, args=(host, done), daemon=True, name="jopsd.preemption").start()
    try:
        yield notice
    finally:
        done.set()
        notice.leave()
        if reader is not None:
            signal.set_wakeup_fd(wakeup)
            writer.close()  # which ends the thread


def _take(notice: Notice, reader: socket.socket) -> None:
    """Reads the numbers of signals as they come: the first gives the notice, the second ends the process."""
    first = None
    with reader:
        while data := reader.recv(1):
            number, now = data[0], time.monotonic()
            if number not in _NAMES:
                continue
            if first is None:
                first = now
                notice.give(number)
                print(f"{_NAMES[number]}: the run saves and ends; again ends it at once", file=sys.stderr, flush=True)
            elif now - first > _ECHO:
                print(f"{_NAMES[number]} again: ended at once", file=sys.stderr, flush=True)
                os._exit(128 + number)


def metadata_host() -> str | None:
    """Where this host's notices of maintenance are read: on a TPU, or where the usual variable names it."""
    return os.environ.get("GCE_METADATA_HOST") or (METADATA if jax.default_backend() == "tpu" else None)


def _watch(host: str, done: threading.Event) -> None:
    while not done.wait(_EVERY):
        if any(_read(host, name) == value for name, value in _NOTICES.items()):
            os.kill(os.getpid(), signal.SIGTERM)  # from here on it is one case
            return


def _read(host: str, name: str) -> str | None:
    url = f"http://{host}/computeMetadata/v1/instance/{name}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Metadata-Flavor": "Google"}), timeout=5) as r:
            return r.read().decode().strip()
    except (OSError, urllib.error.URLError, ValueError):
        return None
