"""`python -m convert inspect`: what it counts is what the arrays are, and it needs neither weights nor devices."""

import json
import shutil

import jax
import pytest

from convert.__main__ import main
from convert.placement import parse_mesh, place
from jopsd.mesh import make_mesh
from jopsd.models.hf import abstract_decoder, leaves_of, load_pretrained, read_config
from tests.families import CASES, random_model
from tests.test_convert import SUMS, error_of

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")


def inspect(capsys, *argv) -> str:
    capsys.readouterr()
    assert main(["inspect", *map(str, argv)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", CASES)
def test_parameters_and_bytes_are_those_of_transformers_for_every_family(tmp_path, capsys, name):
    model = random_model(name).bfloat16()
    model.save_pretrained(tmp_path)
    out = inspect(capsys, tmp_path, "--tensors")
    count, tensors = sum(x.numel() for x in model.parameters()), dict(model.named_parameters())
    assert f"{count:,} parameters" in out
    assert f"{len(tensors)} tensors bfloat16, {2 * count:,} B" in out
    for tensor, x in tensors.items():
        line = next(line for line in out.splitlines() if line.startswith(f"{tensor} "))
        assert line.split(maxsplit=1)[1].split("  ")[0].strip() == str(list(x.shape))
        assert line.split()[-2:] == ["bfloat16", f"{2 * x.numel():,}"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("qwen3", ["Qwen3ForCausalLM", "3, width 32, feed-forward 40", "4 of size 16, 2 for keys", "over each head"]),
        ("qwen3-yarn-bias", ["base 10000, Yarn with factor 4", "q, k, v, o", "(tied)"]),
        ("qwen2-window", ["Qwen2ForCausalLM", "window 5, in all layers", "Linear with factor 2", "q, k, v\n"]),
        ("llama3", ["LlamaForCausalLM", "Llama3 with factor 8", "full in all layers", "none"]),
        (
            "olmo3",
            ["by turns: sliding, sliding, sliding, full", "(full layers only)", "after attention", "all heads at"],
        ),
    ],
)
def test_what_makes_a_family_is_said_for_a_config_alone(tmp_path, capsys, name, told):
    model = random_model(name)
    model.save_pretrained(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    out = inspect(capsys, tmp_path / "config", "--tensors", "--mesh", "fsdp=2")
    assert [part for part in told if part not in out] == []
    assert f"{model.num_parameters():,} parameters" in out
    assert "no weights here, only config.json" in out
    assert out == inspect(capsys, tmp_path / "config" / "config.json", "--tensors", "--mesh", "fsdp=2")


@pytest.mark.parametrize("name", ["qwen3", "llama-biases", "olmo3-plain"])
@pytest.mark.parametrize("axes", [(1, 8, 1), (2, 2, 2), (1, 2, 4)])
def test_bytes_per_device_are_those_of_the_real_arrays_on_that_mesh(tmp_path, capsys, name, axes):
    random_model(name).save_pretrained(tmp_path)
    text = "data={},fsdp={},tensor={}".format(*axes)
    leaves = leaves_of(load_pretrained(tmp_path, mesh=make_mesh(*axes)))
    held = {name: {shard.data.nbytes for shard in leaf.addressable_shards} for name, leaf in leaves.items()}
    placed = place(abstract_decoder(read_config(tmp_path)), parse_mesh(text))
    assert {x.name: {x.nbytes} for x in placed} == held
    out = inspect(capsys, tmp_path, "--mesh", text)
    assert f"total on a device: {sum(map(max, held.values())):,} B" in out
    for leaf, sizes in held.items():
        line = next(line for line in out.splitlines() if line.startswith(f"{leaf} "))
        assert line.split()[-1] == f"{max(sizes):,}"


def test_a_mesh_larger_than_this_machine_will_do_and_what_it_does_not_divide_is_named(capsys):
    out = inspect(capsys, "builtin:sums", "--mesh", "fsdp=64,tensor=3")
    assert "on each of 192 devices (data 1, fsdp 64, tensor 3)" in out
    assert "not split over tensor = 3, which does not divide it: embed (128), layers.k (64)" in out
    assert "layers.down (" not in out  # 384
    assert jax.device_count() < 192


def test_an_orbax_folder_is_counted_from_its_metadata(tmp_path, capsys):
    assert main(["to-flax", "--model", str(SUMS), "--output", str(tmp_path / "flax")]) == 0
    out = inspect(capsys, tmp_path / "flax", "--tensors")
    assert "607,296 parameters\n              13 tensors float16, 1,214,592 B (1.21 MB)" in out
    assert next(line.split()[1:] for line in out.splitlines() if line.startswith("layers.q ")) == [
        *("[3,", "128,", "128]", "float16", "98,304")
    ]
    path = tmp_path / "flax" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"intermediate_size": 400}))
    error = error_of(capsys, "inspect", tmp_path / "flax")
    assert f"{tmp_path / 'flax' / 'model'} does not hold what its config describes: layers.down has shape" in error
    for file in (tmp_path / "flax" / "model").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:100])
    assert f"{tmp_path / 'flax' / 'model'} has no metadata" in error_of(capsys, "inspect", tmp_path / "flax")


def test_a_peft_directory_is_described_without_its_base(tmp_path, capsys):
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], use_rslora=True)
    model = peft.get_peft_model(random_model("qwen3"), config)
    model.save_pretrained(tmp_path)
    out = inspect(capsys, tmp_path, "--mesh", "fsdp=2", "--tensors")
    count = sum(x.numel() for name, x in model.named_parameters() if "lora_" in name)
    assert f"{count:,} parameters\n              12 tensors float32, {4 * count:,} B" in out
    assert "adapter of rank 4, alpha 6, scale 3 (alpha / sqrt(rank))" in out
    row = next(line for line in out.splitlines() if line.startswith("a.q "))
    assert row.split() == ["a.q", "[3,", "32,", "4]", "float32", "[3,", "16,", "4]", "768"]
    assert "base_model.model.model.layers.2.mlp.down_proj.lora_B.weight" in out
    (tmp_path / "adapter_model.safetensors").unlink()
    assert "no weights here, only adapter_config.json" in inspect(capsys, tmp_path)


@pytest.mark.parametrize("mesh", ["x=2", "fsdp", "fsdp=0", "fsdp=2,fsdp=2", "fsdp=-1", ""])
def test_a_mesh_that_is_none_is_one_line(capsys, mesh):
    assert f"--mesh {mesh!r}" in error_of(capsys, "inspect", SUMS, "--mesh", mesh)


def test_what_is_no_source_is_one_line(tmp_path, capsys):
    error = error_of(capsys, "inspect", tmp_path)
    assert f"SOURCE {tmp_path} is neither a run" in error
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    assert "GPT2LMHeadModel" in error_of(capsys, "inspect", tmp_path)
