"""The only door to google-jetstream 0.2.2, an archived release that today's JAX breaks in a few places.

What is repaired, once, when this module is imported:
- TensorFlow, seqio and tiktoken serve text tokenizers that are not used here. Stand-ins take their place while
  jetstream is being imported and leave afterwards, so the real ones, if installed, are neither loaded nor shadowed.
- The import sets the root logger to DEBUG and gives it a handler. Both are put back; jetstream logs to the logger
  "jetstream", which is quiet unless asked.
- `delete_pytree` calls `jax.tree_map`, which is gone, and would delete prefixes that are shared. It is a no-op.
- `JetThread` kills the process when a thread fails. Its replacement is a daemon thread that reports like any other.
"""

import importlib
import importlib.metadata
import logging
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager

VERSION = "0.2.2"
INSTALL = f"pip install --no-deps google-jetstream=={VERSION}"
REQUIREMENTS = "pip install grpcio protobuf prometheus-client shortuuid"
_STOOD_IN = ("seqio", "seqio.vocabularies", "tiktoken", "tiktoken.load")


class _StandIn(types.ModuleType):
    """A module in which every name is an empty class."""

    __path__: list[str] = []

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def _stand_ins() -> Iterator[None]:
    absent = [name for name in _STOOD_IN if name not in sys.modules]
    sys.modules.update({name: _StandIn(name) for name in absent})
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def _import(name: str) -> types.ModuleType:
    """Imports one module of jetstream.

    Raises:
      ImportError: jetstream, one of its few requirements or the right version is missing; says what to run.
    """
    try:
        with _stand_ins(), _root_logger_kept():
            module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        command = INSTALL if missing == "jetstream" else REQUIREMENTS
        raise ImportError(f"the JetStream sampler needs the module {missing!r}: {command}") from error
    return module


def _check_version() -> None:
    try:
        found = importlib.metadata.version("google-jetstream")
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(f"the JetStream sampler needs google-jetstream: {INSTALL}") from error
    if found != VERSION:
        raise ImportError(f"the JetStream sampler is written for google-jetstream {VERSION}, found {found}: {INSTALL}")


class ReportingThread(threading.Thread):
    """A daemon thread whose exceptions go to `threading.excepthook`, not to a SIGKILL."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "daemon": True})


def _keep_pytree(_) -> None:
    """Stands for `delete_pytree`: a prefix may be shared, and is freed when the last reference goes."""


_check_version()
engine_api = _import("jetstream.engine.engine_api")
orchestrator = _import("jetstream.core.orchestrator")
orchestrator.delete_pytree = _keep_pytree
orchestrator.JetThread = ReportingThread
# `logging.info` on a root logger without handlers would install one.
orchestrator.logging = logging.getLogger("jetstream")


def load_server() -> types.ModuleType:
    """`jetstream.core.server_lib`, the gRPC server."""
    server_lib = _import("jetstream.core.server_lib")
    server_lib.logging = logging.getLogger("jetstream")
    return server_lib
