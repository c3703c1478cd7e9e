"""Plans: topologies, shapes, FLOPs, memory, what to change, exit codes and the cache."""

import json
import math
import subprocess
import sys
from functools import partial

import jax
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from jopsd.config import ConfigError, load_config
from jopsd.models.decoder import ModelConfig, parameter_count
from jopsd.models.families import model_fields
from jopsd.plan import cache, pages
from jopsd.plan.__main__ import main
from jopsd.plan.estimate import estimate_all, groups_along
from jopsd.plan.flops import seen, step_flops
from jopsd.plan.hlo import Collective, axes_of
from jopsd.plan.make import make_plan
from jopsd.plan.roofline import sent
from jopsd.plan.shapes import (
    abstract_weights,
    attention_on,
    bytes_per_device,
    lengths_of,
    make_shapes,
    published_models,
)
from jopsd.plan.sweep import candidates, sweep
from jopsd.plan.topology import GIB, LIBTPU, PlanError, host_of, parse_topology, prices
from jopsd.setup import step_options
from jopsd.step import loss_and_gradient
from tests.conftest import REPO

QUICK = REPO / "configs/quickstart.yaml"
SMALL = ["train.batch_size=8", "train.micro_batch_size=8", "sampling.slots=8", "eval=null", "mesh.fsdp=-1"]
LORA, FULL = (REPO / f"configs/scale/qwen3_8b_{name}_16k.yaml" for name in ("lora", "full"))


def shaped(path, topology, *overrides, lengths=(None, None, None)):
    config, group = load_config(path, overrides), parse_topology(topology)
    weights, _ = abstract_weights(config, group.chip.kind)
    return config, group, make_shapes(config, group, lengths_of(config, *lengths), weights)


# ---------------------------------------------------------------------------------------------------------- topologies


@pytest.mark.parametrize(
    ("name", "slices", "chips", "per_slice"),
    [
        ("v5p:4x4x4", 1, 64, 64),
        ("v5p:4x4x4", 2, 128, 64),
        ("v6e:4x8", 1, 32, 32),
        ("v4:2x2x1", 1, 4, 4),
        ("h100:8", 1, 8, 8),
        ("h100:2x8", 1, 16, 8),
        ("a100-80:4x8", 1, 32, 8),
        ("cpu:8", 2, 8, 4),
    ],
)
def test_a_topology_is_read_from_its_name(name, slices, chips, per_slice):
    group = parse_topology(name, slices)
    assert (group.chips, group.per_slice) == (chips, per_slice)
    assert group.estimated == name.startswith(("h100", "a100"))


@pytest.mark.parametrize(
    ("name", "slices", "words"),
    [
        ("v5p", 1, "not chip:sizes"),
        ("v9:4x4", 1, "known chips are v4, v5e, v5p, v6e"),
        ("v5e:4x4x4", 1, "a torus of 2 sizes, e.g. v5e:4x4"),
        ("v5p:4x4", 1, "a torus of 3 sizes"),
        ("h100:1x2x8", 1, "nodes x GPUs"),
        ("cpu:8", 3, "3 slices do not divide 8"),
        ("v5e:0x4", 1, "must be positive"),
    ],
)
def test_a_topology_that_does_not_exist_is_refused_by_name(name, slices, words):
    with pytest.raises(PlanError, match=words):
        parse_topology(name, slices)


def test_the_devices_of_one_process_are_a_host():
    assert host_of(parse_topology("v6e:4x8")).name == "v6e:2x2"
    assert host_of(parse_topology("v5p:4x4x4", 2)) == parse_topology("v5p:2x2x1")
    assert host_of(parse_topology("h100:4x8")).chips == 8
    for whole in ("v5e:2x2", "v5e:2x4", "h100:8", "cpu:8"):
        assert host_of(parse_topology(whole)) == parse_topology(whole)


def test_every_chip_has_a_price_and_the_table_a_date():
    from jopsd.plan.topology import CHIPS

    date, table = prices()
    assert set(table) == set(CHIPS) and date.startswith("20")


# --------------------------------------------------------------------------------------------------------------- models


