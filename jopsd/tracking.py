"""What a run writes while it runs: metrics.jsonl, TensorBoard events, samples, and a live line on the terminal."""

import io
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

METRICS = "metrics.jsonl"


class Tracker:
    """Writes metrics of one run. Use through `open_tracker`."""

    def __init__(self, run_dir: Path, tensorboard: bool, resume_step: int | None):
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir = run_dir
        _drop_rows_after(run_dir / METRICS, resume_step)
        self._file = open(run_dir / METRICS, "a", encoding="utf-8")
        self._writer = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            purge = 0 if resume_step is None else resume_step + 1
            self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row. A value that is not finite is written as null in the file, so that every line is strict JSON."""
        row = {"step": step} | {k: float(v) if math.isfinite(v) else None for k, v in metrics.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            if self._writer is not None:
                self._writer.add_scalar(name, value, step)

    def dump_samples(self, step: int, samples: Sequence[dict]) -> None:
        """Replaces samples/step_N.jsonl."""
        folder = self.run_dir / "samples"
        folder.mkdir(exist_ok=True)
        lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        (folder / f"step_{step:06d}.jsonl").write_text(lines, encoding="utf-8")

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        if self._writer is not None:
            self._writer.close()


class Silent:
    """The tracker of processes that leave the writing to another."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def dump_samples(self, step: int, samples: Sequence[dict]) -> None:
        pass

    def close(self) -> None:
        pass


@contextmanager
def open_tracker(run_dir: Path, tensorboard: bool, resume_step: int | None, write: bool = True):
    """A `Tracker` whose files hold nothing later than `resume_step` (None: nothing), closed on the way out."""
    tracker = Tracker(run_dir, tensorboard, resume_step) if write else Silent()
    try:
        yield tracker
    finally:
        tracker.close()


def read_metrics(run_dir: str | Path) -> list[dict]:
    """All complete rows of a run's metrics.jsonl; a last line torn by a killed process is left out."""
    path = Path(run_dir) / METRICS
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def replace_text(path: Path, text: str) -> None:
    """Writes a file so that a process killed meanwhile leaves the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _drop_rows_after(path: Path, step: int | None) -> None:
    """Rows after the step a run resumes from will be written again; without such a step, all of them."""
    if path.is_file():
        rows = [row for row in read_metrics(path.parent) if step is not None and row["step"] <= step]
        replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))


class Progress:
    """One line per logged step: rewritten in place on a terminal, appended elsewhere. quiet: no lines."""

    SHOWN = (
        ("loss", "loss {:.4f}"),
        ("reward", "reward {:.3f}"),
        ("length", "length {:.1f}"),
        ("entropy", "entropy {:.3f}"),
    )

    def __init__(self, total: int, done: int, stream=None, quiet: bool = False):
        self._total, self._first, self._stream = total, done, io.StringIO() if quiet else stream or sys.stderr
        self._start = time.monotonic()
        self._open_line = False

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        parts = [form.format(metrics[name]) for name, form in self.SHOWN if name in metrics]
        parts.append(f"{metrics['time/tokens_per_second']:.0f} tok/s")
        left = (self._total - step) * (time.monotonic() - self._start) / max(step - self._first, 1)
        text = f"step {step}/{self._total}  " + "  ".join(parts) + f"  ETA {_clock(left)}"
        if self._stream.isatty():
            self._stream.write(f"\r\x1b[K{text}")
            self._open_line = True
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        """A line of its own."""
        self._stream.write(("\n" if self._open_line else "") + text + "\n")
        self._stream.flush()
        self._open_line = False


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def curve(rows: Sequence[Mapping], path: Path) -> None:
    """Accuracy (with interval) and training loss by step, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    evaluations = [row for row in rows if "eval/accuracy" in row]
    losses = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(6, 6), sharex=True, layout="constrained")
    steps = [row["step"] for row in evaluations]
    mean = [row["eval/accuracy"] for row in evaluations]
    low, high = ([row[f"eval/accuracy_{side}"] for row in evaluations] for side in ("low", "high"))
    top.fill_between(steps, low, high, alpha=0.2)
    top.plot(steps, mean, marker="o")
    top.set(ylabel="held-out accuracy", ylim=(0, 1))
    if losses:
        bottom.plot(*zip(*losses, strict=True))
    bottom.set(xlabel="step", ylabel="loss")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def sparkline(values: Sequence[float]) -> str:
    """Values in [0, 1] as a row of block characters."""
    blocks = "▁▂▃▄▅▆▇█"
    return "".join(blocks[min(int(value * len(blocks)), len(blocks) - 1)] for value in values)
