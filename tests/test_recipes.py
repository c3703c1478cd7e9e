"""The shipped recipes: each resolves to the values its paper's repository runs with, and says nothing twice."""

import re
from collections import Counter
from functools import reduce
from pathlib import Path

import pytest
import yaml

from jopsd.config import ConfigError, _merge, _read, flatten, load_config, to_yaml
from jopsd.data.problem import problem_from_row
from tests import published

REPO = Path(__file__).resolve().parent.parent
CONFIGS = REPO / "configs"
FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob("**/*.yaml"))
PIECES = [name for name in FILES if (CONFIGS / name).read_text(encoding="utf-8").startswith("# A piece, not a run")]
RUNNABLE = [name for name in FILES if name not in PIECES]
OURSELVES = ("quickstart.yaml", "opsd.yaml", "tiny/", "scale/")  # no published run
EXAMPLES = [name for name in RUNNABLE if name.startswith(OURSELVES)]
RECIPES = [name for name in RUNNABLE if name not in EXAMPLES]
ROWS = list(published.rows())

# Keys that are ours to choose: where a run writes, what fits a device, and the words of prompts.
OURS = ("output_dir", "train.micro_batch_size", "context.teacher_template")


def resolved(name: str, overrides=()) -> dict:
    return flatten(load_config(CONFIGS / name, overrides).model_dump(mode="json"))


def parents(name: str) -> list[str]:
    extends = yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8")).get("extends", [])
    folder = (CONFIGS / name).parent
    listed = [extends] if isinstance(extends, str) else extends
    return [(folder / parent).resolve().relative_to(CONFIGS).as_posix() for parent in listed]


def ancestors(name: str) -> set[str]:
    return {a for parent in parents(name) for a in (parent, *ancestors(parent))}


# -------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("name", "overrides", "values"), ROWS, ids=[" ".join((name, *overrides)) for name, overrides, _ in ROWS]
)
def test_a_recipe_resolves_to_the_values_of_its_paper(name, overrides, values):
    got = resolved(name, overrides)
    for section in ("reward", "eval", "lora"):  # a section switched off is one key, one that is on is several
        got.setdefault(section, ...)
    wrong = {key: (got.get(key, "no such key"), value) for key, value in values.items() if not same(got, key, value)}
    assert not wrong, "got, published"


def same(got: dict, key: str, value) -> bool:
    wanted = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
    return key in got and got[key] == wanted


def test_every_recipe_is_in_the_table_and_every_row_of_the_table_has_its_file():
    assert {name for name, _, _ in ROWS} == set(RECIPES)


def test_the_published_runs_are_all_there():
    recipes = {name for name, _, _ in ROWS}
    counts = Counter(name.split("/")[0] for name in recipes)
    assert counts == {"opsd": 6, "pwopsd": 12 + 2, "copsd": 4 + 1, "rlcsd": 52, "sdpo": 11, "mopd": 7, "gopd": 4}
    languages = [
        (name.rsplit("_", 1)[1], overrides) for name, overrides, _ in ROWS if overrides and name.startswith("copsd/")
    ]
    assert len(languages) == 3 * 17 + 8 and len(set(languages)) == 17 + 8 == 25


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_that_a_recipe_sets_escapes_the_table(name):
    values = next(values for row, overrides, values in ROWS if row == name and not overrides)
    given = set(flatten(_read(CONFIGS / name, ())))
    unchecked = {key for key in given if key not in OURS and key not in values and not _inside(key, values)}
    assert not unchecked


def _inside(key: str, values: dict) -> bool:
    """Whether the table switches off the section that a key belongs to."""
    return values.get(key.split(".")[0], ...) is None


@pytest.mark.parametrize("name", RECIPES)
def test_micro_batches_of_a_recipe_split_over_up_to_eight_devices(name):
    assert load_config(CONFIGS / name).micro_rows % 8 == 0


@pytest.mark.parametrize(
    ("name", "rollouts", "updates"),
    [
        ("rlcsd/math/qwen3_4b/rlcsd", 64 * 8, 4),
        ("rlcsd/logic/qwen3_8b/grpo", 64 * 8, 4),
        ("sdpo/qwen3_8b/sdpo", 32 * 8, 1),
        ("sdpo/rich_feedback/grpo", 32 * 8, 4),
        ("mopd/cluster/summaries", 32 * 4, 1),
        ("gopd/opd", 1024, 1),
        ("gopd/context_distillation", 1024, 1),
        ("opsd/qwen3_4b_grpo", 32, 1),
        ("pwopsd/qwen3_4b/opsd", 32, 1),
    ],
)
def test_a_step_has_the_published_number_of_rollouts_and_updates(name, rollouts, updates):
    config = load_config(CONFIGS / f"{name}.yaml")
    assert (config.rows_per_step, config.updates_per_step) == (rollouts, updates)


