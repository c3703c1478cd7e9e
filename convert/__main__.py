"""python -m convert to-flax | to-hf: weights between Hugging Face, orbax and runs."""

import argparse
import sys
from pathlib import Path

EXAMPLES = """examples:
  python -m convert to-flax --model models/Qwen3-1.7B --output flax/Qwen3-1.7B
  python -m convert to-hf --from flax/Qwen3-1.7B --output models/copy
  python -m convert to-hf --from runs/quickstart --output models/quickstart
  python -m convert to-hf --from runs/quickstart:20 --output models/quickstart-20 --dtype float32
"""


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        if args.command == "to-flax":
            from convert.weights import to_flax
            from jopsd.setup import source_dir

            to_flax(source_dir(args.model), args.output)
            print(f"{args.output}: the weights of {args.model}, orbax")
        else:
            print(f"{args.output}: {_to_hf(args)}")
    except (ValueError, OSError, RuntimeError) as error:
        print("error: " + "; ".join(line.strip() for line in str(error).splitlines() if line.strip()), file=sys.stderr)
        return 1
    return 0


def _to_hf(args) -> str:
    from convert.weights import MODEL, flax_to_hf, run_to_hf
    from jopsd.checkpoint import parse_run

    run_dir, step = parse_run(args.source)
    if (run_dir / "config.yaml").is_file():
        return run_to_hf(run_dir, step, args.output, args.dtype, args.model)
    directory = Path(args.source)
    if not (directory / MODEL).is_dir():
        raise ValueError(
            f"--from {args.source} is neither a run (a folder with config.yaml and checkpoints, and :STEP if wanted) "
            "nor a folder made by to-flax"
        )
    if args.model:
        raise ValueError("--model is for runs: a folder made by to-flax has all that is needed")
    return flax_to_hf(directory, args.output, args.dtype)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m convert",
        description="Converts weights. An existing output is never overwritten, and appears only when complete.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="to-flax | to-hf")
    flax = commands.add_parser("to-flax", help="Hugging Face directory -> orbax directory (with config and tokenizer)")
    flax.add_argument("--model", required=True, metavar="DIR", help="Hugging Face model directory, or builtin:sums")
    flax.add_argument("--output", required=True, type=Path, metavar="DIR")
    hf = commands.add_parser("to-hf", help="orbax directory, or a run's checkpoint -> Hugging Face directory")
    hf.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="ORBAX_DIR|RUN_DIR[:STEP]",
        help="a folder made by to-flax, or a run's output_dir; without :STEP its newest checkpoint",
    )
    hf.add_argument("--output", required=True, type=Path, metavar="DIR")
    hf.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="of the tensors written; default: that of the orbax directory, or of the run's initial model",
    )
    hf.add_argument("--model", metavar="DIR", help="a run's initial model, if it has moved since")
    return parser


if __name__ == "__main__":
    sys.exit(main())
