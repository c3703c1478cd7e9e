"""What a context is: a frozen, validated config with pure functions from a problem and its group to prompts.

    student_prompt   what the student reads, and is sampled from
    teacher_prompt   what the teacher reads of one problem, where that does not depend on rollouts
    group_prompts    what it reads for each rollout of one problem, where it does

A context sees texts only: no token ids, no chat template, no model.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from jopsd.data.problem import Problem

Messages = tuple[dict[str, str], ...]


class Attempt(NamedTuple):
    """What a context may know of one rollout of the problem.

    reward: what the verifier gave. prediction: its final answer, None without one. feedback: the verifier's words.
    """

    text: str
    reward: float
    prediction: str | None = None
    feedback: str | None = None


class Prompt(NamedTuple):
    """Chat messages, and the words that the reply is made to begin with."""

    messages: Messages
    prefill: str = ""


class Absent(NamedTuple):
    """A rollout without a teacher: its tokens are left out of the step, and counted under the reason."""

    reason: str


# By view: one prompt, or for "negative" several.
Readings = Mapping[str, Prompt | tuple[Prompt, ...]]


class Context(BaseModel):
    """Base of all contexts.

    Attributes:
      views: what `group_prompts` gives: "teacher", the privileged reading; "negative", readings with wrong hints.
      reads_attempts: the prompts depend on the problem's rollouts and their rewards, so they are made after sampling.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str

    views: ClassVar[tuple[str, ...]] = ("teacher",)
    reads_attempts: ClassVar[bool] = False

    @property
    def needs_group(self) -> bool:
        """Whether a rollout alone in its group never has a teacher."""
        return self.reads_attempts

    def required_fields(self, teacher: bool = True) -> tuple[str, ...]:
        """Fields of `Problem` that the prompts are made from; teacher False: the student's alone."""
        raise NotImplementedError

    def student_prompt(self, problem: Problem) -> Prompt:
        raise NotImplementedError

    def teacher_prompt(self, problem: Problem) -> Prompt:
        """Of a context that does not read attempts. ValueError where the problem lacks a field."""
        raise NotImplementedError

    def group_prompts(
        self, problem: Problem, attempts: Sequence[Attempt], rng: np.random.Generator
    ) -> list[Readings | Absent]:
        """What the teacher reads for each attempt, in their order. All chance comes from `rng`."""
        return [{"teacher": self.teacher_prompt(problem)}] * len(attempts)


def in_words(problem: Problem) -> str:
    """The problem as error messages name it."""
    return f"problem {problem.id!r} of {problem.source or 'the data'}"


def user_turn(text: str, problem: Problem) -> Messages:
    """One user message, after the problem's system text and the turns before it if it has any."""
    system = ({"role": "system", "content": problem.system},) if problem.system else ()
    history = ({"role": role, "content": content} for role, content in problem.history)
    return (*system, *history, {"role": "user", "content": text})
