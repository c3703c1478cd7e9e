"""python -m eval --model DIR --benchmark NAME --samples N --output DIR, and its sub-commands"""

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from jopsd.errors import one_line
from jopsd.paths import argument, path_argument
from jopsd.rewards.grader import AUTO, VERIFIERS

EXAMPLES = r"""examples:
  python -m eval --model models/Qwen3-1.7B --benchmark aime24 aime25 --preset pw-opsd --output evals/base
  python -m eval --model Qwen/Qwen3-4B --benchmark polymath --language sw te --level low high --preset copsd-polymath \
      --output evals/polymath
  python -m eval --checkpoints runs/opsd --every 25 --benchmark math500=math500.jsonl --samples 4 --output evals/sweep
  python -m eval --model models/Qwen3-1.7B --data rows.jsonl --samples 12 --max-new-tokens 38912 --output evals/mine
  python -m eval --generations samples.jsonl --output evals/elsewhere

  python -m eval list                          benchmarks and presets
  python -m eval recompute evals               results.json again, from the samples that are saved
  python -m eval compare base=evals/base opsd=evals/opsd --baseline base
  python -m eval.analysis --help               what rollouts say of teacher and student

Interrupted, the same command goes on where it stopped. Each evaluation is a folder with settings.json, problems.jsonl,
generations.jsonl and results.json; several benchmarks, seeds or checkpoints are a folder each.
"""
THINKING = {"on": True, "off": False, "default": None}


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    command = COMMANDS.get(argv[0] if argv else "", _evaluate)
    if command is _evaluate and argv and not argv[0].startswith("-"):
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        print(f"error: {argv[0]!r} is not one of {', '.join(COMMANDS)}, nor an option{meant}", file=sys.stderr)
        return 2
    try:
        print(command(argv[1:] if command is not _evaluate else argv))
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; start the same command again to go on from the samples that are saved", file=sys.stderr)
        return 130
    return 0


def _evaluate(argv: Sequence[str]) -> str:
    args = vars(_parser().parse_args(argv))
    args["thinking"] = THINKING[args["thinking"]]
    args["columns"] = dict(_column(text) for text in args.pop("column"))
    from eval.options import Options  # what follows imports jax
    from eval.run import run
    from jopsd import compile_cache

    tuples = {field.name for field in fields(Options) if str(field.type).startswith("tuple")}
    options = Options(**{name: tuple(value) if name in tuples else value for name, value in args.items()})
    compile_cache.enable()
    return _told(options.output, run(options))


def _told(output: Path, folders: Sequence[Path]) -> str:
    """The table of one evaluation, or that of all of them together, which is saved too."""
    from eval.records import RESULTS, read_json
    from eval.report import table

    if folders == [output]:
        return f"{table(read_json(output / RESULTS))}\n{output / RESULTS}"
    from eval import compare

    text = compare.main([str(output), "--output", str(output / "summary.md")])
    return f"{text}\n{output / 'summary.md'}"


def _recompute(argv: Sequence[str]) -> str:
    parser = argparse.ArgumentParser(
        prog="python -m eval recompute", description="Makes every results.json in a tree again, from the saved samples."
    )
    parser.add_argument("output", type=path_argument, metavar="DIR")
    output = parser.parse_args(argv).output
    from eval.progress import say_to_stderr
    from eval.recompute import recompute

    return _told(output, recompute(output, say_to_stderr))


def _compare(argv: Sequence[str]) -> str:
    from eval import compare

    return compare.main(argv)


def _list(argv: Sequence[str]) -> str:
    argparse.ArgumentParser(prog="python -m eval list", description="Benchmarks and presets.").parse_args(argv)
    from eval import parts, presets

    return f"benchmarks\n{parts.listing()}\n\npresets\n{presets.listing()}"


COMMANDS: dict[str, Callable[[Sequence[str]], str]] = {"recompute": _recompute, "compare": _compare, "list": _list}


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
    add = parser.add_argument_group("who answers").add_argument
    add(
        "--model",
        type=argument,
        metavar="DIR",
        help="Hugging Face model directory or hub id, or builtin:sums; of a run: its base",
    )
    add("--checkpoint", type=argument, metavar="RUN_DIR[:STEP]", help="a run's newest checkpoint, or that of a step")
    add(
        "--checkpoints",
        metavar="RUN_DIR",
        type=path_argument,
        help="the base that a run started from, and its checkpoints",
    )
    add("--every", type=int, default=1, metavar="STEPS", help="of --checkpoints: every n-th step, and the last")
    add("--generations", type=path_argument, metavar="FILE", help="grade answers that were made elsewhere")

    add = parser.add_argument_group("what is asked").add_argument
    add("--benchmark", dest="benchmarks", nargs="+", default=(), metavar="NAME[=PATH]", help="from the hub, or a path")
    add("--language", dest="languages", nargs="+", default=(), metavar="CODE", help="of benchmarks that have several")
    add("--level", dest="levels", nargs="+", default=(), help="of benchmarks that have several")
    add(
        "--data",
        type=argument,
        metavar="SOURCE",
        help="your own: file, directory, hub id, or a generator such as sums:test",
    )
    add("--split", default="test", help="of --data")
    add("--subset", help="configuration of a hub data set")
    add("--limit", type=int, help="problems to read; default all")
    add("--data-seed", type=int, default=0, help="of a generator")
    add("--column", action="append", default=[], metavar="FIELD=NAME", help="e.g. answer=final; may be repeated")
    add("--template", help="the user's turn; default the benchmark's; of --data the run's or a labelled one")
    add("--reward", choices=(AUTO, *VERIFIERS), help="the verifier; default the benchmark's, the run's, or math")
    add("--unsafe", action="store_true", help="run programs even where this host cannot keep them in a sandbox")

    add = parser.add_argument_group("how answers are drawn").add_argument
    add("--preset", metavar="NAME", help="settings of a published evaluation, see `python -m eval list`")
    add("--samples", type=int, metavar="N", help="answers per problem")
    add("--seed", dest="seeds", type=int, nargs="+", default=(), help="one or several, evaluated apart; default 0")
    add("--thinking", choices=THINKING, default="default", help="default: as preset or run say, or the chat template")
    add("--temperature", type=float, help="0 is greedy; default the run's eval.temperature, or 1")
    add("--top-p", type=float, help="default the run's eval.top_p, or 0.95")
    add("--top-k", type=int, help="0 is off; default the run's eval.top_k, or 0")
    add("--max-new-tokens", type=int, help="default the run's eval.max_new_tokens, or 1024")
    add("--max-length", type=int, help="prompt and answer together; default the model's context")
    add("--slots", type=int, default=32, help="samples decoded together: more is faster and takes more memory")
    add("--backend", default="jetstream", help="jetstream or loop in this process; grpc or openai with --server")
    add("--server", metavar="ADDRESS", help="host:port of `python -m jopsd.serve`, or the URL of an OpenAI-like server")
    add("--served-model", metavar="NAME", help="what the server calls the model")
    parser.add_argument("--output", required=True, type=path_argument, metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
