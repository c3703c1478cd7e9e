"""python -m jopsd.serve --model DIR --max-length N [--port 9000]: samples for other processes (gRPC)

For evaluation it serves a model or a checkpoint; for training, weights that the trainer publishes while it runs.
"""

import argparse
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING

from jopsd.paths import argument, path_argument

if TYPE_CHECKING:
    from jopsd.policies import Restored
    from jopsd.sampling import Sampler
    from jopsd.sampling.service import Read, Service

WATCH_SECONDS = 5.0  # between two looks for a newer checkpoint


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        _check(args)
        # A typo should not wait for jax to load.
        from jopsd import compile_cache
        from jopsd.sampling.server import describe, listen
        from jopsd.sampling.server_metrics import publish_metrics
        from jopsd.sampling.service import Service

        guard = _guard(args)
        _require_port(args.host, args.port, "--port")
        compile_cache.enable()
        sampler, name, restored, read = load(args)
        stop = _stop_signal()
        service = Service(sampler, describe(sampler, args.served_name or name), read)
        try:
            if args.metrics_port is not None:
                publish_metrics(service.metrics, args.metrics_host, args.metrics_port)
            running, port = listen(service, args.port, args.host, *guard)
            _say(f"ready: {service.description.model} on {args.host}:{port}, {args.slots} slots of {args.max_length}")
            _wait(stop, args, service, restored)
            _say("stopping")
        finally:
            service.stop()  # clients hear of it before their streams are cut
        running.stop(grace=2.0).wait()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        return _fail(error)
    except KeyboardInterrupt:
        return 130
    return 0


def load(args: argparse.Namespace) -> tuple["Sampler", str, "Restored", "Read | None"]:
    """The sampler that `args` ask for; a name for it, the model or RUN_DIR:STEP; its weights; how it takes others.

    Raises:
      ValueError, OSError, CheckpointError: no such model or checkpoint, or a size out of range.
    """
    from jopsd.checkpoint import parse_run
    from jopsd.policies import load_policy
    from jopsd.sampling import make_sampler
    from jopsd.sampling.access import below
    from jopsd.sampling.publish import read_published

    run_dir, step = (None, None) if args.checkpoint is None else parse_run(args.checkpoint)
    dtypes = {key: getattr(args, key) for key in ("dtype", "param_dtype") if getattr(args, key) is not None}
    restored = load_policy(args.model, run_dir, step, **dtypes)
    sampler = make_sampler(
        args.backend,
        restored.model_config,
        restored.policy,
        slots=args.slots,
        max_length=args.max_length,
        mesh=restored.mesh,
        max_stop_ids=args.max_stop_ids,
        cache_gb=args.cache_gb,
    )
    if restored.step is not None:
        sampler.update(restored.policy, restored.step)
    name = args.model if run_dir is None else f"{run_dir}:{restored.step}"
    if args.weights_root is None:
        return sampler, name, restored, None
    root, mesh = args.weights_root, restored.mesh
    return sampler, name, restored, lambda path, served: read_published(below(root, path), served, mesh)


def _wait(stop: threading.Event, args: argparse.Namespace, service: "Service", restored: "Restored") -> None:
    """Until a signal; with --watch, each newer checkpoint of the run is taken as it appears."""
    if not args.watch:
        stop.wait()
        return
    from jopsd.checkpoint import CheckpointError, all_steps, parse_run
    from jopsd.policies import restore_policy
    from jopsd.sampling.service import Refusal

    run_dir, _ = parse_run(args.checkpoint)
    base = restored.policy.model if restored.policy.adapter is not None else None
    while not stop.wait(WATCH_SECONDS):
        try:
            newest = all_steps(run_dir)[-1]
            if newest > service.description.policy_version:
                policy = restore_policy(run_dir, newest, args.model, base=base).policy
                service.take(policy, newest)
                _say(f"serving step {newest} of {run_dir}")
        except (CheckpointError, Refusal, ValueError, OSError, IndexError) as error:
            _say(f"could not take the newest checkpoint of {run_dir}, and will try again: {error}")


