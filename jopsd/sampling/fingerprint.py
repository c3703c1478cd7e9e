"""Short names for weights: equal for equal weights, in whatever process and on whatever mesh."""

import hashlib
from dataclasses import replace

import jax
import jax.numpy as jnp

from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.models.hf import on_host
from jopsd.sampling.sampler import Policy


def fingerprint(policy: Policy, base: str | None = None) -> str:
    """16 hex digits that differ where config, names, shapes, dtypes or a weight differ; no proof against malice.

    Sums of the weights' bits, mixed with their places, in wrapping integers: exact in any order of addition, so the
    same on every mesh, and no weight leaves its device. On several processes all must call it.

    Args:
      base: `model_fingerprint(policy.model)` where it is known.
    """
    base = model_fingerprint(policy.model) if base is None else base
    if policy.adapter is None:
        return base
    return _named(f"{base} {policy.adapter.scale!r}", policy.adapter)


def model_fingerprint(model: Decoder) -> str:
    """The fingerprint of a model without an adapter."""
    return _named(_facts(model.cfg), model)


def shape_fingerprint(model: Decoder) -> str:
    """The same of its config, names, shapes and dtypes alone."""
    facts = [
        f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}"
        for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]
    ]
    return hashlib.sha256("\n".join([_facts(model.cfg), *facts]).encode()).hexdigest()[:16]


def _facts(cfg: ModelConfig) -> str:
    """What decides its numbers; not how gradients are kept or which kernel computes attention."""
    return repr(replace(cfg, remat="none", attention="auto"))


def _named(facts: str, tree) -> str:
    content = hashlib.sha256(facts.encode())
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        digest = on_host(_digest(leaf)).tolist()
        content.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype} {digest}".encode())
    return content.hexdigest()[:16]


@jax.jit
def _digest(x: jax.Array) -> jax.Array:
    """Two uint32 of an array of floats. The odd constants are those of the finaliser of MurmurHash3."""
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        place = _mix(place + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) + 1)
    total = lambda terms: jnp.sum(terms, dtype=jnp.uint32)  # noqa: E731
    return jnp.stack([total(_mix(bits + place)), total(_mix(bits ^ (place * jnp.uint32(0xC2B2AE35))))])


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
