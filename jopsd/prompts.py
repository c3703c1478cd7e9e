"""From problems to prompt ids, one prompt per view, checked for length before anything is compiled."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from jopsd.config import Config, Data, Reading
from jopsd.contexts import CONTEXTS, ContextConfig
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
    prompts = student_prompt(config.context, tokenizer, problem, config.student)
    if config.method.teacher_views:
        messages = CONTEXTS[config.context.name].teacher_messages(config.context, problem)
        prompts |= {view: _read(tokenizer, messages[view], config.teacher) for view in config.method.teacher_views}
    return prompts


def student_prompt(context: ContextConfig, tokenizer, problem: Problem, reading: Reading) -> dict[str, list[int]]:
    """Prompt ids of the student's view alone, as training or an evaluation reads it."""
    return {"student": _read(tokenizer, CONTEXTS[context.name].student_messages(context, problem), reading)}


def _read(tokenizer, messages, reading: Reading) -> list[int]:
    return render(tokenizer, messages, reading.thinking, close_think=reading.close_think)


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
