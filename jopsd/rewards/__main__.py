"""python -m jopsd.rewards check FILE... : how far the verifiers agree with labelled cases."""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

EXAMPLES = """formats, told apart by what a file holds (docs/rewards.md):
  .jsonl  rows of output, expected and gold; puzzles of Knights and Knaves; answers to such puzzles
  .json   published verdicts: grading, kk_solver, verifier_rlcsd, verifier_mopd, verifier_gopd
exit status: 0 all that must hold does; 1 a case fails or is too slow; 2 a file cannot be read
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from jopsd.rewards.cases import CaseError, read_cases

    try:
        cases = read_cases(args.files)
    except CaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.category is not None:
        cases = [case for case in cases if case.category == args.category]
    if args.limit is not None:
        cases = [case for _, group in groupby(cases, lambda case: case.file) for case in list(group)[: args.limit]]
    if not cases:
        print(f"error: no case is of category {args.category!r}", file=sys.stderr)
        return 2
    from jopsd.rewards.check import as_text, report, run

    try:
        outcomes = run([case for case in cases if not case.freetext], args.workers)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except (RuntimeError, ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = report(outcomes, [case for case in cases if case.freetext])
    text = json.dumps(found, indent=2) if args.json else as_text(found)
    print(text.encode(errors="backslashreplace").decode())  # an output may hold half a character
    return 0 if found["ok"] else 1


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="python -m jopsd.rewards")
    commands = whole.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check",
        help="run verifiers over labelled cases and report where they agree",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("files", nargs="+", type=Path, metavar="FILE")
    check.add_argument("--workers", type=_positive, help="processes at a time; without it, one for each usable core")
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    check.add_argument("--limit", type=_positive, help="only the first cases of each file")
    check.add_argument("--category", help="only cases of this category")
    return whole


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
