"""Grades programs on all cores: one thread and one sandbox per worker, made when first needed."""

import queue
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor

from jopsd.rewards.code import Options, verify
from jopsd.rewards.pool import usable_cores
from jopsd.rewards.reports import HEADINGS
from jopsd.rewards.sandbox import LAYERS, Sandbox, SandboxError, canary, describe
from jopsd.rewards.score import Score
from jopsd.rewards.tests import read_tests


class CodePool:
    """Verifies programs against tests; usable from any thread.

    Args:
      workers: programs run at a time; None: as many as there are cores.
      unsafe: run programs even where the host cannot keep them in.

    ``stats`` counts correct, wrong and unformatted completions, ``timeout`` those whose feedback is that time ran out,
    ``relaunched`` sandboxes that broke and were replaced, and ``broken_row`` those of a row whose reference solution
    gives no result, for which no program gets a reward.

    Raises:
      SandboxError: the host cannot keep programs in. A future raises it where a sandbox broke twice over one program.
    """

    def __init__(self, workers: int | None, options: Options = Options(), unsafe: bool = False):  # noqa: B008
        self._options, self._unsafe = options, unsafe
        count = workers or usable_cores()
        first = self._make(0)
        try:
            if not unsafe:
                canary.check(first)
        except SandboxError:
            first.close()
            raise
        self.note = "programs run in a sandbox: " + describe(first.active, first.missing)
        if unsafe:
            self.note += "; UNSAFE was asked for, so programs run whatever is missing"
        self._free: queue.LifoQueue[int] = queue.LifoQueue()
        for slot in reversed(range(count)):
            self._free.put(slot)
        self._sandboxes: dict[int, Sandbox] = {0: first}
        self._lock = threading.Lock()
        self._stats: Counter[str] = Counter()
        self._executor = ThreadPoolExecutor(count, thread_name_prefix="code-pool")
        self._closed = False

    @property
    def stats(self) -> Counter[str]:
        """A copy of the counts so far."""
        with self._lock:
            return Counter(self._stats)

    def submit(self, text: str, gold: str) -> "Future[Score]":
        """Future of the score of a completion's program. Raises ValueError for a gold that is no tests."""
        if self._closed:
            raise RuntimeError("this code pool is closed")
        read_tests(gold)
        return self._executor.submit(self._verify, text, gold)

    def close(self) -> None:
        """Cancels what is unanswered and ends all sandboxes. Safe to call twice."""
        self._closed = True
        self._executor.shutdown(wait=True, cancel_futures=True)
        for sandbox in self._sandboxes.values():
            sandbox.close()

    def __enter__(self) -> "CodePool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _make(self, slot: int) -> Sandbox:
        return Sandbox(slot, frozenset(LAYERS), self._unsafe)

    def _verify(self, text: str, gold: str) -> Score:
        slot = self._free.get()
        try:
            score = self._verify_in(slot, text, gold)
        except ValueError:
            with self._lock:
                self._stats["broken_row"] += 1
            return Score(0.0, False, True, None)
        finally:
            self._free.put(slot)
        with self._lock:
            self._stats["correct" if score.correct else "wrong" if score.formatted else "unformatted"] += 1
            self._stats["timeout"] += (score.feedback or "").startswith(HEADINGS["timeout"])
        return score

    def _verify_in(self, slot: int, text: str, gold: str) -> Score:
        """A score from the slot's sandbox; one that breaks is replaced, once for each program."""
        try:
            if slot not in self._sandboxes:
                self._sandboxes[slot] = self._make(slot)
            return verify(text, gold, self._sandboxes[slot], self._options)
        except SandboxError:
            with self._lock:
                self._stats["relaunched"] += 1
            if slot in self._sandboxes:
                self._sandboxes.pop(slot).close()
            self._sandboxes[slot] = self._make(slot)
            return verify(text, gold, self._sandboxes[slot], self._options)
