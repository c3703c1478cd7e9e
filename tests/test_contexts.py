"""What student and teacher read of one problem: the solution, plain and critique contexts, and the shipped wordings."""

import dataclasses

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from jopsd.contexts import (
    Absent,
    Attempt,
    Context,
    ContextConfig,
    CritiqueContext,
    CrosslingualContext,
    HintsContext,
    PeersContext,
    PlainContext,
    Prompt,
    SolutionContext,
)
from jopsd.contexts.templates import WORDINGS
from jopsd.data.problem import Problem

PROBLEM = Problem(id="7", problem="Find $\\frac{a}{b}$.", solution="So \\boxed{\\frac{1}{2}}.", answer="\\frac{1}{2}")
SHIPPED = yaml.safe_load(WORDINGS.read_text(encoding="utf-8"))
CONTEXTS = {
    "solution": SolutionContext,
    "hints": HintsContext,
    "peers": PeersContext,
    "critique": CritiqueContext,
    "plain": PlainContext,
}
NAMED_WORDINGS = [(context, wording) for context, wordings in SHIPPED.items() for wording in wordings]
# Text of every field that looks like a template, a format string or a replacement pattern.
HOSTILE = Problem(
    id="0",
    problem="{solution} {privileged} {attempt} {primary} {critique} {0} {} {instruction} \\g<0>",
    solution="SECRET-solution {problem} \\1 {answer}",
    answer="SECRET-answer {solution}",
    attempt="SECRET-attempt {critique}",
    critique="SECRET-critique {instruction}",
)
HOSTILE_GROUP = [
    Attempt(f"SECRET-{i} {{primary}} {{solution}} {{attempt}} \\g<0> {{", reward, f"SECRET-{i}", f"SECRET-said-{i}")
    for i, reward in enumerate([1.0, 0.0, 1.0, 0.0])
]


def content(prompt: Prompt) -> str:
    """The text of a prompt that is one user turn."""
    assert [message["role"] for message in prompt.messages] == ["user"] and prompt.prefill == ""
    return prompt.messages[0]["content"]


def whole(prompt: Prompt) -> str:
    return prompt.prefill.join(message["content"] for message in prompt.messages)


def test_the_default_prompts_have_the_published_structure():
    context = SolutionContext()
    assert content(context.student_prompt(PROBLEM)) == f"Problem: {PROBLEM.problem}\n\n{context.instruction}"
    teacher = content(context.teacher_prompt(PROBLEM))
    assert teacher.startswith(f"Problem: {PROBLEM.problem}\n\n")
    assert teacher.endswith(f":\n\n{context.instruction}")
    before, after = teacher.split(PROBLEM.solution)
    assert before.endswith("===\n") and after.startswith("\n===") and "===\n\n\n" in after
    assert "\\boxed{}" in context.instruction


def test_toy_templates_render_to_their_literal_strings():
    context = SolutionContext(
        student_template="Problem: {problem}",
        teacher_template="Problem: {problem}\nReference Solution: {solution}",
        instruction="",
    )
    toy = Problem(id="0", problem="86+67+56+34", solution="86+67=153\n\\boxed{243}")
    assert content(context.student_prompt(toy)) == "Problem: 86+67+56+34"
    expected = "Problem: 86+67+56+34\nReference Solution: 86+67=153\n\\boxed{243}"
    assert content(context.teacher_prompt(toy)) == expected


def test_placeholders_inside_values_are_left_alone():
    context = SolutionContext(teacher_template="{problem}|{privileged}", privileged="solution_answer")
    expected = f"{HOSTILE.problem}|{HOSTILE.solution}\n\nCorrect final answer: {HOSTILE.answer}"
    assert content(context.teacher_prompt(HOSTILE)) == expected


def test_latex_braces_and_doubled_names_in_templates_are_literal():
    context = SolutionContext(student_template="\\boxed{} \\frac{1}{2} {{problem}} {problem}")
    assert content(context.student_prompt(PROBLEM)) == "\\boxed{} \\frac{1}{2} {problem} " + PROBLEM.problem


