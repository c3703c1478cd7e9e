"""Trains with the command `jopsd.train` for `bench.peers`, whole steps: the worker of our side."""

import json
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from bench.peers.compile_clock import compile_clock
from bench.peers.protocol import Run, serve
from bench.peers.training import TEACHER_TEMPLATE, Case, make_rows, model_directory, step_answer
from jopsd import train
from jopsd.tracking import METRICS


def load(case: dict, threads: int) -> Callable[[str], Run]:
    case = Case(**case)

    def run(number: int) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            return trained(case, number, Path(folder))

    return lambda name: run


def trained(case: Case, number: int, folder: Path) -> dict[str, float]:
    """One start of the trainer; with number 0 its first step alone."""
    steps = 1 + (case.steps if number else 0)
    rows, run_dir = folder / "rows.jsonl", folder / "run"
    rows.write_text("".join(json.dumps(row) + "\n" for row in make_rows(case, number)), encoding="utf-8")
    path = folder / "config.yaml"
    path.write_text(json.dumps(config_of(case, model_directory(case, folder), rows, run_dir, steps)), encoding="utf-8")
    with marks_of(run_dir / METRICS) as marks:
        if train.main(["--config", str(path)]):
            raise RuntimeError("jopsd.train failed; its message is above")
    metrics = [json.loads(line) for line in (run_dir / METRICS).read_text().splitlines()]
    found = []
    for step, row in enumerate(metrics):
        sampling, update = row["time/sample_seconds"], row["time/update_seconds"]
        cpu = marks[step][1] - (marks[step - 1][1] if step else 0.0)
        found.append({"wall": sampling + update, "cpu": cpu, "sampling": sampling, "tokens": row["tokens"]})
    return step_answer(case, found, marks[0][0])


def config_of(case: Case, model: str, rows: Path, run_dir: Path, steps: int) -> dict:
    """A config as a user would write it, with the policy of recomputation that is the fastest on a CPU."""
    remat = "full" if case.dtype == "bfloat16" else "dots"
    return {
        "output_dir": str(run_dir),
        "model": {"path": model, "dtype": case.dtype, "param_dtype": case.dtype, "remat": remat},
        "lora": {"rank": case.lora, "alpha": 2 * case.lora} if case.lora else None,
        "method": {"name": "opsd", "alpha": case.alpha, "temperature": 1.0},
        "context": {"student_template": "{problem}", "teacher_template": TEACHER_TEMPLATE, "instruction": ""},
        "data": {"source": str(rows)},
        "sampling": {"max_new_tokens": max(case.new), "slots": case.slots},
        "reward": None,
        "optimizer": {"learning_rate": 1e-5, "schedule": "constant"},
        "train": {"steps": steps, "batch_size": len(case.new), "micro_batch_size": case.micro},
        "log": {"tensorboard": False},
    }


@contextmanager
def marks_of(metrics: Path):
    """[(time, CPU seconds of this process)] of the moments at which a line was added to the file."""
    marks, done = [], threading.Event()

    def watch():
        size = 0
        while not done.wait(0.01):
            found = metrics.stat().st_size if metrics.exists() else 0
            if found > size:
                size = found
                marks.append((time.time(), time.process_time()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield marks
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    serve(load, compile_clock())
