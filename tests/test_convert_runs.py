"""What `python -m convert` makes of a run: its adapter for peft, comparing and inspecting it."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert.__main__ import main
from jopsd.setup import restore_policy
from tests.test_convert import KINDS, SUMS, error_of, trained_runs

TOKENS = np.random.default_rng(0).integers(4, 128, (3, 17))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    return trained_runs(tmp_path_factory.getbasetemp() / "runs-to-convert")


@pytest.fixture(scope="module")
def adapter(runs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "peft"
    assert main(["adapter", "--from", f"{runs['lora']}:2", "--output", str(folder)]) == 0
    return folder


def test_the_adapter_of_a_run_has_in_peft_the_logits_of_its_policy(runs, adapter):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(SUMS)
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 16, False)
    model = peft.AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(TOKENS)).logits.numpy()
        with model.disable_adapter():
            before = model(torch.from_numpy(TOKENS)).logits.numpy()
    policy = restore_policy(runs["lora"]).policy
    ours = policy.model.unembed(policy.model.hidden(jnp.asarray(TOKENS), adapter=policy.adapter))
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=1e-4, rtol=0)
    assert np.abs(theirs - before).max() > 1e-2  # the two steps are visible


def test_the_tokenizer_lies_beside_the_adapter(adapter):
    transformers = pytest.importorskip("transformers")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (adapter / name).read_bytes() == (SUMS / name).read_bytes()
    assert transformers.AutoTokenizer.from_pretrained(adapter)("1+1")["input_ids"]


def test_a_run_is_equal_to_its_export_its_adapter_and_its_merged_adapter(runs, adapter, tmp_path, capsys):
    for name, dtype in (("exact", ["--dtype", "float32"]), ("narrow", [])):
        assert main(["to-hf", "--from", str(runs["lora"]), "--output", str(tmp_path / name), *dtype]) == 0
    argv = ["--base", str(SUMS), "--adapter", str(adapter), "--output", str(tmp_path / "merged")]
    assert main(["merge", *argv]) == 0
    sides = [runs["lora"], f"{runs['lora']}:2", tmp_path / "exact", f"{SUMS}+{adapter}"]
    for a, b in zip(sides, sides[1:], strict=False):
        capsys.readouterr()
        assert main(["verify", str(a), str(b)]) == 0
        assert "logits       max |difference| 0 (at most 0)" in capsys.readouterr().out
    for narrow in (tmp_path / "narrow", tmp_path / "merged"):
        assert main(["verify", str(runs["lora"]), str(narrow)]) == 0
        assert "float32  float16  float16" in capsys.readouterr().out
    assert main(["verify", str(runs["lora"]), "builtin:sums"]) == 1
    assert "21 of 35 tensors" in capsys.readouterr().out  # the seven projections of three layers


def test_a_run_that_trained_all_weights_is_equal_to_its_export_and_has_no_adapter(runs, tmp_path, capsys):
    assert main(["to-hf", "--from", str(runs["full"]), "--output", str(tmp_path / "hf"), "--dtype", "float32"]) == 0
    assert main(["verify", str(tmp_path / "hf"), str(runs["full"])]) == 0
    assert capsys.readouterr().out.rstrip().endswith("equal, bit for bit")
    error = error_of(capsys, "adapter", "--from", runs["full"], "--output", tmp_path / "out")
    assert f"trained all weights and has no adapter: export it with to-hf --from {runs['full']}" in error
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_an_adapter_whose_base_has_moved_is_exported_with_its_new_place(runs, adapter, tmp_path, capsys):
    run, base = tmp_path / "run", Path(shutil.copytree(SUMS, tmp_path / "base"))
    run.mkdir()
    (run / "checkpoints").symlink_to(runs["lora"] / "checkpoints")
    (run / "config.yaml").write_text((runs["lora"] / "config.yaml").read_text().replace("builtin:sums", "/gone"))
    out = ["--from", run, "--output", tmp_path / "out"]
    assert "model.path '/gone' is not a directory" in error_of(capsys, "adapter", *out)
    assert main(["adapter", *map(str, out), "--model", str(base)]) == 0
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    weights = "adapter_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (adapter / weights).read_bytes()


def test_an_adapter_that_is_interrupted_or_has_no_place_leaves_nothing(runs, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    assert "is not an empty directory" in error_of(capsys, "adapter", "--from", runs["lora"], "--output", out)
    assert [path.name for path in out.iterdir()] == ["mine"]
    shutil.rmtree(out)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("convert.weights.copy_companions", interrupted)
    assert main(["adapter", "--from", str(runs["lora"]), "--output", str(out)]) == 130
    assert list(tmp_path.iterdir()) == []


def test_a_base_with_nan_is_named_whatever_reads_the_run(runs, tmp_path, capsys):
    run, base = tmp_path / "run", Path(shutil.copytree(SUMS, tmp_path / "base"))
    run.mkdir()
    (run / "checkpoints").symlink_to(runs["lora"] / "checkpoints")
    (run / "config.yaml").write_text((runs["lora"] / "config.yaml").read_text().replace("builtin:sums", str(base)))
    tensors, name = load_file(base / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    tensors[name][0, 0] = np.nan
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    for argv in (["to-hf", "--from", run, "--output", tmp_path / "out"], ["verify", run, SUMS]):
        assert f"{base / 'model.safetensors'}: tensor {name} has NaN" in error_of(capsys, *argv)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_inspecting_a_run_counts_what_its_checkpoint_holds(runs, kind, capsys):
    assert main(["inspect", f"{runs[kind]}:2", "--tensors", "--mesh", "fsdp=8"]) == 0
    out = capsys.readouterr().out
    policy = restore_policy(runs[kind]).policy
    base, learnt = jax.tree.leaves(policy.model), jax.tree.leaves(policy.adapter)
    for trees in filter(None, (base, learnt)):
        assert f"{sum(x.size for x in trees):,} parameters" in out
    held = sum(x.addressable_shards[0].data.nbytes for x in base + learnt)
    assert f"on a device: {held:,} B" in out
    assert f"step 2 of run {runs[kind]}" in out
    if kind == "lora":
        assert f"14 tensors float32, {sum(x.nbytes for x in learnt):,} B" in out
        assert "adapter of rank 4, alpha 16, scale 4 (alpha / rank), on q, k, v, o, gate, up, down" in out
    else:
        assert f"13 tensors float32, {sum(x.nbytes for x in base):,} B" in out