@pytest.mark.parametrize(
    ("privileged", "shown"),
    [
        ("solution", "<{solution}>"),
        ("solution_answer", "<{solution}\n\nCorrect final answer: {answer}>"),
        ("answer", "<Correct final answer: {answer}>"),
    ],
)
def test_privileged_chooses_what_the_teacher_reads(privileged, shown):
    context = SolutionContext(privileged=privileged, teacher_template="{problem}<{privileged}>")
    expected = shown.replace("{solution}", PROBLEM.solution).replace("{answer}", PROBLEM.answer)
    assert content(context.teacher_prompt(PROBLEM)) == PROBLEM.problem + expected


@pytest.mark.parametrize("key", ["student_template", "teacher_template"])
def test_an_unknown_placeholder_is_an_error_that_names_it(key):
    with pytest.raises(ValidationError, match=r"unknown placeholder \{problm\}; known: \{problem\}"):
        SolutionContext(**{key: "{problem} {problm}"})


@pytest.mark.parametrize("name", ["solution", "answer", "privileged"])
def test_a_student_template_that_shows_the_solution_is_refused(name):
    with pytest.raises(ValidationError, match=rf"student must not read \{{{name}\}}"):
        SolutionContext(student_template="{problem} {" + name + "}")


def test_a_template_without_the_problem_is_refused():
    with pytest.raises(ValidationError, match=r"must contain \{problem\}"):
        SolutionContext(teacher_template="{solution}")


def test_an_unknown_key_is_refused_and_the_config_is_frozen():
    with pytest.raises(ValidationError, match="instructions"):
        SolutionContext(instructions="x")
    with pytest.raises(ValidationError, match="frozen"):
        SolutionContext().instruction = "x"


@pytest.mark.parametrize(
    ("keys", "fields"),
    [
        ({}, ("problem", "solution")),
        ({"privileged": "solution_answer"}, ("problem", "solution", "answer")),
        ({"privileged": "answer"}, ("problem", "answer")),
        ({"teacher_template": "{problem} {answer}"}, ("problem", "answer")),
        ({"teacher_template": "{problem} {{answer}}"}, ("problem",)),
    ],
)
def test_required_fields_follow_the_placeholders(keys, fields):
    assert SolutionContext(**keys).required_fields() == fields
    assert SolutionContext(**keys).required_fields(teacher=False) == ("problem",)


def test_a_missing_field_is_an_error_that_names_problem_and_field():
    with pytest.raises(ValueError, match="problem 'p9' of math.jsonl has no solution"):
        SolutionContext().teacher_prompt(Problem(id="p9", problem="x", source="math.jsonl"))


def test_hinted_replaces_solution_and_answer_and_nothing_else():
    context = SolutionContext(privileged="solution_answer")
    own = content(context.teacher_prompt(PROBLEM))
    other = content(context.hinted(PROBLEM, "another way", "17"))
    text = f"{PROBLEM.solution}\n\nCorrect final answer: {PROBLEM.answer}"
    assert own.count(text) == 1 and other == own.replace(text, "another way\n\nCorrect final answer: 17")


def test_plain_gives_the_teacher_the_student_prompt_itself():
    problem = dataclasses.replace(PROBLEM, system="Be brief.")
    for wording in SHIPPED["plain"]:
        context = PlainContext(wording=wording)
        assert context.teacher_prompt(problem) == context.student_prompt(problem)
        assert context.views == ("teacher",) and not context.reads_attempts
    assert content(PlainContext(wording="bare").student_prompt(PROBLEM)) == PROBLEM.problem
    gopd = PlainContext(wording="gopd")
    assert content(gopd.student_prompt(PROBLEM)) == f"{PROBLEM.problem}\n{gopd.instruction}"


CRITIQUED = Problem(id="c", problem="2+2", attempt="It is 5.", critique="The sum is off by one.", system="Be brief.")


def test_a_critique_is_the_student_turn_then_the_attempt_then_the_critique():
    context = CritiqueContext(critique_template="[{critique}] again. {instruction}", instruction="Box it.")
    assert context.teacher_prompt(CRITIQUED).messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2\nBox it."},
        {"role": "assistant", "content": "It is 5."},
        {"role": "user", "content": "[The sum is off by one.] again. Box it."},
    )
    assert context.required_fields() == ("problem", "attempt", "critique")
    assert context.required_fields(teacher=False) == ("problem",)
    assert not context.reads_attempts and not context.needs_group


