"""python -m jopsd.train --config configs/quickstart.yaml [section.key=value ...]"""

import argparse
import os
import sys

from jopsd.paths import path_argument

ENDS = (ValueError, OSError, ImportError)  # of input that is not as it should be


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m jopsd.train",
        description="Trains as a config says; started again, it resumes from the newest checkpoint.",
        epilog="example: python -m jopsd.train --config configs/quickstart.yaml optimizer.learning_rate=2e-3 seed=1",
    )
    parser.add_argument("--config", required=True, type=path_argument, help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, e.g. train.steps=10")
    several = parser.add_argument_group("several processes (found without these on TPU pods and under SLURM)")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens for the others")
    several.add_argument("--processes", type=int, metavar="N", help="how many there are")
    several.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        near = [text.lstrip("-") for text in unknown if "=" in text]
        meant = f"; keys are given without dashes: {' '.join(near)}" if near else "; keys are given as train.steps=10"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
    try:
        return _train(args)
    except KeyboardInterrupt:
        print("interrupted outside of the training steps; run the same command again to go on", file=sys.stderr)
        return 130


def _train(args: argparse.Namespace) -> int:
    # A typo should not wait for jax to load.
    from jopsd.config import ConfigError, load_config

    try:
        config = load_config(args.config, args.overrides)
        import jax

        from jopsd import compile_cache, distributed

        layout = distributed.find_layout(args.coordinator, args.processes, args.process, os.environ)
        compile_cache.enable(several=layout is not None)
        distributed.join(layout)
        from jopsd.checkpoint import CheckpointError
        from jopsd.sampling import SamplerError
        from jopsd.trainer import TrainingError, train
    except (ConfigError, ValueError, RuntimeError) as error:
        return _fail(error)
    try:
        summary = train(config)
    except (*ENDS, TrainingError, CheckpointError, SamplerError, distributed.DistributedError) as error:
        code = _fail(error)
    except Exception as error:
        # Of several processes, the first to see that another is gone is a program that waits for it.
        lost = jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError)
        if not lost:
            raise
        code = _fail(error)
    else:
        # Told to end and saved: to whatever starts runs again, 0 would say that this one is done.
        return int(os.environ.get("JOPSD_STOPPED_EXIT", "0")) if summary is None else 0
    distributed.leave()
    return code


def _fail(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
