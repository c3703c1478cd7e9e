"""`python -m convert`: bytes in equal bytes out, and what a run learnt reaches transformers unchanged."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from convert.__main__ import main
from convert.card import base_name, card
from convert.opened import Run, open_run
from convert.sources import find_side
from jopsd import checkpoint
from jopsd.config import load_config
from jopsd.mesh import make_mesh
from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.models.hf import hf_config, save_pretrained
from jopsd.policies import restore_policy
from jopsd.setup import load_weights

REPO = Path(__file__).resolve().parent.parent
SUMS = REPO / "jopsd" / "data" / "sums_base"
TINY = [
    "train.steps=2",
    "train.batch_size=4",
    "eval=null",
    "sampling.slots=4",
    "data.limit=16",
    "log.tensorboard=false",
]
KINDS = {"lora": "lora.rank=4", "full": "lora=null"}
TOKENS = np.random.default_rng(0).integers(4, 128, (3, 17))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Two runs of two steps made by the trainer itself: one with an adapter, one that trains all weights."""
    folder = tmp_path_factory.mktemp("runs")
    script = "import sys; from jopsd.train import main; sys.exit(max(main(part.split('|')) for part in sys.argv[1:]))"
    config = ["--config", str(REPO / "configs" / "quickstart.yaml"), *TINY]
    commands = ["|".join([*config, override, f"output_dir={folder / kind}"]) for kind, override in KINDS.items()]
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    subprocess.run(
        [sys.executable, "-c", script, *commands], cwd=REPO, env=os.environ | {"XLA_FLAGS": flags}, check=True
    )
    return {kind: folder / kind for kind in KINDS}


def tensors_of(directory: Path) -> dict[str, tuple[str, bytes]]:
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "np") as handle:
            for name in handle.keys():
                found[name] = handle.get_slice(name).get_dtype(), handle.get_tensor(name).tobytes()
    return found


