"""One optimiser step: the fused path equals the plain one, and nothing but the data decides loss and gradient."""

from dataclasses import replace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jopsd.batch import make_batch
from jopsd.losses import loss_from_logits
from jopsd.mesh import make_mesh, put_rows
from jopsd.methods import (
    Eopd,
    Grpo,
    MethodConfig,
    Opd,
    Opsd,
    OpsdEctr,
    PwOpsd,
    Reopold,
    Rlcsd,
    Rlsd,
    RlsdEctr,
    Sdpo,
    Sft,
    Srpo,
)
from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.models.lora import init_adapter
from jopsd.models.sharding import tree_shardings
from jopsd.optimizer import make_optimizer
from jopsd.packing import Packing, pack
from jopsd.sampling.sampler import Policy
from jopsd.schema import Optimizer
from jopsd.step import StepOptions, init_state, loss_and_gradient, make_update
from jopsd.teachers import Models, TeacherRule, student_policy

CFG = ModelConfig(64, 32, 2, 4, 2, 8, 64, tie_embeddings=True)


class ScoredOpsd(Opsd):
    """Uses the score phase: tokens weigh by the student's entropy and the teacher's log-probability."""

    scores = ("student.entropy", "teacher.logprob")

    def weigh(self, scores, batch, step):
        weight = super().weigh(scores, batch, step)["weight"]
        return {"weight": weight * scores["student.entropy"] * jnp.exp(scores["teacher.logprob"])}


ONE_OF_EACH_KIND = [
    Opsd(alpha=0.5, entry_clip=0.05, reduction="sequence_mean"),
    Opsd(alpha=1.0, loss="topk", top_k=5),
    Eopd(entropy_threshold=2.0, top_k=7),
    Reopold(switch_step=0, keep=0.3),
    Grpo(kl_coef=0.1, correction={}, reduction="sequence_sum"),
    Sdpo(top_k=6, correction={"reject": "geometric", "reject_threshold": 30.0}, reduction="sequence_mean"),
    Srpo(top_k=6, kl_coef=0.01),
    Rlsd(reduction="sequence_sum_norm"),
    RlsdEctr(lam_decay_steps=0, correction={"level": "sequence"}),
    OpsdEctr(top_k=6, entry_clip=None, kl_coef=0.1),
    Rlcsd(tau=0.5, delta=0.1),
    Opd(lam=1.25, kl_coef=0.1, correction={"threshold": 5.0}),
    ScoredOpsd(),
    Sft(),
]
METHODS = [
    *ONE_OF_EACH_KIND,
    Opsd(alpha=0.0),
    Opsd(loss="sampled"),
    Opsd(loss="squared"),
    PwOpsd(alpha=1.0),
    Reopold(mix=0.5),
    Sdpo(alpha=1.0, loss="sampled", top_k=None, is_clip=1.1),
    Srpo(alpha=0.0, loss="full", top_k=None, beta=0.0),
    Rlcsd(tau=0.5, delta=0.1, correction={"mode": "bypass"}),
    Opd(correction={"mode": "reinforce"}),
]


def test_every_method_there_is_stands_in_the_list():
    names = {get_args(union)[0] if get_args(union) else union for union in get_args(get_args(MethodConfig)[0])}
    assert {type(method) for method in ONE_OF_EACH_KIND} - {ScoredOpsd} == names - {PwOpsd}


def single_device_mesh():
    return make_mesh(1, 1, 1, devices=jax.devices()[:1])


def model_and_adapter(cfg=CFG):
    model = Decoder(cfg, jax.random.key(0))
    # Larger weights than an init has, so that student and teacher differ visibly.
    model = jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, model)
    adapter = init_adapter(cfg.projections, cfg.num_layers, 4, 8.0, jax.random.key(1))
    noise = jax.tree.map(lambda x: 0.1 * jax.random.normal(jax.random.key(2), x.shape), adapter.b)
    return model, type(adapter)(adapter.a, noise, adapter.scale)