def test_critiques_of_the_data_are_the_same_for_every_rollout():
    context = CritiqueContext()
    readings = context.group_prompts(CRITIQUED, HOSTILE_GROUP, np.random.default_rng(0))
    assert readings == [{"teacher": context.teacher_prompt(CRITIQUED)}] * 4


@pytest.mark.parametrize("field", ["attempt", "critique"])
def test_a_problem_without_its_critique_is_an_error_that_names_the_field(field):
    with pytest.raises(ValueError, match=f"problem 'c' of the data has no {field}"):
        CritiqueContext().teacher_prompt(dataclasses.replace(CRITIQUED, **{field: None}))


def test_feedback_is_the_critique_of_the_rollout_itself():
    context = CritiqueContext(source="feedback", critique_template="[{critique}]")
    group = [
        Attempt("one", 0.0, feedback="{critique} failed"),
        Attempt("two", 1.0),
        Attempt("three", 0.0, feedback=" "),
    ]
    first, *others = context.group_prompts(CRITIQUED, group, np.random.default_rng(0))
    assert [m["content"] for m in first["teacher"].messages[-2:]] == ["one", "[{critique} failed]"]
    assert others == [Absent("no feedback")] * 2
    assert context.required_fields() == ("problem",) and context.reads_attempts and not context.needs_group
    with pytest.raises(ValueError, match="no prompt before the rollouts"):
        context.teacher_prompt(CRITIQUED)


@pytest.mark.parametrize(("context", "wording"), NAMED_WORDINGS)
def test_every_shipped_wording_is_valid_and_gives_every_text_that_its_context_reads(context, wording):
    made = CONTEXTS[context](wording=wording)
    for key, text in SHIPPED[context][wording].items():
        assert getattr(made, key) == text
    assert ("\\boxed{}" in content(made.student_prompt(PROBLEM))) == (wording != "bare")


@pytest.mark.parametrize(("context", "wording"), NAMED_WORDINGS)
def test_a_shipped_teacher_reads_the_problem_and_each_privileged_text(context, wording):
    problem = Problem(id="0", problem="PROBLEM", solution="SOLUTION", answer="ANSWER", attempt="TRY", critique="REVIEW")
    keys = {"privileged": "solution_answer"} if context == "solution" else {}
    if context == "peers":
        keys = {"peers": "contrastive", "another": True, "feedback_only_without_solution": False, "summaries": {"k": 9}}
    made = CONTEXTS[context](wording=wording, **keys)
    group = [Attempt(f"TEXT-{i}.", float(i < 4), f"{i}", f"SAID-{i}.") for i in range(5)]
    teacher = whole(made.group_prompts(problem, group, np.random.default_rng(0))[0]["teacher"])
    expected = {
        "solution": {"PROBLEM": 1, "SOLUTION": 1, "ANSWER": 1},
        "plain": {"PROBLEM": 1},
        "critique": {"PROBLEM": 1, "TRY": 1, "REVIEW": 1},
        # The second success is summarised too, as in the published code; the first is not.
        "peers": {"PROBLEM": 1, "TEXT-0.": 0, "TEXT-1.": 1, "TEXT-2.": 2, "TEXT-3.": 1, "TEXT-4.": 1, "SAID-0.": 1},
    }[context]
    assert {text: teacher.count(text) for text in expected} == expected
    assert "{" not in teacher.replace("\\boxed{}", "")


def test_the_defaults_are_those_of_the_published_recipes():
    hints, peers, critique = HintsContext(), PeersContext(), CritiqueContext()
    assert (hints.wording, hints.privileged, hints.source, hints.negatives) == (
        "neutral",
        "solution_answer",
        "self_rollout",
        4,
    )
    shown = {"primary": True, "another": False, "failure": False, "feedback": True, "summaries": None}
    how = {
        "success_threshold": 0.5,
        "exclude_self": True,
        "remove_thinking": True,
        "feedback_only_without_solution": True,
    }
    assert {**shown, **how} == {key: getattr(peers, key) for key in {**shown, **how}}
    assert (critique.wording, critique.source) == ("gopd", "data")


