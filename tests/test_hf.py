"""Hugging Face directories: bytes in equal bytes out, clear errors, nothing half-written, little memory."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes  # noqa: F401  registers "bfloat16" with numpy
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jopsd.models import hf
from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.models.hf import hf_config, load_pretrained, read_config, save_pretrained
from jopsd.models.lora import init_adapter
from jopsd.models.tokenizer import eos_ids, load_tokenizer
from tests.runs import in_two_processes

REPO = Path(__file__).resolve().parent.parent
CFG = ModelConfig(67, 32, 3, 4, 2, 16, 40, rope_theta=5e5, rms_eps=1e-5)


def tensors_of(directory: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """(dtype, shape, bytes) of every tensor, read by the safetensors library from whatever files there are."""
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "np") as handle:
            for name in handle.keys():
                header = handle.get_slice(name)
                assert name not in found
                found[name] = header.get_dtype(), header.get_shape(), handle.get_tensor(name).tobytes()
    return found


def make(tmp_path: Path, name="model", cfg: ModelConfig = CFG, **options) -> Path:
    """A directory written by `save_pretrained` from a random model whose norms are random too."""
    model = Decoder(cfg, jax.random.key(0))
    noise = jax.random.split(jax.random.key(1), len(jax.tree.leaves(model)))
    leaves, tree = jax.tree.flatten(model)
    model = tree.unflatten(x + 0.1 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, noise, strict=True))
    save_pretrained(model, tmp_path / name, hf_config(cfg), **options)
    return tmp_path / name


def rewrite(directory: Path, change) -> None:
    """Applies `change` to the dict of tensors of a single-file directory."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def edit_json(path: Path, **changes) -> None:
    """Sets keys; a value of `...` removes one."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not ...}))


def assert_same_leaves(a, b) -> None:
    for (path, x), y in zip(jax.tree_util.tree_flatten_with_path(a)[0], jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))


def make_transformers(directory: Path, tied: bool, dtype: str, **save_options):
    """A directory written by transformers; returns the model."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3Config(
        vocab_size=67,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=tied,
        rope_parameters={"rope_theta": 5e5, "rope_type": "default"},
    )
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(config).to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5, 0.3)
    model.save_pretrained(directory, **save_options)
    return model


def transformers_logits(directory: Path, tokens) -> np.ndarray:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    with torch.no_grad():
        return model.eval()(torch.tensor(tokens)).logits.numpy()


@jax.jit
def our_logits(model, tokens, adapter=None):
    return model.unembed(model.hidden(tokens, adapter=adapter))


# ------------------------------------------------------------------------------------------------------ round trip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("shards", ["single", "sharded"])
def test_a_transformers_checkpoint_comes_back_with_the_same_bytes(tmp_path, tied, dtype, shards):
    make_transformers(tmp_path / "in", tied, dtype, **({"max_shard_size": "15KB"} if shards == "sharded" else {}))
    assert ((tmp_path / "in" / "model.safetensors.index.json").exists()) == (shards == "sharded")
    model = load_pretrained(tmp_path / "in")
    for limit in (2**30, 10_000):  # the shards of the output do not depend on those of the input
        out = tmp_path / f"out-{limit}"
        save_pretrained(model, out, tmp_path / "in", max_shard_bytes=limit)
        assert tensors_of(out) == tensors_of(tmp_path / "in")
        assert json.loads((out / "config.json").read_text()) == json.loads((tmp_path / "in/config.json").read_text())


def test_transformers_loads_what_is_saved_and_computes_the_same_logits(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 67, (2, 9))
    for tied in (True, False):
        folder = make(tmp_path, f"tied-{tied}", replace(CFG, tie_embeddings=tied), max_shard_bytes=10_000)
        ours = our_logits(load_pretrained(folder), tokens)
        np.testing.assert_allclose(ours, transformers_logits(folder, tokens), atol=1e-4, rtol=0)


def test_shards_stay_below_the_limit_and_the_index_accounts_for_every_tensor(tmp_path):
    folder = make(tmp_path, max_shard_bytes=10_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found = tensors_of(folder)
    assert set(index["weight_map"]) == set(found)
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in found.values())
    sizes = {}
    for name, file in index["weight_map"].items():
        sizes[file] = sizes.get(file, 0) + len(found[name][2])
    assert len(sizes) > 3
    assert max(sizes.values()) <= 10_000
    assert {path.name for path in folder.glob("*.safetensors")} == set(sizes)


