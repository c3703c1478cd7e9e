"""The solution context: what student and teacher read."""

import pytest
from pydantic import ValidationError

from jopsd.contexts import CONTEXTS
from jopsd.contexts.solution import SolutionContext, required_fields, student_messages, teacher_messages
from jopsd.data.problem import Problem

PROBLEM = Problem(id="7", problem="Find $\\frac{a}{b}$.", solution="So \\boxed{\\frac{1}{2}}.", answer="\\frac{1}{2}")


def content(messages: list[dict[str, str]]) -> str:
    assert [m["role"] for m in messages] == ["user"]
    return messages[0]["content"]


def test_the_default_prompts_have_the_published_structure():
    context = SolutionContext()
    student = content(student_messages(context, PROBLEM))
    assert student == f"Problem: {PROBLEM.problem}\n\n{context.instruction}"
    teacher = content(teacher_messages(context, PROBLEM)["solution"])
    assert teacher.startswith(f"Problem: {PROBLEM.problem}\n\n")
    assert teacher.endswith(f":\n\n{context.instruction}")
    before, after = teacher.split(PROBLEM.solution)
    assert before.endswith("===\n") and after.startswith("\n===") and "===\n\n\n" in after
    assert "\\boxed{}" in context.instruction


def test_the_student_prompt_never_holds_the_solution():
    assert PROBLEM.solution not in content(student_messages(SolutionContext(), PROBLEM))


def test_toy_templates_render_to_their_literal_strings():
    context = SolutionContext(
        student_template="Problem: {problem}",
        teacher_template="Problem: {problem}\nReference Solution: {solution}",
        instruction="",
    )
    toy = Problem(id="0", problem="86+67+56+34", solution="86+67=153\n\\boxed{243}")
    assert content(student_messages(context, toy)) == "Problem: 86+67+56+34"
    expected = "Problem: 86+67+56+34\nReference Solution: 86+67=153\n\\boxed{243}"
    assert content(teacher_messages(context, toy)["solution"]) == expected


def test_placeholders_inside_values_are_left_alone():
    hostile = Problem(id="0", problem="{solution} {0} {} {instruction}", solution="{problem} \\g<0> \\1 {answer}")
    context = SolutionContext(teacher_template="{problem}|{solution}")
    assert content(teacher_messages(context, hostile)["solution"]) == f"{hostile.problem}|{hostile.solution}"


def test_latex_braces_and_doubled_names_in_templates_are_literal():
    context = SolutionContext(student_template="\\boxed{} \\frac{1}{2} {{problem}} {problem}")
    assert content(student_messages(context, PROBLEM)) == "\\boxed{} \\frac{1}{2} {problem} " + PROBLEM.problem


@pytest.mark.parametrize("key", ["student_template", "teacher_template"])
def test_an_unknown_placeholder_is_an_error_that_names_it(key):
    with pytest.raises(ValidationError, match=r"unknown placeholder \{problm\}; known: \{problem\}"):
        SolutionContext(**{key: "{problem} {problm}"})


def test_a_student_template_that_shows_the_solution_is_refused():
    with pytest.raises(ValidationError, match=r"student must not read \{solution\}"):
        SolutionContext(student_template="{problem} {solution}")


def test_a_template_without_the_problem_is_refused():
    with pytest.raises(ValidationError, match=r"must contain \{problem\}"):
        SolutionContext(teacher_template="{solution}")


def test_an_unknown_key_is_refused_and_the_config_is_frozen():
    with pytest.raises(ValidationError, match="instructions"):
        SolutionContext(instructions="x")
    with pytest.raises(ValidationError, match="frozen"):
        SolutionContext().instruction = "x"


def test_required_fields_follow_the_placeholders():
    assert required_fields(SolutionContext()) == ("problem", "solution")
    assert required_fields(SolutionContext(teacher_template="{problem} {answer}")) == ("problem", "answer")
    assert required_fields(SolutionContext(teacher_template="{problem} {{answer}}")) == ("problem",)


def test_a_missing_field_is_an_error_that_names_problem_and_field():
    with pytest.raises(ValueError, match="problem 'p9' of math.jsonl has no solution"):
        teacher_messages(SolutionContext(), Problem(id="p9", problem="x", source="math.jsonl"))


def test_a_system_text_becomes_the_first_message_of_both():
    problem = Problem(id="0", problem="x", solution="y", system="Be brief.")
    for messages in (
        student_messages(SolutionContext(), problem),
        teacher_messages(SolutionContext(), problem)["solution"],
    ):
        assert messages[0] == {"role": "system", "content": "Be brief."} and messages[1]["role"] == "user"


def test_every_registered_context_has_the_same_functions():
    for name, module in CONTEXTS.items():
        for function in ("student_messages", "teacher_messages", "required_fields"):
            assert callable(getattr(module, function)), (name, function)
