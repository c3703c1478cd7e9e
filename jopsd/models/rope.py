"""Rotary position embeddings (arXiv 2104.09864) and the ways checkpoints stretch them to longer contexts."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Linear:
    """Every frequency divided by `factor` (arXiv 2306.15595)."""

    factor: float


@dataclass(frozen=True)
class Llama3:
    """Llama 3.1 (arXiv 2407.21783): low frequencies divided by `factor`, high ones kept, a linear blend between.

    original_length: context in tokens before stretching. A frequency is high when its wavelength is below
    original_length / high_freq_factor, low when above original_length / low_freq_factor.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


@dataclass(frozen=True)
class Yarn:
    """YaRN (arXiv 2309.00071): a ramp over dimensions between kept and divided frequencies, and sharper attention.

    attention_factor: multiplies cos and sin. beta_fast, beta_slow: turns within original_length where the ramp begins
    and ends. truncate: whether its ends are rounded outward to whole dimensions.
    """

    factor: float
    original_length: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


Scaling = Linear | Llama3 | Yarn


def frequencies(head_dim: int, theta: float, scaling: Scaling | None = None) -> jax.Array:
    """Radians per position [H/2] in float32."""
    inverse = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    match scaling:
        case None:
            return inverse
        case Linear():
            return inverse / scaling.factor
        case Llama3():
            kept = _llama3_kept(inverse, scaling)
        case Yarn():
            kept = _yarn_kept(head_dim, theta, scaling)
    return kept * inverse + (1 - kept) * inverse / scaling.factor


def _llama3_kept(inverse: jax.Array, scaling: Llama3) -> jax.Array:
    """Share of each frequency that is kept: 0 for low ones, 1 for high ones."""
    turns = scaling.original_length * inverse / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return jnp.clip((turns - low) / (high - low), 0, 1)


def _yarn_kept(head_dim: int, theta: float, scaling: Yarn) -> jax.Array:
    def dimension(turns: float) -> float:
        return head_dim * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first or 1e-3  # a step where both ends meet
    return 1 - jnp.clip((jnp.arange(head_dim // 2, dtype=jnp.float32) - first) / width, 0, 1)


def rope_angles(
    positions: jax.Array, head_dim: int, theta: float, scaling: Scaling | None = None
) -> tuple[jax.Array, jax.Array]:
    """cos and sin [B,T,1,H/2] in float32 for integer positions [B,T]."""
    angle = positions[:, :, None, None].astype(jnp.float32) * frequencies(head_dim, theta, scaling)
    if isinstance(scaling, Yarn):
        return jnp.cos(angle) * scaling.attention_factor, jnp.sin(angle) * scaling.attention_factor
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array, axis: int = -1) -> jax.Array:
    """Rotates heads along their axis of size H; its two halves are the pairs, as in the Hugging Face checkpoints."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=axis)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=axis).astype(x.dtype)