def test_a_tied_checkpoint_may_carry_a_copy_of_its_table_as_head(tmp_path):
    folder = make(tmp_path, cfg=replace(CFG, tie_embeddings=True))
    plain = load_pretrained(folder)
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    assert_same_leaves(load_pretrained(folder), plain)


@pytest.mark.parametrize("change", [lambda x: x * 1.5, lambda x: x[:-1], lambda x: np.where(x == x[-1, -1], 0, x)])
def test_a_tied_checkpoint_with_another_head_is_refused(tmp_path, change):
    folder = make(tmp_path, cfg=replace(CFG, tie_embeddings=True))
    rewrite(folder, lambda t: t.update({"lm_head.weight": change(t["model.embed_tokens.weight"])}))
    with pytest.raises(ValueError, match=r"tie_word_embeddings is true, but model\.safetensors has a lm_head\.weight"):
        load_pretrained(folder)
    if load_file(folder / "model.safetensors")["lm_head.weight"].shape == (67, 32):
        edit_json(folder / "config.json", tie_word_embeddings=False)
        expected = load_file(folder / "model.safetensors")["lm_head.weight"]
        np.testing.assert_array_equal(np.asarray(load_pretrained(folder).lm_head[...]), expected)


@pytest.mark.parametrize("shard", [hf.MAX_SHARD_BYTES, 10_000], ids=["one-file", "shards"])
def test_buffers_without_weights_are_passed_over(tmp_path, shard):
    folder = make(tmp_path, max_shard_bytes=shard)
    plain = load_pretrained(folder)
    file = sorted(folder.glob("*.safetensors"))[0]
    buffers = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32) for layer in range(3)}
    buffers |= {"model.rotary_emb.inv_freq": np.ones(4, np.float16), "model.embed_tokens.position_ids": np.arange(8)}
    buffers |= {"model.layers.0.self_attn.rotary_emb.cos_cached": np.ones((4, 4))}
    save_file({**load_file(file), **buffers}, file, {"format": "pt"})
    if (index := folder / "model.safetensors.index.json").is_file():
        placed = json.loads(index.read_text())["weight_map"] | dict.fromkeys(buffers, file.name)
        edit_json(index, weight_map=placed)
    assert_same_leaves(load_pretrained(folder), plain)


@pytest.mark.parametrize(
    ("rename", "told"),
    [
        (lambda name: name.removeprefix("model."), "prefix '' where 'model.' is expected"),
        (lambda name: f"_orig_mod.{name}", "prefix '_orig_mod.model.' (by torch.compile)"),
        (lambda name: f"module.{name}", "prefix 'module.model.' (by DataParallel"),
        (lambda name: f"base_model.model.{name}", "(by PEFT; merge the adapter first)"),
        (lambda name: name.replace("model.", "model.language_model."), "prefix 'model.language_model.'"),
        (lambda name: name.replace("self_attn", "_fsdp_wrapped_module.self_attn"), "_fsdp_wrapped_module.self_attn"),
        (lambda name: name.replace("model.layers", "transformer.h"), "such as transformer.h.0.self_attn.q_proj.weight"),
    ],
)
def test_names_with_another_prefix_are_refused_with_what_the_file_has(tmp_path, rename, told):
    folder = make(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file({rename(k): v for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError) as error:
        load_pretrained(folder)
    assert "is missing" in str(error.value) and told in str(error.value)


def test_parameters_are_cast_to_the_dtype_asked_for(tmp_path):
    folder = make(tmp_path)
    model = load_pretrained(folder, read_config(folder, param_dtype="bfloat16"))
    expected = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].astype("bfloat16")
    np.testing.assert_array_equal(np.asarray(model.embed[...]), expected)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(model)} == {"bfloat16"}


def test_saving_in_another_dtype_rounds_the_tensors_and_says_so_in_the_config(tmp_path):
    folder = make(tmp_path)
    save_pretrained(load_pretrained(folder), tmp_path / "half", folder, dtype="bfloat16")
    assert read_config(tmp_path / "half").param_dtype == "bfloat16"
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "half" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensor.astype("bfloat16"), after[name])


