"""Memory of one optimiser update on a TPU, from the compiled program alone, on any host: python -m bench.memory

Compiles the real update of `jopsd.step` (OPSD, fixed teacher, splash attention) for a model of the shape of Qwen3-0.6B
and prints what XLA says of it, per chip. No weight is allocated and nothing runs. "Arguments" are parameters, optimiser
state, teacher and batch; "temporary" is what the program needs beside them, mostly activations and gradients. Needs the
TPU compiler: pip install --no-deps libtpu.
"""

import argparse
import os
from dataclasses import replace
from typing import NamedTuple

# Read by the TPU compiler when it starts: there is no TPU here, and several processes may compile at once.
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from jopsd.batch import TrainBatch, View
from jopsd.mesh import make_mesh
from jopsd.methods import Opsd
from jopsd.models.decoder import ModelConfig
from jopsd.models.hf import abstract_decoder
from jopsd.models.lora import init_adapter
from jopsd.models.sharding import BATCH, sharded_shapes
from jopsd.optimizer import make_optimizer
from jopsd.schema import Optimizer
from jopsd.step import StepOptions, init_state, make_update
from jopsd.teachers import Models, TeacherRule

QWEN3 = ModelConfig(151936, 1024, 28, 16, 8, 128, 3072, tie_embeddings=True, dtype="bfloat16", param_dtype="bfloat16")


class Case(NamedTuple):
    name: str
    lora: bool
    param_dtype: str = "bfloat16"
    remat: str = "full"
    attention: str = "splash"


CASES = [
    Case("LoRA, remat full", True),
    Case("LoRA, remat full, xla attention", True, attention="xla"),
    Case("LoRA, remat dots", True, remat="dots"),
    Case("LoRA, remat none", True, remat="none"),
    Case("all parameters, float32", False, "float32"),
    Case("all parameters, bfloat16", False),
]


def measure(case: Case, mesh, rows: int, tokens: int) -> tuple[int, int]:
    """(bytes of arguments, bytes of temporaries) per chip of one compiled update. rows: rollouts per micro-batch."""
    cfg = replace(QWEN3, param_dtype=case.param_dtype, remat=case.remat, attention=case.attention)
    model = abstract_decoder(cfg)
    base = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), model)
    adapter = jax.eval_shape(lambda: init_adapter(cfg.projections, cfg.num_layers, 64, 128.0, jax.random.key(0)))
    optimizer, _ = make_optimizer(Optimizer(), 100)
    state = jax.eval_shape(lambda t: init_state(t, optimizer, mesh), adapter if case.lora else model)
    split = jax.NamedSharding(mesh, jax.P(BATCH))
    ids = lambda width: jax.ShapeDtypeStruct((4 * rows, width), jnp.int32, sharding=split)  # noqa: E731
    views = {name: View(ids(2 * tokens), ids(2 * tokens)) for name in ("student", "teacher")}
    batch = TrainBatch(ids(tokens), ids(tokens), views)
    options = StepOptions(Opsd(), TeacherRule("fixed"), 4, 1.0, token_chunk=256)
    with jax.set_mesh(mesh):
        update = make_update(options, optimizer, mesh, state)
        lowered = update.lower(sharded_shapes(state, mesh), Models(base=sharded_shapes(base, mesh)), batch)
    found = lowered.compile().memory_analysis()
    return found.argument_size_in_bytes, found.temp_size_in_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--rows", type=int, default=4, help="rollouts per micro-batch, a multiple of the chips")
    parser.add_argument("--tokens", type=int, default=1024, help="of a completion, and as many of its prompt")
    args = parser.parse_args()
    devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
    mesh = make_mesh(1, -1, 1, devices=devices)
    print(
        f"Qwen3-0.6B on {args.topology} (fsdp), {args.rows} rollouts of {args.tokens} + {args.tokens} tokens at a time"
    )
    print("| update | arguments, GB per chip | temporary, GB per chip |")
    print("|---|---:|---:|")
    for case in CASES:
        try:
            arguments, temporary = measure(case, mesh, args.rows, args.tokens)
            print(f"| {case.name} | {arguments / 1e9:.2f} | {temporary / 1e9:.2f} |", flush=True)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print(f"| {case.name} | does not fit | |", flush=True)


if __name__ == "__main__":
    main()
