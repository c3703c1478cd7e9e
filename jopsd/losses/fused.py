"""The vocabulary kernel: a per-token loss straight from hidden states, without ever holding [B,T,V].

Tokens that count are sorted to the front and walked in chunks by a loop with a dynamic trip count. Each chunk forms
its logits in float32, applies the loss, and forms the gradient on the spot, because the loss is a plain sum and so the
cotangent of every token is 1. That costs four matrix products (student and teacher logits, two gradients; three with a
frozen head) where recomputation in a backward pass costs six, and its temporary memory is one chunk of logits plus one
head-sized accumulator, whatever B and T are.

On a mesh the kernel runs under `jax.shard_map`: tokens stay on their `(data, fsdp)` shard, the head stays split over
`tensor`, only per-token numbers cross between vocabulary shards, and the head's gradient is reduced once.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jopsd.losses.vocabulary import log_softmax

Value = Callable[..., jax.Array]
Statistics = Callable[..., dict[str, jax.Array]]

_TOKEN_AXES = ("data", "fsdp")
_VOCAB_AXIS = "tensor"


class _Plan(NamedTuple):
    """What is static in a call."""

    value: Value | None
    statistics: Statistics | None
    temperature: float
    chunk: int
    train_head: bool
    mesh: Mesh | None


class _Inputs(NamedTuple):
    hidden: dict[str, jax.Array]  # by view; "student" is the differentiated one
    heads: dict[str, jax.Array]
    targets: jax.Array
    constants: dict[str, jax.Array]
    mask: jax.Array


def fused_loss(
    value: Value,
    student_hidden: jax.Array,
    teacher_hidden: dict[str, jax.Array],
    heads: dict[str, jax.Array],
    targets: jax.Array,
    constants: dict[str, jax.Array],
    mask: jax.Array,
    *,
    temperature: float = 1.0,
    chunk: int = 1024,
    train_head: bool = True,
    statistics: Statistics | None = None,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sum of a per-token loss over the valid tokens, from hidden states and output heads.

    Differentiable in `student_hidden` and `heads["student"]`; every other input is a constant.

    Args:
      value: per-token loss `(student [C,V], {view: teacher [C,V]}, targets [C], {name: constants [C]}, vocab_axis)
        -> [C]` of float32 log-probabilities. Pure; must reduce over V only through `jopsd.losses.vocabulary`, so that
        it also works on a split vocabulary. Must be hashable (a function or a bound method of a frozen object).
      student_hidden: [B,T,D] hidden states that predict `targets`.
      teacher_hidden: {view: [B,T,D]}; widths may differ from the student's.
      heads: output heads [V,D], under "student" and under each view. Cast to the hidden states' dtype inside, so a
        float32 master head gets a float32 gradient.
      targets: [B,T] int32. constants: {name: [B,T]}. mask: [B,T], nonzero on valid tokens.
      temperature: divides all logits.
      chunk: tokens per step of the loop (per device); memory against head re-reads.
      train_head: False skips the head's gradient, one of four matrix products.
      statistics: optional `(student, teachers, targets, vocab_axis) -> {name: [C]}`, reported and not differentiated.
      mesh: the device mesh, with B divisible by data * fsdp and V by tensor. None: one device.

    Returns:
      (loss, {name: [B,T] float32}): the loss is a float32 scalar (float64 for float64 inputs), 0 with zero gradient for
      an empty mask; statistics are 0 where masked.
    """
    plan = _Plan(value, statistics, temperature, chunk, train_head, _real(mesh))
    hidden = {"student": student_hidden, **jax.lax.stop_gradient(teacher_hidden)}
    return _loss(plan, _Inputs(hidden, dict(heads), targets, dict(constants), mask))