def _check(args: argparse.Namespace) -> None:
    """Raises ValueError for arguments that do not go together."""
    if args.model is None and args.checkpoint is None:
        raise ValueError("give --model, or the --checkpoint of a run")
    if args.checkpoint is not None and (args.dtype or args.param_dtype):
        raise ValueError("a run's config says its dtypes: leave --dtype and --param-dtype out, or --checkpoint")
    if args.watch and (args.checkpoint is None or args.weights_root is not None):
        raise ValueError(
            "--watch follows the --checkpoint of a run, and not what a trainer publishes in --weights-root"
        )
    if args.watch and args.checkpoint.rpartition(":")[2].isdecimal():
        raise ValueError(
            f"--watch serves the newest checkpoint: give {args.checkpoint.rpartition(':')[0]} without a step"
        )
    if args.weights_root is not None and not args.weights_root.is_dir():
        raise ValueError(f"--weights-root {args.weights_root} is not a directory")
    if (args.tls_cert is None) != (args.tls_key is None):
        raise ValueError("--tls-cert and --tls-key go together")


def _guard(args: argparse.Namespace) -> tuple:
    """The token, and the credentials of TLS, each or None.

    Raises:
      ValueError, OSError: the server would be open to others, or a file cannot be read.
    """
    from jopsd.sampling.access import read_token, require_guarded, server_credentials

    require_guarded(args.host, args.token_file is not None, args.tls_cert is not None, args.insecure)
    token = None if args.token_file is None else read_token(args.token_file)
    return token, None if args.tls_cert is None else server_credentials(args.tls_cert, args.tls_key)


def _require_port(host: str, port: int, key: str) -> None:
    """Raises OSError for an address that is none of this host's, or a port that is taken, before weights are read."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        raise OSError(f"{key} {port} on {host}: {error}; give another port") from None


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
        description="Serves a model's samples to other processes, on this host alone unless told otherwise.",
        epilog="example: python -m jopsd.serve --model models/qwen3-0.6b --max-length 4096 --weights-root runs/opsd",
    )
    add = parser.add_argument
    add(
        "--model",
        type=argument,
        metavar="DIR",
        help="Hugging Face model directory, or builtin:sums; beside --checkpoint: its base",
    )
    add("--checkpoint", type=argument, metavar="RUN_DIR[:STEP]", help="a run's newest checkpoint, or that of a step")
    add("--watch", action="store_true", help="follow the run: serve each newer checkpoint as it appears")
    add(
        "--weights-root",
        type=path_argument,
        metavar="DIR",
        help="a trainer may have weights below this directory loaded",
    )
    dtypes = ("bfloat16", "float32")
    add("--dtype", choices=dtypes, help="of the computation, as model.dtype of the trainer; default the model's own")
    add("--param-dtype", choices=dtypes, help="of the weights, as model.param_dtype; default the model's own")
    add("--served-name", metavar="NAME", help="what clients are told; default the model or checkpoint as given")
    add("--slots", type=int, default=32, help="samples decoded together: more is faster and takes more memory")
    add(
        "--cache-gb",
        type=float,
        metavar="GB",
        help="of keys and values; default enough for 0.4 of --max-length per slot",
    )
    add("--max-length", type=int, required=True, metavar="N", help="prompt and completion tokens of the longest sample")
    add("--max-stop-ids", type=int, default=8, metavar="N", help="stop tokens a request may have")
    add("--backend", choices=("jetstream", "loop"), default="jetstream")
    add("--port", type=int, default=9000, help="0 takes a free one, which the line that says ready names")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen; beyond this host: with token and TLS")
    add("--token-file", type=path_argument, metavar="FILE", help="holds a secret that every client must send")
    add("--tls-cert", type=path_argument, metavar="FILE", help="certificate chain, PEM")
    add("--tls-key", type=path_argument, metavar="FILE", help="its key, PEM")
    add("--insecure", action="store_true", help="no token and no TLS, although other hosts reach --host")
    add("--metrics-port", type=int, metavar="PORT", help="answers Prometheus there")
    add("--metrics-host", default="127.0.0.1", metavar="ADDRESS", help="where the metrics listen, without a token")
    return parser


def _say(text: str) -> None:
    print(f"jopsd.serve: {text}", file=sys.stderr, flush=True)


def _fail(error: object) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
