"""Races jopsd's sampler against `generate` of transformers, each in a process of its own: python -m bench.peers

    bench/peers/setup.sh          # once: the peer's environment and a pretrained model
    python -m bench.peers [--work decode generate tails cache prefill] [--rounds 5] [--json FILE]

Per case two processes load the model, warm up and compile; that time is given apart. Then every round asks all
entrants in turn for one repetition, ours and theirs alternating, while the other process sits idle. Read the ratios:
the peer's best wall time over our loop's, below 1 where we are slower. Numbers are those of the fastest repetition,
with those of the median one in brackets. Every repetition has prompts of its own, the same for both sides.

Needs an idle machine: "others" is how many processors other processes kept busy. Do not use a row where it is well
above 0: the two sides need not suffer alike.
"""

import argparse
import json
import signal
import statistics
import sys
from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from pathlib import Path

from bench.peers.protocol import ROOT, Worker
from bench.peers.works import OURS, PRETRAINED, THEIRS, WORKS, Case, make_cases, shrunk, value

COLUMNS = (
    "work",
    *OURS,
    *THEIRS,
    "unit",
    "ratio (medians; CPU)",
    "JetStream / loop",
    "CPU s",
    "peak MB",
    "warm-up s",
    "others",
)


def race(case: Case, commands: dict[str, Sequence[str]], rounds: int, threads: int) -> dict:
    """The row of one case. commands: of the two workers, "ours" and "theirs"."""
    sides = {name: "ours" if name in OURS else "theirs" for name in case.entrants}
    workers: dict[str, Worker] = {}
    try:
        warm, replies = {}, {name: [] for name in case.entrants}
        for side in dict.fromkeys(sides.values()):
            workers[side] = Worker(commands[side])
            loaded = workers[side].ask(case=case._asdict(), threads=threads)["seconds"]
            for name in [name for name, where in sides.items() if where == side]:
                warm[name], loaded = loaded + workers[side].ask(warm=name)["seconds"], 0.0
        for number in range(1, rounds + 1):
            for name in order_of(case.entrants, number):
                replies[name].append(workers[sides[name]].ask(run=name, number=number))
                taken = shown(replies[name][-1]["wall"])
                print(
                    f"{case.work}, {case.name}, {case.dtype}: {name} {number}, {taken} s", file=sys.stderr, flush=True
                )
        return make_row(case, replies, warm)
    except RuntimeError as error:
        return {"name": "peers", **titles(case), "error": str(error)}
    finally:
        for worker in workers.values():
            worker.close()


def order_of(entrants: Sequence[str], number: int) -> list[str]:
    """Entrants of a round: ours and theirs alternate, and who begins changes."""
    ours, theirs = ([name for name in entrants if name in side] for side in (OURS, THEIRS))
    first, second = (ours, theirs) if number % 2 else (theirs, ours)
    return [name for name in chain.from_iterable(zip_longest(first, second)) if name]


def titles(case: Case) -> dict[str, str]:
    return {"work": case.work, "case": case.name, "dtype": case.dtype, "unit": case.unit}


def make_row(case: Case, replies: dict[str, list[dict]], warm: dict[str, float]) -> dict:
    """What the repetitions of every entrant come to. ratio: best wall time of the peer over our loop's."""
    found = {}
    for name, answers in replies.items():
        best, median = (seconds(answers, "wall", middle) for middle in (min, statistics.median))
        found[name] = {
            "best": value(case, best),
            "median": value(case, median),
            "best_seconds": best,
            "median_seconds": median,
            "cpu_seconds": seconds(answers, "cpu", min),
            "compile_seconds": sum(answer["compile"] for answer in answers),
            "peak_mb": max(answer["peak_mb"] for answer in answers),
            "others": statistics.median(answer["others"] for answer in answers),
            "warm_up_seconds": warm[name],
            "repetitions": answers,
        }
    row = {"name": "peers", **titles(case), "entrants": found}
    for key, taken in (("", "best_seconds"), ("_median", "median_seconds"), ("_cpu", "cpu_seconds")):
        times = {name: entrant[taken] for name, entrant in found.items() if entrant[taken] > 0}
        best = min((times[name] for name in THEIRS if name in times), default=None)
        row[f"ratio{key}"] = over(best, times.get("loop"))
        row[f"jetstream_over_loop{key}"] = over(times.get("jetstream"), times.get("loop"))
    return row


