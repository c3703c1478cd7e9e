"""Races jopsd against its peers, each entrant in a process of its own: python -m bench.peers

    bench/peers/setup.sh          # once: the peers' environment and a pretrained model
    python -m bench.peers [--work decode generate tails cache prefill step update loss] [--rounds 5] [--json FILE]

Sampling (decode to prefill) is beside `generate` of transformers; a whole step of on-policy self-distillation beside
TRL's SDFTTrainer; an update, and the loss with its gradients alone, beside TRL's and Liger's losses.

Per case all entrants load the model, warm up and compile; that time is given apart. Then every round asks them in turn
for one repetition, ours and theirs alternating, while the other processes sit idle. Of a whole step
every repetition is a start of its own, the warm-up too: "first" is the time from there to the end of the first step,
the rest is of the steps after it. Read the ratios: the peers' best wall time over our loop's or trainer's, below 1
where we are slower. Numbers are those of the fastest repetition, with those of the median one in brackets. Every
repetition has prompts of its own, the same for both sides.

Needs an idle machine: "others" is how many processors other processes kept busy. Do not use a row where it is well
above 0: the two sides need not suffer alike.
"""

import argparse
import json
import signal
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, product, zip_longest
from pathlib import Path

from bench.peers import sampling, training
from bench.peers.protocol import ROOT, Worker

WORKS = sampling.WORKS + training.WORKS
PRETRAINED = sampling.PRETRAINED + training.PRETRAINED
OURS, THEIRS = sampling.OURS + training.OURS, sampling.THEIRS + training.THEIRS
MEASURED = ("loop", "jopsd")  # what the ratio is of
BESIDE = (*THEIRS, "equal")  # the best of these over it
REPLY = {"wall", "cpu", "base_wall", "base_cpu", "compile", "peak_mb", "others"}  # what every repetition tells

Case = sampling.Case | training.Case


def race(case: Case, commands: dict[str, Sequence[str]], rounds: int, threads: int) -> dict:
    """The row of one case. commands: of the workers of both sides, "ours" and "theirs"; each entrant has its own."""
    workers: dict[str, Worker] = {}

    def ask(name: str, **question) -> dict:
        """The answer of an entrant's worker, which is started where there is none: its first answer counts that."""
        loaded = 0.0
        if name not in workers:
            workers[name] = Worker(commands["ours" if name in OURS else "theirs"])
            loaded = workers[name].ask(case=case._asdict(), threads=threads)["seconds"]
        answer = workers[name].ask(**question)
        if "seconds" in answer:
            answer["seconds"] += loaded
        if "first_ended" in answer:
            answer["first"] = answer.pop("first_ended") - workers[name].started
        if case.fresh:
            workers.pop(name).close()
        return answer

    try:
        warm, replies = {}, {name: [] for name in case.entrants}
        for name in case.entrants:
            answer = ask(name, warm=name)
            warm[name] = answer.get("first", answer["seconds"])
        for number in range(1, rounds + 1):
            for name in order_of(case.entrants, number):
                replies[name].append(ask(name, run=name, number=number))
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
    """What the repetitions of every entrant come to. ratio: best wall time of the peers over our loop's or trainer's.

    "more" holds the medians of what an entrant tells beside its time.
    """
    found = {}
    for name, answers in replies.items():
        best, median = (seconds(answers, "wall", middle) for middle in (min, statistics.median))
        found[name] = {
            "best": case.value(best),
            "median": case.value(median),
            "best_seconds": best,
            "median_seconds": median,
            "cpu_seconds": seconds(answers, "cpu", min),
            "compile_seconds": sum(answer["compile"] for answer in answers),
            "peak_mb": max(answer["peak_mb"] for answer in answers),
            "others": statistics.median(answer["others"] for answer in answers),
            "warm_up_seconds": warm[name],
            "more": {
                key: statistics.median(answer[key] for answer in answers) for key in answers[0] if key not in REPLY
            },
            "repetitions": answers,
        }
    row = {"name": "peers", **titles(case), "entrants": found}
    for key, taken in (("", "best_seconds"), ("_median", "median_seconds"), ("_cpu", "cpu_seconds")):
        times = {name: entrant[taken] for name, entrant in found.items() if entrant[taken] > 0}
        best = min((times[name] for name in BESIDE if name in times), default=None)
        ours = next((times[name] for name in MEASURED if name in times), None)
        row[f"ratio{key}"] = over(best, ours)
        row[f"jetstream_over_loop{key}"] = over(times.get("jetstream"), times.get("loop"))
    return row