def test_an_adapter_is_folded_into_what_is_saved(tmp_path):
    folder = make(tmp_path)
    model = load_pretrained(folder)
    adapter = init_adapter(CFG.projections, CFG.num_layers, 4, 8.0, jax.random.key(2), ("q", "v", "down"))
    adapter = replace(adapter, b={n: 0.3 * jax.random.normal(jax.random.key(3), b.shape) for n, b in adapter.b.items()})
    save_pretrained(model, tmp_path / "merged", folder, adapter=adapter)
    tokens = np.random.default_rng(0).integers(0, 67, (2, 9))
    expected = our_logits(model, tokens, adapter)
    assert np.abs(expected - our_logits(model, tokens)).max() > 1e-2
    np.testing.assert_allclose(our_logits(load_pretrained(tmp_path / "merged"), tokens), expected, atol=1e-4, rtol=0)
    before, after = tensors_of(folder), tensors_of(tmp_path / "merged")
    changed = {name.split(".")[-2] for name in before if before[name] != after[name]}
    assert changed == {"q_proj", "v_proj", "down_proj"}


def test_an_adapter_is_folded_into_bfloat16_with_a_single_rounding(tmp_path):
    cfg = replace(CFG, param_dtype="bfloat16", dtype="bfloat16")
    folder = make(tmp_path, cfg=cfg)
    adapter = init_adapter(cfg.projections, cfg.num_layers, 4, 8.0, jax.random.key(2), ("o",))
    adapter = replace(adapter, b={"o": 0.3 * jax.random.normal(jax.random.key(3), adapter.b["o"].shape)})
    save_pretrained(load_pretrained(folder), tmp_path / "merged", folder, adapter=adapter, dtype="float32")
    a, b = (np.asarray(x["o"], np.float64) for x in (adapter.a, adapter.b))
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    for layer in range(cfg.num_layers):
        name = f"model.layers.{layer}.self_attn.o_proj.weight"
        exact = before[name].astype(np.float64) + 2.0 * (a[layer] @ b[layer]).T
        np.testing.assert_allclose(after[name], exact, atol=1e-6, rtol=1e-6)


def test_tokenizer_generation_config_and_template_travel_with_the_weights(tmp_path):
    folder = make(tmp_path)
    carried = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "merges.txt"]
    for name in [*carried, "README.md", "pytorch_model.bin"]:
        (folder / name).write_text(f"content of {name} é")
    save_pretrained(load_pretrained(folder), tmp_path / "out", folder)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        [*carried, "config.json", "model.safetensors"]
    )
    for name in carried:
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


# ------------------------------------------------------------------------------------------------------ mesh


def a_mesh():
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    return jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 2), ("data", "fsdp", "tensor"))


def test_a_sharded_load_equals_an_unsharded_one_and_saves_the_same_bytes(tmp_path):
    folder = make(tmp_path, max_shard_bytes=10_000)
    sharded = load_pretrained(folder, mesh=a_mesh())
    assert_same_leaves(sharded, load_pretrained(folder))
    assert sharded.layers.q[...].sharding.spec == jax.P(None, "fsdp", "tensor")
    save_pretrained(sharded, tmp_path / "out", folder)
    assert tensors_of(tmp_path / "out") == tensors_of(folder)


def test_a_sharded_load_reads_every_part_once_and_no_more_than_a_part(tmp_path, monkeypatch):
    folder, parts = make(tmp_path), []
    read = hf.read_leaf

    def recorded(slots, found, index, dtype, progress):
        array = read(slots, found, index, dtype, progress)
        parts.append((slots[0].leaf, index, array.size))
        return array

    monkeypatch.setattr(hf, "read_leaf", recorded)
    model = load_pretrained(folder, mesh=a_mesh())
    gates = [size for leaf, _, size in parts if leaf == "layers.gate"]
    assert gates == [model.layers.gate[...].size // 4] * 4  # fsdp and tensor split it, data only copies it
    assert sum(size for _, _, size in parts) == sum(leaf.size for leaf in jax.tree.leaves(model))


# ------------------------------------------------------------------------------------------------------ config


def test_read_config_reads_the_rotary_base_of_transformers_4_and_5(tmp_path):
    path = make(tmp_path) / "config.json"
    assert read_config(path.parent).rope_theta == 5e5
    edit_json(path, rope_theta=..., rope_scaling=..., rope_parameters={"rope_theta": 77, "rope_type": "default"})
    assert read_config(path.parent).rope_theta == 77.0
    edit_json(path, rope_parameters=...)
    with pytest.raises(ValueError, match=r"config\.json: rope_theta is missing"):
        read_config(path.parent)


def test_read_config_returns_the_config_that_hf_config_wrote(tmp_path):
    for cfg in (CFG, replace(CFG, tie_embeddings=True, param_dtype="bfloat16", dtype="bfloat16")):
        folder = tmp_path / cfg.param_dtype
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(hf_config(cfg)))
        assert read_config(folder) == cfg
    assert read_config(folder, remat="full", dtype="float32") == replace(cfg, remat="full", dtype="float32")
    with pytest.raises(ValueError, match=r"\['head_dim'\] cannot be overridden"):
        read_config(folder, head_dim=8)