@pytest.mark.parametrize("name", CONTEXTS)
def test_an_unknown_wording_is_an_error_that_lists_the_known_ones(name):
    with pytest.raises(ValidationError, match="unknown wording 'nice'; known: .*"):
        CONTEXTS[name](wording="nice")


def every_context() -> list[Context]:
    shipped = [CONTEXTS[context](wording=wording) for context, wording in NAMED_WORDINGS]
    hints = [
        HintsContext(wording=wording, source=s) for wording in SHIPPED["solution"] for s in ("self_rollout", "solution")
    ]
    peers = [PeersContext(peers="contrastive", another=True, summaries={"k": 9, "source": "all"})]
    return [*shipped, *hints, *peers, CritiqueContext(source="feedback")]


@pytest.mark.parametrize("context", every_context(), ids=lambda c: f"{c.name}-{c.wording}")
def test_the_student_never_reads_anything_privileged(context):
    prompt = context.student_prompt(HOSTILE)
    assert "SECRET" not in whole(prompt) and HOSTILE.problem in whole(prompt)
    assert prompt == context.student_prompt(Problem(id="0", problem=HOSTILE.problem))
    for reading in context.group_prompts(HOSTILE, HOSTILE_GROUP, np.random.default_rng(0)):
        if context.name != "plain":
            assert "SECRET" in whole(reading["teacher"])


@pytest.mark.parametrize("name", CONTEXTS)
@pytest.mark.parametrize("leak", ["solution", "answer", "attempt", "critique", "primary", "feedback"])
def test_no_student_template_may_name_anything_privileged(name, leak):
    with pytest.raises(ValidationError, match="student_template"):
        CONTEXTS[name](student_template="{problem} {" + leak + "}")


@pytest.mark.parametrize("context", every_context(), ids=lambda c: f"{c.name}-{c.wording}")
def test_a_system_text_comes_first_in_every_prompt(context):
    problem = dataclasses.replace(HOSTILE, system="Be brief.")
    readings = context.group_prompts(problem, HOSTILE_GROUP, np.random.default_rng(0))
    prompts = [context.student_prompt(problem), *(reading["teacher"] for reading in readings)]
    prompts += [prompt for reading in readings for prompt in reading.get("negative", ())]
    for prompt in prompts:
        roles = [message["role"] for message in prompt.messages]
        assert prompt.messages[0] == {"role": "system", "content": "Be brief."}
        assert roles.count("system") == 1 and roles[-1] == "user"


@pytest.mark.parametrize("context", [*every_context(), CrosslingualContext(language="en")], ids=lambda c: c.name)
def test_earlier_turns_come_before_the_problem_in_every_prompt(context):
    history = (("user", "x is 7"), ("assistant", "Noted."))
    problem = dataclasses.replace(HOSTILE, system="Be brief.", history=history)
    bare = dataclasses.replace(problem, history=())
    earlier = tuple({"role": role, "content": text} for role, text in history)
    prompts, shorter = ([context.student_prompt(p), *_teachers(context, p)] for p in (problem, bare))
    for prompt, short in zip(prompts, shorter, strict=True):
        system, *turns = short.messages
        assert prompt.messages == (system, *earlier, *turns)


def _teachers(context: Context, problem: Problem) -> list[Prompt]:
    readings = context.group_prompts(problem, HOSTILE_GROUP, np.random.default_rng(0))
    made = [prompt for reading in readings for prompt in reading.values()]
    return [prompt for each in made for prompt in ((each,) if isinstance(each, Prompt) else each)]


@pytest.mark.parametrize(("name", "kind"), [*CONTEXTS.items(), ("crosslingual", CrosslingualContext)])
def test_the_name_chooses_the_context_and_a_resolved_config_reads_back_equal(name, kind):
    read = TypeAdapter(ContextConfig).validate_python
    context = read({"name": name})
    assert type(context) is kind
    assert read(yaml.safe_load(yaml.safe_dump(context.model_dump(mode="json")))) == context


def test_an_unknown_context_is_an_error_that_lists_the_known_ones():
    known = ", ".join(f"'{name}'" for name in ("solution", "crosslingual", "hints", "peers", "critique", "plain"))
    with pytest.raises(ValidationError, match=known):
        TypeAdapter(ContextConfig).validate_python({"name": "hint"})
