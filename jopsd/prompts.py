"""From problems to prompt ids, one prompt per view, checked: it is whole, not too long, and tells the teacher more.

Prompts that depend on the problem alone are made, and refused, before anything is compiled; those that show the teacher
other rollouts are made after sampling, where one that is too long leaves its rollout without a teacher.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from jopsd.contexts import Absent, Attempt, Context, Prompt, SolutionContext
from jopsd.data.chat import ChatError, render
from jopsd.data.problem import Problem
from jopsd.data.schemas import ALIASES
from jopsd.methods import Method
from jopsd.rewards.grader import gold_field
from jopsd.schema import Config, Data, Reading

# Token ids by view: one prompt, or several of a view that has several readings of each rollout.
PromptIds = Mapping[str, list[int] | list[list[int]]]


class Item(NamedTuple):
    """A problem with its prompts: token ids by view, "student" and the teacher's as far as known before sampling.

    graded: False for a row whose completions cannot be graded, where nothing is learnt from grades.
    """

    problem: Problem
    prompts: dict[str, list[int]]
    graded: bool = True


class PromptError(ValueError):
    """A row whose prompt cannot be used. reason: the fault in a few words, under which skipped rows are counted."""

    def __init__(self, problem: Problem, view: str, reason: str, detail: str):
        self.reason = f"{view} prompt: {reason}"
        row = "" if problem.row is None else f", row {problem.row} (counted from 0)"
        super().__init__(f"{problem.source or 'data'}{row}, {view} prompt: {detail}")


class Tokenizers(NamedTuple):
    """Whose chat template and tokens a prompt is rendered with: the student's, or an external teacher's by label.

    window, windows: tokens that prompt and completion may have together, of the student and of teachers by label; None
    where the model does not say.
    """

    student: object
    teachers: Mapping[str, object] = {}
    window: int | None = None
    windows: Mapping[str, int | None] = {}

    def label(self, problem: Problem) -> str | None:
        """The label of the external teacher that reads this problem; None where the student's model does."""
        if not self.teachers:
            return None
        return "" if "" in self.teachers else problem.teacher

    def teacher(self, problem: Problem):
        """The tokenizer of the teacher that reads this problem."""
        label = self.label(problem)
        return self.student if label is None else self.teachers[label]

    def window_of(self, problem: Problem, view: str) -> int | None:
        """The window of the model that reads this view of a problem."""
        label = None if view == "student" else self.label(problem)
        return self.window if label is None else self.windows.get(label)


def required_fields(config: Config) -> tuple[str, ...]:
    """Problem fields that the method, its teacher and its context need."""
    fields = {"problem", *config.context.required_fields(teacher=bool(config.method.teacher_views))}
    if config.method.trains_on == "solution":
        fields.add("solution")
    if needs_grades(config) and (gold := gold_field(config.reward.name)):
        fields.add(gold)
    if config.teacher.models:
        fields.add("teacher")
    # In the order of a row, so that a row without a solution is not blamed for the answer that would be taken from it.
    return tuple(sorted(fields, key=tuple(ALIASES).index))


def needs_grades(config: Config) -> bool:
    """Whether something is learnt from grades; else they are for the logs alone."""
    return config.method.uses_reward or (bool(config.method.teacher_views) and config.context.reads_attempts)


def training_prompts(config: Config, tokenizers: Tokenizers, problem: Problem) -> dict[str, list[int]]:
    """Prompt ids of the views of one problem that do not depend on its rollouts."""
    prompts = student_prompt(config.context, tokenizers.student, problem, config.student)
    if config.method.teacher_views and not config.context.reads_attempts:
        read = config.context.teacher_prompt(problem)
        prompts["teacher"] = _read(tokenizers.teacher(problem), read, config.teacher, problem, "teacher")
        if prompts["teacher"] == prompts["student"] and not tokenizers.teachers:
            detail = (
                "it is the student's prompt, token by token, so the teacher knows nothing more; show {solution}, "
                "{answer} or {privileged} in context.teacher_template, or use teacher.kind: external"
            )
            raise PromptError(problem, "teacher", "the same as the student's", detail)
    return prompts


