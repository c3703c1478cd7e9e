"""The parent's side of the sandbox: one slot in which programs run, one after another, each in a box of its own."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jopsd.rewards.sandbox import cgroups, layers, wire
from jopsd.rewards.sandbox.programs import (
    GRACE_SECONDS,
    Limits,
    Module,
    Outcome,
    SandboxError,
    Script,
    how,
    in_words,
    words_of,
)

START_SECONDS = 60.0  # a launcher imports numpy, on a loaded machine
CLOSE_SECONDS = 10.0  # to kill a box
FIRST_UID = 61_184  # of a range that systems leave to services without a user of their own
_PACKAGE_ROOT = Path(__file__).resolve().parents[3]


class Sandbox:
    """One slot. Not for several threads at once. A context manager; `close` leaves no process.

    Args:
      slot: different for each sandbox of this process.
      wanted: layers to use; those that the host does not offer are left out.
      unsafe: run programs even where what is left does not guard everything in `layers.REQUIRED`.

    Raises:
      SandboxError: not safe, or no launcher could be started.
    """

    def __init__(self, slot: int = 0, wanted: frozenset[str] = frozenset(layers.LAYERS), unsafe: bool = False):
        self._slot, self._wanted, self._unsafe = slot, wanted, unsafe
        self._launcher: subprocess.Popen | None = None
        self._control: socket.socket | None = None
        self._job: socket.socket | None = None
        self._tester: Sandbox | None = None
        self._group: cgroups.Group | None = None
        self._memory_mb: int | None = None  # of the group, as last set
        self.active: frozenset[str] = frozenset()
        self.missing: dict[str, str] = {}
        self._launch()

    def run(self, source: str, stdin: str = "", limits: Limits = Limits()) -> Outcome:  # noqa: B008
        """Runs a whole program on one input."""
        with self.script(source) as script:
            return script.run(stdin, limits)

    @contextlib.contextmanager
    def script(self, source: str) -> Iterator[Script]:
        """A whole program, to be run on one input after another, each time in a process of its own."""
        script = Script(self, source)
        try:
            yield script
        finally:
            script.close()

    @contextlib.contextmanager
    def module(self, source: str, limits: Limits = Limits()) -> Iterator[Module]:  # noqa: B008
        """A program whose functions can be called, each call within the limits."""
        module = Module(self, source, limits)
        try:
            yield module
        finally:
            module.close()

    def judge(self, tests: str, module: Module, names: list[str], limits: Limits = Limits()) -> Outcome:  # noqa: B008
        """Runs tests that are trusted on a program that is not; ok: none of their assertions fails.

        They stand in a box of another slot, where each of `names`, and `candidate` for the first, calls the module.
        """
        if self._tester is None:
            self._tester = Sandbox(self._slot + 10_000, self._wanted, self._unsafe)
        return self._tester._judged(tests, module, names, limits)

    def _judged(self, tests: str, module: Module, names: list[str], limits: Limits) -> Outcome:
        channel = self._start("judge", tests, limits, names=names)
        end = time.monotonic() + limits.seconds + GRACE_SECONDS
        try:
            while "done" not in (message := wire.receive(channel, end)):
                answer = module._asked(message)
                wire.send(channel, answer, end=end)
            fault = message["done"]
            return Outcome("ok") if fault is None else Outcome(fault["status"], message=words_of(fault["message"]))
        except TimeoutError:
            return Outcome("timeout", message=f"the tests did not finish within {limits.seconds:g} s")
        except (EOFError, OSError, wire.BadMessageError):
            ended = self._ended(CLOSE_SECONDS)
            return Outcome(how(ended, "crash"), message=f"the tests ended early: {in_words(ended)}")
        finally:
            channel.close()
            self._close_box()

    def close(self) -> None:
        """Ends the launcher and whatever it runs. Safe to call twice."""
        if self._tester is not None:
            self._tester.close()
            self._tester = None
        self._drop_job()
        if self._control is not None:
            self._control.close()  # the launcher kills its box and ends
            self._control = None
        if self._launcher is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._launcher.wait(CLOSE_SECONDS)
            self._launcher.kill()
            self._launcher.wait()
            self._launcher = None
        if self._group is not None:
            self._group.close()
            self._group = self._memory_mb = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _launch(self) -> None:
        if sys.platform != "linux":
            raise SandboxError(f"the sandbox is made of parts of the Linux kernel, and this is {sys.platform}")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        missing: dict[str, str] = {}
        if "cgroups" in self._wanted:
            try:
                self._group = cgroups.make_group(self._slot)
            except OSError as error:
                missing["cgroups"] = str(error)
        config = {
            "layers": sorted(self._wanted - missing.keys()),
            "missing": missing,
            "cgroups": self._group.procs if self._group else [],
            "uid": FIRST_UID + self._slot % 4096,
            **_interpreter(),
        }
        with theirs:
            self._launcher = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _START, str(theirs.fileno()), str(_PACKAGE_ROOT)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=_environment(),
                cwd="/",
            )
        self._control = ours
        ours.settimeout(START_SECONDS)
        try:
            ours.send(json.dumps(config).encode())
            reply = json.loads(ours.recv(1 << 16) or b"{}")
        except OSError as error:
            reply = {"error": f"no answer: {error}"}
        if "active" not in reply:
            self.close()
            raise SandboxError(f"the sandbox could not be started: {reply.get('error', 'its launcher died')}")
        self.active, self.missing = frozenset(reply["active"]), reply["missing"]
        open_to_attack = layers.unguarded(self.active)
        if open_to_attack and not self._unsafe:
            self.close()
            what = ", ".join(open_to_attack)
            raise SandboxError(
                f"this host cannot keep programs away from {what}: {describe(self.active, self.missing)}"
            )

    def _start(self, mode: str, source: str, limits: Limits, **more: Any) -> socket.socket:
        """Opens a box for a program that answers messages; our end of its channel."""
        ours, theirs = socket.socketpair()
        self._open_box(limits)
        with theirs, open(os.devnull, "r+b") as null:
            descriptors = (null.fileno(), null.fileno(), null.fileno(), theirs.fileno())
            self._request(mode, source, limits, descriptors, **more)
        return ours

    def _open_box(self, limits: Limits) -> None:
        """Starts a box. A launcher that has died meanwhile is replaced."""
        if self._job is not None:
            self._close_box()
        if self._control is None:
            self._launch()
        for attempt in (1, 2):
            if self._group is not None and limits.memory_mb != self._memory_mb:
                self._group.limit(limits.memory_mb)
                self._memory_mb = limits.memory_mb
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    socket.send_fds(self._control, [b"open"], [theirs.fileno()])
                self._job = ours
                return
            except OSError as error:
                ours.close()
                if attempt == 2:
                    raise SandboxError(f"the sandbox does not start programs any more: {error}") from None
                self._relaunch()

    def _request(self, mode: str, source: str, limits: Limits, descriptors: tuple[int, ...], **more: Any) -> None:
        """Starts a program in the open box. Raises SandboxError if the box is gone."""
        request = {"mode": mode, "source": source, "limits": limits._asdict(), **more}
        try:
            wire.send(self._job, request, descriptors, time.monotonic() + START_SECONDS)
        except OSError:
            self._relaunch()
            raise SandboxError("a box was lost before it was used") from None

    def _ended(self, seconds: float) -> int | None:
        """The exit code of the box's program (negative: the signal), None if it still runs after so many seconds.

        Raises SandboxError if the box ended without saying, or the program was not run.
        """
        try:
            message = wire.receive(self._job, time.monotonic() + seconds)
            if not message["confined"]:
                raise SandboxError("a program could not be confined, and was not run")
            return message["exit"]
        except TimeoutError:
            return None
        except (EOFError, OSError):
            self._relaunch()
            raise SandboxError("a box was lost") from None

    def _close_box(self) -> None:
        """Kills the box and waits until nothing of it is left."""
        self._drop_job()
        try:
            self._control.settimeout(CLOSE_SECONDS)
            self._control.send(b"close")
            if not self._control.recv(16):
                raise EOFError
        except (OSError, EOFError):
            self._relaunch()

    def _drop_job(self) -> None:
        if self._job is not None:
            self._job.close()
            self._job = None

    def _relaunch(self) -> None:
        tester, self._tester = self._tester, None
        self.close()
        self._tester = tester
        self._launch()


def describe(active: frozenset[str], missing: dict[str, str]) -> str:
    """One line on which layers are active, and why the others are not."""
    there = [name for name in layers.LAYERS if name in active]
    gone = [f"{name} ({missing[name]})" for name in layers.LAYERS if name in missing]
    return f"layers {', '.join(there) or 'none'}" + (f"; without {', '.join(gone)}" if gone else "")


_START = "import sys; sys.path.insert(0, sys.argv[2]); from jopsd.rewards.sandbox.launcher import main; main()"


def _environment() -> dict[str, str]:
    """Of the launcher: nothing but what keeps it deterministic, single-threaded and able to find its libraries."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**kept, **single, "PYTHONHASHSEED": "0", "LANG": "C.UTF-8"}


def _interpreter() -> dict:
    """Where programs import from, and the directories they may read for it."""
    packages = [
        str(Path(spec.origin).parent.parent) for name in ("numpy", "sortedcontainers") if (spec := find_spec(name))
    ]
    standard = os.path.dirname(os.__file__)
    path = list(dict.fromkeys([standard, f"{standard}/lib-dynload", *packages]))
    libraries = ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", f"{sys.base_prefix}/lib"]
    return {"path": path, "readable": list(dict.fromkeys(p for p in [*libraries, *path] if os.path.isdir(p)))}
