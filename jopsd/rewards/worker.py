"""The process that does symbolic algebra for `jopsd.rewards.pool`: JSON lines in, JSON lines out.

Started as ``python -m jopsd.rewards.worker``, never forked and never through multiprocessing, so neither jax nor the
parent's main module is loaded here. It ends when its input closes, so it cannot outlive a killed parent.
"""

import json
import math
import os
import queue
import resource
import signal
import sys
import threading
import time

from jopsd.rewards.math import Question, quick_grade
from jopsd.rewards.symbolic import symbolic_grade

MEMORY_BYTES = 2 << 30
# Answered before the worker is ready, so that no answer's limit pays for imports and the parser's tables.
_WARM_UP = (
    ("x+1", "y+2"),
    ("\\frac{\\sqrt{2}}{2}\\pi", "\\sin^2 x"),
    ("\\{1,\\ln 2\\}", "(1,2]\\cup[3,\\infty)"),
    ("1<x<2", "x\\in(1,2)"),
    ("\\begin{pmatrix}1&x\\end{pmatrix}", "\\begin{pmatrix}2&x\\end{pmatrix}"),
    ("x=4", "4"),
)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not enter the replies
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    _lower_limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _lower_limit(resource.RLIMIT_CORE, 0)
    for pair in _WARM_UP:
        asked = quick_grade(*pair)
        if isinstance(asked, Question):
            symbolic_grade(asked)
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    _reply(replies, {"ready": True})
    while True:
        job = json.loads(jobs.get())
        start = time.process_time()
        # The kernel's limit also ends a loop inside C code, which never lets Python look at the time.
        _lower_limit(resource.RLIMIT_CPU, math.ceil(start + job["kill_seconds"]))
        verdict = symbolic_grade(Question(job["prediction"], job["gold"]), job["seconds"])
        seconds = time.process_time() - start
        _reply(replies, {"correct": verdict.correct, "stage": verdict.stage, "seconds": seconds})


def _read(jobs: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)  # the parent closed the pipe or is gone, whatever the main thread is doing


def _reply(replies, message: dict) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _lower_limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard == resource.RLIM_INFINITY or value <= hard:
        resource.setrlimit(kind, (value, hard))


if __name__ == "__main__":
    main()
