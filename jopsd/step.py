"""One optimiser step on device: score, weigh, value, update.

score and weigh run over the whole step without gradients; value runs in micro-batches whose gradients are summed.
Because weigh has already divided by the right denominator, loss and gradient depend neither on the micro-batch size
nor on padding nor on the mesh.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jopsd.batch import TrainBatch
from jopsd.losses import entropy, fused_loss, fused_statistics, log_softmax, token_logprobs
from jopsd.losses.compose import statistic
from jopsd.methods import Method
from jopsd.methods.method import REFERENCE
from jopsd.models.decoder import Decoder
from jopsd.models.lora import Adapter
from jopsd.models.sharding import tree_shardings
from jopsd.sampling.sampler import Policy


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What an update changes.

    Attributes:
      trainable: the LoRA adapter, or the whole decoder.
      optimizer: optax state. step: int32 scalar, completed updates.
    """

    trainable: Adapter | Decoder
    optimizer: optax.OptState
    step: jax.Array


@dataclass(frozen=True)
class StepOptions:
    """What is static in an update. Rows are rollouts; see `config.Train` for the rest."""

    method: Method
    teacher: str
    micro_batches: int
    sampling_temperature: float
    token_chunk: int = 1024


def student_policy(trainable: Adapter | Decoder, base: Decoder | None) -> Policy:
    """The policy being trained. base: the frozen model under the adapter; with full training it is not used."""
    return Policy(base, trainable) if isinstance(trainable, Adapter) else Policy(trainable, None)


def teacher_policy(kind: str, trainable: Adapter | Decoder, base: Decoder | None) -> Policy:
    """The weights that re-score: the frozen base ("fixed"; under LoRA the same arrays) or the student's ("live")."""
    return Policy(base, None) if kind == "fixed" else student_policy(trainable, base)


def make_optimizer(cfg, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW with the schedule and clipping of `config.Optimizer`. Returns (optimizer, learning rate by step)."""
    peak, warmup = cfg.learning_rate, cfg.warmup_steps
    decay_steps = max(steps - warmup, 1)
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


def init_state(trainable: Adapter | Decoder, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """A fresh state, each leaf where the sharding table puts it."""
    state = lambda t: TrainState(t, optimizer.init(t), jnp.zeros((), jnp.int32))  # noqa: E731
    return jax.jit(state, out_shardings=tree_shardings(jax.eval_shape(state, trainable), mesh))(trainable)


def make_update(
    options: StepOptions, optimizer: optax.GradientTransformation, mesh: Mesh, state: TrainState
) -> Callable[[TrainState, Decoder | None, TrainBatch], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted update `(state, base, batch) -> (state, metrics)`.

    The state is donated. When loss or gradient is not finite, weights and optimiser come back unchanged (the step
    still counts) and the metric "nonfinite" is 1. Metrics are float32 scalars.
    """
    state_shardings = tree_shardings(state, mesh)
    replicated = NamedSharding(mesh, P())
    update = partial(_update, options, optimizer, mesh)
    return jax.jit(update, donate_argnums=0, out_shardings=(state_shardings, replicated))


def loss_and_gradient(options: StepOptions, mesh: Mesh, trainable, base, batch: TrainBatch, step=0):
    """(loss, gradient of trainable in float32, statistics {name: [B,T]}) of a whole optimiser step."""
    micro = _split_rows(batch, options.micro_batches)
    constants = jax.lax.stop_gradient(_weigh(options, mesh, trainable, base, batch, micro, step))

    def accumulate(carry, rows):
        loss, gradient = carry
        batch, constants = rows
        value = partial(_value, options, mesh, base=base, batch=batch, constants=constants)
        (part, statistics), grad = jax.value_and_grad(value, has_aux=True)(trainable)
        return (loss + part, jax.tree.map(lambda g, d: g + d.astype(g.dtype), gradient, grad)), statistics

    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), trainable)
    if mesh.size > 1:
        # The accumulator lives where the parameters live, so each micro-batch's gradient is reduce-scattered into it.
        zero = jax.lax.with_sharding_constraint(zero, tree_shardings(zero, mesh))
    start = (jnp.zeros((), jax.tree.leaves(zero)[0].dtype), zero)
    (loss, gradient), statistics = jax.lax.scan(
        accumulate, start, (micro, _split_rows(constants, options.micro_batches))
    )
    return loss, gradient, _join_rows(statistics)


def _update(options, optimizer, mesh, state: TrainState, base, batch: TrainBatch):
    loss, gradient, statistics = loss_and_gradient(options, mesh, state.trainable, base, batch, state.step)
    norm = optax.global_norm(gradient)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)  # noqa: E731
    new = TrainState(keep(trainable, state.trainable), keep(optimizer_state, state.optimizer), state.step + 1)
    metrics = {"loss": loss, "grad_norm": norm, "nonfinite": ~finite}
    metrics |= _summarise(statistics, batch)
    return new, {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()}


