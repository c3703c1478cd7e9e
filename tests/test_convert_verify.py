"""`python -m convert verify`: says equal what is, names every tensor that is not, and its exit status says the same."""

import json
import shutil
import sys
from pathlib import Path

import ml_dtypes  # noqa: F401  registers "bfloat16" with numpy
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert.__main__ import main
from convert.compare import compare_arrays
from tests.families import random_model
from tests.test_convert import SUMS, error_of

pytest.importorskip("torch")

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "hf"
    random_model("qwen3").save_pretrained(folder)
    return folder


def verify(*argv) -> int:
    return main(["verify", *map(str, argv)])


def changed(model: Path, target: Path, change) -> Path:
    """A copy in which `change` was applied to the dict of tensors."""
    shutil.copytree(model, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def row_of(out: str, kind: str) -> list[str]:
    return next(line.split() for line in out.splitlines() if line.startswith(f"{kind} "))


@pytest.mark.parametrize("name", ["qwen3-late-window", "qwen2", "llama-biases", "olmo3"])
def test_a_round_trip_is_equal_bit_for_bit_and_computes_what_transformers_computes(tmp_path, capsys, name):
    random_model(name).save_pretrained(tmp_path / "a")
    assert main(["to-flax", "--model", str(tmp_path / "a"), "--output", str(tmp_path / "flax")]) == 0
    capsys.readouterr()
    assert verify(tmp_path / "a", tmp_path / "flax", "--transformers") == 0
    out = capsys.readouterr().out
    assert out.rstrip().endswith("equal, bit for bit")
    assert "logits       max |difference| 0 (at most 0)" in out
    assert "transformers max |difference|" in out
    assert "mismatching" not in out


def test_one_changed_number_is_found_and_its_tensor_named(tmp_path, model, capsys):
    other = changed(model, tmp_path / "b", lambda tensors: tensors[UP].__setitem__((3, 4), tensors[UP][3, 4] + 0.5))
    assert verify(model, other) == 1
    out = capsys.readouterr().out
    assert f"mismatching tensors:\n  {UP}: 1 of 1,280 numbers differ, max |A-B| 0.5 at [3, 4]\n\n" in out
    assert row_of(out, "model.layers.*.mlp.up_proj.weight")[1:] == [
        *("3", "[40,", "32]", "float32", "float32", "float32", "0.5", "no", "(1", "of", "3)")
    ]
    assert row_of(out, "model.layers.*.mlp.gate_proj.weight")[-2:] == ["0", "yes"]
    assert f"DIFFERENT: 1 of 36 tensors ({UP}); logits differ by" in out


def test_a_tolerance_allows_small_differences_only(tmp_path, model, capsys):
    nudge = lambda tensors: tensors[UP].__setitem__((3, 4), tensors[UP][3, 4] + 2**-20)  # noqa: E731
    other = changed(model, tmp_path / "b", nudge)
    assert verify(model, other, "--tolerance", "2e-6") == 0
    assert capsys.readouterr().out.rstrip().endswith("equal within the tolerance")
    assert verify(model, other, "--tolerance", "5e-7") == 1
    assert verify(model, other) == 1
    for value in ("-1", "nan"):
        assert "--tolerance" in error_of(capsys, "verify", model, other, "--tolerance", value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_models_of_two_dtypes_are_compared_in_the_narrower(tmp_path, model, capsys, dtype):
    assert main(["to-flax", "--model", str(model), "--output", str(tmp_path / "flax")]) == 0
    argv = ["--from", str(tmp_path / "flax"), "--output", str(tmp_path / "b"), "--dtype", dtype]
    assert main(["to-hf", *argv]) == 0
    capsys.readouterr()
    assert verify(model, tmp_path / "b", "--transformers") == 0
    out = capsys.readouterr().out
    assert row_of(out, "model.norm.weight")[3:] == ["float32", dtype, dtype, "0", "yes"]
    assert out.rstrip().endswith("equal, in the narrower of the two dtypes")
    other = changed(tmp_path / "b", tmp_path / "c", lambda tensors: tensors[UP].__imul__(2))
    assert verify(other, model) == 1
    assert f"  {UP}: 1,280 of 1,280 numbers differ" in capsys.readouterr().out


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_a_mismatch_by_name_even_on_both_sides(tmp_path, model, capsys, value):
    other = changed(model, tmp_path / "b", lambda tensors: tensors[UP].__setitem__((0, 0), value))
    for a, b, side in ((model, other, "B"), (other, model, "A"), (other, other, "A")):
        assert verify(a, b) == 1
        out = capsys.readouterr().out
        assert f"  {UP}: NaN or infinite values in {side}\n" in out
        assert "logits       not compared" in out
        assert f"DIFFERENT: 1 of 36 tensors ({UP})" in out


def test_configs_that_differ_are_a_mismatch_by_field(tmp_path, model, capsys):
    other = Path(shutil.copytree(model, tmp_path / "b"))
    config = json.loads((other / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 5e4
    (other / "config.json").write_text(json.dumps(config))
    assert verify(model, other) == 1
    out = capsys.readouterr().out
    assert "config       rope_theta 10000.0 in A and 50000.0 in B" in out
    assert "36 of 36 are equal" in out
    assert "DIFFERENT: the configs differ in rope_theta; logits differ by" in out


def test_tensors_of_other_shapes_or_on_one_side_only_are_named(tmp_path, model, capsys):
    random_model("qwen3-late-window").save_pretrained(tmp_path / "b")
    assert verify(model, tmp_path / "b") == 1
    out = capsys.readouterr().out
    assert "  model.layers.0.self_attn.q_proj.weight: shape [64, 32] in A, [32, 32] in B" in out
    random_model("qwen2").save_pretrained(tmp_path / "c")
    assert verify(tmp_path / "c", tmp_path / "b") == 1
    out = capsys.readouterr().out
    assert "  model.layers.0.self_attn.q_proj.bias: only in A" in out
    assert "  model.layers.2.self_attn.k_norm.weight: only in B" in out


def test_two_shipped_models_differ_and_a_prompt_goes_through_the_tokenizer(capsys):
    assert verify("builtin:sums", "builtin:sums_expert", "--prompt", "Problem: 1 + 2") == 1
    out = capsys.readouterr().out
    assert "7 tokens (tokenizer of A)" in out
    assert "35 of 35 tensors" in out


def test_tokenizers_that_read_the_prompt_otherwise_are_a_mismatch(tmp_path, capsys):
    other = Path(shutil.copytree(SUMS, tmp_path / "b"))
    path = other / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
    path.write_text(json.dumps(tokenizer))
    assert verify(SUMS, other) == 1
    assert "DIFFERENT: the tokenizers of A and B give different tokens" in capsys.readouterr().out


def test_bfloat16_and_float16_are_the_same_if_either_is_the_other_rounded():
    x = np.random.default_rng(0).normal(0, 1e-4, 1000).astype(np.float32)
    for one, other in (("bfloat16", "float16"), ("float16", "bfloat16")):
        a = x.astype(one)
        assert compare_arrays("t", a, a.astype(other)).same_bits
        assert compare_arrays("t", a.astype(other), a).same_bits
        assert not compare_arrays("t", a, (a + a).astype(other)).same_bits


def test_zero_and_minus_zero_have_other_bits_but_no_distance():
    found = compare_arrays("t", np.zeros(3, np.float32), np.array([0, -0.0, 0], np.float32))
    assert (found.differing, found.largest) == (1, 0.0)
    assert not found.within(0.0)
    assert found.within(1e-9)


def test_what_cannot_be_compared_is_one_line_that_says_why(tmp_path, model, monkeypatch, capsys):
    assert main(["to-flax", "--model", str(model), "--output", str(tmp_path / "flax")]) == 0
    flax = tmp_path / "flax"
    capsys.readouterr()
    assert "--transformers needs A to be" in error_of(capsys, "verify", flax, model, "--transformers")
    assert "--prompt needs a tokenizer" in error_of(capsys, "verify", model, flax, "--prompt", "hello")
    assert "gives no token" in error_of(capsys, "verify", SUMS, SUMS, "--prompt", "")
    assert "A " in error_of(capsys, "verify", tmp_path, model)
    assert "B '/none' is not a directory" in error_of(capsys, "verify", model, "/none")
    assert f"B {tmp_path / 'none'} is not a PEFT" in error_of(capsys, "verify", model, f"{model}+{tmp_path / 'none'}")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "needs torch: pip install torch" in error_of(capsys, "verify", model, flax, "--transformers")
