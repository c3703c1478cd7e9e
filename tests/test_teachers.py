"""Teacher weights: each kind re-scores as its formula says, and follows the student as its rule says."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jopsd.config import validate_config
from jopsd.losses import loss_from_logits
from jopsd.mesh import make_mesh, put_rows
from jopsd.methods import Grpo, Opd, Opsd, Rlsd, Sdpo
from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.models.sharding import tree_shardings
from jopsd.optimizer import make_optimizer
from jopsd.sampling.sampler import Policy
from jopsd.schema import Optimizer
from jopsd.setup import BUILTIN, load_weights, make_task
from jopsd.step import StepOptions, init_state, loss_and_gradient, make_old_logprobs, make_update
from jopsd.teachers import Models, TeacherRule, follow, initial_shadow, student_policy
from tests.golden.teachers import trajectory
from tests.runs import TINY
from tests.test_step import CFG, assert_close, model_and_adapter, random_batch, single_device_mesh

OTHER = replace(CFG, hidden_size=48, num_layers=1)


def other_model(key: int, cfg: ModelConfig = CFG):
    return jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, Decoder(cfg, jax.random.key(key)))


def logits(policy: Policy, view, length: int):
    h = policy.model.hidden(view.tokens, segments=view.segments, adapter=policy.adapter)
    return policy.model.unembed(h)[:, -length - 1 : -1]


def ours(method, rule, trainable, shadow, models, batch, mesh=None, micro_batches=2):
    options = StepOptions(method, rule, micro_batches, sampling_temperature=0.9, token_chunk=16)
    mesh = mesh or single_device_mesh()
    step = lambda t, s, m, rows: loss_and_gradient(options, mesh, t, s, m, rows)[:2]  # noqa: E731
    return jax.jit(step)(trainable, shadow, models, batch)


def definition(method, trainable, base, batch, teacher, reference=None):
    """The loss on full logits. teacher: `(trainable, view) -> logits`, a constant."""
    length = batch.targets.shape[1]

    def loss(trainable):
        student = logits(student_policy(trainable, base), batch.views["student"], length)
        teachers = {"teacher": teacher(jax.lax.stop_gradient(trainable), batch.views["teacher"])}
        if reference is not None:
            teachers["reference"] = logits(Policy(reference, None), batch.views["student"], length)
        return loss_from_logits(method, student, teachers, batch)[0]

    return jax.jit(jax.value_and_grad(loss))(trainable)


METHODS = [Opsd(alpha=0.5), Opd(correction={})]
SLOW = pytest.mark.slow


@pytest.mark.parametrize("method", [METHODS[0], pytest.param(METHODS[1], marks=pytest.mark.slow)], ids=repr)
@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["lora", "full"])
def test_a_trust_region_teacher_mixes_the_logits_of_the_initial_model_and_the_student(method, full):
    base, adapter = model_and_adapter()
    student = jax.tree.map(lambda x: x * 1.1, base) if full else adapter
    batch, length = random_batch(), random_batch().targets.shape[1]

    def mixed(trainable, view):
        initial, current = Policy(base, None), student_policy(trainable, base)
        return 0.7 * logits(initial, view, length) + 0.3 * logits(current, view, length)

    rule = TeacherRule("trust_region", mix=0.3)
    result = ours(method, rule, student, None, Models(base), batch)
    assert_close(result, definition(method, student, base, batch, mixed))


@pytest.mark.parametrize("kind", ["ema", "snapshot"])
def test_a_teacher_that_follows_reads_with_its_own_copy(kind):
    base, adapter = model_and_adapter()
    shadow = jax.tree.map(lambda x: x * 0.5, adapter)
    batch, length = random_batch(), random_batch().targets.shape[1]
    read = lambda _, view: logits(Policy(base, shadow), view, length)  # noqa: E731
    result = ours(METHODS[0], TeacherRule(kind), adapter, shadow, Models(base), batch)
    assert_close(result, definition(METHODS[0], adapter, base, batch, read))


@pytest.mark.parametrize("method", [METHODS[0], pytest.param(METHODS[1], marks=SLOW)], ids=repr)
def test_an_external_teacher_may_have_another_size(method):
    base, adapter = model_and_adapter()
    teacher = other_model(5, OTHER)
    batch, length = random_batch(), random_batch().targets.shape[1]
    read = lambda _, view: logits(Policy(teacher, None), view, length)  # noqa: E731
    result = ours(method, TeacherRule("external"), adapter, None, Models(base, external={"": teacher}), batch)
    assert_close(result, definition(method, adapter, base, batch, read))


@pytest.mark.parametrize("method", [METHODS[0], *(pytest.param(m, marks=SLOW) for m in (METHODS[1], Opd(lam=1.25)))])
@pytest.mark.parametrize("on_mesh", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["one", "mesh"])
def test_each_row_is_read_by_the_teacher_it_is_routed_to(method, on_mesh):
    base, adapter = model_and_adapter()
    teachers, reference = {"code": other_model(5, OTHER), "math": other_model(6)}, other_model(7)
    batch = replace(random_batch(), route=np.arange(8, dtype=np.int32) % 2)
    length = batch.targets.shape[1]

    def routed(_, view):
        by_label = [logits(Policy(model, None), view, length) for model in teachers.values()]
        return jnp.where((batch.route == 0)[:, None, None], *by_label)

    rule, models = TeacherRule("external", labels=("code", "math")), Models(base, reference, teachers)
    expected = definition(method, adapter, base, batch, routed, reference if method == Opd(lam=1.25) else None)
    if not on_mesh:
        return assert_close(ours(method, rule, adapter, None, models, batch), expected)
    mesh = make_mesh(2, 2, 2)
    place = lambda tree: jax.device_put(tree, tree_shardings(tree, mesh))  # noqa: E731
    with jax.set_mesh(mesh):
        rows = put_rows(batch, mesh)
        result = ours(method, rule, place(adapter), None, place(models), rows, mesh)
    assert_close(jax.device_get(result), expected)


def test_the_reference_is_another_model_where_one_is_given():
    base, adapter = model_and_adapter()
    reference, batch = other_model(7), random_batch()
    length = batch.targets.shape[1]
    read = lambda _, view: logits(Policy(base, None), view, length)  # noqa: E731
    method = Grpo(kl_coef=0.5)
    result = ours(method, TeacherRule(), adapter, None, Models(base, reference), batch)
    assert_close(result, definition(method, adapter, base, batch, read, reference))


# --- how a teacher follows


def test_an_average_follows_its_closed_form_in_float32_where_bfloat16_would_stall():
    start, end, decay, steps = 1.0, 1.5, 0.999, 3000
    student = {"w": jnp.full((4,), end, jnp.bfloat16)}
    rule = TeacherRule("ema", decay=decay)
    shadow = initial_shadow(rule, {"w": jnp.full((4,), start, jnp.bfloat16)})
    assert shadow["w"].dtype == jnp.float32
    step = jax.jit(lambda s, k: follow(rule, s, student, k))
    for update in range(1, steps + 1):
        shadow = step(shadow, jnp.asarray(update))
    np.testing.assert_allclose(shadow["w"], end + (start - end) * decay**steps, rtol=1e-4)
    stalled = jnp.bfloat16(start)
    for _ in range(steps):
        stalled = jnp.bfloat16(decay) * stalled + jnp.bfloat16(1 - decay) * jnp.bfloat16(end)
    assert float(stalled) == start, "the reason for float32"


def test_every_counts_updates_between_moves():
    weights = np.arange(1.0, 8.0, dtype=np.float32)[:, None]
    snapshot = trajectory(TeacherRule("snapshot", every=3), np.zeros(1, np.float32), weights)
    assert snapshot[:, 0].tolist() == [0, 0, 3, 3, 3, 6, 6]
    average = trajectory(TeacherRule("ema", decay=0.5, every=2), np.zeros(1, np.float32), weights)
    assert average[:, 0].tolist() == [0, 1, 1, 2.5, 2.5, 4.25, 4.25]


def run_updates(rule, method, updates, batch, **options):
    base, adapter = model_and_adapter()
    mesh = single_device_mesh()
    optimizer, _ = make_optimizer(Optimizer(learning_rate=1e-2, schedule="constant"), updates)
    options = StepOptions(method, rule, 1, sampling_temperature=1.0, token_chunk=16, **options)
    state = init_state(adapter, optimizer, mesh, rule)
    update = make_update(options, optimizer, mesh, state)
    seen = []
    for _ in range(updates):
        state, metrics = update(state, Models(base), batch)
        seen.append((jax.device_get(state), metrics))
    return base, adapter, seen


def test_the_update_moves_the_teacher_with_the_student():
    rule = TeacherRule("ema", decay=0.9)
    _, adapter, seen = run_updates(rule, Opsd(alpha=1.0), 3, random_batch())
    expected = adapter
    for state, _ in seen:
        expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, expected, state.trainable)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.teacher, expected)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), seen[-1][0].teacher, adapter)
    assert max(jax.tree.leaves(moved)) > 1e-3


# --- several updates on one batch of rollouts


def test_old_logprobs_are_those_of_the_policy_before_the_first_update():
    base, adapter = model_and_adapter()
    method, batch = Rlsd(temperature=0.9), random_batch()
    options = StepOptions(method, TeacherRule(), 2, sampling_temperature=0.9, token_chunk=16, updates_per_step=2)
    old = make_old_logprobs(replace(options, micro_batches=4), single_device_mesh())(adapter, Models(base), batch)
    student = logits(Policy(base, adapter), batch.views["student"], batch.targets.shape[1])
    expected = jnp.take_along_axis(jax.nn.log_softmax(student / 0.9), batch.targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(old, np.where(batch.mask != 0, expected, 0), atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", [Grpo(), Sdpo(top_k=8)], ids=repr)
def test_a_second_update_on_the_same_rollouts_weighs_by_the_ratio_to_the_first_policy(method):
    base, adapter = model_and_adapter()
    later = jax.tree.map(lambda x: x * 1.3, adapter)
    batch, length = random_batch(), random_batch().targets.shape[1]
    options = StepOptions(method, TeacherRule(), 1, sampling_temperature=1.0, token_chunk=16)
    old = make_old_logprobs(replace(options, micro_batches=4), single_device_mesh())(adapter, Models(base), batch)
    batch = replace(batch, old_logprobs=old)
    read = lambda _, view: logits(Policy(base, None), view, length)  # noqa: E731
    result = ours(method, TeacherRule(), later, None, Models(base), batch)
    assert_close(result, definition(method, later, base, batch, read))
    on_policy = ours(method, TeacherRule(), later, None, Models(base), replace(batch, old_logprobs=None))
    assert abs(float(result[0] - on_policy[0])) > 1e-4


def test_schedules_of_methods_count_steps_and_not_updates():
    """Two updates per step: lambda has decayed to 0 after the first step, so GRPO without dual clip is left."""
    batch = random_batch()
    shared = {"updates_per_step": 2}
    _, _, decayed = run_updates(TeacherRule(), Rlsd(lam=1.0, lam_decay_steps=1), 4, batch, **shared)
    _, _, constant = run_updates(TeacherRule(), Rlsd(lam=1.0, lam_decay_steps=0), 2, batch, **shared)
    for (_, a), (_, b) in zip(decayed[:2], constant, strict=True):
        assert float(a["loss"]) == float(b["loss"])
    state = decayed[1][0]
    base = model_and_adapter()[0]
    plain = ours(Grpo(dual_clip=None), TeacherRule(), state.trainable, None, Models(base), batch, micro_batches=1)
    np.testing.assert_allclose(float(decayed[2][1]["loss"]), float(plain[0]), rtol=1e-5)


def test_a_teacher_that_pads_its_vocabulary_further_reads_like_one_that_does_not(tmp_path):
    """Sizes of one family differ in unused rows; here the expert gets eight more, which hold anything."""
    padded = shutil.copytree(BUILTIN["builtin:sums_expert"], tmp_path / "padded")
    tensors = load_file(padded / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = np.concatenate([table, np.full((8, table.shape[1]), 3, table.dtype)])
    save_file(tensors, padded / "model.safetensors")
    facts = json.loads((padded / "config.json").read_text()) | {"vocab_size": 136}
    (padded / "config.json").write_text(json.dumps(facts))

    def teacher(path):
        external = {"kind": "external", "path": str(path)}
        context = {"name": "plain", "student_template": "{problem}", "instruction": ""}
        tree = {**TINY, "output_dir": "x", "method": {"name": "opd"}, "context": context, "teacher": external}
        config = validate_config(tree, "test")
        make_task(config)
        return load_weights(config, make_mesh(1, 4, 2)).models.external[""]

    one, other = teacher(padded), teacher(BUILTIN["builtin:sums_expert"])
    assert one.cfg.vocab_size == other.cfg.vocab_size == 128
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))
    assert one.embed[...].sharding == other.embed[...].sharding
