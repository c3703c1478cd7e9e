"""On which vocabulary entries two distributions are compared: all, or the top k with or without a tail entry."""

from typing import Literal

import jax
import jax.numpy as jnp

from jopsd.losses.vocabulary import pick, top_k_ids

# Keeps the tail's log-probability finite where the k entries hold all the mass: at least log(1e-7), about -16.1.
_TAIL_CEILING = -1e-7


def top_k_support(
    student_logprobs: jax.Array,
    teacher_logprobs: tuple[jax.Array, ...],
    k: int,
    source: Literal["student", "teacher"] = "teacher",
    tail: bool = True,
    vocab_axis: str | None = None,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Restricts log-probabilities to the k entries that `source` ranks highest.

    Args:
      student_logprobs: [...,V].
      teacher_logprobs: one or more [...,V]; source "teacher" ranks by the first.
      k: number of entries; more than V means V.
      source: whose ranking. The ranking itself carries no gradient.
      tail: True appends one entry that holds the remaining probability (arXiv 2601.20802); False renormalises the k
        entries to sum to one (OPSD's top-k loss).

    Returns:
      The student and the teachers on the common support, [...,k+1] with tail, else [...,k]. Each sums to one.

    Raises:
      ValueError: k below 1, an unknown source, or no teacher.
    """
    if k < 1:
        raise ValueError(f"top_k must be at least 1, got {k}")
    if source not in ("student", "teacher"):
        raise ValueError(f"source must be 'student' or 'teacher', got {source!r}")
    if not teacher_logprobs:
        raise ValueError("top_k_support needs at least one teacher")
    ids = top_k_ids(student_logprobs if source == "student" else teacher_logprobs[0], k, vocab_axis)
    close = _with_tail if tail else _renormalised
    student, *teachers = (close(pick(x, ids, vocab_axis)) for x in (student_logprobs, *teacher_logprobs))
    return student, tuple(teachers)


def _with_tail(head: jax.Array) -> jax.Array:
    mass = jax.scipy.special.logsumexp(head, axis=-1, keepdims=True)
    mass = jnp.where(mass < _TAIL_CEILING, mass, _TAIL_CEILING)
    return jnp.concatenate([head, jnp.log(-jnp.expm1(mass))], axis=-1)


def _renormalised(head: jax.Array) -> jax.Array:
    return head - jax.scipy.special.logsumexp(head, axis=-1, keepdims=True)
