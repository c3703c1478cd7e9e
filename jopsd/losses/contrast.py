"""Contrast between privileged views."""

import jax
import jax.numpy as jnp


def k_marginal(logprobs: jax.Array, valid: jax.Array) -> jax.Array:
    """Log of the mean probability over a row's valid hints (RLCSD, K-marginalisation).

    Args:
      logprobs: [B,K,T] log-probability of each sampled token under each of K hints.
      valid: [B,K], nonzero where the hint exists.

    Returns:
      [B,T]; 0 for a row without a valid hint, which the caller masks.
    """
    there = valid.astype(bool)[..., None]
    count = there.sum(axis=1).astype(logprobs.dtype)
    lifted = jnp.where(there, logprobs, -jnp.inf)
    # A row without hints would reduce over -inf alone, whose gradient is NaN.
    lifted = jnp.where(count[:, None] > 0, lifted, 0)
    return jnp.where(count > 0, jax.nn.logsumexp(lifted, axis=1) - jnp.log(jnp.maximum(count, 1)), 0)
