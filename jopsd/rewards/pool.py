r"""A pool of killable worker processes for the symbolic stage of `jopsd.rewards.math`.

Most answers are settled in the calling thread and never reach a process. The rest go to workers, one job at a time
each, started on the first such answer; a worker past its deadline is killed and replaced, and the answer is wrong. A
worker that dies otherwise costs no answer: its question goes once more to a fresh one. Limits are of processor time
since the worker was ready, so that a busy machine changes no verdict.
"""

import contextlib
import importlib.util
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

from jopsd.rewards.boxed import last_boxed
from jopsd.rewards.math import Question, Verdict, quick_grade, score
from jopsd.rewards.score import Score

DEADLINE_SECONDS = 5.0  # of processor time for an answer, after which its worker is killed
STALLED_SECONDS = 600.0  # on the clock: a worker that is stopped uses no processor time
START_SECONDS = 600.0  # importing sympy on a loaded machine
STARTS = 3  # of a worker that a signal kills before it is ready
JOBS_PER_WORKER = 2_000  # then replaced: sympy's caches grow
CACHED_ANSWERS = 20_000
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Judgement(NamedTuple):
    """What was extracted from a completion, and the verdict on it with its stage and seconds."""

    prediction: str | None
    verdict: Verdict


class MathPool:
    """Verifies completions against gold answers; usable from any thread, and as a context manager.

    workers: None for as many as there are usable cores. ``stats`` counts verdicts by deciding stage (``equal_text``,
    ``number``, ``numeric``, ``math_verify``, ``timeout``, ...), and ``jobs``, ``cached``, ``started`` and ``retries``.
    A timeout is a wrong answer and a count, never an exception, and so is a question that two workers died of
    (``crashed``). A worker that cannot start at all is an exception in the futures that needed it.
    """

    def __init__(self, workers: int | None = 2, deadline: float = DEADLINE_SECONDS):
        workers = usable_cores() if workers is None else workers
        if workers < 1 or deadline <= 0:
            raise ValueError(f"math pool: workers ({workers}) must be at least 1 and deadline ({deadline}) positive")
        self._deadline = deadline
        self._workers = workers
        self._lock = threading.Lock()
        self._stats: Counter[str] = Counter()
        self._known: OrderedDict[Question, Future[Verdict]] = OrderedDict()
        self._jobs: queue.SimpleQueue[tuple[Question, Future[Verdict]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._processes: set[_Worker] = set()
        self._closed = False

    @property
    def stats(self) -> Counter[str]:
        """A copy of the counts so far."""
        with self._lock:
            return Counter(self._stats)

    def submit(self, text: str, gold: str) -> "Future[Score]":
        """Future of the score of ``text``'s last box. Raises ValueError for an empty gold, RuntimeError once closed."""
        result: Future[Score] = Future()
        self.judge(text, gold).add_done_callback(lambda judged: _pass_on(judged, result, _score))
        return result

    def judge(self, text: str, gold: str) -> "Future[Judgement]":
        """As `submit`, with the stage that decided and the processor seconds that this answer took."""
        if self._closed:
            raise RuntimeError("this math pool is closed")
        start = time.thread_time()
        prediction = last_boxed(text)
        decided = quick_grade(prediction, gold)
        seconds = time.thread_time() - start
        result: Future[Judgement] = Future()
        if isinstance(decided, Verdict):
            self._count(decided.stage)
            result.set_result(Judgement(prediction, decided._replace(seconds=seconds)))
            return result

        def finish(verdict: Verdict) -> Judgement:
            self._count(verdict.stage)
            return Judgement(prediction, verdict._replace(seconds=seconds + verdict.seconds))

        self._ask(decided).add_done_callback(lambda answer: _pass_on(answer, result, finish))
        return result

    def verify_all(self, pairs: Iterable[tuple[str, str]]) -> list[Score]:
        """Scores of (text, gold) pairs, in order."""
        return [future.result() for future in [self.submit(text, gold) for text, gold in pairs]]

    def close(self) -> None:
        """Kill the workers and cancel what is unanswered. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            threads, processes = list(self._threads), list(self._processes)
        for _ in threads:
            self._jobs.put(None)
        for process in processes:
            process.kill()
        for thread in threads:
            thread.join(timeout=10)
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    job[1].cancel()

    def __enter__(self) -> "MathPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _count(self, name: str) -> None:
        with self._lock:
            self._stats[name] += 1

    def _ask(self, question: Question) -> "Future[Verdict]":
        """The one future of this question: asked before, being asked, or newly queued (samples repeat answers)."""
        with self._lock:
            if self._closed:
                raise RuntimeError("this math pool is closed")
            if question in self._known:
                self._stats["cached"] += 1
                self._known.move_to_end(question)
                return self._known[question]
            answer: Future[Verdict] = Future()
            self._known[question] = answer
            if len(self._known) > CACHED_ANSWERS:
                self._known.popitem(last=False)
            self._stats["jobs"] += 1
            if len(self._threads) < min(self._workers, self._stats["jobs"]):
                thread = threading.Thread(target=self._serve, name="math-pool", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._jobs.put((question, answer))
            return answer

    def _serve(self) -> None:
        """One thread, one worker process at a time."""
        worker: _Worker | None = None
        while (job := self._jobs.get()) is not None:
            question, answer = job
            if self._closed:
                answer.cancel()
                continue
            try:
                worker, verdict = self._grade(worker, question)
            except Exception as error:
                with self._lock:
                    self._known.pop(question, None)
                worker = None
                answer.cancel() if self._closed else answer.set_exception(error)
                continue
            if verdict.stage == "crashed":  # asked again, it may be answered
                with self._lock:
                    self._known.pop(question, None)
            answer.cancel() if worker is None and self._closed else answer.set_result(verdict)
        self._retire(worker)

    def _grade(self, worker: "_Worker | None", question: Question) -> tuple["_Worker | None", Verdict]:
        """The verdict of a worker, or of a second one where the first died; and the worker, if it can go on."""
        for attempt in range(2):
            if worker is None or worker.process.poll() is not None or worker.jobs >= JOBS_PER_WORKER:
                self._retire(worker)
                worker = self._start()
            try:
                verdict = worker.grade(question, self._deadline)
            except Exception:
                self._retire(worker)
                raise
            if verdict.stage in ("timeout", "crashed"):
                self._retire(worker)  # even if it answered: an alarm may have left sympy's caches half written
                worker = None
            if verdict.stage != "crashed" or self._closed:
                break
            if not attempt:
                self._count("retries")
        return worker, verdict

    def _start(self) -> "_Worker":
        """A worker that is ready; another where a signal killed it before that, up to STARTS of them."""
        for last in (*[False] * (STARTS - 1), True):
            worker = _Worker()
            with self._lock:
                self._stats["started"] += 1
                self._processes.add(worker)
                closed = self._closed
            try:
                if closed:
                    raise RuntimeError("this math pool is closed")
                worker.wait_ready()
                break
            except Exception:
                self._retire(worker)
                if last or closed or worker.timed_out or worker.process.returncode >= 0:
                    raise
        return worker

    def _retire(self, worker: "_Worker | None") -> None:
        if worker is not None:
            worker.kill()
            worker.process.wait()
            with contextlib.suppress(BrokenPipeError):  # of a job that it never read
                worker.process.stdin.close()
            worker.process.stdout.close()
            with self._lock:
                self._processes.discard(worker)


def _score(judged: Judgement) -> Score:
    return score(judged.prediction, judged.verdict.correct)


def _pass_on(source: Future, result: Future, change: Callable) -> None:
    """Finish one future as another finished, its value changed."""
    if not result.set_running_or_notify_cancel():
        return
    if source.cancelled():
        result.set_exception(RuntimeError("the math pool was closed before this answer was graded"))
    elif error := source.exception():
        result.set_exception(error)
    else:
        result.set_result(change(source.result()))


class _Worker:
    """One process of jopsd.rewards.worker and its pipes."""

    def __init__(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError("symbolic grading needs math-verify: pip install 'math-verify[antlr4_13_2]'")
        path = os.pathsep.join(filter(None, (str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jopsd.rewards.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"},  # sympy's orders follow the hash seed
        )
        self.jobs = 0
        self.timed_out = False  # on its start
        self._buffer = b""

    def wait_ready(self) -> None:
        """Block until the worker has imported what it needs; RuntimeError if it dies or takes START_SECONDS."""
        with contextlib.suppress(EOFError):
            if self._reply(START_SECONDS):
                return
            self.timed_out = True
        raise RuntimeError(f"a math worker did not start; `{sys.executable} -m jopsd.rewards.worker` shows why")

    def grade(self, question: Question, deadline: float) -> Verdict:
        """The verdict; after stage "timeout" or "crashed" the worker is not to be used again."""
        self.jobs += 1
        job = {**question._asdict(), "seconds": max(deadline - 1.0, deadline / 2), "kill_seconds": deadline}
        try:
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()
            reply = self._reply(STALLED_SECONDS + deadline)
        except (BrokenPipeError, EOFError):
            timed_out = self.process.wait() == -signal.SIGXCPU
            return Verdict(False, "timeout" if timed_out else "crashed", deadline)
        if reply is None:
            return Verdict(False, "crashed", deadline)
        return Verdict(reply["correct"], reply["stage"], reply["seconds"])

    def kill(self) -> None:
        self.process.kill()

    def _reply(self, seconds: float) -> dict | None:
        """The worker's next message, or None after ``seconds``; EOFError if the worker ended."""
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, end - time.monotonic())):
                    return None
                chunk = os.read(self.process.stdout.fileno(), 65536)
                if not chunk:
                    raise EOFError
                self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)
