"""OPSD: on-policy self-distillation (arXiv 2601.18734).

The student samples a completion; the teacher, which is the same model shown a reference solution, re-scores every
token of it; the student moves toward the teacher's full next-token distribution at each position.
"""

from typing import Annotated, Literal

import jax
from pydantic import Field, model_validator

from jopsd.losses import divergence, token_logprobs, token_weights, top_k_support
from jopsd.losses.reduce import Reduction
from jopsd.methods.method import Method


class Opsd(Method):
    """Loss: sum over tokens of weight * D_alpha(student, teacher), each token weighing 1/N by default.

    Attributes:
      alpha: 0 is KL(teacher || student), 1 is KL(student || teacher), between is the generalised JSD.
      entry_clip: upper bound on each vocabulary entry's contribution (the published recipe uses 0.05); None is off.
      loss: "full" vocabulary; "topk" entries of the teacher; or "sampled", the policy-gradient form
        -(log T(y) - log S(y)) * log S(y) on the sampled token alone, which ignores alpha.
      top_k: number of entries for "topk". tail: keep the rest of the mass as one more entry, else renormalise.
      reduction: how tokens are averaged over the optimiser step.
    """

    name: Literal["opsd"] = "opsd"
    temperature: float = Field(1.1, gt=0)
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.0
    entry_clip: Annotated[float, Field(gt=0)] | None = None
    loss: Literal["full", "topk", "sampled"] = "full"
    top_k: Annotated[int, Field(ge=1)] | None = None
    tail: bool = True
    reduction: Reduction = "token_mean"

    views = ("solution",)

    @model_validator(mode="after")
    def _options_agree(self):
        if (self.loss == "topk") != (self.top_k is not None):
            raise ValueError("set top_k together with loss: topk, and only then")
        if self.loss == "sampled" and self.entry_clip is not None:
            raise ValueError("entry_clip bounds vocabulary entries; loss: sampled has none, so remove entry_clip")
        return self

    def weigh(self, scores, batch, step):
        return {"weight": token_weights(batch.mask, self.reduction)}

    def value(self, student, teachers, targets, constants, vocab_axis=None):
        teacher = teachers["solution"]
        if self.loss == "sampled":
            ours, theirs = (token_logprobs(x, targets, vocab_axis) for x in (student, teacher))
            return -constants["weight"] * jax.lax.stop_gradient(theirs - ours) * ours
        if self.loss == "topk":
            student, (teacher,) = top_k_support(student, (teacher,), self.top_k, "teacher", self.tail, vocab_axis)
            vocab_axis = None  # the support is small and whole on every shard
        return constants["weight"] * divergence(student, teacher, self.alpha, self.entry_clip, vocab_axis)