def test_a_missing_head_dim_is_hidden_size_over_heads(tmp_path):
    folder = make(tmp_path)
    edit_json(folder / "config.json", head_dim=...)
    assert read_config(folder).head_dim == 8
    with pytest.raises(ValueError, match=r"q_proj\.weight has shape \[64, 32\], expected \[32, 32\]"):
        load_pretrained(folder)


UNSUPPORTED = {
    "architectures": ["GPT2LMHeadModel"],
    "hidden_act": "gelu",
    "attention_dropout": 0.1,
    "quantization_config": {"quant_method": "fp8"},
    "dtype": "float8_e4m3fn",
}


@pytest.mark.parametrize("key", UNSUPPORTED)
def test_an_unsupported_option_is_refused_by_file_key_and_value(tmp_path, key):
    (tmp_path / "config.json").write_text(json.dumps(hf_config(CFG) | {key: UNSUPPORTED[key]}))
    with pytest.raises(ValueError) as error:
        read_config(tmp_path)
    for part in (str(tmp_path / "config.json"), key, repr(UNSUPPORTED[key]), "not supported"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rope_parameters": {"rope_theta": 1.0}}, "given twice and differs"),
        ({"rms_norm_eps": ...}, "rms_norm_eps is missing"),
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
    ],
)
def test_contradicting_and_missing_keys_are_refused(tmp_path, changes, told):
    (tmp_path / "config.json").write_text(json.dumps(hf_config(CFG)))
    edit_json(tmp_path / "config.json", **changes)
    with pytest.raises(ValueError) as error:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)
    assert told in str(error.value)


# ------------------------------------------------------------------------------------------------------ bad weights


def pop(name):
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (pop("model.layers.1.mlp.up_proj.weight"), "model.layers.1.mlp.up_proj.weight is missing"),
        (pop("lm_head.weight"), "lm_head.weight is missing"),
        (lambda t: t.update(extra=np.zeros(3, np.float32)), "tensor extra is unexpected"),
        (lambda t: t.update({"model.norm.weight": np.zeros(31, np.float32)}), "model.norm.weight has shape [31]"),
        (lambda t: t.update({"model.norm.weight": np.zeros(32, np.int8)}), "model.norm.weight has dtype I8"),
    ],
)
def test_a_wrong_tensor_is_refused_by_name(tmp_path, change, told):
    folder = make(tmp_path)
    rewrite(folder, change)
    with pytest.raises(ValueError) as error:
        load_pretrained(folder)
    assert told in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("meshed", [False, True], ids=["one-device", "mesh"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.layers.1.mlp.up_proj.weight", np.nan),
        ("model.embed_tokens.weight", np.inf),
        ("model.norm.weight", np.nan),
    ],
)
def test_weights_that_are_not_finite_are_refused_by_tensor(tmp_path, name, value, meshed):
    folder = make(tmp_path)
    rewrite(folder, lambda tensors: tensors[name].reshape(-1).__setitem__(5, value))
    with pytest.raises(ValueError, match=rf"model\.safetensors: tensor {name} has NaN or infinite values"):
        load_pretrained(folder, mesh=a_mesh() if meshed else None)


def test_a_missing_shard_is_refused_by_file_and_tensor(tmp_path):
    folder = make(tmp_path, max_shard_bytes=10_000)
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    tensor = next(iter(load_file(lost)))
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=lost.name) as error:
        load_pretrained(folder)
    assert tensor.split(".")[0] in str(error.value)


def test_an_index_that_names_a_tensor_its_file_lacks_is_refused(tmp_path):
    folder = make(tmp_path, max_shard_bytes=10_000)
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    wrong = next(file for file in weight_map.values() if file != weight_map["model.norm.weight"])
    edit_json(index, weight_map=weight_map | {"model.norm.weight": wrong})
    with pytest.raises(ValueError, match=r"model\.norm\.weight is missing"):
        load_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 7, 200, -5])
