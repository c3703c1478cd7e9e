"""python -m jopsd.serve --model DIR --max-length N [--port 9000]: samples for other processes of this host (gRPC)"""

import argparse
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jopsd.sampling import Sampler


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.model is None and args.checkpoint is None:
        return _fail("give --model, or the --checkpoint of a run")
    # A typo should not wait for jax to load.
    from jopsd.sampling import server

    try:
        _require_port(server.HOST, args.port)
        sampler, name = load(args)
        stop = _stop_signal()
        try:
            running, port = server.start(sampler, server.describe(sampler, args.served_name or name), args.port)
            _say(f"ready: {args.served_name or name} on {server.HOST}:{port}, {args.slots} slots of {args.max_length}")
            stop.wait()
            _say("stopping")
        finally:
            sampler.close()  # clients hear of it before their streams are cut
        running.stop(grace=2.0).wait()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        return _fail(error)
    except KeyboardInterrupt:
        return 130
    return 0


def load(args: argparse.Namespace) -> tuple["Sampler", str]:
    """The sampler that `args` ask for, and a name for it: the model, or RUN_DIR:STEP.

    Raises:
      ValueError, OSError, CheckpointError: no such model or checkpoint, or a size out of range.
    """
    from jopsd.checkpoint import find_step, parse_run
    from jopsd.mesh import make_mesh
    from jopsd.models.hf import load_pretrained, read_config
    from jopsd.sampling import Policy, make_sampler
    from jopsd.setup import restore_policy, source_dir

    mesh = make_mesh()
    if args.checkpoint is None:
        directory, name = source_dir(args.model), args.model
        model_config = read_config(directory)
        policy = Policy(load_pretrained(directory, model_config, mesh), None)
    else:
        run_dir, step = parse_run(args.checkpoint)
        step = find_step(run_dir, step)
        restored = restore_policy(run_dir, step, args.model, mesh)
        model_config, policy, name = restored.model_config, restored.policy, f"{run_dir}:{step}"
    sampler = make_sampler(
        args.backend,
        model_config,
        policy,
        slots=args.slots,
        max_length=args.max_length,
        mesh=mesh,
        max_stop_ids=args.max_stop_ids,
    )
    return sampler, name


def _require_port(host: str, port: int) -> None:
    """Raises OSError for a port that is taken, before any weight is read."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise OSError(f"--port {port}: {error}; give another port") from None


def _stop_signal() -> threading.Event:
    """An event that SIGINT or SIGTERM sets; a second signal ends the process at once."""
    stop, numbers = threading.Event(), (signal.SIGINT, signal.SIGTERM)

    def handle(number, frame):
        stop.set()
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)

    for each in numbers:
        signal.signal(each, handle)
    return stop


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jopsd.serve",
        description="Serves a model's samples to other processes of this host, on 127.0.0.1.",
        epilog="example: python -m jopsd.serve --checkpoint runs/opsd:100 --max-length 4096 --port 9000",
    )
    add = parser.add_argument
    add("--model", metavar="DIR", help="Hugging Face model directory, or builtin:sums; beside --checkpoint: its base")
    add("--checkpoint", metavar="RUN_DIR[:STEP]", help="a run's newest checkpoint, or that of a step")
    add("--served-name", metavar="NAME", help="what clients are told; default the model or checkpoint as given")
    add("--port", type=int, default=9000, help="0 takes a free one, which the line that says ready names")
    add("--slots", type=int, default=32, help="samples decoded together: more is faster and takes more memory")
    add("--max-length", type=int, required=True, metavar="N", help="prompt and completion tokens of the longest sample")
    add("--max-stop-ids", type=int, default=8, metavar="N", help="stop tokens a request may have")
    add("--backend", choices=("jetstream", "loop"), default="jetstream")
    return parser


def _say(text: str) -> None:
    print(f"jopsd.serve: {text}", file=sys.stderr, flush=True)


def _fail(error: object) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