def student_prompt(context: Context, tokenizer, problem: Problem, reading: Reading) -> dict[str, list[int]]:
    """Prompt ids of the student's view alone, as training or an evaluation reads it."""
    return {"student": _read(tokenizer, context.student_prompt(problem), reading, problem, "student")}


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
    read = lambda prompt: _read(tokenizer, prompt, config.teacher, problem, "teacher")  # noqa: E731
    made: list[PromptIds | Absent] = []
    for readings in config.context.group_prompts(problem, attempts, rng):
        if isinstance(readings, Absent):
            made.append(readings)
            continue
        wanted = {view: _of_view(config.method, readings[view]) for view in config.method.teacher_views}
        try:
            prompts = {
                view: read(prompt) if isinstance(prompt, Prompt) else [read(p) for p in prompt]
                for view, prompt in wanted.items()
            }
        except PromptError as error:
            made.append(Absent(error.reason))
            continue
        long = [ids for p in prompts.values() for ids in (p if isinstance(p[0], list) else [p]) if len(ids) > limit]
        made.append(Absent(f"teacher prompt over {limit} tokens") if long else prompts)
    return made


def try_group_prompts(config: Config, tokenizers: Tokenizers, items: Sequence[Item]) -> None:
    """Renders what a teacher would read of made-up rollouts, so that a template that cannot is an error before a run.

    One problem of each kind of conversation is tried.

    Raises:
      PromptError: such a prompt cannot be rendered.
    """
    if not (config.method.teacher_views and config.context.reads_attempts):
        return
    tried = set()
    for item in items:
        problem = item.problem
        kind = (tokenizers.label(problem), problem.system is None, tuple(role for role, _ in problem.history))
        if kind in tried:
            continue
        tried.add(kind)
        for readings in config.context.group_prompts(problem, _MADE_UP, np.random.default_rng(0)):
            for prompt in readings.values() if isinstance(readings, Mapping) else ():
                for each in (prompt,) if isinstance(prompt, Prompt) else prompt:
                    _read(tokenizers.teacher(problem), each, config.teacher, problem, "teacher")


# A right and a wrong rollout each with another of its kind.
_MADE_UP = tuple(
    Attempt("<think>\nThought.\n</think>\nWords.", reward, "1", "Feedback.") for reward in (1.0, 0.0, 1.0, 0.0)
)


def _of_view(method: Method, prompts: Prompt | tuple[Prompt, ...]) -> Prompt | tuple[Prompt, ...]:
    """A method that reads one wrong hint reads the first."""
    return prompts if isinstance(prompts, Prompt) or method.negatives == "all" else prompts[0]


def _read(tokenizer, prompt: Prompt, reading: Reading, problem: Problem, view: str) -> list[int]:
    # The words put into the model's mouth open its thinking, so a view that does not think does not get them.
    prefill = "" if reading.thinking is False else prompt.prefill
    try:
        return render(tokenizer, prompt.messages, reading.thinking, prefill, reading.close_think)
    except ChatError as error:
        raise PromptError(problem, view, error.reason, str(error)) from None


def make_items(problems: Sequence[Problem], config: Config, data: Data, prompts_of) -> tuple[list[Item], Counter]:
    """Problems with prompts `prompts_of(problem)`, those that cannot be used refused or counted.

    `data.on_bad_row` says which where a prompt cannot be rendered, `data.on_long_prompt` where it is too long.

    Raises:
      PromptError: a prompt that cannot be rendered under on_bad_row: error.
      ValueError: a prompt over its limit under on_long_prompt: error, or no problem left.
    """
    items, skipped = [], Counter()
    own = config.teacher.max_prompt_tokens
    limits = {"teacher": ("teacher.max_prompt_tokens", own)} if own else {}
    for number, problem in enumerate(problems):
        try:
            prompts = prompts_of(problem)
        except PromptError as error:
            if data.on_bad_row == "error":
                raise
            skipped[error.reason] += 1
            continue
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
