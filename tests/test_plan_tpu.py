"""Plans through the TPU compiler, where it is installed: pip install --no-deps libtpu (see docs/scaling.md)."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import REPO

pytest.importorskip("libtpu")

# Heads of 128, so that the kernel of the TPU can serve them.
MODEL = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 1024,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "intermediate_size": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
SMALL = ["model.dtype=bfloat16", "train.batch_size=8", "train.micro_batch_size=4", "sampling.slots=8", "eval=null"]
LENGTHS = "--prompt-tokens 64 --teacher-prompt-tokens 128 --completion-tokens 64 --fast --no-cache".split()


def plan(tmp_path, topology, *overrides):
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    command = [sys.executable, "-m", "jopsd.plan", "--config", str(REPO / "configs/quickstart.yaml")]
    command += ["--topology", topology, *LENGTHS, "--json", str(tmp_path / "plan.json"), f"model.path={tmp_path}"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [*command, *SMALL, *overrides], capture_output=True, text=True, cwd=REPO, env=environment, timeout=900
    )
    assert done.returncode in (0, 1), done.stderr
    return json.loads((tmp_path / "plan.json").read_text()), done


@pytest.mark.slow
def test_a_small_plan_compiles_for_a_tpu_with_its_kernel(tmp_path):
    record, done = plan(tmp_path, "v5e:2x2", "mesh.fsdp=2", "mesh.tensor=2")
    assert record["model"]["attention"] == "splash" and record["memory"]["fits"] and done.returncode == 0
    assert set(record["programs"]) == {"update", "decode", "prefill"}
    parts = record["memory"]["parts"]
    held = sum(parts[name] for name in ("parameters", "teacher and reference", "optimiser", "batch"))
    # Tiles make XLA's arguments a little larger than the arrays.
    assert held <= record["programs"]["update"]["arguments"] < 2 * held
    axes = {tuple(line["axes"]) for line in record["sent_per_device"]["update"]}
    assert ("fsdp",) in axes and ("tensor",) in axes
    assert all(line["link"] == "ici" for line in record["sent_per_device"]["update"])


@pytest.mark.slow
def test_slices_send_each_other_gradients_and_nothing_larger(tmp_path):
    record, _ = plan(tmp_path, "v5p:2x2x1", "mesh.slices=2", "mesh.data=2", "mesh.fsdp=4", "train.micro_batch_size=8")
    between = [line for line in record["sent_per_device"]["update"] if line["link"] == "dcn"]
    assert between and all(line["axes"] == ["data"] for line in between)
    adapter = record["memory"]["parts"]["optimiser"] / 2  # two moments of the adapter's size, in float32
    assert sum(line["bytes"] for line in between) < 1.5 * adapter + 1e5
    assert record["chips"] == 8 and not any(line["link"] == "dcn" for line in record["sent_per_device"]["decode"])


@pytest.mark.slow
def test_a_shape_that_no_tpu_has_is_one_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    command = [sys.executable, "-m", "jopsd.plan", "--config", str(REPO / "configs/quickstart.yaml")]
    done = subprocess.run(
        [*command, "--topology", "v5e:3x5", f"model.path={tmp_path}"], capture_output=True, text=True, cwd=REPO
    )
    assert done.returncode == 2 and "v5e:3x5" in done.stderr and "Traceback" not in done.stderr
