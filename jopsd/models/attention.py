"""Attention backends by name. All take the same arguments and agree to round-off."""

import jax
import jax.numpy as jnp


def xla_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Grouped-query attention in plain XLA, for any mask and any device.

    Args:
      q: [B,T,N,H]; k, v: [B,K,S,H] with N a multiple of K; mask: [B,T,S] bool, True where a query may look.

    Returns:
      [B,T,N,H] in q's dtype. Scores and softmax are float32. A query that may look nowhere (padding) gets a finite
      average, never NaN.
    """
    batch, length, heads, size = q.shape
    grouped = q.reshape(batch, length, k.shape[1], heads // k.shape[1], size)
    scores = jnp.einsum("btkgh,bksh->bkgts", grouped, k, preferred_element_type=jnp.float32) * size**-0.5
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bksh->btkgh", weights, v).reshape(q.shape).astype(q.dtype)


ATTENTION = {"xla": xla_attention}