def test_a_truncated_file_is_refused_by_name(tmp_path, keep):
    file = make(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or corrupt"):
        load_pretrained(file.parent)


def test_a_directory_without_config_or_weights_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(hf_config(CFG)))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no weights in .*pytorch_model\.bin is a pickle"):
        load_pretrained(tmp_path)


def test_a_config_that_contradicts_the_directory_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"disagrees with .*config\.json: rope_theta 10000\.0 against 500000\.0"):
        load_pretrained(make(tmp_path), replace(CFG, rope_theta=1e4))


# ------------------------------------------------------------------------------------------------------ bad saves


def test_saving_over_something_is_refused_and_leaves_it_alone(tmp_path):
    folder = make(tmp_path)
    before = tensors_of(folder)
    with pytest.raises(FileExistsError, match="not an empty directory"):
        save_pretrained(Decoder(CFG, jax.random.key(9)), folder, hf_config(CFG))
    assert tensors_of(folder) == before
    (tmp_path / "empty").mkdir()
    save_pretrained(load_pretrained(folder), tmp_path / "empty", folder)
    assert tensors_of(tmp_path / "empty") == before


def test_saving_with_the_config_of_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"disagrees with source: num_layers 3 against 4"):
        save_pretrained(Decoder(CFG, jax.random.key(0)), tmp_path / "m", hf_config(replace(CFG, num_layers=4)))
    with pytest.raises(ValueError, match=r"dtype 'float64' cannot be written"):
        save_pretrained(Decoder(CFG, jax.random.key(0)), tmp_path / "m", hf_config(CFG), dtype="float64")
    assert not any(tmp_path.iterdir())


def test_parameters_of_several_dtypes_need_a_dtype(tmp_path):
    model = Decoder(CFG, jax.random.key(0))
    model = jax.tree.map(lambda x: x.astype("bfloat16") if x.ndim == 3 else x, model)
    with pytest.raises(ValueError, match=r"several dtypes \['bfloat16', 'float32'\]"):
        save_pretrained(model, tmp_path / "m", hf_config(CFG))


def test_weights_that_are_not_finite_or_too_large_for_the_dtype_are_not_written(tmp_path):
    model = Decoder(CFG, jax.random.key(0))
    model.layers.up = nnx.Param(model.layers.up[...].at[2, 3, 4].set(1e6))
    with pytest.raises(ValueError, match=r"layers\.2\.mlp\.up_proj\.weight holds numbers too large for float16"):
        save_pretrained(model, tmp_path / "m", hf_config(CFG), dtype="float16")
    model.layers.up = nnx.Param(model.layers.up[...].at[1, 3, 4].set(np.nan))
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight has NaN or infinite values"):
        save_pretrained(model, tmp_path / "m", hf_config(CFG))
    assert not any(tmp_path.iterdir())


def test_progress_counts_every_byte_read_and_written(tmp_path):
    folder = make(tmp_path)
    size = sum(len(data) for _, _, data in tensors_of(folder).values())
    read, written = [], []
    save_pretrained(load_pretrained(folder, progress=read.append), tmp_path / "out", folder, progress=written.append)
    assert sum(read) == sum(written) == size
    assert len(read) == len(written) == len(tensors_of(folder))


def test_a_save_that_fails_halfway_leaves_nothing(tmp_path, monkeypatch):
    model, fetch, calls = Decoder(CFG, jax.random.key(0)), hf.fetch_tensor, []

    def failing(*args):
        calls.append(args)
        if len(calls) == 20:
            raise OSError("No space left on device")
        return fetch(*args)

    monkeypatch.setattr(hf, "fetch_tensor", failing)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(model, tmp_path / "m", hf_config(CFG), max_shard_bytes=10_000)
    assert not any(tmp_path.iterdir())


def run_python(code: str, *args, **env) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(REPO), "JAX_PLATFORMS": "cpu"} | env
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_killed_save_leaves_nothing_that_looks_complete(tmp_path):
    code = """
        import os, signal, sys
        import jax
        from jopsd.models import hf
        from jopsd.models.decoder import Decoder, ModelConfig
        cfg = ModelConfig(67, 32, 3, 4, 2, 16, 40)
        fetch, fetched = hf.fetch_tensor, []
        def killed(*args):
            fetched.append(args)
            if len(fetched) == 20:
                os.kill(os.getpid(), signal.SIGKILL)
            return fetch(*args)
        hf.fetch_tensor = killed
        hf.save_pretrained(Decoder(cfg, jax.random.key(0)), sys.argv[1], hf.hf_config(cfg), max_shard_bytes=10_000)
    """
    assert run_python(code, tmp_path / "m").returncode == -signal.SIGKILL
    assert not (tmp_path / "m").exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".m.partial-")
    assert list(left.glob("*.safetensors"))
    with pytest.raises(FileNotFoundError):
        load_pretrained(left)