def fused_statistics(
    statistics: Statistics,
    hidden: dict[str, jax.Array],
    heads: dict[str, jax.Array],
    targets: jax.Array,
    mask: jax.Array,
    *,
    temperature: float = 1.0,
    chunk: int = 1024,
    mesh: Mesh | None = None,
) -> dict[str, jax.Array]:
    """Per-token statistics {name: [B,T]} by the same loop, without a loss and without gradients."""
    plan = _Plan(None, statistics, temperature, chunk, False, _real(mesh))
    return _run(plan, jax.lax.stop_gradient(_Inputs(hidden, dict(heads), targets, {}, mask)), gradients=False)[1]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(plan: _Plan, inputs: _Inputs):
    loss, statistics, _, _ = _run(plan, inputs, gradients=False)
    return loss, statistics


def _loss_forward(plan, inputs):
    loss, statistics, grad_hidden, grad_head = _run(plan, inputs, gradients=True)
    return (loss, statistics), (inputs, grad_hidden, grad_head)


def _loss_backward(plan, residuals, cotangents):
    inputs, grad_hidden, grad_head = residuals
    scale = cotangents[0]
    gradient = jax.tree.map(lambda x: _zero_cotangent(x), inputs)
    gradient.hidden["student"] = (scale * grad_hidden).astype(inputs.hidden["student"].dtype)
    if plan.train_head:
        gradient.heads["student"] = (scale * grad_head).astype(inputs.heads["student"].dtype)
    return (gradient,)


_loss.defvjp(_loss_forward, _loss_backward)


def _zero_cotangent(x):
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.zeros_like(x)
    return jnp.zeros(x.shape, jax.dtypes.float0)


def _run(plan: _Plan, inputs: _Inputs, gradients: bool):
    """(loss, statistics, gradient of the hidden states, gradient of the head), over the mesh if there is one."""
    if plan.mesh is None:
        return _chunks(plan, inputs, gradients)
    token = P(_TOKEN_AXES)
    specs = _Inputs(
        hidden={view: token for view in inputs.hidden},
        heads={view: P(_VOCAB_AXIS) for view in inputs.heads},
        targets=token,
        constants={name: token for name in inputs.constants},
        mask=token,
    )
    head_spec = P(_VOCAB_AXIS, "fsdp" if _scatters(plan, inputs) else None)
    out = (P(), token, token if gradients else P(), head_spec if gradients and plan.train_head else P())
    return jax.shard_map(
        partial(_chunks, plan, gradients=gradients, scatter=_scatters(plan, inputs)),
        mesh=plan.mesh,
        in_specs=(specs,),
        out_specs=out,
    )(inputs)


def _scatters(plan: _Plan, inputs: _Inputs) -> bool:
    return inputs.heads["student"].shape[1] % plan.mesh.shape["fsdp"] == 0 if "student" in inputs.heads else False


