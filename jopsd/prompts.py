"""From problems to prompt ids, one prompt per view, checked for length before anything is compiled."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from jopsd.config import Config, Data, Reading
from jopsd.contexts import CONTEXTS
from jopsd.data.chat import render
from jopsd.data.problem import Problem


class Item(NamedTuple):
    """A problem with its prompts: token ids by view, "student" and the teacher's."""

    problem: Problem
    prompts: dict[str, list[int]]


def required_fields(config: Config) -> tuple[str, ...]:
    """Problem fields that the method and its context need."""
    fields = {"problem"}
    if config.method.teacher_views:
        fields.update(CONTEXTS[config.context.name].required_fields(config.context))
    if config.method.trains_on == "solution":
        fields.add("solution")
    if config.reward and config.method.trains_on == "rollouts":
        fields.add("answer")
    return tuple(sorted(fields))


def training_prompts(config: Config, tokenizer, problem: Problem) -> dict[str, list[int]]:
    """Prompt ids of every view of one problem."""
    context = CONTEXTS[config.context.name]
    read = lambda messages, how: render(tokenizer, messages, how.thinking, close_think=how.close_think)  # noqa: E731
    prompts = {"student": read(context.student_messages(config.context, problem), config.student)}
    if config.method.teacher_views:
        messages = context.teacher_messages(config.context, problem)
        prompts |= {view: read(messages[view], config.teacher) for view in config.method.teacher_views}
    return prompts


def evaluation_prompts(config: Config, tokenizer, problem: Problem, reading: Reading) -> dict[str, list[int]]:
    """The student's prompt as an evaluation reads it."""
    messages = CONTEXTS[config.context.name].student_messages(config.context, problem)
    return {"student": render(tokenizer, messages, reading.thinking, close_think=reading.close_think)}


def make_items(problems: Sequence[Problem], data: Data, prompts_of) -> tuple[list[Item], Counter]:
    """Problems with prompts `prompts_of(problem)`, those too long refused or counted as `data.on_long_prompt` says.

    Raises:
      ValueError: a prompt over `data.max_prompt_tokens` under on_long_prompt: error, or no problem left.
    """
    items, skipped = [], Counter()
    for number, problem in enumerate(problems):
        prompts = prompts_of(problem)
        view, longest = max(((view, len(ids)) for view, ids in prompts.items()), key=lambda pair: pair[1])
        if longest <= data.max_prompt_tokens:
            items.append(Item(problem, prompts))
        elif data.on_long_prompt == "skip":
            skipped[f"{view} prompt over {data.max_prompt_tokens} tokens"] += 1
        else:
            raise ValueError(
                f"{problem.source or data.source}, problem {number} (id {problem.id}): its {view} prompt has {longest} "
                f"tokens, over data.max_prompt_tokens {data.max_prompt_tokens}; raise that limit, or set "
                "data.on_long_prompt: skip"
            )
    if not items:
        raise ValueError(f"{data.source}: no problem is left after skipping {dict(skipped)}")
    return items, skipped
