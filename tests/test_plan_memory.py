"""What a plan says of memory, held against what the same update really takes on this machine."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import REPO

# 59 M parameters, so that arrays and not the process dominate.
MODEL = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 8192,
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
OVERRIDES = ["train.batch_size=4", "train.micro_batch_size=2", "train.token_chunk=256", "model.remat=full"]

# Compiles the plan's own update, then makes real arrays of its shapes and runs it, and reads how high memory rose.
SCRIPT = """
import json, os, re, sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
import jax.numpy as jnp
from jopsd.config import load_config
from jopsd.plan.compile import compile_program, programs_of
from jopsd.plan.shapes import abstract_weights, lengths_of, make_shapes
from jopsd.plan.topology import parse_topology

def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

config = load_config(sys.argv[1], sys.argv[3:])
weights, _ = abstract_weights(config, "cpu")
shapes = make_shapes(config, parse_topology("cpu:" + sys.argv[2]), lengths_of(config, 64, 64, 192), weights)
program = compile_program("update", config, shapes)
lower, mesh = programs_of(shapes)["update"]
with jax.set_mesh(mesh):
    compiled = lower(config, shapes).compile()
def real(tree):
    fill = lambda s: jnp.full(s.shape, 1e-3 if jnp.issubdtype(s.dtype, jnp.inexact) else 1, s.dtype, device=s.sharding)
    return jax.block_until_ready(jax.tree.map(fill, tree))
open("/proc/self/clear_refs", "w").write("5")  # the highest so far was the compiler's
before = status("VmRSS")
state, models, batch = real(shapes.weights.state), real(shapes.weights.models), real(shapes.batch)
state, metrics = jax.block_until_ready(compiled(state, models, batch))
took = status("VmHWM") - before
predicted = program.arguments + program.beside_arguments
print(json.dumps({"predicted": predicted, "took": took, "loss": float(metrics["loss"])}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["lora={rank: 16, alpha: 32}", "lora=null"])
@pytest.mark.parametrize("devices", [1, 2])
def test_an_update_takes_the_memory_that_its_plan_says(tmp_path, lora, devices):
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this host does not let a process forget how much memory it had")
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    arguments = [str(REPO / "configs/quickstart.yaml"), str(devices), f"model.path={tmp_path}", lora, *OVERRIDES]
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, cwd=REPO, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["took"] / devices == pytest.approx(found["predicted"], rel=0.15)
