"""python -m eval --model DIR --data SOURCE --samples N --output DIR"""

import argparse
import sys
from pathlib import Path

from jopsd.rewards.grader import AUTO, VERIFIERS

EXAMPLES = r"""examples:
  python -m eval --model models/Qwen3-1.7B --data HuggingFaceH4/MATH-500 --samples 4 --output evals/base
  python -m eval --checkpoint runs/opsd:100 --data aime.jsonl --samples 12 --max-new-tokens 38912 \
      --output evals/opsd-100
  python -m eval --model builtin:sums --data sums:test --limit 64 --samples 4 --template "Problem: {problem}" \
      --max-new-tokens 44 --output evals/sums

Interrupted, the same command goes on where it stopped. Files: results.json, generations.jsonl, settings.json.
"""
THINKING = {"on": True, "off": False, "default": None}


def main(argv: list[str] | None = None) -> int:
    args = vars(_parser().parse_args(argv))
    args["thinking"] = THINKING[args["thinking"]]
    try:
        columns = dict(_column(text) for text in args.pop("column"))
        from eval.report import table
        from eval.run import Options, run

        summary = run(Options(**args, columns=columns))
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print("error: " + "; ".join(line.strip() for line in str(error).splitlines() if line.strip()), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; start again to go on from what {args['output']} has", file=sys.stderr)
        return 130
    print(table(summary))
    print(f"{args['output'] / 'results.json'}")
    return 0


def _column(text: str) -> tuple[str, str]:
    field, equals, column = text.partition("=")
    if not (field and equals and column):
        raise ValueError(f"--column {text!r} must look like answer=NAME_OF_THE_COLUMN")
    return field, column


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval",
        description="Draws N answers to every problem, grades them, and reports Avg@N, Pass@N and Maj@N.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", metavar="DIR", help="Hugging Face model directory, or builtin:sums; beside --checkpoint: its base")
    add("--checkpoint", metavar="RUN_DIR[:STEP]", help="a run's newest checkpoint, or that of a step")
    add("--data", required=True, metavar="SOURCE", help="file, directory, hub id, or a generator such as sums:test")
    add("--split", default="test")
    add("--subset", help="configuration of a hub data set")
    add("--limit", type=int, help="problems to read; default all")
    add("--data-seed", type=int, default=0, help="of a generator")
    add("--column", action="append", default=[], metavar="FIELD=NAME", help="e.g. answer=final; may be repeated")
    add("--samples", type=int, required=True, metavar="N", help="answers per problem")
    add("--template", help="the user's turn; default the run's, or 'Problem: {problem}', a blank line, '{instruction}'")
    add("--reward", choices=(AUTO, *VERIFIERS), help="the verifier; default the run's, or math")
    add("--unsafe", action="store_true", help="run programs even where this host cannot keep them in a sandbox")
    add("--thinking", choices=THINKING, default="default", help="default: as the run says, or the chat template")
    add("--temperature", type=float, help="0 is greedy; default the run's eval.temperature, or 1")
    add("--top-p", type=float, help="default the run's eval.top_p, or 0.95")
    add("--top-k", type=int, help="0 is off; default the run's eval.top_k, or 0")
    add("--max-new-tokens", type=int, help="default the run's eval.max_new_tokens, or 1024")
    add("--seed", type=int, default=0)
    add("--slots", type=int, default=32, help="samples decoded together: more is faster and takes more memory")
    add("--backend", choices=("jetstream", "loop"), default="jetstream")
    add("--output", required=True, type=Path, metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