def test_shipped_shapes_are_those_of_the_published_models():
    from tests.test_families import PUBLISHED

    known = {name.rpartition("/")[2]: facts for name, facts in published_models().items()}
    # There each of these configs has the parameters that its model card counts.
    both = [name for name in PUBLISHED if name in known]
    assert len(both) >= 10
    for name in both:
        assert model_fields(known[name], name) == model_fields(PUBLISHED[name][0], name), name
    for name, count in {"Llama-3.1-8B": 8_030_261_248, "Qwen3-4B-Instruct-2507": 4_022_468_096}.items():
        assert parameter_count(ModelConfig(**model_fields(known[name], name))) == count


def test_every_recipe_names_a_model_that_can_be_planned_for():
    known = {name.rpartition("/")[2] for name in published_models()}
    for path in sorted((REPO / "configs").rglob("*.yaml")):
        for line in path.read_text().splitlines():
            if line.startswith(("model: {path: models/Qwen", "model: {path: models/Olmo")):
                assert line.partition("models/")[2].rstrip("}").split(",")[0] in known, path


def test_attention_is_chosen_for_the_chip_planned_for():
    wide = ModelConfig(8, 256, 1, 2, 2, 128, 8, dtype="bfloat16")
    narrow = ModelConfig(8, 128, 1, 2, 2, 64, 8, dtype="bfloat16")
    assert [attention_on(kind, wide) for kind in ("tpu", "gpu", "cpu")] == ["splash", "cudnn", "blocks"]
    assert attention_on("tpu", narrow) == "xla"
    with pytest.raises(ConfigError, match="cudnn runs on a GPU"):
        attention_on("tpu", ModelConfig(8, 256, 1, 2, 2, 128, 8, dtype="bfloat16", attention="cudnn"))


# ---------------------------------------------------------------------------------------------------------------- FLOPs


slow = partial(pytest.param, marks=pytest.mark.slow)


