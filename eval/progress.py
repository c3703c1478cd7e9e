"""How far an evaluation is: a bar on a terminal, elsewhere a line now and then, both with the score so far."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from tqdm import tqdm

from eval.records import Record

SECONDS = 5.0  # between two lines
Say = Callable[[str], None]


def say_to_stderr(text: str) -> None:
    """A line of its own, also above a bar."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


@contextmanager
def show_progress(
    records: Mapping[object, Record], total: int, say: Say, drawn: bool = True
) -> Iterator[Callable[[Record], None]]:
    """A function to call after each new record.

    Args:
      records: those so far; `total` with those to come. drawn: whether they are drawn here, and not just graded.
    """
    correct, tokens, before = sum(record.correct for record in records.values()), 0, len(records)
    done, start = before, time.monotonic()
    shown, first = start, None
    terminal = sys.stderr.isatty()
    bar = tqdm(total=total, initial=before, unit="sample", disable=not terminal, dynamic_ncols=True, file=sys.stderr)

    def advance(record: Record) -> None:
        nonlocal correct, tokens, done, shown, first
        now, done, correct = time.monotonic(), done + 1, correct + record.correct
        tokens += record.tokens or 0
        first = first or now
        bar.update()
        if now - shown < SECONDS and done < total:
            return
        shown = now
        score = f"correct {100 * correct / done:.1f} %"
        speed = f"  {_rate(tokens, now - start)} tok/s since the start" if drawn else ""
        bar.set_postfix_str(score + speed)
        if not terminal:
            say(f"{done}/{total} samples  {score}{speed}{_left(done, before, total, now - start, now - first)}")

    with bar:
        yield advance


def _rate(tokens: int, seconds: float) -> str:
    """Tokens per second since drawing began: samples end in bunches, so times between them tell nothing."""
    rate = tokens / max(seconds, 1e-9)
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}"


def _left(done: int, before: int, total: int, seconds: float, since_first: float) -> str:
    """The time that is left: by the pace since the first sample, before which programs compile, once that tells one."""
    if done == total:
        return ""
    count, spent = (done - before - 1, since_first) if since_first > SECONDS else (done - before, seconds)
    return f"  about {(total - done) * spent / max(count, 1):.0f} s left"
