"""The commands `python -m jopsd.config show` and `diff`: what they print, and how they refuse."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jopsd.config import load_config, main

REPO = Path(__file__).resolve().parent.parent

ONE = """\
output_dir: runs/one
model: {path: models/a}
lora: {rank: 8, targets: [q, v]}
method: {name: opsd, alpha: 0.5}
data: {source: rows.jsonl}
optimizer: {clip_norm: null}
"""
OTHER = """\
extends: one.yaml
output_dir: runs/other
lora: {rank: 16}
method: {name: pwopsd, w_min: 0.5}
teacher: {kind: ema}
optimizer: {learning_rate: 1e-3, clip_norm: 2}
"""
# Keys in the order of the first config, then those that only the other has.
DIFFERENCE = """\
output_dir: 'runs/one' -> 'runs/other'
lora.rank: 8 -> 16
method.name: 'opsd' -> 'pwopsd'
method.alpha: 0.5 -> 0.0
method.reduction: 'token_mean' -> 'sequence_mean'
teacher.kind: 'fixed' -> 'ema'
teacher.decay: None -> 0.95
teacher.start: None -> 'initial'
teacher.every: None -> 1
optimizer.learning_rate: 5e-06 -> 0.001
optimizer.clip_norm: None -> 2.0
method.w_min: - -> 0.5
method.tau: - -> 0.3
method.s: - -> 0.1
"""


@pytest.fixture
def files(tmp_path) -> tuple[str, str]:
    (tmp_path / "one.yaml").write_text(ONE, encoding="utf-8")
    (tmp_path / "other.yaml").write_text(OTHER, encoding="utf-8")
    return str(tmp_path / "one.yaml"), str(tmp_path / "other.yaml")


# ---------------------------------------------------------------------------------------------------------------- diff


def test_diff_prints_the_keys_that_differ_and_no_others(files, capsys):
    assert main(["diff", *files]) == 0
    printed = capsys.readouterr()
    assert printed.out == DIFFERENCE
    assert printed.err == ""


def test_diff_of_a_config_with_itself_prints_nothing(files, capsys):
    assert main(["diff", files[0], files[0]]) == 0
    assert capsys.readouterr().out == ""


def test_diff_turned_round_has_its_sides_exchanged(files, capsys):
    main(["diff", files[1], files[0]])
    printed = capsys.readouterr().out
    assert "lora.rank: 16 -> 8\n" in printed
    assert "method.w_min: 0.5 -> -\n" in printed


def test_a_section_that_only_one_has_is_told_key_by_key(files, tmp_path, capsys):
    bare = tmp_path / "bare.yaml"
    bare.write_text("extends: one.yaml\nlora: null\n", encoding="utf-8")
    main(["diff", files[0], str(bare)])
    assert set(capsys.readouterr().out.splitlines()) == {
        "lora.rank: 8 -> -",
        "lora.alpha: 128.0 -> -",
        "lora.targets: ['q', 'v'] -> -",
        "lora.rslora: False -> -",
        "lora.path: None -> -",
        "lora: - -> None",
    }


def test_diff_of_two_recipes_of_one_comparison_is_their_method_and_their_place(capsys):
    folder = REPO / "configs/pwopsd/qwen3_4b"
    main(["diff", str(folder / "opsd.yaml"), str(folder / "pwopsd.yaml")])
    keys = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert keys == ["output_dir", "method.name", "method.reduction", "method.w_min", "method.tau", "method.s"]


# ---------------------------------------------------------------------------------------------------------------- show


def test_show_prints_yaml_that_loads_as_the_same_config(files, tmp_path, capsys):
    overrides = ["seed=3", "optimizer.learning_rate=2e-4", "lora=null"]
    assert main(["show", files[1], *overrides]) == 0
    shown = tmp_path / "shown.yaml"
    shown.write_text(capsys.readouterr().out, encoding="utf-8")
    config = load_config(shown)
    assert config == load_config(files[1], overrides)
    assert (config.seed, config.optimizer.learning_rate, config.lora) == (3, 2e-4, None)


def test_show_prints_every_key_and_no_extends(files, capsys):
    main(["show", files[1]])
    tree = yaml.safe_load(capsys.readouterr().out)
    assert "extends" not in tree
    assert tree["train"]["steps"] == 150, "a default"
    fresh = {"rslora": False, "path": None}
    assert tree["lora"] == {"rank": 16, "alpha": 128.0, "targets": ["q", "v"], **fresh}, "inherited and overridden"


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["show", "nowhere.yaml"], "config file nowhere.yaml does not exist"),
        (["show", "{one}", "seed"], "override 'seed' must look like section.key=value"),
        (["diff", "nowhere.yaml", "{one}"], "config file nowhere.yaml does not exist"),
        (["diff", "{one}", "nowhere.yaml"], "config file nowhere.yaml does not exist"),
    ],
)
def test_an_error_is_one_line_on_stderr_and_exit_code_2(files, capsys, arguments, told):
    assert main([argument.format(one=files[0]) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == told + "\n"


def test_a_value_that_does_not_fit_is_told_with_file_and_key(files, capsys):
    assert main(["show", files[0], "train.stpes=3"]) == 2
    told = f"{files[0]} is not a usable config:\n  unknown key `train.stpes`; did you mean `steps`?\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("arguments", [[], ["compare"], ["diff", "one.yaml"], ["show"]])
def test_a_command_that_is_not_there_or_lacks_a_file_is_exit_code_2_with_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage: python -m jopsd.config" in capsys.readouterr().err


def test_the_module_runs_as_a_command_with_these_exit_codes(files):
    def run(*arguments):
        command = [sys.executable, "-m", "jopsd.config", *arguments]
        return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)

    shown = run("show", files[0], "seed=5")
    assert shown.returncode == 0 and yaml.safe_load(shown.stdout)["seed"] == 5
    refused = run("diff", files[0], "nowhere.yaml")
    assert refused.returncode == 2
    assert (refused.stdout, refused.stderr) == ("", "config file nowhere.yaml does not exist\n")
