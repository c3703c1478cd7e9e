"""Projections stored in int8: half the bytes of bfloat16 for a sampler that is bound by reading its weights.

For sampling only. The trainer's weights stay as they are, so what is drawn comes from a slightly different policy; the
difference is logged with every step as `sampler_gap`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """A kernel rounded to int8, each output column with its own step.

    Attributes:
      value: [L,in,out] int8 in -127..127. scale: [L,1,out] float32; the kernel is value * scale.
    """

    value: jax.Array  # so named that the sharding table sees the path of a plain kernel
    scale: jax.Array


def quantize(kernel: jax.Array) -> Int8:
    """kernel [L,in,out] -> int8; the largest error in a column is half its step, 1/254 of its largest entry."""
    kernel = kernel.astype(jnp.float32)
    largest = jnp.max(jnp.abs(kernel), axis=-2, keepdims=True)
    scale = jnp.where(largest > 0, largest / 127, 1)
    return Int8(jnp.round(kernel / scale).astype(jnp.int8), scale)


def int8_projections(model):
    """A decoder whose projections are `Int8`; embedding, head, norms and biases are the same arrays. Call it in jit."""
    model = jax.tree.map(lambda leaf: leaf, model)  # modules are mutable: change a copy
    for name in model.cfg.projections:
        setattr(model.layers, name, nnx.data(quantize(getattr(model.layers, name)[...])))
    return model
