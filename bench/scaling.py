"""What one device computes and sends in an update, by mesh, from compiled programs: python -m bench.scaling

Compiles the real update of the embedded model on 1, 2, 4 and 8 virtual devices of this machine. Nothing runs: these are
bytes and FLOPs, not seconds. Work that is split well halves from line to line; what is sent says what splitting costs.
"""

import argparse
from collections import defaultdict

from jopsd.plan.topology import configure_jax, parse_topology, prepare_environment

prepare_environment()

from jopsd.config import load_config  # noqa: E402
from jopsd.plan.compile import compile_program  # noqa: E402
from jopsd.plan.roofline import sent, trips, work_of  # noqa: E402
from jopsd.plan.shapes import abstract_weights, lengths_of, make_shapes  # noqa: E402

# (data, fsdp, context, tensor)
MESHES = [
    (1, 1, 1, 1),
    (2, 1, 1, 1),
    (1, 2, 1, 1),
    (1, 1, 2, 1),
    (1, 1, 1, 2),
    (1, 4, 1, 1),
    (1, 2, 1, 2),
    (1, 2, 2, 1),
    (8, 1, 1, 1),
    (1, 8, 1, 1),
    (2, 2, 1, 2),
    (1, 2, 2, 2),
]
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute")


def measure(sizes: tuple[int, ...], lora: bool, rows: int) -> tuple[float, float, dict[str, float]]:
    """(FLOPs, bytes of arguments, {kind: bytes sent}) of one device in one update on a mesh."""
    data, fsdp, context, tensor = sizes
    devices = data * fsdp * context * tensor
    mesh = [f"mesh.{name}={n}" for name, n in zip(("data", "fsdp", "context", "tensor"), sizes, strict=True)]
    overrides = [*mesh, f"train.batch_size={rows}", "model.remat=full", *([] if lora else ["lora=null"])]
    config, topology = load_config("configs/quickstart.yaml", overrides), parse_topology(f"cpu:{devices}")
    weights, _ = abstract_weights(config, "cpu")
    shapes = make_shapes(config, topology, lengths_of(config, 64, 128, 64), weights)
    program = compile_program("update", config, shapes)
    moved: dict[str, float] = defaultdict(float)
    for line in sent(program, shapes.mesh, devices, trips(config, shapes)):
        moved[line.kind] += line.bytes
    return work_of(config, shapes).update / devices, program.arguments, moved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lora", action="store_true", help="train an adapter, not all parameters")
    parser.add_argument("--rows", type=int, default=16, help="rollouts of the update, all in one micro-batch")
    args = parser.parse_args()
    configure_jax(parse_topology("cpu:8"), fast=True)
    print(f"update of {args.rows} rollouts, {'LoRA' if args.lora else 'all parameters'}; per device")
    print("| devices | data, fsdp, context, tensor | GFLOP | arguments, MB | " + ", MB | ".join(KINDS) + ", MB |")
    print("|---:|---|---:|---:|" + "---:|" * len(KINDS))
    for sizes in MESHES:
        flops, arguments, moved = measure(sizes, args.lora, args.rows)
        cells = " | ".join(f"{moved.get(kind, 0) / 1e6:.2f}" for kind in KINDS)
        count = sizes[0] * sizes[1] * sizes[2] * sizes[3]
        shape = ", ".join(map(str, sizes))
        print(f"| {count} | {shape} | {flops / 1e9:.2f} | {arguments / 1e6:.2f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
