"""The privileged context of OPSD and PW-OPSD: the teacher reads a reference solution, the student only the problem.

Structure as in the released OPSD/PW-OPSD prompts (arXiv 2601.18734); the wording is this project's.
"""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, field_validator

from jopsd.data.problem import Problem

Messages = list[dict[str, str]]

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
STUDENT_TEMPLATE = "Problem: {problem}\n\n{instruction}"
TEACHER_TEMPLATE = (
    "Problem: {problem}\n\n"
    "A correct reference solution of this problem is given between the two marked lines:\n"
    "=== Reference Solution ===\n{solution}\n=== End of Reference Solution ===\n\n\n"
    "Read the reference solution until you see why every step in it holds. Do not copy it and do not reword it. Then "
    "solve the problem above yourself, in your own words and by your own reasoning, and reach the same final answer. "
    "Work step by step, try another way where one does not lead on, and feel free to go back and reconsider:\n\n"
    "{instruction}"
)

_PROBLEM_FIELDS = ("problem", "solution", "answer")
_PLACEHOLDERS = (*_PROBLEM_FIELDS, "instruction")
# {{name}} is a literal {name}; braces around anything else (LaTeX) are left alone
_PLACEHOLDER = re.compile(r"\{\{([A-Za-z_]+)\}\}|\{([A-Za-z_]+)\}")


class SolutionContext(BaseModel):
    """Templates over problem, solution, answer and instruction; ``{{name}}`` is a literal ``{name}``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["solution"] = "solution"
    student_template: str = STUDENT_TEMPLATE
    teacher_template: str = TEACHER_TEMPLATE
    instruction: str = INSTRUCTION

    @field_validator("student_template", "teacher_template")
    @classmethod
    def _known_placeholders(cls, template: str) -> str:
        names = placeholders(template)
        unknown = [name for name in names if name not in _PLACEHOLDERS]
        if unknown:
            known = ", ".join(f"{{{name}}}" for name in _PLACEHOLDERS)
            raise ValueError(
                f"unknown placeholder {{{unknown[0]}}}; known: {known}; write {{{{{unknown[0]}}}}} for literal braces"
            )
        if "problem" not in names:
            raise ValueError("the template must contain {problem}")
        return template

    @field_validator("student_template")
    @classmethod
    def _student_sees_no_answer(cls, template: str) -> str:
        leaked = [name for name in placeholders(template) if name in ("solution", "answer")]
        if leaked:
            raise ValueError(f"the student must not read {{{leaked[0]}}}; it belongs in teacher_template")
        return template


def placeholders(template: str) -> tuple[str, ...]:
    """Names in ``{name}`` form, in order of first appearance."""
    return tuple(dict.fromkeys(match.group(2) for match in _PLACEHOLDER.finditer(template) if match.group(2)))


def required_fields(context: SolutionContext) -> tuple[str, ...]:
    """Problem fields that a row must have for this context's two prompts."""
    used = placeholders(context.student_template) + placeholders(context.teacher_template)
    return tuple(name for name in _PROBLEM_FIELDS if name in used)


def student_messages(context: SolutionContext, problem: Problem) -> Messages:
    """What the student reads (also what is sampled from). ValueError if the problem lacks a needed field."""
    return _messages(context.student_template, context, problem)


def teacher_messages(context: SolutionContext, problem: Problem) -> dict[str, Messages]:
    """What the teacher reads, per view; this context has the one view ``solution``."""
    return {"solution": _messages(context.teacher_template, context, problem)}


def _messages(template: str, context: SolutionContext, problem: Problem) -> Messages:
    system = [{"role": "system", "content": problem.system}] if problem.system else []
    return [*system, {"role": "user", "content": _fill(template, context, problem)}]


def _fill(template: str, context: SolutionContext, problem: Problem) -> str:
    def value(match: re.Match[str]) -> str:
        if match.group(1):
            return "{" + match.group(1) + "}"
        name = match.group(2)
        text = context.instruction if name == "instruction" else getattr(problem, name)
        if text is None:
            raise ValueError(f"problem {problem.id!r} of {problem.source or 'the data'} has no {name}")
        return text

    # one pass: braces inside a problem or a solution are never read as placeholders
    return _PLACEHOLDER.sub(value, template)
