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
from jopsd.layout import as_read, by_rollout, by_token, completion_hidden, join_rows, split_rows
from jopsd.losses import entropy, fused_loss, fused_statistics, log_softmax, token_logprobs
from jopsd.losses.compose import statistic
from jopsd.methods import Method
from jopsd.methods.method import REFERENCE
from jopsd.models.decoder import Decoder
from jopsd.models.lora import Adapter
from jopsd.models.products import frozen_model
from jopsd.models.sharding import BATCH, tree_shardings
from jopsd.optimizer import apply_changes
from jopsd.teachers import (
    Models,
    Reader,
    TeacherRule,
    follow,
    initial_shadow,
    reference_reader,
    student_policy,
    teacher_readers,
    wide,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What an update changes.

    Attributes:
      trainable: the LoRA adapter, or the whole decoder.
      optimizer: optax state. updates: int32 scalar, completed updates.
      teacher: the teacher's own copy of `trainable`, for kinds that follow the student; else None.
    """

    trainable: Adapter | Decoder
    optimizer: optax.OptState
    updates: jax.Array
    teacher: Adapter | Decoder | None = None


@dataclass(frozen=True)
class StepOptions:
    """What is static in an update. Rows are rollouts; see `config.Train` for the rest.

    updates_per_step: optimiser updates on the rollouts of one training step.
    seed: of the rounding of parameters that train in bfloat16.
    """

    method: Method
    teacher: TeacherRule
    micro_batches: int
    sampling_temperature: float
    token_chunk: int | None = None
    updates_per_step: int = 1
    seed: int = 0


def init_state(
    trainable: Adapter | Decoder,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    teacher: TeacherRule = TeacherRule(),  # noqa: B008 (frozen)
) -> TrainState:
    """A fresh state, each leaf where the sharding table puts it. The optimiser's part is float32 or wider."""

    def state(t):
        return TrainState(t, optimizer.init(wide(t)), jnp.zeros((), jnp.int32), initial_shadow(teacher, t))

    return jax.jit(state, out_shardings=tree_shardings(jax.eval_shape(state, trainable), mesh))(trainable)


def make_update(
    options: StepOptions, optimizer: optax.GradientTransformation, mesh: Mesh, state: TrainState
) -> Callable[[TrainState, Models, TrainBatch], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted update `(state, models, batch) -> (state, metrics)`.

    The state is donated. When loss or gradient is not finite, weights and optimiser come back unchanged (the update
    still counts) and the metric "nonfinite" is 1; they also stay when no token counts. Metrics are float32 scalars.
    """
    state_shardings = tree_shardings(state, mesh)
    replicated = NamedSharding(mesh, P())
    update = partial(_update, options, optimizer, mesh)
    return jax.jit(update, donate_argnums=0, out_shardings=(state_shardings, replicated))


def make_old_logprobs(options: StepOptions, mesh: Mesh) -> Callable[..., jax.Array]:
    """The jitted `(trainable, models, batch) -> [B,T]`: the policy's log-probabilities before its first update.

    batch: rollouts of one update, read in its micro-batches; rows stay on the devices that hold them.
    """

    def old(trainable, models: Models, batch: TrainBatch):
        rows, parts = as_read(batch), batch.micro_batches or options.micro_batches
        score = partial(_student_score, options, mesh, trainable, _frozen(models, mesh))
        return by_rollout(join_rows(jax.lax.map(score, split_rows(rows, parts))), batch)

    return jax.jit(old, out_shardings=NamedSharding(mesh, P(BATCH)))


def loss_and_gradient(options: StepOptions, mesh: Mesh, trainable, teacher, models: Models, batch: TrainBatch, step=0):
    """(loss, gradient of trainable in float32, statistics {name: [B,T]}) of a whole optimiser step.

    teacher: `TrainState.teacher`. step: completed training steps, for methods that follow a schedule.
    """
    rows, parts, models = as_read(batch), batch.micro_batches or options.micro_batches, _frozen(models, mesh)
    micro = split_rows(rows, parts)
    constants = jax.lax.stop_gradient(_weigh(options, mesh, trainable, teacher, models, batch, micro, step))
    constants = by_token(constants, batch)
    if options.teacher.labels:
        constants["route"] = jnp.broadcast_to(rows.route, rows.mask.shape)

    def accumulate(carry, rows):
        loss, gradient = carry
        batch, constants = rows
        value = partial(_value, options, mesh, teacher=teacher, models=models, batch=batch, constants=constants)
        (part, statistics), grad = jax.value_and_grad(value, has_aux=True)(trainable)
        return (loss + part, jax.tree.map(lambda g, d: g + d.astype(g.dtype), gradient, grad)), statistics

    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), trainable)
    if mesh.size > 1:
        # The accumulator lives where the parameters live, so each micro-batch's gradient is reduce-scattered into it.
        zero = jax.lax.with_sharding_constraint(zero, tree_shardings(zero, mesh))
    start = (jnp.zeros((), jax.tree.leaves(zero)[0].dtype), zero)
    (loss, gradient), statistics = jax.lax.scan(accumulate, start, (micro, split_rows(constants, parts)))
    return loss, gradient, by_rollout(join_rows(statistics), batch)


def _frozen(models: Models, mesh: Mesh) -> Models:
    """The models in the form in which a CPU reads them best."""
    if mesh.devices.flat[0].platform != "cpu":
        return models
    return jax.tree.map(frozen_model, models, is_leaf=lambda x: isinstance(x, Decoder))


def _update(options, optimizer, mesh, state: TrainState, models: Models, batch: TrainBatch):
    step = state.updates // options.updates_per_step
    loss, gradient, statistics = loss_and_gradient(options, mesh, state.trainable, state.teacher, models, batch, step)
    norm = optax.global_norm(gradient)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    key = jax.random.fold_in(jax.random.key(options.seed), state.updates)
    with jax.named_scope("optimizer"):
        changes, optimizer_state = optimizer.update(gradient, state.optimizer, state.trainable)
        trainable = apply_changes(state.trainable, changes, key)
    # Without a token to learn from, momentum and weight decay alone would still move the weights.
    moves = finite & (batch.mask != 0).any()
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(moves, n, o), new, old)  # noqa: E731
    trainable, updates = keep(trainable, state.trainable), state.updates + 1
    teacher = follow(options.teacher, state.teacher, trainable, updates)
    new = TrainState(trainable, keep(optimizer_state, state.optimizer), updates, teacher)
    metrics = {"loss": loss, "grad_norm": norm, "nonfinite": ~finite}
    metrics |= _summarise(statistics, batch)
    return new, {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()}


def _read(readers: dict[str, Reader], name: str, view, length: int) -> tuple[dict, dict]:
    """(hidden states, output heads) of the readers of one view, as "name" or, by label, "name:label"; constants."""
    hidden, heads = {}, {}
    for label, reader in readers.items():
        key = f"{name}:{label}" if label else name
        policies = jax.lax.stop_gradient(reader.policies)
        states = [completion_hidden(policy, view, length) for policy in policies]
        states = [
            h if share == 1 else (h * share).astype(h.dtype) for h, share in zip(states, reader.shares, strict=True)
        ]
        if all(policy.model is reader.policies[0].model for policy in reader.policies):
            hidden[key], heads[key] = sum(states[1:], states[0]), policies[0].model.head
        else:  # one product with the heads side by side is the weighted sum of the logits
            hidden[key] = jnp.concatenate(states, axis=-1)
            heads[key] = jnp.concatenate([policy.model.head for policy in policies], axis=-1)
    return hidden, heads


def _readers(options: StepOptions, view: str, trainable, teacher, models: Models) -> dict[str, Reader]:
    if view == REFERENCE:
        return {"": reference_reader(models)}
    return teacher_readers(options.teacher, trainable, teacher, models)


@jax.named_scope("value")
def _value(options: StepOptions, mesh, trainable, *, teacher, models: Models, batch: TrainBatch, constants):
    policy, length = student_policy(trainable, models.base), batch.targets.shape[1]
    teacher_hidden, heads = {}, {}
    for view in options.method.views:
        readers = _readers(options, view, trainable, teacher, models)
        prompt = batch.views["student" if view == REFERENCE else view]
        for parts, more in zip((teacher_hidden, heads), _read(readers, view, prompt, length), strict=True):
            parts |= more
    frozen_head = isinstance(trainable, Adapter)
    head = jax.lax.stop_gradient(policy.model.head) if frozen_head else policy.model.head
    labels = options.teacher.labels
    return fused_loss(
        _Routed(options.method.value, labels) if labels else options.method.value,
        completion_hidden(policy, batch.views["student"], length),
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


@jax.named_scope("weigh")
def _weigh(options: StepOptions, mesh, trainable, teacher, models: Models, batch, micro, step):
    """Phases one and two: the statistics the method asked for, view by view, then its constants [B,T]."""
    method, scores = options.method, {}
    joined = lambda x: by_rollout(join_rows(x), batch)  # noqa: E731
    for view in method.score_views:
        readers = _readers(options, view, trainable, teacher, models)
        score = partial(_teacher_score, options, mesh, view, readers)
        scores |= joined(jax.lax.map(score, micro))
    kinds = [name.rsplit(".", 1)[1] for name in method.all_scores if name.startswith("student.")]
    if kinds:
        score = partial(_student_score, options, mesh, trainable, models, kinds=tuple(kinds))
        scores |= joined(jax.lax.map(score, micro))
    return method.weigh(scores, batch, step)


def _student_score(options: StepOptions, mesh, trainable, models: Models, rows: TrainBatch, kinds=None):
    """{"student.<kind>": [B,T]} of the current policy; its log-probabilities [B,T] alone if `kinds` is None."""
    policy = student_policy(trainable, models.base)
    hidden = completion_hidden(policy, rows.views["student"], rows.targets.shape[1])
    names = tuple(f"student.{kind}" for kind in kinds or ("logprob",))
    scores = _statistics(options, mesh, names, {"student": hidden}, {"student": policy.model.head}, rows)
    return scores if kinds else scores["student.logprob"]


def _teacher_score(options: StepOptions, mesh, view: str, readers: dict[str, Reader], rows: TrainBatch):
    """{"<view>.<kind>": [B,T]}, or [B,K,T] of a view with K readings per row, which are read one after another."""
    prompt = rows.views["student" if view == REFERENCE else view]
    kinds = [name.rsplit(".", 1)[1] for name in options.method.all_scores if name.rsplit(".", 1)[0] == view]

    def score(reading):
        hidden, heads = _read(readers, view, reading, rows.targets.shape[1])
        names = tuple(f"{key}.{kind}" for key in hidden for kind in kinds)
        scores = _statistics(options, mesh, names, hidden, heads, rows)
        if set(readers) == {""}:
            return scores
        route = rows.route
        return {f"{view}.{kind}": _routed([scores[f"{key}.{kind}"] for key in hidden], route) for kind in kinds}

    if prompt.tokens.ndim == 2:
        return score(prompt)
    return jax.tree.map(
        lambda x: x.swapaxes(0, 1), jax.lax.map(score, jax.tree.map(lambda x: x.swapaxes(0, 1), prompt))
    )


def _statistics(options: StepOptions, mesh, names: tuple[str, ...], hidden, heads, rows: TrainBatch):
    return fused_statistics(
        _Scores(names),
        hidden,
        heads,
        rows.targets,
        rows.mask,
        temperature=options.method.temperature,
        chunk=options.token_chunk,
        mesh=mesh,
    )


def _routed(choices: list[jax.Array], route: jax.Array) -> jax.Array:
    """Each row's entry of the choice that `route` names."""
    chosen = choices[0]
    for place, other in enumerate(choices[1:], start=1):
        chosen = jnp.where(route == place, other, chosen)
    return chosen


@dataclass(frozen=True)
class _Routed:
    """A method's value, shown one teacher per token: the one that its row is routed to. Hashable."""

    value: Callable
    labels: tuple[str, ...]

    def __call__(self, student, teachers, targets, constants, vocab_axis=None):
        constants, teachers = dict(constants), dict(teachers)
        route = constants.pop("route")[:, None]
        for view in {name.split(":")[0] for name in teachers if ":" in name}:
            teachers[view] = _routed([teachers.pop(f"{view}:{label}") for label in self.labels], route)
        return self.value(student, teachers, targets, constants, vocab_axis=vocab_axis)


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