def over(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


def seconds(answers: Sequence[dict], kind: str, middle: Callable) -> float:
    """Of a repetition without its base, each taken by itself: the least difference of two noisy times is noise.

    Not above zero where the base was disturbed more than the repetition.
    """
    return middle(answer[kind] for answer in answers) - middle(answer.get(f"base_{kind}", 0.0) for answer in answers)


def make_table(rows: Sequence[dict]) -> str:
    """Rows in Markdown: those that failed, then those where we are slower, the slowest first."""
    present = {name for row in rows for name in row.get("entrants", ())}
    names = [name for name in OURS + THEIRS if name in present]
    columns = ["work", *names, "unit", "ratio (medians; CPU)"]
    columns += ["JetStream / loop"] * ("jetstream" in names) + ["CPU s", "peak MB", "warm-up s", "others"]
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    for row in sorted(rows, key=lambda row: -1 if "error" in row else row["ratio"] or float("inf")):
        title = f"{row['work']}: {row['case']}, {row['dtype']}"
        if "error" in row:
            lines.append(f"| {title} | " + row["error"].splitlines()[0].replace("|", "/") + " |")
            continue
        found = row["entrants"]
        each = lambda key: " / ".join(shown(found[name][key]) for name in names if name in found)  # noqa: E731, B023
        cells = [cell(found[name]) if name in found else "-" for name in names]
        ratio = "{} ({}; {})".format(*(shown(row[f"ratio{key}"]) for key in ("", "_median", "_cpu")))
        over_loop = [shown(row["jetstream_over_loop"])] * ("jetstream" in names)
        more = [each(key) for key in ("cpu_seconds", "peak_mb", "warm_up_seconds", "others")]
        lines.append("| " + " | ".join([title, *cells, row["unit"], ratio, *over_loop, *more]) + " |")
    return "\n".join(lines)


def cell(entrant: dict) -> str:
    """The best repetition, the median one, and what else the entrant told."""
    more = ", ".join(f"{key} {shown(number)}" for key, number in entrant["more"].items())
    return f"{shown(entrant['best'])} ({shown(entrant['median'])}{'; ' * bool(more)}{more})"


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


def chosen(args: argparse.Namespace) -> Iterator[tuple[str, Case]]:
    """(which workers run it, case) of what the arguments select, cut to the entrants that they name."""
    model = str(args.model.resolve())
    for work, dtype in product(args.work, args.dtypes):
        if work in sampling.WORKS:
            kind, cases = "sampling", sampling.make_cases(work, dtype, model, args.tail_requests, args.tail_longest)
        else:
            kind, cases = "step" if work == "step" else "training", training.make_cases(work, dtype, model)
        for case in cases:
            case = case.shrunk() if args.quick else case
            case = case._replace(entrants=tuple(name for name in case.entrants if name in args.entrants))
            if case.entrants and args.only in case.name:
                yield kind, case


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    rows = []
    for kind, case in chosen(args):
        commands = {
            "ours": [sys.executable, "-m", f"bench.peers.ours_{kind}"],
            # Not resolved: a virtual environment's Python is a link.
            "theirs": [str(args.peer_python.absolute()), "-m", f"bench.peers.theirs_{kind}"],
        }
        rows.append({**race(case, commands, args.rounds, args.threads), "threads": args.threads})
        print(make_table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    for works in (sampling.WORKS, training.WORKS):
        if part := [row for row in rows if row["work"] in works]:
            print(make_table(part) + "\n")
    for row in rows:
        print(json.dumps(row))
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers are ended too
    sys.exit(main())
