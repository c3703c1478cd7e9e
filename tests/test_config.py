"""The config: every mistake is one error that names the dotted key, and every config resolves to one explicit YAML."""

import re
from pathlib import Path

import pytest
import yaml

from jopsd.config import Config, ConfigError, flatten, load_config, to_yaml, validate_config
from jopsd.config_errors import ALIASES, all_keys, known_keys
from jopsd.paths import expand

REPO = Path(__file__).resolve().parent.parent
MINIMAL = {"output_dir": "out", "model": {"path": "m"}, "method": {"name": "opsd"}, "data": {"source": "d"}}
EVAL = {"data": {"source": "held-out"}}


def write(path: Path, tree: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.fixture
def minimal(tmp_path) -> Path:
    return write(tmp_path / "minimal.yaml", MINIMAL)


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    return str(error.value)


# -------------------------------------------------------------------------------------------------------- bad values


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("sede=1", "unknown key `sede`; did you mean `seed`?"),
        ("train.stpes=1", "unknown key `train.stpes`; did you mean `steps`?"),
        ("method.alhpa=1", "unknown key `method.alhpa`; did you mean `alpha`?"),
        ("context.instrction=x", "unknown key `context.instrction`; did you mean `instruction`?"),
        ("eval.data.sourec=x", "unknown key `eval.data.sourec`; did you mean `source`?"),
        ("lora.rnak=3", "unknown key `lora.rnak`; did you mean `rank`?"),
        ("reward.secnds=3", "unknown key `reward.secnds`; did you mean `seconds`?"),
        ("method.w_mni=1", "unknown key `method.w_mni`"),
        ("mesh.zzz=1", "unknown key `mesh.zzz`; known: context, data, fsdp, slices, tensor"),
    ],
)
def test_an_unknown_key_anywhere_is_named_with_its_path_and_the_nearest_real_one(minimal, override, told):
    assert told in refusal(minimal, override)


def test_an_unknown_key_in_a_file_is_named_as_in_an_override_and_all_of_them_at_once(tmp_path):
    tree = MINIMAL | {"data": {"source": "d", "limits": 3}, "optimizer": {"learning_rat": 1e-3}}
    message = refusal(write(tmp_path / "c.yaml", tree))
    assert str(tmp_path / "c.yaml") in message
    assert "unknown key `data.limits`; did you mean `limit`?" in message
    assert "unknown key `optimizer.learning_rat`; did you mean `learning_rate`?" in message


def test_the_keys_of_one_method_are_unknown_to_another(minimal):
    assert load_config(minimal, ["method.name=pwopsd", "method.w_min=0.5"]).method.w_min == 0.5
    assert "unknown key `method.w_min`" in refusal(minimal, "method.w_min=0.5")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.steps=many", "`train.steps` = 'many': Input should be a valid integer"),
        ("train.steps=2.5", "`train.steps` = 2.5"),
        ("train.steps=true", "`train.steps` = True: a number is wanted"),
        ("method.alpha=true", "`method.alpha` = True: a number is wanted"),
        ("train.steps=0", "`train.steps` = 0: Input should be greater than or equal to 1"),
        ("train=5", "`train` = 5"),
        ("model.path=null", "`model.path` = None: Input should be a valid string"),
        ("output_dir=''", "`output_dir` = ''"),
        ("optimizer.learning_rate=.inf", "`optimizer.learning_rate` = inf: Input should be a finite number"),
        ("optimizer.learning_rate=.nan", "`optimizer.learning_rate` = nan"),
        ("optimizer.b1=1", "`optimizer.b1` = 1: Input should be less than 1"),
        ("method.temperature=.inf", "`method.temperature` = inf"),
        ("method.alpha=2", "`method.alpha` = 2: Input should be less than or equal to 1"),
        ("method.loss=fulll", "`method.loss` = 'fulll'"),
        ("sampling.top_p=0", "`sampling.top_p` = 0: Input should be greater than 0"),
        (
            "sampling.backend=vllm",
            "`sampling.backend` = 'vllm': Input should be 'jetstream', 'loop', 'remote' or 'openai'",
        ),
        ("teacher.kind=frozen", "`teacher.kind` = 'frozen': Input should be 'fixed', 'live', 'ema'"),
        ("lora.targets=q", "`lora.targets` = 'q'"),
        ("lora.targets=[]", "`lora.targets` = []"),
        ("seed=-1", "`seed` = -1"),
        ("seed=4294967296", "`seed` = 4294967296"),
        ("context.student_template=hello", "`context.student_template`: the template must contain {problem}"),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_range_is_named_with_its_key(minimal, override, told):
    assert told in refusal(minimal, override)


