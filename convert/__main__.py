"""python -m convert COMMAND: weights between Hugging Face, orbax, runs and PEFT; comparing and inspecting them."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from jopsd.errors import one_line
from jopsd.paths import argument, path_argument

DTYPES = ("bfloat16", "float16", "float32")
MODEL_HELP = "Hugging Face model directory, hub id owner/name, or builtin:sums"
RUN_HELP = "a run's output_dir; without :STEP its newest checkpoint"


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        return args.command(args)
    except KeyboardInterrupt:
        print("error: interrupted; nothing is left of what was being written", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1


def _done(output: Path, what: str) -> int:
    print(f"{output}: {what}")
    return 0


def _to_flax(args) -> int:
    from convert.weights import to_flax
    from jopsd.setup import source_dir

    to_flax(source_dir(args.model), args.output)
    return _done(args.output, f"the weights of {args.model}, orbax")


def _to_hf(args) -> int:
    from convert.output import shard_bytes
    from convert.sources import find_source
    from convert.weights import flax_to_hf, run_to_hf

    limit = shard_bytes(args.max_shard_gb)
    source = find_source(args.source, "--from", ("run", "orbax"))
    if source.kind == "run":
        how = (args.output, args.dtype, args.model, limit, args.exact_base, args.base_name)
        return _done(args.output, run_to_hf(source.path, source.step, *how))
    if args.model or args.exact_base or args.base_name:
        raise ValueError("--model, --exact-base and --base-name are for runs: a folder made by to-flax needs none")
    return _done(args.output, flax_to_hf(source.path, args.output, args.dtype, limit))


def _merge(args) -> int:
    from convert.output import shard_bytes
    from convert.sources import find_source
    from convert.weights import merge

    limit = shard_bytes(args.max_shard_gb)
    base = find_source(args.base, "--base", ("hf", "orbax"))
    adapter = find_source(args.adapter, "--adapter", ("peft",)).path
    return _done(args.output, merge(base, adapter, args.output, args.dtype, limit))


def _adapter(args) -> int:
    from convert.sources import find_source
    from convert.weights import adapter

    source = find_source(args.source, "--from", ("run",))
    return _done(args.output, adapter(source.path, source.step, args.output, args.model, args.base_name))


def _verify(args) -> int:
    from convert.sources import find_side
    from convert.verify import verify
    from jopsd import compile_cache

    compile_cache.enable()
    report = verify(
        find_side(args.a, "A"), find_side(args.b, "B"), args.prompt, args.tolerance, transformers=args.transformers
    )
    print(report.text)
    return 0 if report.equal else 1


def _inspect(args) -> int:
    from convert.describe import describe

    print(describe(args.source, args.mesh, args.tensors))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m convert",
        description="Converts, compares and inspects weights. An output appears only when complete, and nothing that "
        "exists is overwritten.",
        epilog="`python -m convert COMMAND --help` shows the options of a command, and examples.",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_to_flax, _add_to_hf, _add_merge, _add_adapter, _add_verify, _add_inspect):
        add(commands)
    return top


def _command(commands, name: str, run: Callable, about: str, examples: list[str]) -> Callable:
    """Adds a sub-command; returns its add_argument."""
    lines = "\n".join(f"  python -m convert {name} {example}" for example in examples)
    parser = commands.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run)
    return parser.add_argument


def _add_output(add: Callable) -> None:
    add("--output", required=True, type=path_argument, metavar="DIR", help="must not exist, or be empty")


def _add_base_name(add: Callable) -> None:
    add("--base-name", metavar="owner/name", help="what others find the initial model by; default: as the run calls it")


def _add_hf_output(add: Callable, default: str) -> None:
    _add_output(add)
    add("--dtype", choices=DTYPES, help=f"of the tensors written; default: that of {default}")
    add("--max-shard-gb", type=float, default=5.0, metavar="GB", help="largest file, in 10^9 bytes; default 5")


def _add_to_flax(commands) -> None:
    add = _command(
        commands,
        "to-flax",
        _to_flax,
        "Hugging Face directory to orbax directory, with config and tokenizer",
        ["--model models/Qwen3-1.7B --output flax/Qwen3-1.7B", "--model Qwen/Qwen3-0.6B --output flax/Qwen3-0.6B"],
    )
    add("--model", required=True, type=argument, metavar="DIR|owner/name", help=MODEL_HELP)
    _add_output(add)


def _add_to_hf(commands) -> None:
    add = _command(
        commands,
        "to-hf",
        _to_hf,
        "orbax directory, or a run's checkpoint with its adapter folded in, to Hugging Face directory",
        [
            "--from flax/Qwen3-1.7B --output models/copy",
            "--from runs/quickstart --output models/quickstart",
            "--from runs/quickstart:20 --output models/quickstart-20 --dtype float32 --max-shard-gb 2",
        ],
    )
    help_text = f"a folder made by to-flax, or {RUN_HELP}"
    add("--from", dest="source", required=True, type=argument, metavar="ORBAX_DIR|RUN_DIR[:STEP]", help=help_text)
    _add_hf_output(add, "the orbax directory, or of the run's initial model")
    add("--model", type=argument, metavar="DIR", help="a run's initial model, if it has moved since")
    help_text = "fold a run's adapter into its base as it is on disk, not as it was rounded in training"
    add("--exact-base", action="store_true", help=help_text)
    _add_base_name(add)


def _add_merge(commands) -> None:
    add = _command(
        commands,
        "merge",
        _merge,
        "base model and PEFT adapter to one Hugging Face directory, the product in float32",
        [
            "--base models/Qwen3-1.7B --adapter adapters/math --output models/math",
            "--base flax/Qwen3-1.7B --adapter adapters/math --output models/math --dtype float32",
        ],
    )
    add(
        "--base",
        required=True,
        type=argument,
        metavar="DIR|owner/name|ORBAX_DIR",
        help=f"{MODEL_HELP}, or a folder made by to-flax",
    )
    add("--adapter", required=True, type=argument, metavar="PEFT_DIR", help="a directory with adapter_config.json")
    _add_hf_output(add, "the base")


def _add_adapter(commands) -> None:
    add = _command(
        commands,
        "adapter",
        _adapter,
        "the LoRA adapter of a run to PEFT directory, with the tokenizer",
        ["--from runs/quickstart --output adapters/quickstart", "--from runs/opsd:100 --output adapters/opsd-100"],
    )
    add("--from", dest="source", required=True, type=argument, metavar="RUN_DIR[:STEP]", help=RUN_HELP)
    _add_output(add)
    add("--model", type=argument, metavar="DIR", help="the run's initial model, if it has moved since")
    _add_base_name(add)


def _add_verify(commands) -> None:
    add = _command(
        commands,
        "verify",
        _verify,
        "whether two models are the same: config, every tensor, logits; exit status 0 if so",
        [
            "models/Qwen3-1.7B flax/Qwen3-1.7B",
            "runs/quickstart models/quickstart",
            "models/math models/Qwen3-1.7B+adapters/math",
            'models/Qwen3-1.7B flax/Qwen3-1.7B --transformers --prompt "What is 17 * 23?"',
        ],
    )
    side = "Hugging Face directory, hub id, folder made by to-flax, RUN_DIR[:STEP], or BASE+ADAPTER_DIR (PEFT)"
    add("a", metavar="A", help=side)
    add("b", metavar="B", help="the same")
    add("--prompt", metavar="TEXT", help="what the logits are compared on; without a tokenizer: fixed random tokens")
    add("--tolerance", type=float, default=0.0, metavar="X", help="largest |A-B| in a tensor; default 0, the same bits")
    add("--transformers", action="store_true", help="also compare the logits of A with those of transformers (torch)")


def _add_inspect(commands) -> None:
    add = _command(
        commands,
        "inspect",
        _inspect,
        "architecture, parameters, dtypes and bytes of a model, run or adapter; reads no weights",
        ["models/Qwen3-1.7B", "runs/quickstart --tensors", "models/Qwen3-1.7B --mesh data=1,fsdp=8,tensor=2"],
    )
    source = "Hugging Face directory (config.json is enough), folder made by to-flax, RUN_DIR[:STEP], PEFT directory"
    add("source", type=argument, metavar="SOURCE", help=source)
    add("--mesh", metavar="AXIS=N,...", help="also the bytes on each device of a mesh with axes data, fsdp, tensor")
    add("--tensors", action="store_true", help="also every tensor")


if __name__ == "__main__":
    sys.exit(main())