def random_batch(rows=8, pad_to=8, spare=0, seed=0, order=None, hints=None):
    """Rollouts in groups of four. hints: wrong hints per row, of which some rows lack the last ones; None for one."""
    rng = np.random.default_rng(seed)
    ids = lambda low, high: [rng.integers(1, 64, rng.integers(low, high)).tolist() for _ in range(rows)]  # noqa: E731
    prompts = {"student": ids(2, 7), "teacher": ids(5, 14), "negative": ids(5, 14)}
    completions = ids(1, 12)
    if hints:
        prompts["negative"] = [list(row) for row in zip(*(ids(5, 14) for _ in range(hints)), strict=True)]
    if order is not None:
        prompts, completions = {v: [p[i] for i in order] for v, p in prompts.items()}, [completions[i] for i in order]
    place = order or range(rows)
    return make_batch(
        prompts,
        completions,
        pad_to=pad_to,
        rows=rows + spare,
        sampler_logprobs=[[-4.0 - 0.1 * i] * len(c) for i, c in zip(place, completions, strict=True)],
        rewards=[float(i % 3) for i in place],
        groups=[i // 4 for i in place],
        counts=[i != 6 for i in place],
        limit=20,
        present={"negative": [[hint <= i % 3 for hint in range(hints)] for i in place]} if hints else None,
    )


def batch_for(method, **kwargs):
    return random_batch(hints=3 if method.negatives == "all" else None, **kwargs)


def options(method, micro_batches=1, teacher="fixed", chunk=16):
    return StepOptions(method, TeacherRule(teacher), micro_batches, sampling_temperature=0.9, token_chunk=chunk)


def fused(method, mesh, trainable, base, batch, **kwargs):
    """(loss, gradient) by the path that training takes."""
    step = lambda t, m, rows: loss_and_gradient(options(method, **kwargs), mesh, t, None, m, rows)[:2]  # noqa: E731
    return jax.jit(step)(trainable, Models(base), batch)


def place(tree, mesh):
    return jax.device_put(tree, tree_shardings(tree, mesh))


def plain_loss_and_gradient(method, trainable, base, batch, teacher="fixed"):
    """The definition: full logits of every view, `loss_from_logits`, jax.grad."""
    length = batch.targets.shape[1]

    def logits(policy, view):
        rows = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), view)
        h = policy.model.hidden(rows.tokens, segments=rows.segments, adapter=policy.adapter)
        return policy.model.unembed(h)[:, -length - 1 : -1].reshape(*view.tokens.shape[:-1], length, -1)

    def loss(trainable):
        student = logits(student_policy(trainable, base), batch.views["student"])
        initial = Policy(base, None)
        theirs = jax.lax.stop_gradient(student_policy(trainable, base)) if teacher == "live" else initial
        teachers = {v: logits(theirs, batch.views[v]) for v in method.teacher_views}
        if method.reads_reference:
            teachers["reference"] = logits(initial, batch.views["student"])
        return loss_from_logits(method, student, teachers, batch)[0]

    return jax.jit(jax.value_and_grad(loss))(trainable)


def assert_close(ours, theirs, tolerance=2e-5):
    (loss, gradient), (want_loss, want) = ours, theirs
    scale = float(optax.global_norm(want))
    np.testing.assert_allclose(loss, want_loss, rtol=tolerance, atol=2e-6)  # signed losses cancel
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * scale)
    assert scale > 1e-4, "a gradient of zero would prove nothing"


# Ten seconds each: one method for each way to a loss, the others in the slow tests.
FAST = ("opsd", "rlcsd", "opd", "srpo")
FIRST = [next(method for method in ONE_OF_EACH_KIND if method.name == name) for name in FAST]
BY_KIND = [pytest.param(m, marks=() if m in FIRST else pytest.mark.slow) for m in METHODS]


@pytest.mark.parametrize("method", BY_KIND, ids=repr)
def test_the_fused_step_equals_the_plain_definition(method):
    model, adapter = model_and_adapter()
    batch = batch_for(method)
    ours = fused(method, single_device_mesh(), adapter, model, batch)
    assert_close(ours, plain_loss_and_gradient(method, adapter, model, batch))


# Nearly half a minute each: a contrastive method, dense and with wrong hints, stands for all in the fast tests.
QUICK = [next(method for method in ONE_OF_EACH_KIND if method.name == name) for name in ("rlcsd",)]
BY_COST = [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in ONE_OF_EACH_KIND]


@pytest.mark.parametrize("method", BY_COST, ids=repr)
def test_loss_and_gradient_do_not_depend_on_micro_batch_padding_order_or_mesh(method):
    model, adapter = model_and_adapter()
    one, mesh = single_device_mesh(), make_mesh(2, 2, 2)
    reference = fused(method, one, adapter, model, batch_for(method))
    assert_close(fused(method, one, adapter, model, batch_for(method), micro_batches=4), reference)
    shuffled = batch_for(method, pad_to=32, spare=8, order=[3, 1, 0, 2, 7, 6, 5, 4])
    assert_close(fused(method, one, adapter, model, shuffled, micro_batches=2, chunk=7), reference)
    with jax.set_mesh(mesh):
        rows = put_rows(batch_for(method), mesh)
        sharded = fused(method, mesh, place(adapter, mesh), place(model, mesh), rows, micro_batches=2)
    assert_close(jax.device_get(sharded), reference)


def packed(batch, shards=1, micro_batches=2, tokens=None, one_row=True):
    return pack([batch], Packing(shards, None if tokens else micro_batches, tokens, one_row, multiple=8))[0]


