"""PEFT adapter directories: the same logits as `peft`, the same bytes both ways, clear errors, nothing half-written."""

import json
import math
import shutil
from dataclasses import fields, replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jopsd.models import peft as adapters
from jopsd.models.decoder import ModelConfig
from jopsd.models.families import FAMILIES
from jopsd.models.hf import load_pretrained
from jopsd.models.lora import TARGETS, Adapter, init_adapter, lora_scale
from jopsd.models.peft import load_adapter, save_adapter
from tests.families import random_model, random_peft
from tests.runs import in_two_processes

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

REPO = Path(__file__).resolve().parent.parent
CFG = ModelConfig(61, 32, 3, 4, 2, 16, 40, rope_theta=1e4)
TENSORS = FAMILIES["Qwen3ForCausalLM"].tensors
TOKENS = np.random.default_rng(0).integers(0, CFG.vocab_size, (2, 11))
TOLERANCE = 1e-4
Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


def random_adapter(targets=TARGETS, rank=4, alpha=8.0, rslora=False) -> Adapter:
    adapter = init_adapter(CFG.projections, CFG.num_layers, rank, alpha, jax.random.key(3), targets, rslora)
    keys = jax.random.split(jax.random.key(4), len(adapter.b))
    noise = zip(adapter.b.items(), keys, strict=True)
    return replace(adapter, b={name: 0.2 * jax.random.normal(key, b.shape) for (name, b), key in noise})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Our model with the weights of `random_model`."""
    folder = tmp_path_factory.mktemp("base")
    random_model("qwen3").save_pretrained(folder)
    return load_pretrained(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A directory with q and down adapted, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    save_adapter(random_adapter(("q", "down")), folder, TENSORS)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


def load(folder: Path, **options) -> Adapter:
    return load_adapter(folder, CFG.projections, CFG.num_layers, TENSORS, **options)


def peft_logits(model) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.tensor(TOKENS)).logits.numpy()


@jax.jit
def logits(model, adapter=None):
    return model.unembed(model.hidden(TOKENS, adapter=adapter))


def assert_same(a: Adapter, b: Adapter) -> None:
    assert a.scale == b.scale
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def edit_config(folder: Path, **changes) -> None:
    """Sets keys; a value of `...` removes one."""
    path = folder / "adapter_config.json"
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not ...}))


def edit_tensors(folder: Path, change) -> None:
    """Applies `change` to the dict of tensors."""
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


# ------------------------------------------------------------------------------------------------------ against peft


@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rslora"])
@pytest.mark.parametrize("targets", [TARGETS, ("q", "v"), ("down",)], ids=["all", "q-v", "down"])
def test_peft_loads_a_saved_adapter_and_computes_the_same_logits(base, tmp_path, targets, rslora):
    adapter = random_adapter(targets, rslora=rslora)
    save_adapter(adapter, tmp_path / "out", TENSORS, rslora=rslora)
    model = peft.PeftModel.from_pretrained(random_model("qwen3"), tmp_path / "out").eval()
    adapted = [module for module in model.modules() if hasattr(module, "lora_A")]
    assert [module.scaling["default"] for module in adapted] == [adapter.scale] * len(targets) * CFG.num_layers
    expected = peft_logits(model)
    assert np.abs(expected - logits(base)).max() > 0.1  # the adapter does something
    np.testing.assert_allclose(logits(base, adapter), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear", "use_rslora": True, "lora_alpha": 3, "lora_dropout": 0.1},
        {"target_modules": r".*\.mlp\.(up|down)_proj", "init_lora_weights": "gaussian"},
        {"target_modules": "all-linear", "exclude_modules": ["o_proj"], "init_lora_weights": "orthogonal"},
    ],
    ids=["list", "all-linear-rslora", "regular-expression", "excluding"],
)
def test_an_adapter_made_by_peft_loads_and_goes_back_to_peft_with_the_same_bytes(base, tmp_path, options):
    model = random_peft(r=4, **options)
    model.save_pretrained(tmp_path / "peft")
    adapter = load(tmp_path / "peft")
    assert np.abs(logits(base, adapter) - logits(base)).max() > 0.1
    np.testing.assert_allclose(logits(base, adapter), peft_logits(model), atol=TOLERANCE, rtol=0)
    save_adapter(adapter, tmp_path / "back", TENSORS, rslora=options.get("use_rslora", False))
    theirs, ours = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("peft", "back"))
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert (tensor.dtype, tensor.shape, tensor.tobytes()) == (
            ours[name].dtype,
            ours[name].shape,
            ours[name].tobytes(),
        )


def test_the_config_says_what_peft_itself_writes_for_the_same_adapter(tmp_path):
    random_peft(r=4, lora_alpha=8, target_modules=["v_proj", "q_proj"], use_rslora=True).save_pretrained(tmp_path / "p")
    save_adapter(random_adapter(("v", "q"), rslora=True), tmp_path / "ours", TENSORS, rslora=True, base="a/base")
    theirs, ours = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("p", "ours"))
    assert ours.pop("base_model_name_or_path") == "a/base"
    assert ours == {key: theirs[key] for key in ours} | {"target_modules": sorted(theirs["target_modules"])}
    assert type(ours["lora_alpha"]) is int
    changed = {key for key, value in theirs.items() if key not in ours and value not in (None, False, {}, [])}
    # What is not written is at its default, whatever PEFT's version.
    assert changed <= {"base_model_name_or_path", "megatron_core", "peft_version", "qalora_group_size"}


def test_an_adapter_saved_by_transformers_itself_loads(base, tmp_path):
    model = random_model("qwen3")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["k_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path)
    np.testing.assert_allclose(logits(base, load(tmp_path)), peft_logits(model.eval()), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_adapter_of_half_precision_is_float32_in_memory(tmp_path, dtype):
    model = random_peft(r=4, target_modules=["q_proj"]).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    assert {str(tensor.dtype) for tensor in load_file(tmp_path / "adapter_model.safetensors").values()} == {dtype}
    adapter = load(tmp_path)
    layers = [layer.self_attn.q_proj for layer in model.base_model.model.model.layers]
    for factors, name in ((adapter.a, "lora_A"), (adapter.b, "lora_B")):
        expected = np.stack([getattr(layer, name)["default"].weight.detach().float().numpy().T for layer in layers])
        assert factors["q"].dtype == np.float32
        np.testing.assert_array_equal(factors["q"], expected)


@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rslora"])
@pytest.mark.parametrize(("rank", "alpha"), [(1, 1), (3, 7), (8, 16), (6, 0.3), (64, 128)])
def test_the_scale_is_the_one_that_peft_uses(rank, alpha, rslora):
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, use_rslora=rslora, target_modules=["x"])
    model = peft.inject_adapter_in_model(config, Tiny())
    assert model.x.scaling["default"] == lora_scale(rank, alpha, rslora)
    assert random_adapter(("q",), rank, alpha, rslora).scale == lora_scale(rank, alpha, rslora)


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.x = torch.nn.Linear(2, 2)


# ------------------------------------------------------------------------------------------------------ round trip


@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rslora"])
def test_a_saved_adapter_loads_with_the_same_bits_and_scale(tmp_path, rslora):
    adapter = random_adapter(("q", "o", "up"), rank=3, alpha=7, rslora=rslora)
    save_adapter(adapter, tmp_path / "same", TENSORS, rslora=rslora)
    assert_same(load(tmp_path / "same"), adapter)
    # How the scale is written down does not change it.
    save_adapter(adapter, tmp_path / "other", TENSORS, rslora=not rslora)
    assert load(tmp_path / "other").scale == pytest.approx(adapter.scale, rel=1e-15)


def test_an_integral_alpha_is_written_as_the_integer_it_was_and_others_keep_the_scale():
    for rank in (1, 2, 3, 7, 8, 12, 64, 100):
        for rslora in (False, True):
            for alpha in range(-2, 200):
                written = adapters._alpha(lora_scale(rank, alpha, rslora), rank, rslora)
                assert type(written) is int and written == alpha
            for alpha in np.random.default_rng(0).uniform(0, 64, 50).tolist():
                scale = lora_scale(rank, alpha, rslora)
                assert lora_scale(rank, adapters._alpha(scale, rank, rslora), rslora) == pytest.approx(scale, rel=1e-15)


def test_a_save_replaces_an_empty_directory_and_makes_parents(tmp_path):
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b"):
        save_adapter(random_adapter(("q",)), target, TENSORS)
        assert sorted(path.name for path in target.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_the_order_of_init_arguments_and_its_bits_are_those_from_before_rslora():
    adapter = init_adapter(CFG.projections, 3, 4, 8.0, jax.random.key(0), ("q",))
    expected = jax.random.uniform(
        jax.random.split(jax.random.key(0), 1)[0], (3, 32, 4), np.float32, -(32**-0.5), 32**-0.5
    )
    np.testing.assert_array_equal(adapter.a["q"], expected)
    assert adapter.scale == 2.0


# ------------------------------------------------------------------------------------------------------ mesh


def test_a_sharded_load_equals_an_unsharded_one_and_saves_the_same_bytes(tmp_path):
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
    save_adapter(random_adapter(), tmp_path / "in", TENSORS)
    sharded = load(tmp_path / "in", mesh=mesh)
    assert_same(sharded, load(tmp_path / "in"))
    for leaf in jax.tree.leaves(sharded):  # the wide side is in four parts, each on two devices
        assert {shard.data.size for shard in leaf.addressable_shards} == {leaf.size // 4}
    save_adapter(sharded, tmp_path / "out", TENSORS)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()


@pytest.mark.slow
def test_two_processes_load_their_own_parts_and_save_the_same_bytes(folder, tmp_path):
    code = """
        folder, out = arguments
        from tests.test_peft import CFG, TENSORS, load_adapter, save_adapter
        adapter = load_adapter(folder, CFG.projections, CFG.num_layers, TENSORS, mesh=mesh)
        assert not adapter.a["q"].is_fully_addressable
        save_adapter(adapter, out, TENSORS)
        assert load_adapter(out, CFG.projections, CFG.num_layers, TENSORS).scale == adapter.scale
    """
    in_two_processes(code, folder, tmp_path / "out")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


# ------------------------------------------------------------------------------------------------------ errors, saving


def test_a_target_that_is_not_empty_is_refused(folder):
    before = (folder / "adapter_model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="exists and is not an empty directory"):
        save_adapter(random_adapter(("k",)), folder, TENSORS)
    assert (folder / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize("step", ["jopsd.models.peft.write_safetensors", "os.replace"])
def test_a_save_that_fails_halfway_leaves_nothing(tmp_path, monkeypatch, step):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(step, full)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(random_adapter(("q",)), tmp_path / "out", TENSORS)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_without_targets_or_of_several_ranks_is_not_written(tmp_path):
    first, second = random_adapter(("q",), rank=2), random_adapter(("v",), rank=4)
    for adapter in (Adapter({}, {}, 1.0), Adapter(first.a | second.a, first.b | second.b, 1.0)):
        with pytest.raises(ValueError, match=r"only an adapter of one rank can be written, the ranks .* \[(2, 4)?\]"):
            save_adapter(adapter, tmp_path / "out", TENSORS)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ errors, config


def assert_refused(folder: Path, *told: str, error=ValueError, **options) -> None:
    with pytest.raises(error) as raised:
        load(folder, **options)
    message = str(raised.value)
    assert "\n" not in message
    for part in told:
        assert part in message


def test_a_directory_without_config_or_weights_is_refused(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    told = f"no adapter_model.safetensors in {folder}; adapter_model.bin is a pickle, convert it to safetensors"
    assert_refused(folder, told, error=FileNotFoundError)
    (folder / "adapter_model.bin").unlink()
    assert_refused(folder, f"no adapter_model.safetensors in {folder}", error=FileNotFoundError)
    (folder / "adapter_config.json").unlink()
    assert_refused(folder, f"{folder / 'adapter_config.json'} does not exist", error=FileNotFoundError)


def test_a_config_that_is_not_a_json_object_is_refused(folder):
    (folder / "adapter_config.json").write_text('{"r": 4,')
    assert_refused(folder, str(folder / "adapter_config.json"), "is not valid JSON")
    (folder / "adapter_config.json").write_text("[]")
    assert_refused(folder, str(folder / "adapter_config.json"), "must hold a JSON object")


# The value that turns each option on.
UNSUPPORTED = {
    "use_dora": True,
    "bias": "lora_only",
    "rank_pattern": {"q_proj": 8},
    "alpha_pattern": {"q_proj": 8},
    "modules_to_save": ["lm_head"],
    "fan_in_fan_out": True,
    "layers_to_transform": 0,
    "layers_pattern": "layers",
    "layer_replication": [[0, 2], [1, 3]],
    "lora_bias": True,
    "trainable_token_indices": [5],
    "target_parameters": ["mlp.experts.gate_up_proj"],
    "megatron_config": {"tensor_model_parallel_size": 2},
    "use_qalora": True,
    "use_bdlora": {"nblocks": 2},
    "alora_invocation_tokens": [1, 2],
    "arrow_config": {"top_k": 3},
    "velora_config": {"num_groups": 4},
    "kasa_config": {"beta": 1e-4},
    "monteclora_config": {"num_samples": 8},
    "init_lora_weights": "pissa_niter_16",
    "an_option_of_tomorrow": 0,
}


@pytest.mark.parametrize("key", UNSUPPORTED)
def test_an_option_that_changes_the_mathematics_or_is_unknown_is_refused_by_name_and_value(folder, key):
    edit_config(folder, **{key: UNSUPPORTED[key]})
    told = f"{folder / 'adapter_config.json'}: {key} = {UNSUPPORTED[key]!r} is not supported"
    assert_refused(folder, told, "merge the adapter into its base with peft")


def test_no_variant_of_lora_that_peft_knows_is_let_through():
    let_through = adapters._READ | adapters._ALLOWED.keys() | adapters._WITHOUT_EFFECT
    variants = {f.name for f in fields(peft.LoraConfig) if f.metadata.get("is_lora_variant")}
    assert not (variants | UNSUPPORTED.keys() - adapters._ALLOWED.keys()) & let_through


@pytest.mark.parametrize("value", ["IA3", "lora", ...])
def test_another_kind_of_adapter_is_refused(folder, value):
    edit_config(folder, peft_type=value)
    told = None if value is ... else value
    assert_refused(folder, f"{folder / 'adapter_config.json'}: peft_type = {told!r} is not supported, only 'LORA'")


@pytest.mark.parametrize(
    ("key", "value"),
    [("r", 0), ("r", "4"), ("r", 4.0), ("r", ...), ("lora_alpha", None), ("lora_alpha", math.nan), ("lora_alpha", "8")],
)
def test_a_rank_or_alpha_that_is_no_number_is_refused(folder, key, value):
    edit_config(folder, **{key: value})
    told = None if value is ... else value
    assert_refused(folder, f"{folder / 'adapter_config.json'}: {key} = {told!r} must be")


# ------------------------------------------------------------------------------------------------------ errors, tensors


def test_a_tensor_of_another_rank_than_the_config_is_refused(folder):
    edit_config(folder, r=8)
    assert_refused(folder, str(folder / "adapter_model.safetensors"), "has rank 4, but", "r = 8")
    edit_config(folder, r=4)
    edit_tensors(folder, lambda t: t.update({f"{Q0}B.weight": np.zeros((64, 2), np.float32)}))
    assert_refused(folder, f"tensor {Q0}B.weight has rank 2, but adapter_config.json says r = 4")


@pytest.mark.parametrize(("factor", "shape"), [("A", [4, 48]), ("B", [80, 4]), ("A", [128])])
def test_an_adapter_of_another_width_is_refused_as_made_for_another_base(folder, factor, shape):
    name = f"{Q0}{factor}.weight"
    edit_tensors(folder, lambda t: t.update({name: np.zeros(shape, np.float32)}))
    expected = [4, 32] if factor == "A" else [64, 4]
    told = f"the adapter was made for another base than models/b: tensor {name} has shape {shape}, expected {expected}"
    assert_refused(folder, str(folder / "adapter_model.safetensors"), told, where_base="models/b")


def test_an_adapter_of_more_or_fewer_layers_is_refused(folder):
    with pytest.raises(ValueError, match=r"nothing reads tensor base_model\.model\.model\.layers\.2\..* of models/b"):
        load_adapter(folder, CFG.projections, 2, TENSORS, where_base="models/b")
    with pytest.raises(ValueError, match=r"q is adapted in 3 layers only, tensor .*layers\.3\..* models/b has 4"):
        load_adapter(folder, CFG.projections, 4, TENSORS, where_base="models/b")


def test_a_target_on_some_layers_only_is_refused(tmp_path):
    random_peft(r=4, target_modules=["q_proj"], layers_to_transform=[0, 2]).save_pretrained(tmp_path)
    edit_config(tmp_path, layers_to_transform=None)
    lost = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    assert_refused(tmp_path, str(tmp_path / "adapter_model.safetensors"), "in 2 layers only", lost, "B of zeros")


@pytest.mark.parametrize(("lost", "left"), ["AB", "BA"])
def test_a_factor_without_the_other_is_refused(folder, lost, left):
    edit_tensors(folder, lambda t: t.pop(f"{Q0}{lost}.weight"))
    told = f"tensor {Q0}{left}.weight is there without {Q0}{lost}.weight"
    assert_refused(folder, f"{folder / 'adapter_model.safetensors'}: {told}")


def test_an_adapter_of_the_head_and_a_saved_module_are_refused_as_tensors_that_nothing_reads(tmp_path):
    random_peft(r=4, target_modules=["q_proj", "lm_head"]).save_pretrained(tmp_path / "head")
    assert_refused(tmp_path / "head", "nothing reads tensor base_model.model.lm_head.base_layer.weight (3 such)")
    random_peft(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]).save_pretrained(tmp_path / "saved")
    edit_config(tmp_path / "saved", modules_to_save=None)
    assert_refused(tmp_path / "saved", "nothing reads tensor base_model.model.lm_head.weight (1 such)")


def test_dora_is_seen_in_the_tensors_even_if_the_config_denies_it(tmp_path):
    random_peft(r=4, target_modules=["q_proj"], use_dora=True).save_pretrained(tmp_path)
    edit_config(tmp_path, use_dora=False)
    assert_refused(tmp_path, "nothing reads tensor", "q_proj.lora_magnitude_vector")


def test_a_file_without_tensors_is_refused(folder):
    edit_tensors(folder, dict.clear)
    assert_refused(folder, f"{folder / 'adapter_model.safetensors'} holds no tensor")


def test_a_truncated_file_is_refused(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert_refused(folder, f"{path} is truncated or corrupt")


def test_a_dtype_that_is_no_float_is_refused(folder):
    edit_tensors(folder, lambda t: t.update({f"{Q0}A.weight": t[f"{Q0}A.weight"].astype(np.int8)}))
    assert_refused(folder, f"{folder / 'adapter_model.safetensors'}: tensor {Q0}A.weight has dtype I8")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("meshed", [False, True], ids=["one-device", "mesh"])
def test_values_that_are_not_finite_are_refused_by_tensor(folder, value, meshed):
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    edit_tensors(folder, lambda t: t[name].__setitem__((5, 2), value))
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(1, -1, 1), ("data", "fsdp", "tensor")) if meshed else None
    told = f"{folder / 'adapter_model.safetensors'}: tensor {name} has NaN or infinite values"
    assert_refused(folder, told, mesh=mesh)