def error_of(capsys, *argv) -> str:
    assert main([str(part) for part in argv]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_hf_to_orbax_to_hf_is_bit_identical(tmp_path, dtype, tied):
    cfg = ModelConfig(67, 32, 3, 4, 2, 16, 40, tie_embeddings=tied, dtype=dtype, param_dtype=dtype)
    save_pretrained(Decoder(cfg, jax.random.key(0)), tmp_path / "a", hf_config(cfg))
    assert main(["to-flax", "--model", str(tmp_path / "a"), "--output", str(tmp_path / "flax")]) == 0
    assert main(["to-hf", "--from", str(tmp_path / "flax"), "--output", str(tmp_path / "b")]) == 0
    assert tensors_of(tmp_path / "a") == tensors_of(tmp_path / "b")
    assert (tmp_path / "a" / "config.json").read_text() == (tmp_path / "b" / "config.json").read_text()


def test_the_shipped_model_with_its_tokenizer_comes_back_file_by_file_from_the_orbax_folder_alone(tmp_path):
    assert main(["to-flax", "--model", "builtin:sums", "--output", str(tmp_path / "flax")]) == 0
    moved = (tmp_path / "flax").rename(tmp_path / "moved")
    assert main(["to-hf", "--from", str(moved), "--output", str(tmp_path / "hf")]) == 0
    assert tensors_of(SUMS) == tensors_of(tmp_path / "hf")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (SUMS / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "moved"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_policy_is_the_state_that_the_trainer_itself_would_resume_from(runs, kind):
    mesh = make_mesh()
    restored = restore_policy(runs[kind])
    weights = load_weights(load_config(runs[kind] / "config.yaml"), mesh)
    with checkpoint.open_checkpoints(runs[kind], create=False) as manager:
        state, _ = checkpoint.restore(manager, 2, weights.state)
    expected = state.trainable
    found = restored.policy.adapter if kind == "lora" else restored.policy.model
    assert restored.step == 2
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    if kind == "lora":
        base = weights.models.base
        for one, other in zip(jax.tree.leaves(restored.policy.model), jax.tree.leaves(base), strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_run_has_in_transformers_the_logits_of_its_policy(runs, kind, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "hf"
    assert main(["to-hf", "--from", f"{runs[kind]}:2", "--output", str(out), "--dtype", "float32"]) == 0
    assert "step 2" in capsys.readouterr().out
    tokens = TOKENS
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    base = transformers.AutoModelForCausalLM.from_pretrained(SUMS, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs, before = (net(torch.from_numpy(tokens)).logits.numpy() for net in (model, base))
    policy = restore_policy(runs[kind], mesh=make_mesh()).policy
    ours = policy.model.unembed(policy.model.hidden(jnp.asarray(tokens), adapter=policy.adapter))
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=1e-4, rtol=0)
    assert np.abs(theirs - before).max() > 1e-2  # the two steps are visible
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "1+1"}], tokenize=False)
    assert "1+1" in text
    assert transformers.GenerationConfig.from_pretrained(out).eos_token_id == 2


def test_an_export_without_dtype_keeps_that_of_the_initial_model(runs, tmp_path):
    assert main(["to-hf", "--from", str(runs["full"]), "--output", str(tmp_path / "hf")]) == 0
    assert {dtype for dtype, _ in tensors_of(tmp_path / "hf").values()} == {"F16"}


def test_the_initial_model_may_have_moved_since_the_run(runs, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to(runs["lora"] / "checkpoints")
    config = (runs["lora"] / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("builtin:sums", "/gone"))
    assert "model.path '/gone' is not a directory" in error_of(
        capsys, "to-hf", "--from", run, "--output", tmp_path / "a"
    )
    assert main(["to-hf", "--from", str(run), "--output", str(tmp_path / "a"), "--model", str(SUMS)]) == 0
    assert main(["to-hf", "--from", str(runs["lora"]), "--output", str(tmp_path / "b")]) == 0
    assert tensors_of(tmp_path / "a") == tensors_of(tmp_path / "b")


def test_bad_input_is_one_line_that_names_it_and_leaves_nothing_behind(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert "no checkpoint of step 7; complete ones: [2]" in error_of(
        capsys, "to-hf", "--from", f"{runs['lora']}:7", "--output", out
    )
    assert "neither a run" in error_of(capsys, "to-hf", "--from", tmp_path, "--output", out)
    assert "--model '/none' is not a directory" in error_of(capsys, "to-flax", "--model", "/none", "--output", out)
    assert "config.json" in error_of(capsys, "to-flax", "--model", tmp_path, "--output", out)
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    (out / "mine").touch()
    for argv in (["to-flax", "--model", SUMS], ["to-hf", "--from", runs["lora"]]):
        assert "is not an empty directory" in error_of(capsys, *argv, "--output", out)
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_an_orbax_folder_whose_weights_are_damaged_is_named(tmp_path, capsys):
    assert main(["to-flax", "--model", str(SUMS), "--output", str(tmp_path / "flax")]) == 0
    (tmp_path / "flax" / "model" / "_METADATA").write_text("{}")
    assert f"{tmp_path / 'flax' / 'model'} does not hold" in error_of(
        capsys, "to-hf", "--from", tmp_path / "flax", "--output", tmp_path / "hf"
    )
    assert not (tmp_path / "hf").exists()


def test_a_conversion_that_fails_midway_leaves_no_output(tmp_path, monkeypatch, capsys):
    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("convert.weights.copy_companions", full_disk)
    assert "No space left" in error_of(capsys, "to-flax", "--model", SUMS, "--output", tmp_path / "flax")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------ adapters, verify, inspect


@pytest.fixture(scope="module")
def adapter(runs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "peft"
    argv = ["adapter", "--from", f"{runs['lora']}:2", "--output", str(folder), "--base-name", str(SUMS)]
    assert main(argv) == 0
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
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    weights = "adapter_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (adapter / weights).read_bytes()


def under(run: Path, target: Path, old: str, new: str) -> Path:
    """The run under another config: its checkpoints, with `old` replaced by `new` in config.yaml."""
    target.mkdir()
    (target / "checkpoints").symlink_to(run / "checkpoints")
    text = (run / "config.yaml").read_text()
    assert old in text
    (target / "config.yaml").write_text(text.replace(old, new))
    return target


def test_a_base_that_was_rounded_in_training_is_said_on_export_and_named_by_verify(runs, adapter, tmp_path, capsys):
    # The base is float16, of whose 11 bits bfloat16 keeps 8.
    run = under(runs["lora"], tmp_path / "run", "dtype: float32", "dtype: bfloat16")

    def export(name, *more):
        argv = ["to-hf", "--from", str(run), "--output", str(tmp_path / name), "--dtype", "float32", *more]
        assert main(argv) == 0
        return capsys.readouterr().out

    assert "in float32, of a base that was rounded from float16 to bfloat16 as in training" in export("rounded")
    assert "of a base" not in export("exact", "--exact-base")
    with_adapter = f"{SUMS}+{adapter}"
    assert main(["verify", str(tmp_path / "exact"), with_adapter]) == 0
    assert main(["verify", str(run), str(tmp_path / "rounded")]) == 0
    capsys.readouterr()
    for sides, why in (
        ((tmp_path / "rounded", with_adapter), "the base of B is rounded to bfloat16 in A"),
        ((with_adapter, tmp_path / "rounded"), "the base of A is rounded to bfloat16 in B"),
        ((run, with_adapter), "the run A computes with its base rounded to bfloat16, and B has it exact"),
        ((tmp_path / "exact", run), "the run B computes with its base rounded to bfloat16, and A has it exact"),
    ):
        assert main(["verify", *map(str, sides)]) == 1
        verdict = capsys.readouterr().out.rstrip().splitlines()[-1]
        assert "DIFFERENT" in verdict and f"the same adapter on the same base, but {why}" in verdict
    assert main(["verify", str(tmp_path / "rounded"), "builtin:sums"]) == 1
    assert "same adapter" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_exports_of_a_run_carry_a_model_card(runs, tmp_path, kind):
    for command in {"lora": ("to-hf", "adapter"), "full": ("to-hf",)}[kind]:
        argv = [command, "--from", str(runs[kind]), "--output", str(tmp_path / command), "--base-name", "owner/base"]
        assert main(argv) == 0
        _, head, body = (tmp_path / command / "README.md").read_text().split("---\n", 2)
        said = yaml.safe_load(head)
        assert said["base_model"] == "owner/base" and "jopsd" in said["tags"]
        assert said["library_name"] == {"to-hf": "transformers", "adapter": "peft"}[command]
        config = yaml.safe_load(body.partition("```yaml\n")[2].partition("```")[0])
        assert config == yaml.safe_load((runs[kind] / "config.yaml").read_text())
        for part in (
            "`opsd`",
            "arxiv.org/abs/2601.18734",
            "sums:train",
            "step 2 of 2",
            "evaluated nothing",
            "jopsd 0.",
        ):
            assert part in body, part


def test_the_card_has_the_accuracy_at_the_start_and_at_the_step(runs, tmp_path):
    run = under(runs["lora"], tmp_path / "run", "eval: null", "eval: {data: {source: 'sums:test'}, samples: 2}")
    bounds = {"eval/accuracy_low": -0.1, "eval/accuracy": 0.0, "eval/accuracy_high": 0.1}
    row = lambda step, x: {"step": step, **{key: x + shift for key, shift in bounds.items()}}  # noqa: E731
    lines = [row(0, 0.25), {"step": 1, "loss": 1.0}, row(1, 0.4), row(2, 0.5), row(3, 0.9)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = card(open_run(run, 2), "owner/base", "float32", "adapter")
    assert "Held-out accuracy on sums:test, 2 sample(s) per problem" in text
    assert "| 0 | 25.0 % | 15.0 to 35.0 % |\n| 2 | 50.0 % | 40.0 to 60.0 % |" in text and "90.0" not in text


@pytest.mark.parametrize(
    ("path", "stated", "folder", "name"),
    [
        ("Qwen/Qwen3-4B", None, "x", "Qwen/Qwen3-4B"),
        ("builtin:sums", None, "sums", "sums"),
        ("/somewhere/model", None, "model", "model"),
        ("/somewhere/model", "Qwen/Qwen3-4B", "model", "Qwen/Qwen3-4B"),
        ("/somewhere/model", "/home/me/x", "model", "model"),
        ("/cache/abc", None, "models--Qwen--Qwen3-4B/snapshots/abc", "Qwen/Qwen3-4B"),
    ],
)
def test_the_base_is_named_so_that_others_find_it(tmp_path, path, stated, folder, name):
    directory = tmp_path / folder
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"_name_or_path": stated}))
    assert base_name(Run(tmp_path, 1, None, directory), path) == name


def test_sides_with_a_plus_expand_home_on_both(adapter, monkeypatch):
    monkeypatch.setenv("HOME", str(SUMS.parent))
    monkeypatch.setenv("ADAPTERS", str(adapter.parent))
    side = find_side(f"~/{SUMS.name}+$ADAPTERS/{adapter.name}", "A")
    assert (side.path, side.adapter) == (SUMS, adapter)


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
    policy = restore_policy(runs[kind], mesh=make_mesh()).policy
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