@pytest.mark.parametrize("override", ["method.name=opsdd", "method.name=null", "method.name=3"])
def test_an_unknown_method_is_refused_with_the_known_ones(minimal, override):
    message = refusal(minimal, override)
    for name in ("`method.name`", "opsd", "pwopsd", "sft"):
        assert name in message


def test_what_is_required_is_named(tmp_path):
    message = refusal(write(tmp_path / "empty.yaml", {}))
    assert all(f"`{key}` is required" in message for key in MINIMAL)
    assert "`data.source` is required" in refusal(write(tmp_path / "c.yaml", MINIMAL | {"data": {}}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"method": {"name": "sft"}, "sampling": {"n": 2}},
            "method sft does not sample, so sampling.n must be 1, got 2",
        ),
        (
            {"train": {"batch_size": 6, "micro_batch_size": 4}},
            "train.micro_batch_size 4 does not divide the 6",
        ),
        ({"sampling": {"temperature": 0}}, "sampling.temperature 0 is greedy"),
        ({"reward": None, "eval": EVAL}, "eval grades completions, so it needs a reward"),
        ({"method": {"name": "opsd", "loss": "topk"}}, "`method`: set top_k together with loss: topk"),
        ({"method": {"name": "opsd", "loss": "sampled", "entry_clip": 0.1}}, "so remove entry_clip"),
        ({"context": {"student_template": "{problem} {answer}"}}, "the student must not read {answer}"),
    ],
)
def test_sections_that_contradict_each_other_are_refused_with_the_keys(tmp_path, changes, told):
    assert told in refusal(write(tmp_path / "c.yaml", MINIMAL | changes))


def test_micro_batches_are_counted_in_rollouts(tmp_path):
    changes = {"train": {"batch_size": 3, "micro_batch_size": 4}, "sampling": {"n": 4}}
    config = load_config(write(tmp_path / "c.yaml", MINIMAL | changes))
    assert (config.rows_per_step, config.micro_rows) == (12, 4)


# ------------------------------------------------------------------------------------------------------------- files


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    assert f"config file {tmp_path / 'no.yaml'} does not exist" in refusal(tmp_path / "no.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1")
    assert f"{bad} is not valid YAML" in refusal(bad)
    bad.write_bytes(b"a: \xff\xfe")
    assert f"{bad} is not valid YAML" in refusal(bad)
    bad.write_text("- a\n- b")
    assert f"{bad} must hold keys and values, not a list" in refusal(bad)


def test_a_key_given_twice_is_refused_with_its_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 1\ntrain: {steps: 1, steps: 2}\n")
    assert "'steps' is given twice" in refusal(path) and "line 2" in refusal(path)


def test_extends_is_relative_to_the_file_and_merged_key_by_key_in_order(tmp_path):
    write(tmp_path / "base/a.yaml", MINIMAL | {"train": {"steps": 1, "batch_size": 8}, "seed": 1})
    write(tmp_path / "base/b.yaml", {"train": {"batch_size": 16}, "seed": 2})
    child = {"extends": ["base/a.yaml", "base/b.yaml"], "train": {"pad_to": 32}, "optimizer": {"learning_rate": 1e-3}}
    config = load_config(write(tmp_path / "child.yaml", child))
    assert (config.train.steps, config.train.batch_size, config.train.pad_to) == (1, 16, 32)
    assert (config.seed, config.optimizer.learning_rate) == (2, 1e-3)
    grandchild = write(tmp_path / "deep/er/c.yaml", {"extends": "../../child.yaml", "seed": 3})
    assert load_config(grandchild) == config.model_copy(update={"seed": 3})


@pytest.mark.parametrize("extends", [5, [5], {"a": "b"}])
def test_extends_that_is_no_path_is_refused(tmp_path, extends):
    assert "`extends` must be a path or a list of paths" in refusal(write(tmp_path / "c.yaml", {"extends": extends}))


def test_a_missing_parent_is_named_with_the_file_that_wants_it(tmp_path):
    child = write(tmp_path / "child.yaml", {"extends": "gone.yaml"})
    message = refusal(child)
    assert f"{tmp_path / 'gone.yaml'} does not exist (named by `extends` in {child})" in message


