"""The process that does symbolic algebra for `jopsd.rewards.pool`: JSON lines in, JSON lines out.

Started as ``python -m jopsd.rewards.worker``, never forked and never through multiprocessing, so neither jax nor the
parent's main module is loaded here. It ends when its input closes, so it cannot outlive a killed parent.
"""

import json
import os
import queue
import resource
import signal
import sys
import threading

from jopsd.rewards.math import Question, quick_grade
from jopsd.rewards.symbolic import symbolic_grade

MEMORY_BYTES = 2 << 30
CPU_SECONDS = 15  # per job; the kernel's limit also ends a loop inside C code that never lets Python run


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not enter the replies
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    _lower_limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _lower_limit(resource.RLIMIT_CORE, 0)
    warm = quick_grade("x+1", "y+2")
    assert isinstance(warm, Question)
    symbolic_grade(warm)
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    _reply(replies, {"ready": True})
    while True:
        job = json.loads(jobs.get())
        _allow_cpu(CPU_SECONDS)
        verdict = symbolic_grade(Question(job["prediction"], job["gold"]), job["seconds"])
        _reply(replies, {"correct": verdict.correct, "stage": verdict.stage})


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


def _allow_cpu(seconds: int) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _lower_limit(resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime) + seconds)


if __name__ == "__main__":
    main()
