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
def show_progress(records: Mapping[object, Record], total: int, say: Say) -> Iterator[Callable[[Record], None]]:
    """A function to call after each new record. records: those so far; `total` with those to come."""
    correct, tokens, before = sum(record.correct for record in records.values()), 0, len(records)
    done, start, shown = before, None, None
    terminal = sys.stderr.isatty()
    bar = tqdm(total=total, initial=before, unit="sample", disable=not terminal, dynamic_ncols=True, file=sys.stderr)

    def advance(record: Record) -> None:
        nonlocal correct, tokens, done, start, shown
        now, done, correct = time.monotonic(), done + 1, correct + record.correct
        bar.update()
        score = f"correct {100 * correct / done:.1f} %"
        if start is None:  # compilation is over
            start = shown = now
            return
        tokens += record.tokens or 0
        if now - shown < SECONDS and done < total:
            return
        shown, seconds = now, max(now - start, 1e-9)
        rate = f"{tokens / seconds:.0f} tok/s"
        bar.set_postfix_str(f"{score}, {rate}")
        if not terminal:
            left = (total - done) * seconds / max(done - before - 1, 1)
            say(f"{done}/{total} samples  {score}  {rate}  {left:.0f} s left")

    with bar:
        yield advance