def test_a_circle_of_extends_is_shown(tmp_path):
    write(tmp_path / "a.yaml", {"extends": "b.yaml"})
    write(tmp_path / "b.yaml", {"extends": "./a.yaml"})
    assert "a.yaml -> b.yaml -> a.yaml" in refusal(tmp_path / "a.yaml")
    write(tmp_path / "self.yaml", {"extends": "self.yaml"})
    assert "self.yaml -> self.yaml" in refusal(tmp_path / "self.yaml")


def test_one_parent_reached_by_two_ways_is_no_circle(tmp_path):
    write(tmp_path / "a.yaml", MINIMAL)
    for name in "bc":
        write(tmp_path / f"{name}.yaml", {"extends": "a.yaml"})
    assert load_config(write(tmp_path / "d.yaml", {"extends": ["b.yaml", "c.yaml"]})).seed == 0


def test_a_method_of_another_name_replaces_the_mapping_and_of_the_same_name_adds_to_it(tmp_path):
    write(tmp_path / "base.yaml", MINIMAL | {"method": {"name": "opsd", "alpha": 0.5, "entry_clip": 0.05}})
    same = load_config(write(tmp_path / "a.yaml", {"extends": "base.yaml", "method": {"name": "opsd", "alpha": 1}}))
    assert (same.method.alpha, same.method.entry_clip) == (1.0, 0.05)
    other = load_config(write(tmp_path / "b.yaml", {"extends": "base.yaml", "method": {"name": "sft"}}))
    assert other.method.name == "sft", "alpha and entry_clip would be unknown keys of sft"
    nameless = load_config(write(tmp_path / "c.yaml", {"extends": "base.yaml", "method": {"alpha": 0}}))
    assert (nameless.method.alpha, nameless.method.entry_clip) == (0.0, 0.05)


# --------------------------------------------------------------------------------------------------------- overrides


@pytest.fixture
def keyed(tmp_path) -> Path:
    method = {"name": "opsd", "alpha": 0.5, "temperature": 1.3, "loss": "topk", "top_k": 5}
    return write(tmp_path / "keyed.yaml", MINIMAL | {"method": method, "reward": {"workers": 3}})


def test_another_method_on_the_command_line_keeps_the_keys_it_has_and_names_those_it_drops(keyed, capsys):
    notes = []
    sft = load_config(keyed, ["method.name=sft"], notes.append).method
    assert (sft.name, sft.temperature) == ("sft", 1.3)
    assert len(notes) == 1 and "keeps method.temperature=1.3" in notes[0]
    assert all(f"method.{key}" in notes[0].partition("drops")[2] for key in ("alpha=0.5", "loss=topk", "top_k=5"))
    pwopsd = load_config(keyed, ["method.alpha=0.25", "method={name: pwopsd, w_min: 0.5}"], notes.append).method
    assert (pwopsd.alpha, pwopsd.temperature, pwopsd.top_k, pwopsd.w_min) == (0.25, 1.3, 5, 0.5)
    assert load_config(keyed, ["reward.name=choice"], notes.append).reward.workers == 3
    capsys.readouterr()
    load_config(keyed, ["method.name=sft"])
    assert "drops method.alpha=0.5" in capsys.readouterr().err


def test_nothing_is_said_of_a_name_that_stays_or_brings_no_keys(keyed, minimal):
    notes = []
    load_config(keyed, ["method.name=opsd", "method.alpha=1"], notes.append)
    load_config(minimal, ["method.name=sft"], notes.append)
    assert notes == []


@pytest.mark.parametrize(
    ("train", "override", "counts", "told"),
    [
        ({"steps": 5}, "train.epochs=2", (None, 2), "train.epochs=2 counts; train.steps=5"),
        ({"epochs": 5}, "train.steps=2", (2, None), "train.steps=2 counts; train.epochs=5"),
        ({"epochs": 5}, "train={steps: 2}", (2, None), "train.steps=2 counts; train.epochs=5"),
        ({"steps": 5}, "train.epochs=null", (5, None), None),
        ({"steps": 5}, "train={steps: null, epochs: 2}", (None, 2), None),
        ({}, "train.epochs=2", (None, 2), None),
        ({}, "seed=1", (150, None), None),
    ],
)
def test_steps_and_epochs_the_later_counts_and_the_other_is_said_to_be_dropped(tmp_path, train, override, counts, told):
    notes = []
    parent = write(tmp_path / "a.yaml", MINIMAL | {"train": train})
    given = load_config(parent, [override], notes.append).train
    assert (given.steps, given.epochs) == counts
    assert [told in note for note in notes] == ([] if told is None else [True])


