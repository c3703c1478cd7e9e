"""The vocabulary kernel: a per-token loss straight from hidden states, without ever holding [B,T,V].

Tokens that count are sorted to the front and walked in chunks by a loop with a dynamic trip count. Each chunk forms
its logits in float32, applies the loss, and forms the gradient on the spot, because the loss is a plain sum and so the
cotangent of every token is 1. That costs four matrix products (student and teacher logits, two gradients; three with a
frozen head) where recomputation in a backward pass costs six, and its temporary memory is one chunk of logits plus one
head-sized accumulator, whatever B and T are.

On a mesh the kernel runs under `jax.shard_map`: tokens stay on their `(data, fsdp, context)` shard, the head stays
split over `tensor`, only per-token numbers cross between vocabulary shards, and the head's gradient is reduced once.
"""

import math
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

_ROWS, _COLUMNS, _VOCAB_AXIS = ("data", "fsdp"), "context", "tensor"


class _Plan(NamedTuple):
    """What is static in a call."""

    value: Value | None
    statistics: Statistics | None
    temperature: float
    chunk: int
    train_head: bool
    mesh: Mesh | None

    @property
    def split(self) -> tuple[str, ...]:
        """The axes of the mesh over which tokens are split."""
        return (*_ROWS, _COLUMNS) if _COLUMNS in self.mesh.shape else _ROWS

    @property
    def scatter(self) -> tuple[str, ...]:
        """Those that keep a part of the head's gradient each: all but replicas."""
        return self.split[1:]


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
    chunk: int | None = None,
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
      chunk: tokens per step of the loop (per device); memory against head re-reads. None: see `default_chunk`.
      train_head: False skips the head's gradient, one of four matrix products.
      statistics: optional `(student, teachers, targets, vocab_axis) -> {name: [C]}`, reported and not differentiated.
      mesh: the device mesh, with B divisible by data * fsdp and V by tensor. None: one device.

    Returns:
      (loss, {name: [B,T] float32}): the loss is a float32 scalar (float64 for float64 inputs), 0 with zero gradient for
      an empty mask; statistics are 0 where masked.
    """
    chunk = chunk or default_chunk(mesh)
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
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> dict[str, jax.Array]:
    """Per-token statistics {name: [B,T]} by the same loop, without a loss and without gradients."""
    chunk = chunk or default_chunk(mesh)
    plan = _Plan(None, statistics, temperature, chunk, False, _real(mesh))
    return _run(plan, jax.lax.stop_gradient(_Inputs(hidden, dict(heads), targets, {}, mask)), gradients=False)[1]


def default_chunk(mesh: Mesh | None) -> int:
    """Tokens per step of the loop: 256 on a CPU, whose caches are small; elsewhere 1,024, so that nothing waits for the
    head."""
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return 256 if platform == "cpu" else 1024


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


@jax.named_scope("vocabulary")
def _run(plan: _Plan, inputs: _Inputs, gradients: bool):
    """(loss, statistics, gradient of the hidden states, gradient of the head), over the mesh if there is one."""
    if plan.mesh is None:
        return _chunks(plan, inputs, gradients)
    width = inputs.mask.shape[1]
    if added := -width % plan.mesh.shape.get(_COLUMNS, 1):
        widen = lambda x: jnp.pad(x, [(0, 0), (0, added)] + [(0, 0)] * (x.ndim - 2))  # noqa: E731
        wider = jax.tree.map(widen, inputs._replace(heads={}))._replace(heads=inputs.heads)
        loss, statistics, grad_hidden, grad_head = _run(plan, wider, gradients)
        return loss, *jax.tree.map(lambda x: x[:, :width], (statistics, grad_hidden)), grad_head
    token = P(_ROWS, *plan.split[2:])
    specs = _Inputs(
        hidden=dict.fromkeys(inputs.hidden, token),
        heads=dict.fromkeys(inputs.heads, P(_VOCAB_AXIS)),
        targets=token,
        constants=dict.fromkeys(inputs.constants, token),
        mask=token,
    )
    head_spec = P(_VOCAB_AXIS, plan.scatter if _scatters(plan, inputs) else None)
    out = (P(), token, token if gradients else P(), head_spec if gradients and plan.train_head else P())
    return jax.shard_map(
        partial(_chunks, plan, gradients=gradients, scatter=_scatters(plan, inputs)),
        mesh=plan.mesh,
        in_specs=(specs,),
        out_specs=out,
    )(inputs)


def _scatters(plan: _Plan, inputs: _Inputs) -> bool:
    parts = math.prod(plan.mesh.shape[axis] for axis in plan.scatter)
    return "student" in inputs.heads and inputs.heads["student"].shape[1] % parts == 0


def _chunks(plan: _Plan, inputs: _Inputs, gradients: bool, scatter: bool = False):
    """The loop over chunks of valid tokens, on one device or on one shard."""
    shape = inputs.mask.shape
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(shape) :]), inputs._replace(heads={}))
    flat = flat._replace(heads={view: head.astype(flat.hidden[view].dtype) for view, head in inputs.heads.items()})
    chunk = min(plan.chunk, flat.mask.size)
    order, count = _valid_first(flat.mask, chunk)

    def body(i, carry):
        index = jax.lax.dynamic_slice_in_dim(order, i * chunk, chunk)
        return _add_chunk(carry, index, *_chunk_loss(plan, _rows(flat, index), index < flat.mask.size, gradients))

    carry = jax.lax.fori_loop(0, (count + chunk - 1) // chunk, body, _zero_carry(plan, flat, chunk, gradients))
    if plan.mesh is not None:
        carry = _reduce(plan, carry, scatter)
    tokens_again = lambda x: x.reshape(*shape, *x.shape[1:])  # noqa: E731
    statistics, grad_hidden = jax.tree.map(tokens_again, (carry["statistics"], carry.get("hidden")))
    return carry["loss"], statistics, grad_hidden, carry.get("head")


def _valid_first(mask: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """Positions of the valid tokens, in order, then N where there is none, up to a multiple of chunk; their number."""
    tokens, count = mask.size, (mask != 0).sum()
    order = jnp.argsort(mask == 0, stable=True).astype(jnp.int32)
    order = jnp.where(jnp.arange(tokens) < count, order, tokens)
    return jnp.pad(order, (0, -tokens % chunk), constant_values=tokens), count


def _rows(flat: _Inputs, index: jax.Array) -> _Inputs:
    """The tokens at `index`. Past the end they read 0: a masked neighbour's NaN would survive a zero weight."""
    rows = jax.tree.map(lambda x: jnp.take(x, index, axis=0, mode="fill", fill_value=0), flat._replace(heads={}))
    return rows._replace(heads=flat.heads)


