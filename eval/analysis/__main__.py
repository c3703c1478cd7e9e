"""python -m eval.analysis NAME --rollouts PATH [--model DIR | --checkpoint RUN[:STEP]] --output DIR"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from eval.analysis import ANALYSES
from jopsd import compile_cache
from jopsd.errors import one_line
from jopsd.paths import argument

EXAMPLES = """examples:
  python -m eval.analysis diversity --rollouts evals/base/aime24/seed_0 --output analysis/diversity
  python -m eval.analysis position --rollouts runs/opsd --checkpoint runs/opsd:100 --output analysis/position
  python -m eval.analysis style --rollouts runs/rlcsd --checkpoint runs/rlcsd --output analysis/style
  python -m eval.analysis entropy --rollouts runs/opsd --model models/Qwen3-1.7B --output analysis/entropy
  python -m eval.analysis teacher-signal --rollouts candidate_responses.jsonl --model models/Qwen3-8B \\
      --conditions base,solution,feedback --output analysis/signal

A run saves the rollouts that its config's log.samples and log.samples_every ask for, with all prompts.
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = vars(_parser().parse_args(argv))
    try:
        compile_cache.enable()
        import_module(ANALYSES[args.pop("analysis")]).run(argparse.Namespace(**args))
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval.analysis",
        description="What saved rollouts say of teacher and student: a table and a figure.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="analysis", required=True, metavar="NAME")
    for name, path in ANALYSES.items():
        module = import_module(path)
        text = module.__doc__.strip().split("\n\n")[0].replace("\n", " ")
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--rollouts", required=True, type=argument, metavar="PATH", help="a run, an evaluation, or a .jsonl file"
        )
        command.add_argument("--model", type=argument, metavar="DIR", help="the model that scores")
        command.add_argument("--checkpoint", type=argument, metavar="RUN_DIR[:STEP]", help="or a run's checkpoint")
        command.add_argument("--output", required=True, type=argument, metavar="DIR")
        module.add_arguments(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