def test_a_file_that_extends_another_is_the_later_one(tmp_path):
    write(tmp_path / "a.yaml", MINIMAL | {"train": {"steps": 5}})
    notes = []
    train = load_config(
        write(tmp_path / "b.yaml", {"extends": "a.yaml", "train": {"epochs": 2}}), (), notes.append
    ).train
    assert (train.steps, train.epochs) == (None, 2) and len(notes) == 1


def test_steps_and_epochs_in_one_file_are_refused(tmp_path):
    message = refusal(write(tmp_path / "c.yaml", MINIMAL | {"train": {"steps": 5, "epochs": 2}}))
    assert "`train`: steps 5 and epochs 2" in message and "set one of them to null" in message


@pytest.mark.parametrize("override", ["eval=", "lora=  ", "model.path="])
def test_an_override_without_a_value_says_how_to_write_null(minimal, override):
    key = override.partition("=")[0]
    assert f"write `{key}=null` for none" in refusal(minimal, override)


def test_a_key_without_a_value_in_a_file_is_refused_with_its_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("output_dir: out\nlora:\n  # rank: 8\nseed: 1\n", encoding="utf-8")
    message = refusal(path)
    assert "'lora' has no value; write `lora: null`" in message and f'"{path}", line 2' in message
    path.write_text(to_yaml(validate_config(MINIMAL, "here")).replace("eval: null", "eval: ~"), encoding="utf-8")
    assert load_config(path).eval is None


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optimizer.lr=1", "unknown key `optimizer.lr`; did you mean `learning_rate`?"),
        ("learning_rate=1", "unknown key `learning_rate`; did you mean `optimizer.learning_rate`?"),
        ("learning_rat=1", "unknown key `learning_rat`; did you mean `optimizer.learning_rate`?"),
        ("train.lr=1", "did you mean `optimizer.learning_rate`?"),
        ("method.beta=1", "unknown key `method.beta`; did you mean `alpha`?"),
        ("method.w_min=1", "unknown key `method.w_min`; it belongs to method pwopsd"),
        ("lora.r=1", "unknown key `lora.r`; did you mean `rank`?"),
        ("train.gradient_accumulation_steps=1", "did you mean `micro_batch_size`?"),
        ("num_generations=4", "did you mean `sampling.n`?"),
        ("sampling.backend=vllm", "vllm is nearest to openai"),
        ("model.dtype=fp16", "fp16 is nearest to bfloat16"),
        ("teacher.kind=frozen", "frozen is nearest to fixed"),
        ("method=grpo", "write method.name=grpo"),
        ("lora.targets=[q_proj, v_proj]", "q_proj is not one of q, k, v, o, gate, up, down; did you mean [q, v]?"),
    ],
)
def test_the_names_of_other_libraries_and_keys_of_other_sections_are_recognised(minimal, override, told):
    assert told in refusal(minimal, override)


def test_every_alias_is_of_a_key_that_exists():
    here = set(flatten(validate_config(MINIMAL | {"lora": {}, "eval": EVAL}, "here").model_dump()))
    assert set(ALIASES) - {"method.kl_coef"} <= here and "kl_coef" in known_keys(["method", "grpo"])


def test_a_config_that_does_not_exist_is_named_with_the_nearest(tmp_path, minimal):
    assert f"did you mean {minimal}?" in refusal(minimal.with_name("minimale.yaml"))
    assert f"did you mean {minimal}?" in refusal(minimal.with_suffix(""))


# ------------------------------------------------------------------------------------------------------------- paths

PATH_KEYS = {
    "output_dir": {},
    "model.path": {},
    "lora.path": {},
    "reference.path": {},
    "data.source": {},
    "eval.data.source": {},
    "sampling.access.token_file": {},
    "sampling.access.ca_file": {},
    "teacher.path": {"teacher": {"kind": "external"}},
    "teacher.models.one": {"teacher": {"kind": "external"}},
}


