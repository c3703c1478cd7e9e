"""What a method is: a frozen, validated config with three pure functions.

    score   names the per-token statistics the method needs before the gradient
    weigh   turns them into per-token constants over the whole optimiser step, already divided by the denominator
    value   is the per-token loss, differentiable in the student; the loss is its sum

A method sees arrays only. It knows nothing of models, chunks, micro-batches or devices.
"""

from typing import ClassVar, Literal

import jax
from pydantic import BaseModel, ConfigDict, Field


class Method(BaseModel):
    """Base of all methods.

    Attributes:
      temperature: divides student and teacher logits in the loss. There is no compensating factor.
      views: the teacher's readings of a problem that the method compares with (see `jopsd.contexts`).
      scores: statistics wanted by `weigh`, as "<view>.<logprob|entropy>", e.g. "student.entropy".
      trains_on: "rollouts" of the current policy, or the "solution" of the dataset row.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: str
    temperature: float = Field(1.0, gt=0)

    views: ClassVar[tuple[str, ...]] = ()
    scores: ClassVar[tuple[str, ...]] = ()
    trains_on: ClassVar[Literal["rollouts", "solution"]] = "rollouts"

    def weigh(self, scores: dict[str, jax.Array], batch, step: jax.Array | int) -> dict[str, jax.Array]:
        """Per-token constants {name: [B,T]}. `scores` holds [B,T] by name; `batch` is the whole optimiser step."""
        raise NotImplementedError

    def value(self, student, teachers, targets, constants, vocab_axis: str | None = None) -> jax.Array:
        """Loss per token [...] of log-probabilities student [...,V], {view: [...,V]}, targets [...]."""
        raise NotImplementedError
