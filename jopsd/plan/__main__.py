"""python -m jopsd.plan --config configs/opsd.yaml --topology v5p:4x4x4 [section.key=value ...]

Compiles a config's real update, scoring, decoding and prefill for a topology without having it, and prints what each
chip holds, computes and sends. Exit code 0: it fits; 1: it does not; 2: something asked for does not exist.
"""

import argparse
import json
import sys
from pathlib import Path

from jopsd.paths import path_argument
from jopsd.plan import cache
from jopsd.plan.topology import configure_jax, parse_topology, prepare_environment


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jopsd.plan",
        description="Does a config fit a pod, and how long does a step take? Needs no accelerator and no weights.",
        epilog="example: python -m jopsd.plan --config configs/opsd.yaml --topology v5e:4x4 mesh.tensor=4",
    )
    positive = _positive
    parser.add_argument("--config", required=True, type=path_argument, help="YAML file, see configs/")
    parser.add_argument("--topology", required=True, help="v5p:4x4x4 (of one slice), h100:2x8 (nodes x GPUs), cpu:8")
    parser.add_argument("--slices", type=positive, help="TPU slices; default mesh.slices")
    parser.add_argument("--prompt-tokens", type=positive, help="longest prompt; default data.max_prompt_tokens")
    parser.add_argument("--teacher-prompt-tokens", type=positive, help="default teacher.max_prompt_tokens")
    parser.add_argument("--completion-tokens", type=positive, help="default sampling.max_new_tokens")
    parser.add_argument("--price", type=float, help="dollars per chip and hour; default a table with a date")
    parser.add_argument("--fast", action="store_true", help="compile with little effort: 4 times faster, more memory")
    parser.add_argument("--sweep", action="store_true", help="try meshes, micro-batches and remat policies")
    parser.add_argument("--candidates", type=positive, default=3, help="how many of a sweep are compiled (3)")
    parser.add_argument("--json", type=path_argument, metavar="FILE", help="also write the plan for machines")
    parser.add_argument("--no-cache", action="store_true", help=f"neither read nor write {cache.folder()}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, e.g. mesh.tensor=4")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_intermixed_args(argv)
    overrides = [*args.overrides, *([f"mesh.slices={args.slices}"] if args.slices else [])]
    try:
        parse_topology(args.topology, args.slices or 1)  # a typo should not wait for jax
        key = cache.key_of(args.config, overrides, _options(args))
        record = None if args.no_cache else cache.find(key)
        if record is None:
            record, read = _make(args, overrides)
            if not args.no_cache:
                cache.keep(key, record, read)
        if args.json is not None:
            args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from jopsd.plan.pages import page

    print(page(record))
    best = record["plans"][0]["record"] if args.sweep else record
    return 0 if best["memory"]["fits"] else 1


def _options(args) -> list:
    lengths = (args.prompt_tokens, args.teacher_prompt_tokens, args.completion_tokens)
    return [args.topology, args.slices, *lengths, args.price, args.fast, args.sweep and args.candidates]


def _make(args, overrides: list[str]) -> tuple[dict, list[Path]]:
    """The record of a fresh plan, and the files beside the config that it depends on."""
    prepare_environment()
    from jopsd.config import load_config

    config = load_config(args.config, overrides)
    topology = parse_topology(args.topology, config.mesh.slices)
    configure_jax(topology, args.fast)
    from jopsd.plan.make import files_read, make_plan
    from jopsd.plan.shapes import lengths_of

    lengths = lengths_of(config, args.prompt_tokens, args.teacher_prompt_tokens, args.completion_tokens)
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    if args.sweep:
        from jopsd.plan.sweep import sweep

        return sweep(config, topology, lengths, args.price, args.candidates, say), files_read(config)
    return make_plan(config, topology, lengths, args.price, say), files_read(config)


if __name__ == "__main__":
    sys.exit(main())