# ------------------------------------------------------------------------------------------------ memory, processes

# Anonymous memory only: pages of the mapped checkpoint are the file's, and the kernel takes them back at will.
MEASURE = """
    import sys, threading, time
    import jax
    from pathlib import Path
    from jopsd.models.hf import load_pretrained, read_config, save_pretrained

    def anonymous():
        status = Path("/proc/self/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))

    def peak_during(function):
        before, peak, done = anonymous(), [0], threading.Event()
        def watch():
            while not done.is_set():
                peak[0] = max(peak[0], anonymous())
                time.sleep(0.001)
        thread = threading.Thread(target=watch)
        thread.start()
        result = function()
        done.set()
        thread.join()
        return result, max(peak[0], anonymous()) - before

    folder, out = map(Path, sys.argv[1:])
    jax.block_until_ready(jax.numpy.zeros(8) + 1)
    cfg = read_config(folder)
    model, loading = peak_during(lambda: jax.block_until_ready(load_pretrained(folder)))
    _, saving = peak_during(lambda: save_pretrained(model, out, folder, max_shard_bytes=60_000_000))
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(model)]
    print(loading, saving, sum(sizes), max(sizes))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_loading_and_saving_200_megabytes_takes_little_beyond_the_model(tmp_path):
    cfg = ModelConfig(16384, 512, 10, 8, 4, 64, 2048, tie_embeddings=True)
    save_pretrained(Decoder(cfg, jax.random.key(0)), tmp_path / "m", hf_config(cfg), max_shard_bytes=60_000_000)
    result = run_python(MEASURE, tmp_path / "m", tmp_path / "out", XLA_FLAGS="")
    assert result.returncode == 0, result.stderr
    loading, saving, model, largest = map(int, result.stdout.split())
    print(f"in bytes: model {model:,}, largest leaf {largest:,}, load {loading:,}, save {saving:,}")
    assert model > 180e6
    assert loading < model + 2 * largest
    assert saving < 2 * largest + 50e6  # some of it is compiled code
    assert tensors_of(tmp_path / "out") == tensors_of(tmp_path / "m")


@pytest.mark.slow
def test_two_processes_load_their_own_parts_and_save_the_same_bytes(tmp_path):
    folder = make(tmp_path, max_shard_bytes=10_000)
    code = """
        folder, out = arguments
        from jopsd.models import hf
        read, sizes = hf.read_leaf, []
        def recorded(slots, found, index, dtype, progress):
            array = read(slots, found, index, dtype)
            if slots[0].leaf == "layers.gate":
                sizes.append(array.size)
            return array
        hf.read_leaf = recorded
        model = hf.load_pretrained(folder, mesh=mesh)
        assert sum(sizes) == model.layers.gate[...].size // 2, sizes
        hf.save_pretrained(model, out, folder)
        assert hf.load_pretrained(out).cfg == model.cfg
    """
    in_two_processes(code, folder, tmp_path / "out")
    assert tensors_of(tmp_path / "out") == tensors_of(folder)


# ------------------------------------------------------------------------------------------------------ tokenizer


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<end>": 0, "a": 1, "b": 2}, unk_token="<end>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>").save_pretrained(folder)
    return folder


def test_a_tokenizer_is_loaded_from_local_files(tokenizer_folder):
    tokenizer = load_tokenizer(tokenizer_folder)
    assert tokenizer("b a a")["input_ids"] == [2, 1, 1]


def test_a_directory_without_tokenizer_files_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer in .*tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot make a tokenizer"):
        load_tokenizer(tmp_path)


def test_end_tokens_come_from_generation_config_then_config_then_tokenizer(tmp_path, tokenizer_folder):
    tokenizer = load_tokenizer(tokenizer_folder)
    assert eos_ids(tmp_path, tokenizer) == (0,)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert eos_ids(tmp_path, tokenizer) == (7,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 4, 5]}))
    assert eos_ids(tmp_path, tokenizer) == (5, 4)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ["<end>"]}))
    with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id = \['<end>'\]"):
        eos_ids(tmp_path, tokenizer)


def test_a_model_without_any_end_token_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no end token"):
        eos_ids(tmp_path, None)
