"""How the driver and a worker talk: JSON lines on the worker's stdin and stdout, one answer per question.

    {"case": {...}, "threads": 2}   loads what the case needs: {"seconds": 2.5}
    {"warm": "loop"}                builds an entrant and compiles: {"seconds": 9.5, ...}
    {"run": "loop", "number": 3}    one repetition: {"wall": ..., "cpu": ..., "compile": seconds spent compiling
                                    meanwhile, "peak_mb": ..., "others": processors that other processes kept busy
                                    meanwhile}, and what else the entrant tells

"wall" and "cpu" are seconds; "base_wall" and "base_cpu", if given, those of a base that is taken off. An entrant that
was not warmed is built by its first repetition. A worker that fails answers {"error": ...}, and ends when its stdin
does.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The number of a repetition, from 1; 0 warms up -> its answer
Run = Callable[[int], dict[str, float]]


class Worker:
    """A process that answers, and sits idle between two questions."""

    def __init__(self, command: Sequence[str]):
        self.name, self.started = " ".join(command), time.time()
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT, text=True)

    def ask(self, **question) -> dict:
        """The answer.

        Raises:
          RuntimeError: the worker failed or ended.
        """
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": "it ended"}
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it is gone already
        self.process.stdout.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def serve(load: Callable[[dict, int], Callable[[str], Run]], compile_seconds: Callable[[], float] = lambda: 0) -> None:
    """Answers until stdin ends.

    Args:
      load: (case, threads) -> a function that builds an entrant by name.
      compile_seconds: spent compiling in this process so far.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    build, runs = None, {}
    for line in sys.stdin:
        question = json.loads(line)
        try:
            start = time.perf_counter()
            if "case" in question:
                limit_processors(question["threads"])
                build, runs = load(question["case"], question["threads"]), {}
                answer = {"seconds": time.perf_counter() - start}
            elif "warm" in question:
                runs[question["warm"]] = run = build(question["warm"])
                answer = run(0)
                answer["seconds"] = time.perf_counter() - start
            else:
                before, name = (compile_seconds(), others_seconds()), question["run"]
                runs[name] = runs.get(name) or build(name)
                answer = runs[name](question["number"])
                others = (others_seconds() - before[1]) / (time.perf_counter() - start)
                answer |= {"compile": compile_seconds() - before[0], "peak_mb": peak_mb(), "others": others}
        except Exception as error:  # the driver goes on with the next case
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def limit_processors(count: int) -> None:
    """Keeps this process to the first `count` processors that it may use, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def others_seconds() -> float:
    """CPU seconds of all processes but this one since some moment; 0 where Linux does not tell."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()


def peak_mb() -> float:
    """The most memory this process has held. In kilobytes on Linux, in bytes on a Mac."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def timed(work: Callable[[], object]) -> tuple[float, float, object]:
    """(wall seconds, CPU seconds of all threads, what the work returned)."""
    start = time.perf_counter(), time.process_time()
    done = work()
    return time.perf_counter() - start[0], time.process_time() - start[1], done