@pytest.mark.parametrize("key", PATH_KEYS)
@pytest.mark.parametrize("written", ["~/a/b", "$ROOM/a/b", "${ROOM}/a/b"])
def test_every_path_key_expands_home_and_variables(tmp_path, monkeypatch, key, written):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("ROOM", "/home/me")
    path = write(tmp_path / "c.yaml", MINIMAL | {"eval": EVAL} | PATH_KEYS[key])
    assert flatten(load_config(path, [f"{key}={written}"]).model_dump())[key] == "/home/me/a/b"
    assert f"`{key}`: '$GONE/a' cannot be expanded: the environment variable $GONE is not set" in refusal(
        path, f"{key}=$GONE/a"
    )


def test_every_key_that_is_a_path_by_name_is_of_the_type_that_expands():
    """A new `..._file`, `..._dir`, `path` or `source` must not be forgotten."""
    named = {key for key in all_keys() if re.search(r"(^|[._])(path|source|file|dir)$", key)}
    assert named - {"context.source", "context.summaries.source"} <= PATH_KEYS.keys()


def test_a_mixture_and_records_expand_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "records.yaml").write_text("{}", encoding="utf-8")
    tree = MINIMAL | {"data": {"mix": [{"source": "~/a.jsonl"}]}}
    tree |= {"context": {"name": "crosslingual", "records": "~/records.yaml"}}
    config = load_config(write(tmp_path / "c.yaml", tree))
    assert config.data.mix[0].source == f"{tmp_path}/a.jsonl"
    assert load_config("~/c.yaml") == config


def test_a_path_that_exists_as_it_is_written_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a$B.jsonl").touch()
    assert expand("a$B.jsonl") == "a$B.jsonl" and expand("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    with pytest.raises(ValueError, match="no home of ~nobody-here"):
        expand("~nobody-here/x")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optimizer.learning_rate=1e-3", 1e-3),
        ("optimizer.learning_rate=2.5E-4", 2.5e-4),
        ("optimizer.clip_norm=null", None),
        ("lora.targets=[q, v]", ("q", "v")),
        ("context.instruction='a: b, c=d {x}'", "a: b, c=d {x}"),
        ("context.instruction=[unclosed", "[unclosed"),
        ("eval.data.source=sums:test", "sums:test"),
        ("train.micro_batch_size=4", 4),
        ("student.thinking=false", False),
    ],
)
def test_an_override_is_read_as_yaml_with_plain_exponents(minimal, override, value):
    config = load_config(minimal, [override])
    for key in override.partition("=")[0].split("."):
        config = getattr(config, key)
    assert config == value and type(config) is type(value)


def test_an_exponent_in_a_file_is_a_number_too(tmp_path):
    path = write(tmp_path / "c.yaml", MINIMAL)
    path.write_text(path.read_text() + "optimizer: {learning_rate: 1e-3, eps: 1e-08}\n")
    assert load_config(path).optimizer.learning_rate == 1e-3


def test_overrides_apply_in_order_and_may_drop_a_section(tmp_path):
    path = write(tmp_path / "c.yaml", MINIMAL | {"lora": {"rank": 4}, "eval": EVAL})
    assert load_config(path, ["seed=1", "seed=2"]).seed == 2
    config = load_config(path, ["lora=null", "eval=null"])
    assert config.lora is None and config.eval is None


@pytest.mark.parametrize("override", ["train.steps", "=3", "", " = 3"])
def test_an_override_that_is_not_key_value_is_refused(minimal, override):
    assert f"override {override!r} must look like section.key=value" in refusal(minimal, override)


# ------------------------------------------------------------------------------------------------------ resolved YAML


@pytest.mark.parametrize("path", sorted((REPO / "configs").glob("**/*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_survives_a_round_trip_through_its_resolved_yaml(tmp_path, path):
    try:
        config = load_config(path)
    except ConfigError as error:
        if "is required" not in str(error):
            raise
        pytest.skip("a piece that other configs extend")
    (tmp_path / "resolved.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config(tmp_path / "resolved.yaml") == config


def test_the_resolved_yaml_names_every_key_and_keeps_odd_values():
    odd = {"context": {"instruction": "π: {x}\n- #"}, "optimizer": {"learning_rate": 5e-6, "eps": 1e-30}, "lora": {}}
    config = validate_config(MINIMAL | odd, "here")
    tree = yaml.safe_load(to_yaml(config))
    assert tree.keys() == Config.model_fields.keys()
    assert tree["lora"]["rank"] == 64 and tree["optimizer"]["eps"] == 1e-30
    assert validate_config(tree, "again") == config