def _hidden(policy: Policy, view, length: int) -> jax.Array:
    """Hidden states [B,T,D] that predict the completion: the column before it, up to its last but one."""
    h = policy.model.hidden(view.tokens, segments=view.segments, adapter=policy.adapter)
    start = view.tokens.shape[1] - length - 1
    return jax.lax.slice_in_dim(h, start, start + length, axis=1)


def _teacher_inputs(options: StepOptions, views: tuple[str, ...], trainable, base, batch: TrainBatch):
    """Hidden states and output head of the given teacher views; constants."""
    hidden, heads = {}, {}
    for view in views:
        # The reference is the initial model on the student's own prompt.
        kind, prompt = ("fixed", "student") if view == REFERENCE else (options.teacher, view)
        policy = jax.lax.stop_gradient(teacher_policy(kind, trainable, base))
        hidden[view] = _hidden(policy, batch.views[prompt], batch.targets.shape[1])
        heads[view] = policy.model.head
    return hidden, heads


def _value(options: StepOptions, mesh, trainable, *, base, batch: TrainBatch, constants):
    policy = student_policy(trainable, base)
    teacher_hidden, heads = _teacher_inputs(options, options.method.views, trainable, base, batch)
    frozen_head = isinstance(trainable, Adapter)
    head = jax.lax.stop_gradient(policy.model.head) if frozen_head else policy.model.head
    return fused_loss(
        options.method.value,
        _hidden(policy, batch.views["student"], batch.targets.shape[1]),
        teacher_hidden,
        {"student": head, **heads},
        batch.targets,
        constants,
        batch.mask,
        temperature=options.method.temperature,
        chunk=options.token_chunk,
        train_head=not frozen_head,
        statistics=_Reported(options.method.temperature, options.sampling_temperature),
        mesh=mesh,
    )


def _weigh(options: StepOptions, mesh, trainable, base, batch, micro, step):
    """Phases one and two: the statistics the method asked for, then its constants [B,T]."""
    method, scores = options.method, {}
    if method.scores:

        def score(rows: TrainBatch):
            hidden, heads = _teacher_inputs(options, method.score_views, trainable, base, rows)
            policy = student_policy(trainable, base)
            if any(name.startswith("student.") for name in method.scores):
                hidden["student"] = _hidden(policy, rows.views["student"], rows.targets.shape[1])
                heads["student"] = policy.model.head
            return fused_statistics(
                _Scores(method.scores),
                hidden,
                heads,
                rows.targets,
                rows.mask,
                temperature=method.temperature,
                chunk=options.token_chunk,
                mesh=mesh,
            )

        scores = _join_rows(jax.lax.map(score, micro))
    return method.weigh(scores, batch, step)


@dataclass(frozen=True)
class _Scores:
    """The statistics a method asked for, as a hashable function."""

    names: tuple[str, ...]

    def __call__(self, student, teachers, targets, vocab_axis=None):
        return {name: statistic(name, student, teachers, targets, vocab_axis) for name in self.names}


@dataclass(frozen=True)
class _Reported:
    """Statistics logged with every update, as a hashable function."""

    temperature: float
    sampling_temperature: float

    def __call__(self, student, teachers, targets, vocab_axis=None):
        drawn = student
        if self.temperature != self.sampling_temperature:
            drawn = log_softmax(student * (self.temperature / self.sampling_temperature), vocab_axis)
        reported = {
            "entropy": entropy(student, vocab_axis),
            "logprob": token_logprobs(drawn, targets, vocab_axis),
        }
        ours = token_logprobs(student, targets, vocab_axis)
        for view, teacher in teachers.items():
            reported[f"{view}_advantage"] = token_logprobs(teacher, targets, vocab_axis) - ours
        return reported


def _summarise(statistics: dict[str, jax.Array], batch: TrainBatch) -> dict[str, jax.Array]:
    """Means over valid tokens, and how far the sampler's log-probabilities are from the trainer's."""
    valid = batch.mask != 0
    count = jnp.maximum(valid.sum(), 1)
    mean = lambda x: jnp.where(valid, x, 0).sum() / count  # noqa: E731
    metrics = {name: mean(x) for name, x in statistics.items()}
    metrics["tokens"] = valid.sum()
    if batch.sampler_logprobs is not None:
        gap = jnp.where(valid, jnp.abs(statistics["logprob"] - batch.sampler_logprobs), 0)
        metrics |= {"sampler_gap": gap.sum() / count, "sampler_gap_max": gap.max()}
    return metrics


def _split_rows(tree, parts: int):
    """[B,...] -> [parts,B/parts,...], taking every parts-th row so that rows stay on the device that holds them."""
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), tree)


def _join_rows(tree):
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)