def _chunks(plan: _Plan, inputs: _Inputs, gradients: bool, scatter: bool = False):
    """The loop over chunks of valid tokens, on one device or on one shard."""
    vocab_axis = None if plan.mesh is None else _VOCAB_AXIS
    varying = lambda x, axes: x if plan.mesh is None else jax.lax.pcast(x, axes, to="varying")  # noqa: E731
    everywhere = (*_TOKEN_AXES, _VOCAB_AXIS)
    shape = inputs.mask.shape
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(shape) :]), inputs._replace(heads={}))
    tokens = flat.mask.shape[0]
    chunk = min(plan.chunk, tokens)
    count = (flat.mask != 0).sum()
    # Valid tokens first, in order. Positions past the end point outside the arrays, where writes are dropped.
    order = jnp.argsort(flat.mask == 0, stable=True).astype(jnp.int32)
    order = jnp.pad(jnp.where(jnp.arange(tokens) < count, order, tokens), (0, -tokens % chunk), constant_values=tokens)
    heads = {view: head.astype(inputs.hidden[view].dtype) for view, head in inputs.heads.items()}
    wide = jnp.promote_types(jnp.float32, next(iter(flat.hidden.values())).dtype)

    def logits(view, h):
        return jnp.einsum("cd,vd->cv", h, heads[view], preferred_element_type=wide) / plan.temperature

    def take(x, index):
        return jnp.take(x, index, axis=0, mode="clip")

    def one_chunk(index):
        """Loss, statistics, and d loss / d student logits of one chunk."""
        live = index < tokens
        targets = take(flat.targets, index)
        constants = {name: take(x, index) for name, x in flat.constants.items()}
        hidden = {view: take(h, index) for view, h in flat.hidden.items()}
        teachers = {view: log_softmax(logits(view, h), vocab_axis) for view, h in hidden.items() if view != "student"}

        def loss_of(student_logits):
            student = log_softmax(student_logits, vocab_axis)
            values = plan.value(student, teachers, targets, constants, vocab_axis=vocab_axis)
            return jnp.where(live, values, 0).sum(dtype=wide), student

        dlogits, loss, student = None, jnp.zeros((), wide), None
        if "student" in hidden:
            z = logits("student", hidden["student"])
            if gradients:
                (loss, student), pull = jax.vjp(loss_of, z)
                one, none = jnp.ones_like(loss), jnp.zeros_like(student)
                dlogits = (jnp.where(live[:, None], pull((one, none))[0], 0) / plan.temperature).astype(
                    hidden["student"].dtype
                )
            elif plan.value is not None:
                loss, student = loss_of(z)
            else:
                student = log_softmax(z, vocab_axis)
        reported = {}
        if plan.statistics is not None:
            reported = plan.statistics(student, teachers, targets, vocab_axis=vocab_axis)
            reported = {name: jax.lax.stop_gradient(x).astype(wide) for name, x in reported.items()}
        return loss, reported, dlogits, hidden.get("student")

    names = jax.eval_shape(one_chunk, order[:chunk])[1]
    zeros = lambda *dims: jnp.zeros(dims, wide)  # noqa: E731
    carry = {
        "loss": varying(zeros(), _TOKEN_AXES),
        "statistics": {n: varying(zeros(tokens), _TOKEN_AXES) for n in names},
    }
    if gradients:
        carry["hidden"] = varying(zeros(tokens, flat.hidden["student"].shape[-1]), everywhere)
        if plan.train_head:
            carry["head"] = varying(zeros(*heads["student"].shape), everywhere)

    def body(i, carry):
        index = jax.lax.dynamic_slice_in_dim(order, i * chunk, chunk)
        loss, reported, dlogits, h = one_chunk(index)
        put = lambda full, part: full.at[index].set(part, mode="drop")  # noqa: E731
        new = {
            "loss": carry["loss"] + loss,
            "statistics": {n: put(carry["statistics"][n], x) for n, x in reported.items()},
        }
        if gradients:
            dh = jnp.einsum("cv,vd->cd", dlogits, heads["student"], preferred_element_type=wide)
            new["hidden"] = put(carry["hidden"], dh)
            if plan.train_head:
                dw = jnp.einsum("cv,cd->vd", dlogits, h, preferred_element_type=wide)
                new["head"] = carry["head"] + dw
        return new

    carry = jax.lax.fori_loop(0, (count + chunk - 1) // chunk, body, carry)
    loss, grad_hidden, grad_head = carry["loss"], carry.get("hidden"), carry.get("head")
    if plan.mesh is not None:
        loss = jax.lax.psum(loss, _TOKEN_AXES)
        if grad_hidden is not None:
            grad_hidden = jax.lax.psum(grad_hidden, _VOCAB_AXIS)
        if grad_head is not None:
            grad_head = _reduce_head(grad_head, scatter)
    statistics = {name: x.reshape(shape) for name, x in carry["statistics"].items()}
    if grad_hidden is not None:
        grad_hidden = grad_hidden.reshape(*shape, -1)
    return loss, statistics, grad_hidden, grad_head


def _reduce_head(gradient: jax.Array, scatter: bool) -> jax.Array:
    """Sums the head's gradient over the token shards, leaving each fsdp shard only the columns it owns."""
    if not scatter:
        return jax.lax.psum(gradient, _TOKEN_AXES)
    return jax.lax.psum_scatter(jax.lax.psum(gradient, "data"), "fsdp", scatter_dimension=1, tiled=True)


def _real(mesh: Mesh | None) -> Mesh | None:
    return None if mesh is None or mesh.size == 1 else mesh
