"""AdamW with schedule and clipping, and how changes are added to parameters."""

import jax
import jax.numpy as jnp
import optax


def make_optimizer(cfg, steps: int, updates_per_step: int = 1) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW with the schedule and clipping of `schema.Optimizer`. Returns (optimizer, learning rate by update)."""
    peak, warmup = cfg.learning_rate, cfg.warmup_steps * updates_per_step
    decay_steps = max(steps * updates_per_step - warmup, 1)
    decay = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, decay_steps),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps),
    }[cfg.schedule]
    # The first of w warm-up steps is peak / w, not 0: a step of size 0 trains nothing.
    ramp = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    schedule = optax.join_schedules([ramp, decay], [warmup]) if warmup else decay
    adamw = optax.adamw(schedule, b1=cfg.b1, b2=cfg.b2, eps=cfg.eps, weight_decay=cfg.weight_decay)
    clip = optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity()
    return optax.chain(clip, adamw), schedule


def apply_changes(trainable, changes, key: jax.Array):
    """trainable + changes; bfloat16 parameters are rounded up or down at random, in proportion.

    Rounded to the nearest, a change below 1/256 of a parameter would be lost every time.
    """
    leaves, tree = jax.tree.flatten(trainable)

    def add(leaf, change, key):
        total = leaf + change
        return stochastic_bfloat16(total, key) if leaf.dtype == jnp.bfloat16 else total.astype(leaf.dtype)

    keys = jax.random.split(key, len(leaves))
    return tree.unflatten(map(add, leaves, jax.tree.leaves(changes), keys))


def stochastic_bfloat16(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 -> bfloat16, to one of the two neighbours, so that the expectation is x. NaN and infinity stay."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
