"""From problems to prompt ids, one prompt per view, checked for length.

Prompts that depend on the problem alone are made, and refused, before anything is compiled; those that show the teacher
other rollouts are made after sampling, where one that is too long leaves its rollout without a teacher.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from jopsd.contexts import Absent, Attempt, Context, Prompt, SolutionContext
from jopsd.data.chat import render
from jopsd.data.problem import Problem
from jopsd.methods import Method
from jopsd.rewards.grader import gold_field
from jopsd.schema import Config, Data, Reading

# Token ids by view: one prompt, or several of a view that has several readings of each rollout.
PromptIds = Mapping[str, list[int] | list[list[int]]]


class Item(NamedTuple):
    """A problem with its prompts: token ids by view, "student" and the teacher's as far as known before sampling."""

    problem: Problem
    prompts: dict[str, list[int]]


class Tokenizers(NamedTuple):
    """Whose chat template and tokens a prompt is rendered with: the student's, or an external teacher's by label."""

    student: object
    teachers: Mapping[str, object] = {}

    def teacher(self, problem: Problem):
        """The tokenizer of the teacher that reads this problem."""
        if not self.teachers:
            return self.student
        return next(iter(self.teachers.values())) if "" in self.teachers else self.teachers[problem.teacher]


def required_fields(config: Config) -> tuple[str, ...]:
    """Problem fields that the method, its teacher and its context need."""
    fields = {"problem", *config.context.required_fields(teacher=bool(config.method.teacher_views))}
    if config.method.trains_on == "solution":
        fields.add("solution")
    if config.reward and config.method.trains_on == "rollouts" and (gold := gold_field(config.reward.name)):
        fields.add(gold)
    if config.teacher.models:
        fields.add("teacher")
    return tuple(sorted(fields))


def training_prompts(config: Config, tokenizers: Tokenizers, problem: Problem) -> dict[str, list[int]]:
    """Prompt ids of the views of one problem that do not depend on its rollouts."""
    prompts = student_prompt(config.context, tokenizers.student, problem, config.student)
    if config.method.teacher_views and not config.context.reads_attempts:
        read = config.context.teacher_prompt(problem)
        prompts["teacher"] = _read(tokenizers.teacher(problem), read, config.teacher)
    return prompts


def student_prompt(context: Context, tokenizer, problem: Problem, reading: Reading) -> dict[str, list[int]]:
    """Prompt ids of the student's view alone, as training or an evaluation reads it."""
    return {"student": _read(tokenizer, context.student_prompt(problem), reading)}


def with_template(context: Context, template: str | None) -> Context:
    """The context with another student's turn, over {problem} and {instruction}; None leaves it as it is.

    Raises ValueError for a template that a student cannot read.
    """
    if template is None:
        return context
    if "student_template" not in type(context).model_fields:  # its words are kept elsewhere, by language
        context = SolutionContext()
    try:
        return type(context).model_validate(context.model_dump() | {"student_template": template})
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def group_prompts(
    config: Config, tokenizers: Tokenizers, problem: Problem, attempts: Sequence[Attempt], rng: np.random.Generator
) -> list[PromptIds | Absent]:
    """Prompt ids of the teacher's views for each of a problem's rollouts, or why a rollout has none."""
    limit = config.teacher.max_prompt_tokens or config.data.max_prompt_tokens
    tokenizer = tokenizers.teacher(problem)
    read = lambda prompt: _read(tokenizer, prompt, config.teacher)  # noqa: E731
    made: list[PromptIds | Absent] = []
    for readings in config.context.group_prompts(problem, attempts, rng):
        if isinstance(readings, Absent):
            made.append(readings)
            continue
        wanted = {view: _of_view(config.method, readings[view]) for view in config.method.teacher_views}
        prompts = {
            view: read(prompt) if isinstance(prompt, Prompt) else [read(p) for p in prompt]
            for view, prompt in wanted.items()
        }
        long = [ids for p in prompts.values() for ids in (p if isinstance(p[0], list) else [p]) if len(ids) > limit]
        made.append(Absent(f"teacher prompt over {limit} tokens") if long else prompts)
    return made


def _of_view(method: Method, prompts: Prompt | tuple[Prompt, ...]) -> Prompt | tuple[Prompt, ...]:
    """A method that reads one wrong hint reads the first."""
    return prompts if isinstance(prompts, Prompt) or method.negatives == "all" else prompts[0]


def _read(tokenizer, prompt: Prompt, reading: Reading) -> list[int]:
    # The words put into the model's mouth open its thinking, so a view that does not think does not get them.
    prefill = "" if reading.thinking is False else prompt.prefill
    return render(tokenizer, prompt.messages, reading.thinking, prefill, reading.close_think)


def make_items(problems: Sequence[Problem], config: Config, data: Data, prompts_of) -> tuple[list[Item], Counter]:
    """Problems with prompts `prompts_of(problem)`, those too long refused or counted as `data.on_long_prompt` says.

    Raises:
      ValueError: a prompt over its limit under on_long_prompt: error, or no problem left.
    """
    items, skipped = [], Counter()
    own = config.teacher.max_prompt_tokens
    limits = {"teacher": ("teacher.max_prompt_tokens", own)} if own else {}
    for number, problem in enumerate(problems):
        prompts = prompts_of(problem)
        over = [
            (view, len(ids), *limits.get(view, ("data.max_prompt_tokens", data.max_prompt_tokens)))
            for view, ids in prompts.items()
        ]
        view, length, key, limit = max(over, key=lambda entry: entry[1] - entry[3])
        if length <= limit:
            items.append(Item(problem, prompts))
        elif data.on_long_prompt == "skip":
            skipped[f"{view} prompt over {limit} tokens"] += 1
        else:
            raise ValueError(
                f"{problem.source or data.source}, problem {number} (id {problem.id}): its {view} prompt has {length} "
                f"tokens, over {key} {limit}; raise that limit, or set data.on_long_prompt: skip"
            )
    if not items:
        raise ValueError(f"{data.source}: no problem is left after skipping {dict(skipped)}")
    return items, skipped
