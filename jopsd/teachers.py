"""Whose weights re-score a completion, and how they follow the student."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jopsd.models.decoder import Decoder
from jopsd.models.lora import Adapter
from jopsd.sampling.sampler import Policy

Kind = Literal["fixed", "live", "ema", "snapshot", "trust_region", "external"]


@dataclass(frozen=True)
class TeacherRule:
    """The static part of a teacher; see `config.Teacher`. labels: of several external teachers, in routing order."""

    kind: Kind = "fixed"
    decay: float = 0.95
    every: int = 1
    start: Literal["initial", "first_update"] = "initial"
    mix: float = 0.05
    labels: tuple[str, ...] = ()

    @property
    def follows(self) -> bool:
        """Whether it has weights of its own that move."""
        return self.kind in ("ema", "snapshot")

    @property
    def reads_base(self) -> bool:
        return self.kind in ("fixed", "trust_region")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Models:
    """Weights beside the student's; none of them is ever trained.

    Attributes:
      base: the initial model. Under LoRA it is also the student's body, the same arrays; with full training it is a
        copy, or None where nothing reads it.
      reference: what the view "reference" reads with, if not the initial model.
      external: other teachers by label.
    """

    base: Decoder | None = None
    reference: Decoder | None = None
    external: dict[str, Decoder] = field(default_factory=dict)


class Reader(NamedTuple):
    """Weights that read a view: output logits are the weighted sum of the policies' logits."""

    policies: tuple[Policy, ...]
    shares: tuple[float, ...] = (1.0,)


def student_policy(trainable: Adapter | Decoder, base: Decoder | None) -> Policy:
    """The policy being trained. base: the frozen model under the adapter; with full training it is not used."""
    return Policy(base, trainable) if isinstance(trainable, Adapter) else Policy(trainable, None)


def reference_reader(models: Models) -> Reader:
    return Reader((Policy(models.base if models.reference is None else models.reference, None),))


def teacher_readers(rule: TeacherRule, trainable, shadow, models: Models) -> dict[str, Reader]:
    """The teacher's reader by label; one, labelled "", unless several external teachers share the rows.

    shadow: the moving copy of `trainable` that `initial_shadow` made, for kinds that follow the student.
    """
    if rule.kind == "external":
        return {label: Reader((Policy(model, None),)) for label, model in models.external.items()}
    student, base = student_policy(trainable, models.base), Policy(models.base, None)
    if rule.kind == "trust_region":
        return {"": Reader((base, student), (1 - rule.mix, rule.mix))}
    if rule.follows:
        return {"": Reader((student_policy(shadow, models.base),))}
    return {"": Reader((base if rule.kind == "fixed" else student,))}


def initial_shadow(rule: TeacherRule, trainable):
    """The moving teacher before the first update: the student's weights, float32 for an average; None for others."""
    if not rule.follows:
        return None
    return jax.tree.map(jnp.copy, wide(trainable) if rule.kind == "ema" else trainable)


def follow(rule: TeacherRule, shadow, trainable, updates: jax.Array):
    """The moving teacher after the student's `updates`-th update (counted from 1).

    ema: every `every` updates, shadow <- decay * shadow + (1 - decay) * student, in float32: in bfloat16 a decay near 1
    moves nothing. start "first_update" takes the student's weights after update 1 as they are, as OPSD's code does.
    snapshot: every `every` updates the student's weights as they are.
    """
    if not rule.follows:
        return shadow
    due = updates % rule.every == 0
    if rule.kind == "snapshot":
        return jax.tree.map(lambda old, new: jnp.where(due, new, old), shadow, trainable)
    blend: Callable = lambda old, new: rule.decay * old + (1 - rule.decay) * new  # noqa: E731
    copies = (updates == 1) & (rule.start == "first_update")
    move = lambda old, new: jnp.where(copies, new, jnp.where(due, blend(old, new), old))  # noqa: E731
    return jax.tree.map(move, shadow, wide(trainable))


def wide(tree):
    """The tree with floats of at least 32 bits."""
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)
