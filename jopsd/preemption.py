"""Being told to end: SIGTERM, or the notice of maintenance that a cloud host gives beforehand.

A run stops drawing, saves what it has learnt, and leaves with exit code 0; the same command resumes. Of several
processes any may be told: they agree where they exchange their rollouts.
"""

import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from jopsd.distributed import exchange

METADATA = "metadata.google.internal"
_NOTICES = {"maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE", "preempted": "TRUE"}
_EVERY = 5.0  # seconds between two looks at the host's metadata


class Preempted(Exception):
    """The run is to end; rollouts that were not trained on yet are thrown away."""


class Notice:
    """Whether the run has been told to end."""

    def __init__(self):
        self._given = threading.Event()

    def give(self, *_) -> None:
        """Takes the notice. A second SIGTERM ends the process at once."""
        self._given.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def check(self) -> None:
        """Raises Preempted where this process has been told."""
        if self._given.is_set():
            raise Preempted

    def meet(self) -> None:
        """Raises Preempted where any process has been told. A collective."""
        if any(exchange(self._given.is_set())):
            raise Preempted


@contextmanager
def listening() -> Iterator[Notice]:
    """A `Notice` that SIGTERM and the host's metadata give, until the block ends."""
    notice, done, before = Notice(), threading.Event(), None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, notice.give)
    if host := metadata_host():
        threading.Thread(target=_watch, args=(host, done), daemon=True, name="jopsd.preemption").start()
    try:
        yield notice
    finally:
        done.set()
        if before is not None:
            signal.signal(signal.SIGTERM, before)


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
