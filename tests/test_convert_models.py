"""`python -m convert` between Hugging Face, orbax and PEFT: every family, merged adapters, damaged and interrupted."""

import json
import shutil
import sys
from pathlib import Path

import jax
import ml_dtypes  # noqa: F401  registers "bfloat16" with numpy
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert.__main__ import main
from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.models.hf import hf_config, save_pretrained
from tests.families import CASES, random_model, random_peft
from tests.test_convert import SUMS, error_of, tensors_of

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

CFG = ModelConfig(61, 32, 3, 4, 2, 16, 40, rope_theta=1e4)


ADAPTED = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small model in several files."""
    folder = tmp_path_factory.mktemp("model") / "hf"
    save_pretrained(Decoder(CFG, jax.random.key(0)), folder, hf_config(CFG), max_shard_bytes=20_000)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> dict[str, Path]:
    """`random_model` as a base, in float32 and bfloat16, and an adapter for it."""
    folder = tmp_path_factory.mktemp("pair")
    random_peft(**ADAPTED).save_pretrained(folder / "adapter")
    random_model("qwen3").save_pretrained(folder / "base")
    random_model("qwen3").bfloat16().save_pretrained(folder / "base-bfloat16")
    return {name: folder / name for name in ("adapter", "base", "base-bfloat16")}


# ------------------------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("name", CASES)
def test_every_family_comes_back_from_orbax_bit_for_bit_and_in_files_of_the_size_asked_for(tmp_path, name):
    random_model(name).bfloat16().save_pretrained(tmp_path / "a")
    assert main(["to-flax", "--model", str(tmp_path / "a"), "--output", str(tmp_path / "flax")]) == 0
    limit = ["--max-shard-gb", "0.00001"]
    assert main(["to-hf", "--from", str(tmp_path / "flax"), "--output", str(tmp_path / "b"), *limit]) == 0
    tensors = tensors_of(tmp_path / "a")
    assert {dtype for dtype, _ in tensors.values()} == {"BF16"}
    assert tensors_of(tmp_path / "b") == tensors
    files = sorted((tmp_path / "b").glob("*.safetensors"))
    assert len(files) > 2
    assert all(len(load_file(file)) == 1 or file.stat().st_size < 10_000 + 4096 for file in files)
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {tensor: file.name for file in files for tensor in load_file(file)}
    assert index["metadata"]["total_size"] == sum(len(data) for _, data in tensors.values())


# ------------------------------------------------------------------------------------------------------------ merge


@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rslora"])
def test_a_merged_model_has_the_weights_that_peft_merges(tmp_path, rslora):
    model = random_peft(**ADAPTED, use_rslora=rslora)
    model.save_pretrained(tmp_path / "adapter")
    random_model("qwen3").save_pretrained(tmp_path / "base")
    argv = ["--base", tmp_path / "base", "--adapter", tmp_path / "adapter", "--output", tmp_path / "out"]
    assert main(["merge", *map(str, argv)]) == 0
    theirs = {name: x.numpy() for name, x in model.merge_and_unload().state_dict().items()}
    ours, base = load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "base" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        np.testing.assert_allclose(x, theirs[name], atol=1e-6, rtol=0)
    changed = {name for name, x in ours.items() if np.abs(x - base[name]).max() > 0.1}
    assert changed == {name for name in ours if "_proj." in name}


def test_a_model_merged_in_bfloat16_is_rounded_once(tmp_path, pair):
    for dtype in ("bfloat16", "float32"):
        argv = ["--base", pair["base-bfloat16"], "--adapter", pair["adapter"], "--output", tmp_path / dtype]
        assert main(["merge", *map(str, argv), *(["--dtype", dtype] if dtype == "float32" else [])]) == 0
    rounded, exact = (load_file(tmp_path / dtype / "model.safetensors") for dtype in ("bfloat16", "float32"))
    factors, base = (
        load_file(pair["adapter"] / "adapter_model.safetensors"),
        pair["base-bfloat16"] / "model.safetensors",
    )
    for name, x in load_file(base).items():
        assert rounded[name].dtype == x.dtype == "bfloat16"
        np.testing.assert_array_equal(rounded[name], exact[name].astype("bfloat16"))
        if "_proj." in name:
            stem = f"base_model.model.{name.removesuffix('.weight')}.lora_"
            a, b = (factors[f"{stem}{factor}.weight"].astype(np.float64) for factor in "AB")
            np.testing.assert_allclose(exact[name], x.astype(np.float64) + b @ a * 1.5, atol=1e-6, rtol=0)


def test_a_base_in_orbax_merges_to_the_same_bytes_and_a_dtype_may_be_asked_for(tmp_path, pair):
    assert main(["to-flax", "--model", str(pair["base"]), "--output", str(tmp_path / "flax")]) == 0
    for name, base in {"a": pair["base"], "b": tmp_path / "flax"}.items():
        argv = ["--base", base, "--adapter", pair["adapter"], "--output", tmp_path / name, "--dtype", "float16"]
        assert main(["merge", *map(str, argv)]) == 0
    assert tensors_of(tmp_path / "a") == tensors_of(tmp_path / "b")
    assert json.loads((tmp_path / "a" / "config.json").read_text())["dtype"] == "float16"


def edit_adapter(folder: Path, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: edit_adapter(folder, r=8), "has rank 4, but adapter_config.json says r = 8"),
        (lambda folder: edit_adapter(folder, use_dora=True), "use_dora = True is not supported"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors in"),
    ],
    ids=["rank", "dora", "no-weights"],
)
def test_an_adapter_that_does_not_fit_is_named_and_nothing_is_written(tmp_path, pair, capsys, change, told):
    folder = Path(shutil.copytree(pair["adapter"], tmp_path / "adapter"))
    change(folder)
    argv = ["merge", "--base", pair["base"], "--adapter", folder, "--output", tmp_path / "out"]
    error = error_of(capsys, *argv)
    assert told in error
    assert str(folder) in error
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_of_another_base_and_what_is_no_adapter_or_no_base_are_named(tmp_path, pair, capsys):
    out = ["--output", tmp_path / "out"]
    error = error_of(capsys, "merge", "--base", SUMS, "--adapter", pair["adapter"], *out)
    assert f"was made for another base than {SUMS}" in error
    error = error_of(capsys, "merge", "--base", pair["base"], "--adapter", pair["base"], *out)
    assert f"--adapter {pair['base']} is not a PEFT adapter directory" in error
    error = error_of(capsys, "merge", "--base", pair["adapter"], "--adapter", pair["adapter"], *out)
    assert f"--base {pair['adapter']} is neither a folder made by to-flax nor a Hugging Face" in error
    assert "it is a PEFT adapter directory" in error
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- damaged, interrupted


def truncate(folder: Path) -> str:
    file = sorted(folder.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-7])
    return f"{file} is truncated or corrupt"


def lose_a_shard(folder: Path) -> str:
    file = sorted(folder.glob("*.safetensors"))[1]
    file.unlink()
    return f"shard {file} does not exist"


def misplace_a_tensor(folder: Path) -> str:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    files = sorted(set(index["weight_map"].values()))
    index["weight_map"]["model.norm.weight"] = files[-1]
    path.write_text(json.dumps(index))
    return f"{folder / files[-1]}: tensor model.norm.weight is missing"


def spoil_a_number(folder: Path) -> str:
    file = sorted(folder.glob("*.safetensors"))[-1]
    tensors = load_file(file)
    name = max(tensors)
    tensors[name].reshape(-1)[3] = np.nan
    save_file(tensors, file)
    return f"{file}: tensor {name} has NaN or infinite values"


@pytest.mark.parametrize("damage", [truncate, lose_a_shard, misplace_a_tensor, spoil_a_number])
def test_a_damaged_model_is_one_line_by_file_and_tensor_and_leaves_nothing(tmp_path, model, pair, capsys, damage):
    folder = Path(shutil.copytree(model, tmp_path / "hf"))
    told = damage(folder)
    out = ["--output", tmp_path / "out"]
    assert told in error_of(capsys, "to-flax", "--model", folder, *out)
    assert told in error_of(capsys, "merge", "--base", folder, "--adapter", pair["adapter"], *out)
    if damage is not spoil_a_number:  # inspect reads no weights, and verify says where a NaN is
        assert told in error_of(capsys, "inspect", folder)
        assert told in error_of(capsys, "verify", model, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_a_file_size_that_is_not_above_zero_is_refused(tmp_path, model, capsys, value):
    argv = ["to-hf", "--from", model, "--output", tmp_path / "out", "--max-shard-gb", value]
    assert "--max-shard-gb" in error_of(capsys, *argv)


@pytest.mark.parametrize(
    ("command", "where"),
    [
        ("to-flax", "jopsd.models.hf.read_leaf"),
        ("to-flax", "convert.weights.copy_companions"),
        ("to-hf", "jopsd.models.hf.fetch_tensor"),
        ("merge", "jopsd.models.hf.copy_companions"),
    ],
)
def test_ctrl_c_leaves_nothing_behind(tmp_path, pair, monkeypatch, capsys, command, where):
    flax, calls = tmp_path / "flax", []
    assert main(["to-flax", "--model", str(pair["base"]), "--output", str(flax)]) == 0
    module, name = where.rsplit(".", 1)
    original = getattr(sys.modules[module], name)

    def interrupted(*args, **options):
        calls.append(name)
        if name == "copy_companions" or len(calls) == 4:  # when all weights are there, or in their midst
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(where, interrupted)
    argv = {
        "to-flax": ["--model", pair["base"]],
        "to-hf": ["--from", flax],
        "merge": ["--base", pair["base"], "--adapter", pair["adapter"]],
    }
    assert main([command, *map(str, argv[command]), "--output", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.startswith("error: interrupted")
    assert [path.name for path in tmp_path.iterdir()] == ["flax"]


@pytest.mark.parametrize("command", ["to-flax", "to-hf", "merge", "adapter", "verify", "inspect"])
def test_every_command_has_examples_in_its_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"examples:\n  python -m convert {command} " in capsys.readouterr().out