def test_the_teacher_of_rich_feedback_moves_once_per_batch_of_rollouts():
    config = load_config(CONFIGS / "sdpo/rich_feedback/sdpo.yaml")
    assert config.teacher.every == config.updates_per_step


@pytest.mark.parametrize("language", [*published.AFRIMGSM, *published.POLYMATH])
def test_each_language_of_copsd_has_prompts_over_its_own_column(language):
    rows = "afrimgsm" if language in published.AFRIMGSM else "polymath"
    config = load_config(CONFIGS / f"copsd/qwen3_4b_{rows}.yaml", [f"data.columns.problem=problem_{language}"])
    row = {"problem": "IN ENGLISH", f"problem_{language}": "TRANSLATED", "solution": "SOLVED"}
    problem = problem_from_row(row, 0, config.data.columns)
    student = config.context.student_prompt(problem).messages[-1]["content"]
    teacher = config.context.teacher_prompt(problem).messages[-1]["content"]
    assert "TRANSLATED" in student and "IN ENGLISH" not in student and "SOLVED" not in student
    assert all(text in teacher for text in ("TRANSLATED", "IN ENGLISH", "SOLVED"))


def test_the_teacher_of_the_first_opsd_recipe_reads_the_bare_problem_then_the_solution():
    context = load_config(CONFIGS / "opsd/qwen3_4b.yaml").context
    problem = problem_from_row({"problem": "PROBLEM", "solution": "SOLVED"}, 0)
    student = context.student_prompt(problem).messages[-1]["content"]
    teacher = context.teacher_prompt(problem).messages[-1]["content"]
    assert student.startswith("Problem: PROBLEM\n\n") and student.endswith(context.instruction)
    assert teacher.startswith("PROBLEM\n\n") and teacher.index("SOLVED") < teacher.index(context.instruction)
    assert "\nSOLVED\n\n\n" in teacher and teacher.endswith(context.instruction)


# --------------------------------------------------------------------------------------------------------------- files


def test_a_file_that_does_not_resolve_is_a_piece_and_lacks_only_what_is_required():
    for name in FILES:
        try:
            load_config(CONFIGS / name)
        except ConfigError as error:
            assert name in PIECES, str(error)
            faults = str(error).splitlines()[1:]
            assert all("` is required" in fault for fault in faults), str(error)


def test_every_piece_is_part_of_a_recipe():
    used = {piece for name in RUNNABLE for piece in ancestors(name)}
    assert set(PIECES) <= used


@pytest.mark.parametrize("name", [name for name in FILES if name not in EXAMPLES])
def test_no_file_repeats_what_it_inherits(name):
    tree = yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))
    tree.pop("extends", None)
    inherited = reduce(_merge, (_read(CONFIGS / parent, ()) for parent in parents(name)), {})
    whole = _merge(inherited, tree)
    repeated = [key for key in flatten(tree) if _merge(inherited, _without(tree, key.split("."))) == whole]
    assert not repeated


def _without(tree: dict, key: list[str]) -> dict:
    first, *rest = key
    if rest:
        return {**tree, first: _without(tree[first], rest)}
    return {name: value for name, value in tree.items() if name != first}


def test_no_two_recipes_resolve_to_the_same_run():
    runs: dict[str, str] = {}
    for name in [*RECIPES, "opsd.yaml"]:
        config = load_config(CONFIGS / name)
        assert runs.setdefault(to_yaml(config.model_copy(update={"output_dir": "-"})), name) == name


def test_no_two_runs_write_to_the_same_place():
    places = Counter(load_config(CONFIGS / name).output_dir for name in RUNNABLE)
    assert max(places.values()) == 1, places.most_common(3)


@pytest.mark.parametrize("name", [*RECIPES, "opsd.yaml"])
def test_a_recipe_begins_with_the_command_that_runs_it(name):
    comment = re.match(r"(#.*\n)+", (CONFIGS / name).read_text(encoding="utf-8")).group()
    assert f"python -m jopsd.train --config configs/{name}" in comment


def test_the_documented_recipes_are_those_that_ship():
    text = (REPO / "docs/recipes.md").read_text(encoding="utf-8")
    documented = [name for pattern in re.findall(r"`configs/(\S+\.yaml)`", text) for name in _braces(pattern)]
    assert set(documented) <= set(FILES)
    assert set(RECIPES) <= set(documented)


def _braces(pattern: str) -> list[str]:
    """`a{b,c}` -> ab, ac."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [name for choice in match.group(1).split(",") for name in _braces(head + choice + tail)]
