"""Weights that depend on where in the completion a token stands."""

import jax
import jax.numpy as jnp

from jopsd.losses.reduce import float_of


def position_weights(mask: jax.Array, w_min: float, tau: float, s: float) -> jax.Array:
    """PW-OPSD's sigmoid ramp over each row's own completion (PW-OPSD, section 1.5 of its method).

        w = w_min + (1 - w_min) * sigmoid((f - tau) / s),   f = (i - 1/2) / L

    where i counts the row's valid tokens from 1 and L is their number. Weights are not normalised.

    Args:
      mask: [B,T], nonzero on valid tokens; holes are allowed and do not count.
      w_min: weight of the earliest tokens, in [0, 1]; 1 switches the weighting off.
      tau: relative position of the ramp's middle, in [0, 1].
      s: width of the ramp; values below 1e-6 mean a hard step.

    Returns:
      [B,T] in float32 (or float64 for a float64 mask), 0 where masked.

    Raises:
      ValueError: w_min or tau outside [0, 1], or s negative.
    """
    for name, number in (("w_min", w_min), ("tau", tau)):
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {number}")
    if s < 0:
        raise ValueError(f"s must not be negative, got {s}")
    valid = mask.astype(bool)
    count = jnp.cumsum(valid, axis=-1, dtype=jnp.int32)
    length = jnp.maximum(count[..., -1:], 1)
    fraction = (count - 0.5).astype(float_of(mask)) / length
    weights = w_min + (1 - w_min) * jax.nn.sigmoid((fraction - tau) / max(s, 1e-6))
    return jnp.where(valid, weights, 0)
