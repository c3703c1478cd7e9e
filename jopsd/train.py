"""python -m jopsd.train --config configs/quickstart.yaml [section.key=value ...]"""

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m jopsd.train",
        description="Trains as a config says; started again, it resumes from the newest checkpoint.",
        epilog="example: python -m jopsd.train --config configs/quickstart.yaml optimizer.learning_rate=2e-3 seed=1",
    )
    parser.add_argument("--config", required=True, help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, e.g. train.steps=10")
    args = parser.parse_args(argv)
    # A typo should not wait for jax to load.
    from jopsd.config import ConfigError, load_config

    try:
        config = load_config(args.config, args.overrides)
        from jopsd.checkpoint import CheckpointError
        from jopsd.sampling import SamplerError
        from jopsd.trainer import TrainingError, train
    except ConfigError as error:
        return _fail(error)
    try:
        train(config)
    except (ValueError, OSError, ImportError, TrainingError, CheckpointError, SamplerError) as error:
        return _fail(error)
    return 0


def _fail(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
