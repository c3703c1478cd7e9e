"""The pages say what the code does: keys and defaults, prompts, vectors, links and commands; and the example runs."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest

from convert.__main__ import parser as convert_parser
from jopsd.config import load_config
from jopsd.contexts import (
    Attempt,
    ContextConfig,
    CritiqueContext,
    CrosslingualContext,
    HintsContext,
    PeersContext,
    PlainContext,
    SolutionContext,
    critique,
    hints,
    peers,
)
from jopsd.data.problem import Problem
from jopsd.mesh import make_mesh, put_rows
from jopsd.methods import MethodConfig
from jopsd.methods.correction import Correction
from jopsd.models.families import FAMILIES
from jopsd.schema import TEACHER_KEYS, Reference, Teacher
from tests import method_cases as case
from tests.golden.__main__ import ADAPTERS, _read, read_entries
from tests.golden.documents import DOCUMENTS
from tests.runs import environment, rows
from tests.test_step import (
    assert_close,
    batch_for,
    fused,
    model_and_adapter,
    place,
    plain_loss_and_gradient,
    single_device_mesh,
)

REPO = Path(__file__).resolve().parent.parent
DOCS = REPO / "docs"
PAGES = sorted(path.relative_to(REPO).as_posix() for path in [REPO / "README.md", *DOCS.glob("**/*.md")])
METHODS = {m.model_fields["name"].default: m for m in get_args(get_args(MethodConfig)[0])}
CONTEXTS = {m.model_fields["name"].default: m for m in get_args(get_args(ContextConfig)[0])}
EXAMPLE = "jopsd/methods/confident.py"  # what the reader of your_own_method.md writes


def page(name: str) -> str:
    return (REPO / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page(name), re.MULTILINE | re.DOTALL)


# ------------------------------------------------------------------------------------------------------ keys, defaults


def table(text: str, header: str = "key") -> dict[str, str]:
    """{key: default as written} of the tables whose first column is called `header`."""
    found: dict[str, str] = {}
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            inside = False
        elif cells[0] == header:
            inside = True
        elif inside and set(cells[0]) != {"-"}:
            keys, defaults = (re.findall(r"`([^`]*)`", cell) for cell in cells[:2])
            if len(keys) != len(defaults):  # several keys that share what is said
                defaults = [cells[1]] * len(keys)
            assert not found.keys() & set(keys), f"{keys} stands twice"
            found |= dict(zip(keys, defaults, strict=True))
    return found


def value(text: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def defaults(model) -> dict:
    """{key: default}; of a template that the wording brings, "wording"."""
    given = {name: "wording" if f.is_required() else f.default for name, f in model.model_fields.items()}
    if "wording" in given:
        given["wording"] = model().wording
    return {name: default for name, default in given.items() if name != "name"}


def assert_says(text: str, model, header: str = "key", without=()):
    written = {key: value(default) for key, default in table(text, header).items() if key not in without}
    expected = {key: default for key, default in defaults(model).items() if key not in without}
    assert written == expected
    assert {key: type(x) for key, x in written.items()} == {key: type(x) for key, x in expected.items()}


def section(name: str, title: str) -> str:
    return page(name).split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_page_with_its_keys_and_true_defaults_and_a_line_in_the_index(name):
    assert_says(page(f"docs/methods/{name}.md"), METHODS[name])
    assert f"](methods/{name}.md) |" in page("docs/methods.md")


def test_there_is_no_page_of_a_method_that_is_gone():
    assert {path.stem for path in (DOCS / "methods").iterdir()} == {*METHODS, "copsd"}


@pytest.mark.parametrize("name", CONTEXTS)
def test_every_context_has_a_section_with_its_keys_and_true_defaults(name):
    assert_says(section("docs/contexts.md", f"`{name}`"), CONTEXTS[name])


def test_keys_of_correction_summaries_and_reference_are_listed_with_their_defaults():
    assert_says(section("docs/methods.md", "Correction"), Correction)
    assert_says(section("docs/contexts.md", "`peers`"), peers.Summaries, "key of `summaries`")
    assert_says(page("docs/teachers.md"), Reference, "key of `reference`")


def test_the_keys_of_teachers_are_listed_with_the_default_of_each_kind():
    text = page("docs/teachers.md")
    by_kind = {key: kinds for key, kinds in TEACHER_KEYS.items() if set(kinds.values()) != {None}}
    assert_says(text, Teacher, without=by_kind)
    lines = {line.split("`")[1]: line.split("|")[2] for line in text.splitlines() if line.startswith("| `")}
    for key, kinds in by_kind.items():
        written = dict(re.findall(r"(\w+) `([^`]*)`", lines[key]))
        assert {kind: value(default) for kind, default in written.items()} == kinds
    kinds = get_args(Teacher.model_fields["kind"].annotation)
    assert all(f"| [`{kind}`]" in text for kind in kinds)


def test_a_page_that_lacks_a_key_or_has_a_wrong_default_or_one_too_many_is_noticed():
    text, model = page("docs/methods/eopd.md"), METHODS["eopd"]
    for wrong in (
        text.replace("| `16` |", "| `17` |"),
        text.replace("| `16` |", "| `16.0` |"),
        text.replace("| `clip` | `0.2` |", "| `klip` | `0.2` |"),
        "\n".join(line for line in text.splitlines() if not line.startswith("| `clip`")),
    ):
        assert wrong != text
        with pytest.raises(AssertionError):
            assert_says(wrong, model)


# -------------------------------------------------------------------------------------------------------- prompts shown


def rendered() -> set[str]:
    """What the contexts page shows, as the contexts make it."""
    solution = r"9+4=13, so the answer is \boxed{13}."
    problem = Problem(id="0", problem="What is 9+4?", solution=solution, answer="13")
    german = Problem(id="0", problem="Was ist 9+4?", problem_en="What is 9+4?", solution=solution, language="de")
    attempts = [Attempt(rf"9+4={n} \boxed{{{n}}}", float(n == 13), str(n)) for n in (13, 14, 12)]
    draw = lambda context, of: context.group_prompts(problem, of, np.random.default_rng(0))  # noqa: E731
    reviewed = attempts[1]._replace(feedback="14 is not the answer.")
    terse, abroad = SolutionContext(wording="terse"), CrosslingualContext()
    prompts = [
        terse.student_prompt(problem),
        terse.teacher_prompt(problem),
        abroad.student_prompt(german),
        abroad.teacher_prompt(german),
        draw(HintsContext(negatives=1), attempts)[2]["negative"][0],
        draw(PeersContext(peers="contrastive"), attempts)[1]["teacher"],
        draw(CritiqueContext(source="feedback"), [reviewed])[0]["teacher"],
        PlainContext(wording="gopd").teacher_prompt(problem),
    ]
    return {prompt.messages[-1]["content"] for prompt in prompts} | {abroad.student_prompt(german).prefill}


def test_the_prompts_on_the_page_are_those_that_the_contexts_make():
    assert {block.rstrip("\n") for block in blocks("docs/contexts.md", "text")} == rendered()


def test_every_reason_for_having_no_teacher_is_named():
    reasons = [hints.NO_RIGHT, hints.NO_WRONG, hints.NO_WRONG_ANSWER, peers.NOTHING, peers.FAILURE_ALONE]
    assert all(f"`{reason}`" in page("docs/contexts.md") for reason in [*reasons, critique.NO_FEEDBACK])


# ------------------------------------------------------------------------------------------------------- golden vectors

VECTORS = re.compile(r"`([ab])/([\w*!\[\]]+)`(?: \((\d+e-\d+))?")
NAMED = [(name, *match) for name in PAGES for match in VECTORS.findall(page(name))]


@cache
def entries(folder: str):
    return [entry for entry in read_entries(REPO / "tests" / "golden" / folder) if entry.file.is_file()]


def is_loss(entry) -> bool:
    return entry.file.suffix == ".npz" and entry.method in ADAPTERS and entry.file.stem not in DOCUMENTS


@pytest.mark.parametrize(("name", "folder", "pattern", "tolerance"), NAMED)
def test_golden_vectors_named_on_a_page_exist_and_hold_to_the_tolerance_it_gives(name, folder, pattern, tolerance):
    matching = [entry for entry in entries(folder) if fnmatch(entry.file.stem, pattern)]
    assert matching
    cases = [ADAPTERS[e.method](e.hyperparameters, _read(e.file)) for e in matching if is_loss(e)]
    judged = {c.tolerance for c in cases if not c.informational}
    if judged:
        assert {float(tolerance)} == judged


def test_every_golden_loss_stands_on_a_page():
    for folder in "ab":
        patterns = [pattern for _, f, pattern, _ in NAMED if f == folder]
        missing = {e.file.stem for e in entries(folder) if is_loss(e)}
        missing = {stem for stem in missing if not any(fnmatch(stem, pattern) for pattern in patterns)}
        assert not missing


# ---------------------------------------------------------------------------------------------------- links, commands


def anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def expanded(text: str) -> list[str]:
    """`a{b,c}` as ab and ac."""
    match = re.search(r"\{([^{}]*)\}", text)
    if not match:
        return [text]
    return [x for part in match[1].split(",") for x in expanded(text[: match.start()] + part + text[match.end() :])]


@pytest.mark.parametrize("name", PAGES)
def test_every_relative_link_and_every_file_named_on_a_page_exists(name):
    text, here = page(name), (REPO / name).parent
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if "://" in target:
            continue
        path = here / target if target else REPO / name
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"
    named = re.findall(r"\b(?:configs|tests|jopsd|bench|launch)/[\w./{},-]*\.(?:yaml|py|sh)\b", text)
    for path in {path for pattern in named for path in expanded(pattern)} - {EXAMPLE}:
        assert (REPO / path).is_file(), path


COMMANDS = [
    (name, command.split("#")[0])
    for name in PAGES
    for command in re.findall(r"python -m jopsd\.train (--config \S+.*)", page(name))
    if "confident" not in command
]


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_the_commands_on_a_page_have_configs_that_can_be_used(name, command):
    _, config, *overrides = shlex.split(command.rstrip("`\\ "))
    load_config(REPO / config, overrides)


@pytest.mark.parametrize("name", ["README.md", "docs/models.md"])
def test_the_conversions_on_a_page_are_commands_there_are(name):
    commands = re.findall(r"^python -m convert (.*)$", page(name), re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        convert_parser().parse_args(shlex.split(command, comments=True))


def test_the_table_of_families_on_the_page_is_the_table_in_the_code():
    assert re.findall(r"^\| `(\w+ForCausalLM)`", page("docs/models.md"), re.MULTILINE) == list(FAMILIES)


@pytest.mark.parametrize("name", [*METHODS, "copsd"])
def test_every_method_page_has_a_command_that_runs_it_on_the_embedded_task(name):
    configs = [shlex.split(c)[1] for where, c in COMMANDS if where == f"docs/methods/{name}.md"]
    methods = {load_config(REPO / config).method.name for config in configs}
    assert methods == {"opsd" if name == "copsd" else name}


# ----------------------------------------------------------------------------------------------------- your own method

OWN = "docs/your_own_method.md"


@pytest.fixture(scope="module")
def confident(tmp_path_factory):
    """The class of the page, from the very code that stands there."""
    (source,) = blocks(OWN, "python")
    path = tmp_path_factory.mktemp("own") / "confident.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("confident", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Confident


def by_loops(batch, beta: float, temperature: float, importance=None) -> tuple[float, np.ndarray]:
    """Loss and gradient by the formula of the page, token by token."""
    student, views = case.logits_of()
    s, t = case.log_softmax(student / temperature), case.log_softmax(views["teacher"] / temperature)
    counted = [(b, i) for b in range(case.B) for i in range(case.T) if batch.mask[b, i]]
    sure = {at: np.exp(beta * sum(np.exp(t[at]) * t[at])) for at in counted}
    loss, gradient = 0.0, np.zeros_like(student)
    for at in counted:
        weight = sure[at] / sum(sure.values()) * (1 if importance is None else importance[at])
        kl = sum(np.exp(s[at]) * (s[at] - t[at]))
        loss += weight * kl
        gradient[at] = weight * np.exp(s[at]) * (s[at] - t[at] - kl) / temperature
    return loss, gradient


@pytest.mark.parametrize(("beta", "temperature"), [(1.0, 1.0), (0.0, 1.3), (3.0, 0.7)])
def test_the_example_is_the_formula_of_the_page_in_loss_and_gradient(confident, beta, temperature):
    method, batch = confident(beta=beta, temperature=temperature), case.batch_of()
    with jax.enable_x64(True):
        loss, gradient = case.loss_of(method, batch), case.gradient_of(method, batch)
    want_loss, want_gradient = by_loops(batch, beta, temperature)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-9)
    np.testing.assert_allclose(gradient, want_gradient, atol=1e-12)
    assert loss > 1e-3


def test_importance_weights_multiply_the_loss_of_the_example(confident):
    method = confident(correction={"threshold": 1.5})
    ratio = np.random.default_rng(3).uniform(0.5, 3, (case.B, case.T))
    old = np.zeros(ratio.shape)
    batch = case.batch_of(old_logprobs=old, sampler_logprobs=old - np.log(ratio))
    with jax.enable_x64(True):
        loss = case.loss_of(method, batch)
    np.testing.assert_allclose(loss, by_loops(batch, 1.0, 1.0, np.minimum(ratio, 1.5))[0], rtol=1e-9)


def test_an_update_without_tokens_has_no_loss_and_no_gradient_under_the_example(confident):
    empty = case.batch_of(mask=np.zeros((case.B, case.T)))
    with jax.enable_x64(True):
        np.testing.assert_array_equal(case.read(confident(), empty)[3]["weight"], 0)  # which hides no 0/0 behind a mask
        assert case.loss_of(confident(), empty) == 0
        np.testing.assert_array_equal(case.gradient_of(confident(), empty), 0)


@pytest.mark.slow
def test_the_fused_update_of_the_example_equals_the_plain_definition_on_one_device_and_on_a_mesh(confident):
    method, (model, adapter) = confident(), model_and_adapter()
    batch, mesh = batch_for(method), make_mesh(2, 2, 2)
    plain = plain_loss_and_gradient(method, adapter, model, batch)
    assert_close(fused(method, single_device_mesh(), adapter, model, batch, micro_batches=2, chunk=7), plain)
    with jax.set_mesh(mesh):
        sharded = fused(method, mesh, place(adapter, mesh), place(model, mesh), put_rows(batch, mesh))
    assert_close(jax.device_get(sharded), plain)


def registered(source: str) -> str:
    """`__init__.py` after the page's diff."""
    (diff,) = blocks(OWN, "diff")
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines()
        old, new = ("\n".join(x[1:] for x in lines if x[0] in kinds) for kinds in (" -", " +"))
        assert source.count(old) == 1, f"the page edits lines that are not there: {old}"
        source = source.replace(old, new)
    return source


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the package in which a reader has done what the page says."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(REPO / "jopsd", folder / "jopsd", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "configs").mkdir()
    shutil.copy(REPO / "configs/quickstart.yaml", folder / "configs/quickstart.yaml")
    (folder / EXAMPLE).write_text(blocks(OWN, "python")[0], encoding="utf-8")
    registry = folder / "jopsd/methods/__init__.py"
    registry.write_text(registered(registry.read_text(encoding="utf-8")), encoding="utf-8")
    (folder / "configs/confident.yaml").write_text(blocks(OWN, "yaml")[0], encoding="utf-8")
    return folder


def in_checkout(folder: Path, *arguments: str) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment(PYTHONPATH=str(folder)), capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_config_file_of_the_page_resolves_once_the_example_is_registered(checkout):
    shown = in_checkout(checkout, "-m", "jopsd.config", "show", "configs/confident.yaml")
    assert "name: confident" in shown and "beta: 0.5" in shown


@pytest.mark.slow
def test_the_command_of_the_page_trains_the_embedded_task_with_the_example(checkout):
    command = next(block for block in blocks(OWN, "bash") if "jopsd.train" in block)
    small = ["train.steps=2", "train.batch_size=4", "data.limit=8", "sampling.slots=4", "reward.workers=1", "eval=null"]
    in_checkout(checkout, *shlex.split(command)[1:], *small, "log.every=1")
    metrics = rows(checkout / "runs/confident")
    assert [row["step"] for row in metrics] == [1, 2]
    assert all(row["loss"] > 0 and row["grad_norm"] > 0 for row in metrics)
    assert json.loads((checkout / "runs/confident/summary.json").read_text())["method"] == "confident"