@pytest.mark.parametrize("method", BY_COST, ids=repr)
def test_packed_rows_give_the_same_loss_and_gradient(method):
    model, adapter = model_and_adapter()
    one, mesh, batch = single_device_mesh(), make_mesh(1, 2, 2, 2), batch_for(method)
    reference = fused(method, one, adapter, model, batch)
    assert_close(fused(method, one, adapter, model, packed(batch)), reference)
    by_budget = packed(batch, tokens=48, one_row=False)
    assert by_budget.micro_batches > 1 and by_budget.source.size > by_budget.source.shape[1] * by_budget.micro_batches
    assert_close(fused(method, one, adapter, model, by_budget), reference)
    with jax.set_mesh(mesh):
        rows = put_rows(packed(batch, shards=2), mesh)
        sharded = fused(method, mesh, place(adapter, mesh), place(model, mesh), rows)
    assert_close(jax.device_get(sharded), reference)


@pytest.mark.parametrize(
    "shape",
    [pytest.param((1, 4, 2), id="without context", marks=pytest.mark.slow), pytest.param((1, 2, 2, 2), id="context")],
)
def test_full_training_equals_the_plain_definition_on_one_device_and_on_a_mesh(shape):
    cfg = ModelConfig(64, 32, 2, 4, 2, 8, 64, tie_embeddings=False)
    model, _ = model_and_adapter(cfg)
    student = jax.tree.map(lambda x: x * 1.05, model)
    method, batch, mesh = Opsd(alpha=0.5), random_batch(), make_mesh(*shape)
    reference = plain_loss_and_gradient(method, student, model, batch)
    assert_close(fused(method, single_device_mesh(), student, model, batch), reference)
    with jax.set_mesh(mesh):
        sharded = fused(method, mesh, place(student, mesh), place(model, mesh), put_rows(batch, mesh), micro_batches=2)
    assert_close(jax.device_get(sharded), reference)


def test_the_live_teacher_is_the_current_student_without_gradient():
    model, adapter = model_and_adapter()
    batch, method = random_batch(), Opsd(alpha=0.5)
    live = fused(method, single_device_mesh(), adapter, model, batch, teacher="live")
    assert_close(live, plain_loss_and_gradient(method, adapter, model, batch, teacher="live"))
    assert abs(float(live[0] - plain_loss_and_gradient(method, adapter, model, batch)[0])) > 1e-4


def test_an_empty_batch_gives_zero_loss_and_zero_gradient():
    model, adapter = model_and_adapter()
    batch = random_batch()
    empty = replace(batch, mask=batch.mask * 0)
    loss, gradient = fused(METHODS[0], single_device_mesh(), adapter, model, empty)
    assert float(loss) == 0.0
    assert float(optax.global_norm(gradient)) == 0.0


def run_updates(optimizer_config, steps=3, poison=False):
    model, adapter = model_and_adapter()
    mesh = single_device_mesh()
    optimizer, _ = make_optimizer(optimizer_config, steps)
    state = init_state(adapter, optimizer, mesh)
    update = make_update(options(Opsd(alpha=1.0)), optimizer, mesh, state)
    if poison:
        model = jax.tree.map(lambda x: x * jnp.nan, model)
    losses, metrics = [], {}
    for _ in range(steps):
        state, metrics = update(state, Models(model), random_batch())
        losses.append(float(metrics["loss"]))
    return adapter, state, losses, metrics


def test_updates_lower_the_loss():
    _, state, losses, metrics = run_updates(Optimizer(learning_rate=1e-2, schedule="constant"), steps=5)
    assert losses[-1] < losses[0]
    assert int(state.updates) == 5
    assert metrics["nonfinite"] == 0


def test_a_non_finite_loss_leaves_the_weights_alone_and_is_reported():
    before, state, losses, metrics = run_updates(Optimizer(learning_rate=1e-2), steps=1, poison=True)
    assert metrics["nonfinite"] == 1
    jax.tree.map(np.testing.assert_array_equal, state.trainable, before)


def test_the_linear_schedule_is_the_published_one():
    _, schedule = make_optimizer(Optimizer(learning_rate=2.0, schedule="linear"), steps=150)
    assert [float(schedule(k)) for k in (0, 100, 149)] == pytest.approx([2.0, 2 / 3, 2 / 150])


def test_warm_up_starts_above_zero_and_ends_at_the_peak():
    _, schedule = make_optimizer(Optimizer(learning_rate=1.0, schedule="constant", warmup_steps=4), steps=10)
    assert [float(schedule(k)) for k in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_an_update_without_a_token_leaves_the_weights_alone():
    model, adapter = model_and_adapter()
    mesh = single_device_mesh()
    optimizer, _ = make_optimizer(Optimizer(learning_rate=1e-2, weight_decay=0.1), 3)
    state = init_state(adapter, optimizer, mesh)
    update = make_update(options(Opsd(alpha=1.0)), optimizer, mesh, state)
    moved, _ = update(state, Models(model), random_batch())
    before = jax.device_get(moved.trainable)
    empty = replace(random_batch(), mask=random_batch().mask * 0)
    after, metrics = update(moved, Models(model), empty)
    jax.tree.map(np.testing.assert_array_equal, before, after.trainable)
    assert metrics["nonfinite"] == 0 and int(after.updates) == 2
