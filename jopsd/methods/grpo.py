"""GRPO: group-relative policy optimisation (arXiv 2402.03300), the reward baseline of every distillation paper.

Several completions of a problem are graded; each token of a completion is reinforced by how much better than its group
the completion did.
"""

from typing import Annotated, Literal

import jax.numpy as jnp
from pydantic import BaseModel, ConfigDict, Field, model_validator

from jopsd.losses import (
    clipped_surrogate,
    group_advantages,
    kl_estimate,
    rollout_weights,
    token_logprobs,
    token_weights,
)
from jopsd.losses.reduce import Reduction
from jopsd.methods.method import REFERENCE, Method


class Correction(BaseModel):
    """Importance weights of the trainer's policy over the sampler's, as in `losses.rollout_weights`.

    threshold: a number truncates from above; [low, high] drops what is outside.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    level: Literal["token", "sequence"] = "token"
    threshold: Annotated[float, Field(gt=0)] | tuple[float, float] = 2.0
    batch_normalize: bool = False


class Grpo(Method):
    """Loss per token: clipped surrogate of the group advantage * correction + kl_coef * KL estimate to the reference.

    On policy (one update per batch of rollouts) the ratio is 1 and the clips do nothing.

    Attributes:
      temperature: must be the sampling temperature, or the ratio compares two different policies.
      normalize_std: divide by the group's standard deviation; false is Dr. GRPO.
      clip_low, clip_high, dual_clip: see `losses.clipped_surrogate`; dual_clip null is off.
      kl_coef: weight of the KL to the initial model on the student's own prompt; 0 needs no such model.
      kl_estimator: "k1" d, "k2" d^2/2, "k3" exp(-d) + d - 1, with d = log S(y) - log reference(y).
      correction: null trusts the sampler's policy to be the trainer's.
    """

    name: Literal["grpo"] = "grpo"
    normalize_std: bool = True
    std_eps: Annotated[float, Field(ge=0)] = 1e-6
    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    dual_clip: Annotated[float, Field(gt=1)] | None = 3.0
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    correction: Correction | None = None
    reduction: Reduction = "token_mean"

    uses_reward = True
    at_sampling_temperature = True

    @model_validator(mode="after")
    def _thresholds_in_order(self):
        threshold = self.correction.threshold if self.correction else None
        if isinstance(threshold, tuple) and not 0 <= threshold[0] < threshold[1]:
            raise ValueError(f"correction.threshold {list(threshold)} must be [low, high] with 0 <= low < high")
        return self

    @property
    def scores(self):
        return ("student.logprob", *((f"{REFERENCE}.logprob",) if self.kl_coef else ()))

    def weigh(self, scores, batch, step):
        old = scores["student.logprob"] if batch.old_logprobs is None else batch.old_logprobs
        advantages = group_advantages(batch.reward, batch.group, self.normalize_std, self.std_eps)
        constants = {
            "weight": token_weights(batch.mask, self.reduction),
            "advantage": jnp.broadcast_to(advantages[:, None], batch.mask.shape),
            "old": old,
        }
        if self.correction:
            options = self.correction.model_dump()
            constants["correction"] = rollout_weights(old, batch.sampler_logprobs, batch.mask, **options)
        if self.kl_coef:
            constants["reference"] = scores[f"{REFERENCE}.logprob"]
        return constants

    def value(self, student, teachers, targets, constants, vocab_axis=None):
        ours = token_logprobs(student, targets, vocab_axis)
        clips = self.clip_low, self.clip_high, self.dual_clip
        loss = clipped_surrogate(ours, constants["old"], constants["advantage"], *clips)
        loss = loss * constants.get("correction", 1.0)
        if self.kl_coef:
            loss = loss + self.kl_coef * kl_estimate(ours, constants["reference"], self.kl_estimator)
        return constants["weight"] * loss
