"""What a method is: a frozen, validated config with three pure functions.

    score   names the per-token statistics the method needs before the gradient
    weigh   turns them into per-token constants over the whole optimiser step, already divided by the denominator
    value   is the per-token loss, differentiable in the student; the loss is its sum

A method sees arrays only. It knows nothing of models, chunks, micro-batches or devices.
"""

from typing import ClassVar, Literal

import jax
from pydantic import BaseModel, ConfigDict, Field

# The view of the student's own prompt by the frozen initial model, for KL penalties.
REFERENCE = "reference"


class Method(BaseModel):
    """Base of all methods.

    Attributes:
      temperature: divides student and teacher logits in the loss. There is no compensating factor.
      views: the teacher's readings of a problem (see `jopsd.contexts`) whose distributions `value` compares with.
      scores: statistics wanted by `weigh`, as "<view>.<logprob|entropy>", e.g. "student.entropy". Views that stand only
        here are read once per step, without gradient, and not again in `value`.
      trains_on: "rollouts" of the current policy, or the "solution" of the dataset row.
      uses_reward: the loss depends on rewards within groups of rollouts.
      at_sampling_temperature: the loss compares with log-probabilities of the policy that sampled.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: str
    temperature: float = Field(1.0, gt=0)

    views: ClassVar[tuple[str, ...]] = ()
    scores: ClassVar[tuple[str, ...]] = ()
    trains_on: ClassVar[Literal["rollouts", "solution"]] = "rollouts"
    uses_reward: ClassVar[bool] = False
    at_sampling_temperature: ClassVar[bool] = False

    @property
    def score_views(self) -> tuple[str, ...]:
        """Views of which `scores` wants something, without the student."""
        return tuple(dict.fromkeys(v for v in (name.rsplit(".", 1)[0] for name in self.scores) if v != "student"))

    @property
    def teacher_views(self) -> tuple[str, ...]:
        """All views that need a prompt of their own."""
        return tuple(v for v in dict.fromkeys((*self.views, *self.score_views)) if v != REFERENCE)

    @property
    def reads_frozen_weights(self) -> bool:
        """Whether any view is read by the initial model whatever the teacher kind is."""
        return REFERENCE in (*self.views, *self.score_views)

    def weigh(self, scores: dict[str, jax.Array], batch, step: jax.Array | int) -> dict[str, jax.Array]:
        """Per-token constants {name: [B,T]}. `scores` holds [B,T] by name; `batch` is the whole optimiser step."""
        raise NotImplementedError

    def value(self, student, teachers, targets, constants, vocab_axis: str | None = None) -> jax.Array:
        """Loss per token [...] of log-probabilities student [...,V], {view: [...,V]}, targets [...]."""
        raise NotImplementedError