def _wide(flat: _Inputs) -> jnp.dtype:
    """The dtype of logits, sums and accumulators."""
    return jnp.promote_types(jnp.float32, next(iter(flat.hidden.values())).dtype)


def _chunk_loss(plan: _Plan, rows: _Inputs, live: jax.Array, gradients: bool):
    """One chunk's (loss, statistics, gradients of the student's hidden states [C,D] and head [V,D], or None)."""
    vocab_axis, wide = None if plan.mesh is None else _VOCAB_AXIS, _wide(rows)

    def logits(view):
        product = jnp.einsum("cd,vd->cv", rows.hidden[view], rows.heads[view], preferred_element_type=wide)
        return product / plan.temperature

    teachers = {view: log_softmax(logits(view), vocab_axis) for view in rows.hidden if view != "student"}

    def loss_of(student_logits):
        student = log_softmax(student_logits, vocab_axis)
        if plan.value is None:
            return jnp.zeros((), wide), student
        values = plan.value(student, teachers, rows.targets, rows.constants, vocab_axis=vocab_axis)
        return jnp.where(live, values, 0).sum(dtype=wide), student

    loss, student, dh, dw = jnp.zeros((), wide), None, None, None
    if gradients:
        loss, pull, student = jax.vjp(loss_of, logits("student"), has_aux=True)
        dlogits = jnp.where(live[:, None], pull(jnp.ones_like(loss))[0], 0) / plan.temperature
        dlogits, h = dlogits.astype(rows.hidden["student"].dtype), rows.hidden["student"]
        dh = jnp.einsum("cv,vd->cd", dlogits, rows.heads["student"], preferred_element_type=wide)
        if plan.train_head:
            dw = jnp.einsum("cv,cd->vd", dlogits, h, preferred_element_type=wide)
    elif "student" in rows.hidden:
        loss, student = loss_of(logits("student"))
    reported = {}
    if plan.statistics is not None:
        reported = plan.statistics(student, teachers, rows.targets, vocab_axis=vocab_axis)
    return loss, {name: jax.lax.stop_gradient(x).astype(wide) for name, x in reported.items()}, dh, dw


def _zero_carry(plan: _Plan, flat: _Inputs, chunk: int, gradients: bool) -> dict:
    """What the loop accumulates: loss, statistics {name: [N]}, and gradients [N,D] and [V,D] if wanted."""
    tokens, wide = flat.mask.size, _wide(flat)
    index = jnp.zeros(chunk, jnp.int32)
    reported = jax.eval_shape(lambda: _chunk_loss(plan, _rows(flat, index), index == 0, gradients=False)[1])

    def zeros(shape, axes):
        return (
            jnp.zeros(shape, wide) if plan.mesh is None else jax.lax.pcast(jnp.zeros(shape, wide), axes, to="varying")
        )

    split = () if plan.mesh is None else plan.split
    carry = {"loss": zeros((), split), "statistics": {n: zeros((tokens,), split) for n in reported}}
    if gradients:
        carry["hidden"] = zeros(flat.hidden["student"].shape, (*split, _VOCAB_AXIS))
    if gradients and plan.train_head:
        carry["head"] = zeros(flat.heads["student"].shape, (*split, _VOCAB_AXIS))
    return carry


def _add_chunk(carry: dict, index: jax.Array, loss, reported, dh, dw) -> dict:
    put = lambda full, part: full.at[index].set(part, mode="drop")  # noqa: E731
    new = {
        "loss": carry["loss"] + loss,
        "statistics": {name: put(carry["statistics"][name], x) for name, x in reported.items()},
    }
    if dh is not None:
        new["hidden"] = put(carry["hidden"], dh)
    if dw is not None:
        new["head"] = carry["head"] + dw
    return new


def _reduce(plan: _Plan, carry: dict, scatter: bool) -> dict:
    """Sums over the mesh what each shard accumulated alone. Statistics are already whole."""
    new = {**carry, "loss": jax.lax.psum(carry["loss"], plan.split)}
    if "hidden" in carry:
        new["hidden"] = jax.lax.psum(carry["hidden"], _VOCAB_AXIS)
    if "head" in carry:
        new["head"] = _reduce_head(plan, carry["head"], scatter)
    return new


def _reduce_head(plan: _Plan, gradient: jax.Array, scatter: bool) -> jax.Array:
    """Sums the head's gradient over the token shards, leaving each shard of the table only the columns it owns."""
    if not scatter:
        return jax.lax.psum(gradient, plan.split)
    return jax.lax.psum(jax.lax.psum_scatter(gradient, plan.scatter, scatter_dimension=1, tiled=True), "data")


def _real(mesh: Mesh | None) -> Mesh | None:
    return None if mesh is None or mesh.size == 1 else mesh
