"""python -m jopsd.data inspect SOURCE | make knights|sums --output FILE"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jopsd.data.datasets import GENERATORS
from jopsd.data.problem import COLUMN_KEYS, Problem
from jopsd.data.schemas import ALIASES
from jopsd.errors import one_line
from jopsd.rewards.grader import VERIFIERS

EXAMPLES = """examples:
  python -m jopsd.data inspect rows.jsonl
  python -m jopsd.data inspect zwhe99/DeepMath-103K --difficulty 5-7 --limit 5000
  python -m jopsd.data inspect translated_sw.json --columns problem=problem_sw --json
  python -m jopsd.data inspect sums:train --tokenizer builtin:sums --max-tokens 64
  python -m jopsd.data make knights --people 4-8 --count 5000 --seed 0 --output puzzles.jsonl
  python -m jopsd.data make sums --language sw --count 256 --seed 1 --split test --output held_out.parquet
"""
SUFFIXES = (".jsonl", ".parquet")


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        if args.command == "make":
            print(make(args))
            return 0
        report = _inspect(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    from jopsd.data.inspect import as_text

    print(json.dumps(report, indent=2, ensure_ascii=False) if args.json else as_text(report))
    return 0 if report["usable_rows"] or report["without_answer"] else 1


def _inspect(args: argparse.Namespace) -> dict[str, Any]:
    from jopsd.data.inspect import inspect_source

    tokenizer = None
    if args.tokenizer is not None:
        from jopsd.models.tokenizer import load_tokenizer  # these load jax
        from jopsd.setup import source_dir

        tokenizer = load_tokenizer(source_dir(args.tokenizer, "--tokenizer", weights=False))
    names = ("source", "split", "subset", "difficulty", "limit", "max_tokens", "reward")
    chosen = {name: getattr(args, name) for name in names}
    return inspect_source(**chosen, columns=dict(args.columns), tokenizer=tokenizer)


# ---------------------------------------------------------------------------------------------------------------- make


def make(args: argparse.Namespace) -> str:
    """Writes the rows and says so. Raises ValueError or OSError before anything at the output is touched."""
    output = args.output
    if output.suffix not in SUFFIXES:
        raise ValueError(f"--output {output} must end in {' or '.join(SUFFIXES)}")
    if output.exists() and not args.force:
        raise ValueError(f"{output} exists; give another --output, or --force to replace it")
    if not output.parent.is_dir():
        raise ValueError(f"--output {output}: there is no folder {output.parent}")
    options = {"people": args.people, "language": args.language}
    options = {name: value for name, value in options.items() if value is not None}
    foreign = options.keys() - {OPTIONS[args.task]}
    if foreign:
        raise ValueError(f"--{min(foreign)} is not an option of {args.task}")
    module = importlib.import_module(GENERATORS[args.task][0])
    problems = module.problems(args.split, args.count, args.seed, **options)
    write_rows([row_of(problem) for problem in problems], output)
    return f"{output}: {len(problems)} rows of {args.task}, split {args.split}, seed {args.seed}"


OPTIONS = {"knights": "people", "sums": "language"}


def row_of(problem: Problem) -> dict[str, Any]:
    """A row that loads back to the problem (of another source), in a file of either kind."""
    row = {COLUMN_OF.get(name, name): getattr(problem, name) for name in ALIASES}
    return {**row, "extra_json": json.dumps(dict(problem.extra), ensure_ascii=False)}


COLUMN_OF = {"teacher": "opd_teacher"}


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Replaces a .jsonl or .parquet file at once. Columns that are empty in all rows are left out."""
    filled = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    rows = [{name: row[name] for name in filled} for row in rows]
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        if path.suffix == ".parquet":
            import datasets  # slow to import

            datasets.Dataset.from_list(rows).to_parquet(temporary)
        else:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            temporary.write_text("".join(lines), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------- options


def _pair(text: str) -> tuple[str, str]:
    field, equals, column = text.partition("=")
    if not (equals and column) or field not in COLUMN_KEYS:
        raise argparse.ArgumentTypeError(f"{text!r} must look like FIELD=COLUMN, FIELD one of {', '.join(COLUMN_KEYS)}")
    return field, column


def _range(number: type) -> Any:
    def read(text: str) -> tuple:
        low, dash, high = text.partition("-")
        try:
            ends = number(low), number(high if dash else low)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} must look like 4-8") from None
        if ends[0] > ends[1]:
            raise argparse.ArgumentTypeError(f"{text!r}: the lower end comes first")
        return ends

    return read


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 1 up")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(
        prog="python -m jopsd.data",
        description="Looks at training data, and writes rows of the built-in generators.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)
    add = commands.add_parser("inspect", help="what a source holds, and which rows a run would leave out").add_argument
    add("source", help="file, directory, hub id, or a generator such as sums:train")
    add("--split", default="train")
    add("--subset", help="configuration of a hub data set")
    add("--columns", type=_pair, nargs="+", default=[], metavar="FIELD=COLUMN", help="as data.columns")
    add("--difficulty", type=_range(float), metavar="A-B", help="only rows of this band, both ends included")
    add("--limit", type=_positive, metavar="N", help="rows to read; default all")
    add("--tokenizer", metavar="DIR", help="model directory, hub id or builtin:sums; lengths are then in its tokens")
    add("--max-tokens", type=_positive, metavar="N", help="count rows that are longer as left out")
    add("--reward", choices=VERIFIERS, help="the verifier of all rows; default each row's own, else math")
    add("--json", action="store_true", help="print the same as JSON")
    add = commands.add_parser("make", help="write rows of a generator").add_argument
    add("task", choices=sorted(OPTIONS))
    add("--count", type=_positive, required=True, metavar="N")
    add("--seed", type=int, default=0)
    add("--split", choices=("train", "test"), default="train")
    add("--people", type=_range(int), metavar="A-B", help="knights: people of a puzzle, default 4-8")
    add("--language", choices=("en", "sw"), help="sums: default en")
    add("--output", type=Path, required=True, metavar="FILE", help="ends in .jsonl or .parquet")
    add("--force", action="store_true", help="replace a file that is there")
    return top


if __name__ == "__main__":
    sys.exit(main())