def counted(jaxpr, times=1) -> int:
    """FLOPs of every matrix product that a traced program runs, scans multiplied out."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (left, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in left)
            total += times * 2 * inner * math.prod(equation.outvars[0].aval.shape)
        inside = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                part = getattr(part, "jaxpr", part)
                total += counted(part, inside) if hasattr(part, "eqns") else 0
    return total


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("opsd", ["model.remat=dots", "lora.targets=[q, v, down]"]),
        ("opsd", ["model.remat=full", "lora=null"]),
        slow("opsd", ["model.remat=full"]),
        slow("opsd", ["model.remat=dots", "lora=null", "teacher.kind=trust_region"]),
        slow("rlcsd", ["sampling.n=4"]),
        slow("sdpo", ["sampling.n=2"]),
        slow("exopd", []),
        slow("grpo", ["sampling.n=2", "train.mini_batch_size=2", "train.micro_batch_size=2"]),
        slow("sft", []),
    ],
)
def test_flops_are_those_of_the_traced_update(name, overrides):
    small = ["train.batch_size=2", "train.micro_batch_size=null", "train.token_chunk=100000", "eval=null"]
    # A trace knows neither the trips of a loop over blocks nor how many columns of a packed row train.
    small += ["train.packing=false", "model.attention=xla"]
    config, _, shapes = shaped(REPO / f"configs/tiny/{name}.yaml", "cpu:1", *small, *overrides, lengths=(96, 128, 64))
    state, models = shapes.weights.state, shapes.weights.models
    run = partial(loss_and_gradient, step_options(config), shapes.mesh)
    with jax.set_mesh(shapes.mesh):
        traced = jax.make_jaxpr(run)(state.trainable, state.teacher, models, shapes.batch)
    work = step_flops(config, shapes.weights.model_config, models, shapes.lengths, 0)
    used, _ = dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))  # what nothing reads the compiler drops
    assert work.update == config.updates_per_step * counted(used)


def test_a_kernel_reads_the_keys_that_causality_and_windows_leave():
    cfg = ModelConfig(8, 256, 4, 2, 2, 128, 8, attention="splash", pattern=("sliding", "full"), window=3)
    triangle = [min(i + 1, 10) for i in range(10)]
    window = [min(i + 1, 3) for i in range(10)]
    assert seen(cfg, 10) == pytest.approx((sum(triangle) + sum(window)) / 20)
    plain = ModelConfig(8, 256, 4, 2, 2, 128, 8, attention="splash")
    assert seen(plain, 8) == pytest.approx(sum(range(1, 9)) / 8)
    assert seen(plain, 8, context=2) == pytest.approx(sum(range(5, 9)) / 4)  # the last half of the columns
    assert seen(ModelConfig(8, 256, 4, 2, 2, 128, 8, attention="xla"), 8) == 8


# --------------------------------------------------------------------------------------------------------------- shapes


def test_the_parts_of_a_plan_are_the_bytes_of_the_published_model():
    _, _, shapes = shaped(FULL, "h100:2x4", "mesh.fsdp=8", "mesh.context=1")
    parameters, state = 8_190_735_360, shapes.weights.state
    norms = (4 * 36 + 1) * 4096 * 4  # what is not split is small
    assert bytes_per_device(state.trainable) == pytest.approx(parameters * 4 / 8, abs=norms)
    assert bytes_per_device(state.optimizer) == pytest.approx(parameters * 8 / 8, abs=2 * norms)
    assert bytes_per_device(shapes.weights.models.base) == pytest.approx(parameters * 2 / 8, abs=norms)
    # Each node samples on its own four devices: weights in bfloat16, and 8 slots of 36 layers, 8 heads of 128.
    assert shapes.copies == pytest.approx(parameters * 2 / 4, abs=norms)
    pages = dict(shapes.pool_shape.pages)["full"]
    assert bytes_per_device(shapes.pool.pages["full"].k) == 36 * 2 * pages * 64 * 128 * 2
    assert 0.4 * 8 * (2048 + 16384) < pages * 64 < 0.45 * 8 * (2048 + 16384)
    assert dict(shapes.sampling_mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 4}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["mesh.fsdp=7"], "mesh on cpu:8 .8 chips.: .*does not fit 8 devices"),
        (["train.micro_batch_size=4"], "4 rollouts per micro-batch do not split over 8 .*multiple of 8"),
        (["mesh.fsdp=1", "mesh.context=8", "train.pad_to=4"], "train.pad_to 4 is not a multiple of mesh.context 8"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused_by_key(overrides, words):
    with pytest.raises(ConfigError, match=words):
        shaped(QUICK, "cpu:8", *SMALL, *overrides)
    with pytest.raises(ConfigError, match="mesh.tensor 6 does not divide the vocabulary of 128"):
        shaped(QUICK, "cpu:6", *SMALL, "mesh.fsdp=1", "mesh.tensor=6")


def test_lengths_come_from_the_limits_of_the_config_and_from_what_is_given():
    config = load_config(LORA)
    lengths = lengths_of(config, completion=100)
    assert lengths[:3] == (2048, 4096, 100)
    assert "prompt 2048 (data.max_prompt_tokens)" in lengths.source and "completion 100 (given)" in lengths.source
    assert "4096 (teacher.max_prompt_tokens)" in lengths.source


# ----------------------------------------------------------------------------------------------- estimates and networks


def test_groups_along_axes_are_read_back_as_these_axes():
    mesh = {"data": 2, "fsdp": 4, "tensor": 2}
    for axes in (("data",), ("fsdp", "tensor"), ("data", "tensor")):
        assert axes_of(groups_along(axes, mesh), mesh) == axes
    assert groups_along(("context",), mesh) == tuple((n,) for n in range(16))


def test_a_group_that_spans_slices_sends_its_share_between_them():
    class Devices:
        shape = {"data": 2, "fsdp": 4}

    whole = Collective("all-reduce", 800, 3, (tuple(range(8)),), ("u8", (800,)), False, "")
    table = {line.link: line.bytes for line in sent(estimate_program(whole), Devices, per_slice=4)}
    assert table == {"dcn": 3 * 200.0, "ici": 3 * 1200.0}  # a quarter of it to one other slice; a ring of four within
    assert {line.link for line in sent(estimate_program(whole), Devices, per_slice=8)} == {"ici"}


def estimate_program(*found):
    from jopsd.plan.compile import Program

    return Program("update", collectives=found)


def test_a_plan_for_gpus_is_marked_as_an_estimate_and_fits_as_it_should():
    config = load_config(LORA, ["mesh.fsdp=8", "mesh.context=1"])
    group = parse_topology("h100:8")
    record = make_plan(config, group, lengths_of(config), None)
    text = pages.page(record)
    assert record["memory"]["fits"] and record["estimate"]
    assert all("estimate" in line for line in text.splitlines() if line.startswith("  parameters"))
    # One base of 8.19 B bfloat16 and an adapter of rank 64 over eight devices.
    adapter = 36 * 64 * (4096 * 9 + 2 * 1024 + 3 * 12288 + 2 * 1024 - 4096) * 4
    assert record["memory"]["parts"]["parameters"] == pytest.approx((8_190_735_360 * 2 + adapter) / 8, rel=0.02)
    # Decoding reads at least the weights and the cache for every token.
    least = (8_190_735_360 * 2 / 8) / 3.35e12 * record["sampling_runs"][0]
    assert record["seconds"]["sampling"]["hbm"] > least


def test_what_does_not_fit_is_told_which_keys_to_change():
    config = load_config(FULL, ["mesh.fsdp=2", "mesh.context=1", "train.micro_batch_size=16", "mesh.data=4"])
    record = make_plan(config, parse_topology("h100:8"), lengths_of(config), None)
    assert not record["memory"]["fits"]
    keys = [line.partition(":")[0] for line in record["advice"]]
    assert "mesh.data=1 mesh.fsdp=8" in keys and "a section lora" in keys
    assert any(key.startswith("train.micro_batch_size=8") for key in keys)
    assert len(keys) == len(set(keys))
    assert "does not fit" in pages.page(record) and "to change:" in pages.page(record)


def test_advice_makes_the_plan_smaller():
    lengths = (1024, 1024, 4096)

    def peak(*overrides):
        config, _, shapes = shaped(FULL, "h100:8", "mesh.context=1", *overrides, lengths=lengths)
        from jopsd.plan.memory import memory_of

        return memory_of(config, shapes, estimate_all(config, shapes)).train

    start = ["mesh.data=1", "mesh.fsdp=8", "train.micro_batch_size=16"]
    base = peak(*start)
    assert peak(*start, "train.micro_batch_size=8") < base
    assert peak("mesh.data=4", "mesh.fsdp=2", "train.micro_batch_size=16") > base
    assert peak(*start, "lora={}") < base
    assert peak(*start, "model.remat=dots") > base
    assert peak(*start, "sampling.backend=loop") < base
    assert peak("mesh.data=1", "mesh.fsdp=4", "mesh.tensor=2", "train.micro_batch_size=8") < base


def test_a_sweep_ranks_what_fits_by_seconds_per_step():
    config = load_config(FULL, ["train.batch_size=2", "train.micro_batch_size=2", "train.pad_to=64"])
    group = parse_topology("h100:1x2")
    tried = list(candidates(config, 2))
    assert {(c.data * c.fsdp * c.context * c.tensor) for c in tried} == {2}
    found = sweep(config, group, lengths_of(config, 64, 64, 64), None, 3)
    times = [plan["record"]["seconds"]["step"] for plan in found["plans"]]
    assert found["tried"] == len(tried) and times == sorted(times)
    assert not any(plan["compiled"] for plan in found["plans"])
    assert "candidates modelled" in pages.page(found)


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_exit_codes_say_whether_it_fits(home, capsys):
    fits = ["--config", str(LORA), "--topology", "h100:8", "mesh.fsdp=8", "mesh.context=1"]
    assert main([*fits, "--json", str(home / "plan.json")]) == 0
    written = json.loads((home / "plan.json").read_text())
    assert written["memory"]["fits"] and written["lengths"]["completion"] == 16384
    lacking = [*fits[:3], "h100:1x1", "mesh.fsdp=1", "mesh.context=1", "lora=null"]
    assert main(lacking) == 1
    capsys.readouterr()
    for wrong, words in (
        ([*fits[:3], "h99:8"], "known chips are"),
        (["--config", "nowhere.yaml", "--topology", "h100:8"], "does not exist"),
        ([*fits[:4], "mesh.fdsp=8"], "did you mean `fsdp`"),
        ([*fits, "model.path=nowhere/at/all"], "model.path"),
    ):
        assert main(wrong) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([*fits, "--prompt-tokens", "0"])
    assert stopped.value.code == 2


@pytest.mark.slow
def test_a_plan_for_this_machine_compiles_every_program_of_a_step(home):
    grpo = [
        "--config",
        str(REPO / "configs/tiny/grpo.yaml"),
        "--topology",
        "cpu:2",
        "--fast",
        "--completion-tokens",
        "32",
    ]
    keys = ["train.batch_size=4", "train.mini_batch_size=2", "train.micro_batch_size=2", "sampling.n=2", "eval=null"]
    assert main([*grpo, "--prompt-tokens", "64", "--json", str(home / "plan.json"), *keys]) == 0
    record = json.loads((home / "plan.json").read_text())
    assert set(record["programs"]) == {"update", "score", "decode", "prefill"}
    assert all(program["arguments"] > 0 for program in record["programs"].values())
    parts = record["memory"]["parts"]
    held = sum(parts[name] for name in ("parameters", "teacher and reference", "optimiser", "batch"))
    assert record["programs"]["update"]["arguments"] == pytest.approx(held, rel=0.02)
    # Weights are gathered and gradients summed over fsdp, and what is sent is no more than a few times the weights.
    update = {line["kind"]: line for line in record["sent_per_device"]["update"] if line["axes"] == ["fsdp"]}
    assert 0 < update["all-gather"]["bytes"] < 20 * 4 * record["model"]["parameters"]


def test_a_price_of_ones_own_replaces_the_table(home, capsys):
    fits = ["--config", str(LORA), "--topology", "h100:8", "mesh.fsdp=8", "mesh.context=1", "--no-cache"]
    costs = []
    for price in ("1", "2"):
        main([*fits, "--price", price, "--json", str(home / "plan.json")])
        costs.append(json.loads((home / "plan.json").read_text())["price"]["dollars_per_1000_steps"])
    assert costs[1] == pytest.approx(2 * costs[0]) and costs[0] > 0
    assert not (home / "jopsd").exists()


def test_a_plan_is_found_again_without_jax_until_something_changes(home, tmp_path, capsys):
    folder, base = tmp_path / "configs", LORA.parent.parent
    folder.mkdir()
    (folder / "mine.yaml").write_text(f"extends: [{base / 'scale' / LORA.name}]\nmesh: {{fsdp: 8, context: 1}}\n")
    arguments = ["--config", str(folder / "mine.yaml"), "--topology", "h100:8"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    script = (
        "import sys; from jopsd.plan.__main__ import main; code = main(sys.argv[1:]); "
        "assert 'jax' not in sys.modules, 'jax was imported'; sys.exit(code)"
    )
    again = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=REPO)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first
    (folder / "mine.yaml").write_text((folder / "mine.yaml").read_text() + "train: {token_chunk: 512}\n")
    assert main(arguments) == 0
    assert capsys.readouterr().out != first


def test_an_entry_is_void_once_a_file_that_it_read_differs(home, tmp_path):
    facts = tmp_path / "config.json"
    cache.keep("key", {"a": 1}, [facts])  # not there yet
    assert cache.find("key") == {"a": 1}
    facts.write_text("{}")
    assert cache.find("key") is None
    cache.keep("key", {"a": 2}, [facts])
    assert cache.find("key") == {"a": 2} and cache.find("other") is None


def test_without_the_tpu_compiler_one_error_names_the_command_that_installs_it(home, capsys, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["--config", str(LORA), "--topology", "v6e:4x8"]) == 2
    assert f"pip install --no-deps {LIBTPU}" in capsys.readouterr().err


def test_a_limit_is_what_the_chip_has():
    assert parse_topology("v5e:2x2").chip.hbm == 15.75 * GIB