def over(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


def seconds(answers: Sequence[dict], kind: str, middle: Callable) -> float:
    """Of a repetition without its base, each taken by itself: the least difference of two noisy times is noise.

    Not above zero where the base was disturbed more than the repetition.
    """
    return middle(answer[kind] for answer in answers) - middle(answer[f"base_{kind}"] for answer in answers)


def make_table(rows: Sequence[dict]) -> str:
    """Rows in Markdown: those that failed, then those where we are slower, the slowest first."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    for row in sorted(rows, key=lambda row: -1 if "error" in row else row["ratio"] or float("inf")):
        title = f"{row['work']}: {row['case']}, {row['dtype']}"
        if "error" in row:
            lines.append(f"| {title} | " + row["error"].splitlines()[0].replace("|", "/") + " |")
            continue
        found = row["entrants"]
        sides = [[found[name] for name in side if name in found] for side in (OURS, THEIRS)]
        both = lambda pick, key: " / ".join(shown(pick((e[key] for e in s), default=None)) for s in sides)  # noqa: E731, B023
        cells = [
            f"{shown(found[n]['best'])} ({shown(found[n]['median'])})" if n in found else "-" for n in OURS + THEIRS
        ]
        ratio = "{} ({}; {})".format(*(shown(row[f"ratio{key}"]) for key in ("", "_median", "_cpu")))
        more = [both(min, "cpu_seconds"), both(max, "peak_mb"), both(max, "warm_up_seconds"), both(max, "others")]
        lines.append(
            "| " + " | ".join([title, *cells, row["unit"], ratio, shown(row["jetstream_over_loop"]), *more]) + " |"
        )
    return "\n".join(lines)


def shown(number: float | None) -> str:
    """Three digits."""
    return "-" if number is None else f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__.split("\n")[0])
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--only", default="", help="run the cases whose name has this in it")
    parser.add_argument("--entrants", nargs="+", choices=OURS + THEIRS, default=list(OURS + THEIRS))
    for name, default in (("rounds", 5), ("threads", 2), ("tail-requests", 128), ("tail-longest", 1024)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", type=Path, default=ROOT / ".peers/smollm2", help="SmolLM2 as a directory")
    parser.add_argument("--peer-python", type=Path, default=ROOT / ".peers/env/bin/python")
    parser.add_argument("--quick", action="store_true", help="a toy model and few tokens: does it run, not how fast")
    parser.add_argument("--json", type=Path, help="append one JSON line per row to this file")
    args = parser.parse_args(argv)
    if set(args.entrants) & set(THEIRS) and not args.peer_python.is_file():
        parser.error(f"no {args.peer_python}: run bench/peers/setup.sh, or name a Python with --peer-python")
    if not args.quick and set(args.work) & set(PRETRAINED) and not (args.model / "config.json").is_file():
        parser.error(f"no model in {args.model}: run bench/peers/setup.sh, or name its directory with --model")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    commands = {"ours": [sys.executable, "-m", "bench.peers.ours"]}
    # Not resolved: a virtual environment's Python is a link.
    commands["theirs"] = [str(args.peer_python.absolute()), "-m", "bench.peers.theirs"]
    rows = []
    for work in args.work:
        for dtype in args.dtypes:
            for case in make_cases(work, dtype, str(args.model.resolve()), args.tail_requests, args.tail_longest):
                if args.only not in case.name:
                    continue
                case = shrunk(case) if args.quick else case
                case = case._replace(entrants=tuple(name for name in case.entrants if name in args.entrants))
                rows.append({**race(case, commands, args.rounds, args.threads), "threads": args.threads})
                print(make_table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
                if args.json:
                    with args.json.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print(make_table(rows))
    for row in rows:
        print(json.dumps(row))
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers are ended too
    sys.exit(main())
