"""score, weigh and value composed on full logits: a method's loss by definition, which the fused path must equal."""

import jax
import jax.numpy as jnp

from jopsd.losses.vocabulary import entropy, log_softmax, token_logprobs

# Per-token statistics a method may ask for before the gradient, of any view including "student".
STATISTICS = {
    "logprob": token_logprobs,
    "entropy": lambda logprobs, targets, vocab_axis=None: entropy(logprobs, vocab_axis),
}


def statistic(name: str, student, teachers, targets, vocab_axis=None) -> jax.Array:
    """The statistic `"<view>.<kind>"`, for example "student.entropy", of log-probabilities [...,V] -> [...]."""
    view, kind = name.rsplit(".", 1)
    return STATISTICS[kind](student if view == "student" else teachers[view], targets, vocab_axis=vocab_axis)


def loss_from_logits(method, student_logits, teacher_logits: dict, batch, step=0) -> tuple[jax.Array, dict]:
    """A method's loss from full logits, with nothing fused and nothing chunked.

    Args:
      method: one of `jopsd.methods`.
      student_logits: [B,T,V], before any temperature, aligned so that position t predicts `batch.targets[:, t]`.
      teacher_logits: {view: [B,T,V]}; constants.
      batch: a `TrainBatch`; `targets` and `mask` [B,T] are always read, other fields as the method needs them.
      step: completed optimiser steps, for methods that follow a schedule.

    Returns:
      (loss, metrics): a scalar differentiable in student_logits, 0 with zero gradient for an empty mask; metrics hold
      the mean student entropy and log-probability of the targets at the loss temperature.
    """
    valid = batch.mask != 0
    # Logits at padding may be anything, NaN included; a constant there keeps value and gradient clean.
    clean = lambda x: jnp.where(valid[..., None], x, 0)  # noqa: E731
    targets = jnp.where(valid, batch.targets, 0)
    student = log_softmax(_wide(clean(student_logits)) / method.temperature)
    teachers = {v: log_softmax(_wide(clean(x)) / method.temperature) for v, x in teacher_logits.items()}
    teachers = jax.lax.stop_gradient(teachers)
    frozen = jax.lax.stop_gradient(student)
    scores = {name: statistic(name, frozen, teachers, targets) for name in method.scores}
    constants = jax.lax.stop_gradient(method.weigh(scores, batch, step))
    loss = jnp.where(valid, method.value(student, teachers, targets, constants), 0).sum()
    mean = lambda x: jnp.where(valid, x, 0).sum() / jnp.maximum(valid.sum(), 1)  # noqa: E731
    return loss, {"entropy": mean(entropy(frozen)), "logprob": mean(token_logprobs(frozen, targets))}


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(jnp.float32, x.dtype))
