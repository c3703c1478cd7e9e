"""A run goes on only with the rows, templates and weights that it was trained with, or says which differ."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jopsd.checkpoint import all_steps
from jopsd.config import ConfigError, validate_config
from jopsd.content import changed_content
from jopsd.setup import BUILTIN
from jopsd.train import main
from tests.runs import TINY, write_config, write_rows

ROWS = [
    {"id": str(i), "problem": f"1{i}+2+3+4", "solution": rf"\boxed{{{19 + i}}}", "answer": f"{19 + i}"}
    for i in range(8)
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that trains in this process: (exit code, what was printed). One step is done already."""
    folder = tmp_path_factory.mktemp("content")
    write_rows(folder / "rows.jsonl", ROWS)
    shutil.copytree(BUILTIN["builtin:sums"], folder / "model")
    changes = {"data": {"source": str(folder / "rows.jsonl"), "limit": None}, "log": {"tensorboard": False}}
    changes |= {"model": {"path": str(folder / "model")}, "method": {"name": "sft"}, "eval": None}
    config = write_config(folder, **changes, train={"batch_size": 8})
    assert main(["--config", str(config), "train.steps=1"]) == 0

    def go_on(*overrides):
        return main(["--config", str(config), *overrides])

    go_on.folder = folder
    return go_on


def swapped_rows(folder):
    write_rows(folder / "rows.jsonl", ROWS[::-1])


def corrected_answer(folder):
    write_rows(folder / "rows.jsonl", [*ROWS[:-1], ROWS[-1] | {"answer": "0"}])


def other_template(folder):
    path = folder / "model/tokenizer_config.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(tree | {"chat_template": tree["chat_template"].replace(">assistant", ">helper")}))


def other_weights(folder):
    path = folder / "model/model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = np.nextafter(tensors["model.norm.weight"], np.float32(9))
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "told", "group"),
    [
        (swapped_rows, "rows of data (8 rows", "rows"),
        (corrected_answer, "rows of data (8 rows", "rows"),
        (other_template, "template of the student", "template"),
        (other_weights, "weights of model.path", "weights"),
    ],
)
def test_other_content_under_the_same_name_is_refused_by_name(run, capsys, change, told, group):
    kept = {
        path: path.read_bytes() for path in run.folder.rglob("*") if path.suffix in (".jsonl", ".json", ".safetensors")
    }
    try:
        change(run.folder)
        assert run("train.steps=2") == 1
    finally:
        for path, data in kept.items():
            path.write_bytes(data)
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert told in error and f"checkpoint.accept=[{group}]" in error
    assert error.count(" then, ") == 1, "nothing else differs"


def test_what_is_accepted_is_said_and_becomes_what_the_run_was_trained_with(run, capsys):
    assert run("train.steps=2") == 0
    swapped_rows(run.folder)
    assert run("train.steps=3", "checkpoint.accept=[rows]") == 0
    assert "changed rows of data (8 rows" in capsys.readouterr().err
    assert all_steps(run.folder / "run")[-1] == 3
    assert run("train.steps=4") == 0


def test_held_out_rows_may_change_with_the_section_that_names_them_and_old_checkpoints_say_nothing():
    config = validate_config({**TINY, "output_dir": "x"}, "here")
    saved = {"config": config.model_dump(mode="json"), "content": {"rows of eval.data": "1"}}
    with pytest.raises(ConfigError, match=r"rows of eval\.data \(1 then, 2 now\)"):
        changed_content(saved, config, {"rows of eval.data": "2"})
    other = validate_config({**TINY, "output_dir": "x", "eval": {**TINY["eval"], "seed": 5}}, "here")
    assert changed_content(saved, other, {"rows of eval.data": "2"}) == []
    assert changed_content({"data": None}, config, {"rows of data": "2"}) == []
