"""The fused vocabulary loss against full logits in float64, a checkpointed map in float32, numpy, and on meshes."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jopsd.batch import TrainBatch
from jopsd.losses import entropy, fused_loss, fused_statistics, loss_from_logits, token_logprobs
from jopsd.mesh import make_mesh
from jopsd.methods import Opsd, PwOpsd, Sft
from jopsd.plan.hlo import collectives

METHODS = {
    "kl_teacher_student": Opsd(alpha=0.0),
    "jsd": Opsd(alpha=0.5),
    "kl_student_teacher": Opsd(alpha=1.0, reduction="sequence_mean"),
    "clipped": Opsd(alpha=0.5, entry_clip=0.05),
    "top_k_and_tail": Opsd(alpha=1.0, loss="topk", top_k=5),
    "top_k_renormalised": Opsd(alpha=0.0, loss="topk", top_k=5, tail=False),
    "sampled": Opsd(loss="sampled"),
    "position_weighted": PwOpsd(alpha=0.3),
    "sft": Sft(),
}


def case(batch=8, length=5, width=6, teacher_width=9, vocab=24, dtype=np.float32, seed=0):
    """(student hidden, teacher hidden {view: ..}, heads, TrainBatch); the mask has holes, an empty row, a last hole."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(dtype)  # noqa: E731
    mask = (rng.uniform(size=(batch, length)) < 0.7).astype(np.int32)
    mask[batch // 3], mask[0], mask[-1, -1] = 0, 1, 0
    heads = {"student": normal(vocab, width), "teacher": normal(vocab, teacher_width) * (width / teacher_width) ** 0.5}
    targets = rng.integers(0, vocab, mask.shape).astype(np.int32)
    hidden = {"teacher": normal(batch, length, teacher_width)}
    return normal(batch, length, width), hidden, heads, TrainBatch(targets, mask)


def fused(method, hidden, teachers, heads, batch, **options):
    """(loss, statistics) with the method's own weights."""
    if not method.views:
        teachers, heads = {}, {"student": heads["student"]}
    constants = method.weigh({}, batch, 0)
    settings = {"temperature": method.temperature, "chunk": 7, **options}
    return fused_loss(method.value, hidden, teachers, heads, batch.targets, constants, batch.mask, **settings)


def plain(method, hidden, teachers, heads, batch):
    """The definition, from full logits."""
    logits = {view: h @ heads[view].T for view, h in teachers.items() if view in method.views}
    return loss_from_logits(method, hidden @ heads["student"].T, logits, batch)


def checkpointed(method, hidden, teachers, heads, batch, chunk=5):
    """Another way to the same loss: recomputation in a mapped backward pass, over all tokens, one by one masked."""
    flat = lambda x: x.reshape(-1, chunk, *x.shape[2:])  # noqa: E731
    rows = jax.tree.map(flat, (hidden, teachers, batch.targets, method.weigh({}, batch, 0), batch.mask))
    softmax = lambda h, head: jax.nn.log_softmax(h @ head.T / method.temperature, axis=-1)  # noqa: E731

    @jax.checkpoint
    def one(rows):
        hidden, teachers, targets, constants, mask = rows
        teachers = {view: jax.lax.stop_gradient(softmax(h, heads[view])) for view, h in teachers.items()}
        return (mask * method.value(softmax(hidden, heads["student"]), teachers, targets, constants)).sum()

    return jax.lax.map(one, rows).sum(), {}


def gradients(path, method, hidden, teachers, heads, batch, **options):
    """((loss, statistics), (gradient of hidden, gradient of the student's head))."""

    def loss(hidden, head):
        return path(method, hidden, teachers, {**heads, "student": head}, batch, **options)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(hidden, heads["student"])


def assert_equal(ours, want, tolerance):
    """Loss and gradients agree, relative to the gradient's size."""
    np.testing.assert_allclose(ours[0][0], want[0][0], rtol=tolerance)
    for a, b in zip(ours[1], want[1], strict=True):
        assert (scale := np.linalg.norm(b)) > 1e-3, "a gradient of zero would prove nothing"
        np.testing.assert_allclose(a, b, atol=tolerance * scale)


@pytest.mark.parametrize("name", METHODS)
def test_fused_equals_full_logits_in_float64(name):
    with jax.enable_x64(True):
        arguments = case(dtype=np.float64)
        ours = gradients(fused, METHODS[name], *arguments)
        assert_equal(ours, gradients(plain, METHODS[name], *arguments), 1e-11)
        assert ours[0][0].dtype == ours[1][0].dtype == ours[1][1].dtype == jnp.float64


@pytest.mark.parametrize("name", METHODS)
def test_fused_equals_a_checkpointed_map_in_float32(name):
    arguments = case()
    ours = gradients(fused, METHODS[name], *arguments)
    assert_equal(ours, gradients(checkpointed, METHODS[name], *arguments), 3e-6)


@pytest.mark.parametrize("chunk", [1, 13, 40, 1000])
def test_the_chunk_size_changes_nothing(chunk):
    method, arguments = METHODS["jsd"], case()
    assert_equal(gradients(fused, method, *arguments, chunk=chunk), gradients(plain, method, *arguments), 3e-6)


def test_a_frozen_head_has_no_gradient_and_leaves_the_hidden_gradient_alone():
    method, arguments = METHODS["jsd"], case()
    trained, frozen = gradients(fused, method, *arguments), gradients(fused, method, *arguments, train_head=False)
    np.testing.assert_allclose(frozen[1][0], trained[1][0], atol=1e-7)
    np.testing.assert_array_equal(frozen[1][1], 0)


def test_an_empty_mask_gives_zero_loss_and_gradient_even_from_nan():
    hidden, teachers, heads, batch = case()
    nothing = TrainBatch(batch.targets, 0 * batch.mask)
    (loss, _), gradient = gradients(fused, METHODS["jsd"], hidden * np.nan, teachers, heads, nothing)
    assert float(loss) == 0
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), gradient)


@pytest.mark.parametrize("name", ["jsd", "top_k_and_tail"])
def test_nan_beyond_the_mask_is_never_read(name):
    hidden, teachers, heads, batch = case()
    valid = batch.mask == 1
    poison = lambda x: np.where(valid[..., None], x, np.nan).astype(x.dtype)  # noqa: E731
    dirty = TrainBatch(np.where(valid, batch.targets, -100).astype(np.int32), batch.mask)
    clean = gradients(fused, METHODS[name], hidden, teachers, heads, batch)
    ours = gradients(fused, METHODS[name], poison(hidden), jax.tree.map(poison, teachers), heads, dirty)
    assert valid.sum() % 7 and not valid[-1, -1], "the last chunk must have idle places, the last token must be masked"
    jax.tree.map(np.testing.assert_array_equal, ours, clean)
    np.testing.assert_array_equal(np.asarray(ours[1][0])[~valid], 0)


def test_only_the_students_hidden_states_and_head_have_a_gradient_and_it_scales_with_the_cotangent():
    hidden, teachers, heads, batch = case()
    constants = METHODS["jsd"].weigh({}, batch, 0)

    def loss(hidden, teachers, heads, constants, scale):
        value, statistics = fused_loss(
            METHODS["jsd"].value, hidden, teachers, heads, batch.targets, constants, batch.mask,
            chunk=7, statistics=lambda s, t, y, vocab_axis: {"entropy": entropy(s, vocab_axis)},
        )  # fmt: skip
        return scale * value + statistics["entropy"].sum()  # statistics are constants

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
    one, three = (gradient(hidden, teachers, heads, constants, jnp.float32(x)) for x in (1, 3))
    for zero in (one[1]["teacher"], one[2]["teacher"], one[3]["weight"]):
        np.testing.assert_array_equal(zero, 0)
    for a, b in ((one[0], three[0]), (one[2]["student"], three[2]["student"])):
        assert np.abs(a).max() > 1e-4
        np.testing.assert_allclose(3 * a, b, rtol=1e-6)


def two_statistics(student, teachers, targets, vocab_axis=None):
    views = {"student": student, **teachers}
    return {f"{v}.logprob": token_logprobs(x, targets, vocab_axis) for v, x in views.items()} | {
        f"{v}.entropy": entropy(x, vocab_axis) for v, x in views.items()
    }


def numpy_statistics(hidden, teachers, heads, batch, temperature):
    table = {}
    for view, h in {"student": hidden, **teachers}.items():
        z = np.einsum("btd,vd->btv", h, heads[view], dtype=np.float64) / temperature
        logprobs = z - np.log(np.exp(z).sum(-1, keepdims=True))
        picked = np.take_along_axis(logprobs, batch.targets[..., None], -1)[..., 0]
        table[f"{view}.logprob"] = np.where(batch.mask == 1, picked, 0)
        table[f"{view}.entropy"] = np.where(batch.mask == 1, -(np.exp(logprobs) * logprobs).sum(-1), 0)
    return table


def test_statistics_come_back_by_token_with_and_without_the_loss():
    hidden, teachers, heads, batch = case()
    want = numpy_statistics(hidden, teachers, heads, batch, 1.1)
    (_, trained), _ = gradients(fused, METHODS["jsd"], hidden, teachers, heads, batch, statistics=two_statistics)
    _, forward = fused(METHODS["jsd"], hidden, teachers, heads, batch, statistics=two_statistics)
    views = {"student": hidden, **teachers}
    scored = fused_statistics(two_statistics, views, heads, batch.targets, batch.mask, temperature=1.1, chunk=7)
    for ours in (trained, forward, scored):
        assert ours.keys() == want.keys()
        jax.tree.map(partial(np.testing.assert_allclose, atol=3e-6), dict(ours), want)


def test_statistics_of_a_teacher_alone_need_no_student():
    _, teachers, heads, batch = case()
    statistic = lambda s, t, y, vocab_axis: {"lp": token_logprobs(t["teacher"], y, vocab_axis)}  # noqa: E731
    head = {"teacher": heads["teacher"]}
    ours = fused_statistics(statistic, teachers, head, batch.targets, batch.mask, temperature=1.1, chunk=7)
    want = numpy_statistics(np.zeros((8, 5, 6)), teachers, heads, batch, 1.1)["teacher.logprob"]
    np.testing.assert_allclose(ours["lp"], want, atol=3e-6)


# --- precision


def kl_by_hand(student_logits, teacher_logits, hidden, head):
    """(mean token KL(teacher || student), gradients of hidden and head); rows are tokens."""
    softmax = lambda z: (e := np.exp(z - z.max(-1, keepdims=True))) / e.sum(-1, keepdims=True)  # noqa: E731
    student, teacher = softmax(student_logits), softmax(teacher_logits)
    dlogits = (student - teacher) / len(hidden)
    return (teacher * np.log(teacher / student)).sum(-1).mean(), dlogits @ head, dlogits.T @ hidden


def test_bfloat16_inputs_keep_the_gradient_although_bfloat16_logits_would_lose_it():
    rng = np.random.default_rng(0)
    rounded = lambda x: jnp.asarray(x, jnp.bfloat16)  # noqa: E731
    head = rounded(rng.normal(size=(8192, 64)) * 0.6)
    hidden = rng.normal(size=(48, 64))
    student, teacher = rounded(hidden), rounded(hidden + 0.008 * rng.normal(size=hidden.shape))
    exact = [np.asarray(x, np.float64) for x in (student, teacher, head)]
    student_logits, teacher_logits = exact[0] @ exact[2].T, exact[1] @ exact[2].T
    kl, *want = kl_by_hand(student_logits, teacher_logits, exact[0], exact[2])
    assert 5e-4 < kl < 2e-3 and 15 < np.abs(student_logits).max() < 30, "the case must look like a language model"

    batch = TrainBatch(np.zeros((1, 48), np.int32), np.ones((1, 48), np.int32))
    heads = {"student": head, "teacher": head}
    arguments = (student[None], {"teacher": teacher[None]}, heads, batch)
    (loss, _), (dh, dw) = gradients(fused, Opsd(temperature=1.0), *arguments, chunk=32)
    coarse = [np.asarray(rounded(z), np.float64) for z in (student_logits, teacher_logits)]
    _, *lost = kl_by_hand(*coarse, exact[0], exact[2])

    error = lambda x, y: np.linalg.norm(np.asarray(x, np.float64) - y) / np.linalg.norm(y)  # noqa: E731
    assert dh.dtype == dw.dtype == jnp.bfloat16 and loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(kl, rel=1e-3)
    assert error(dh[0], want[0]) < 5e-3 and error(dw, want[1]) < 5e-3
    assert error(lost[0], want[0]) > 0.1 and error(lost[1], want[1]) > 0.1


def test_a_float32_head_over_bfloat16_hidden_states_gets_a_float32_gradient():
    hidden, teachers, heads, batch = case()
    hidden, teachers = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (hidden, teachers))
    (loss, _), (dh, dw) = gradients(fused, METHODS["jsd"], hidden, teachers, heads, batch)
    assert (loss.dtype, dh.dtype, dw.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    rest = np.asarray(dw) - np.asarray(dw.astype(jnp.bfloat16), np.float32)
    assert np.abs(rest).max() > 0, "an accumulator rounded to bfloat16 on the way"


# --- meshes


def place(mesh, hidden, teachers, heads, batch):
    tokens, vocab = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P("tensor"))
    return (*jax.device_put((hidden, teachers), tokens), jax.device_put(heads, vocab), jax.device_put(batch, tokens))


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 1, 8), (8, 1, 1), (2, 1, 2, 2)])
@pytest.mark.parametrize("name", ["clipped", "top_k_and_tail"])
def test_every_mesh_gives_the_same_loss_gradients_and_statistics(shape, name):
    mesh, arguments = make_mesh(*shape), case()
    counts = arguments[3].mask.sum(1)
    assert counts.min() == 0 < counts.max(), "shards must differ in their number of chunks, one having none"
    options = {"statistics": two_statistics, "chunk": 2}
    with jax.set_mesh(mesh):
        ours = jax.device_get(gradients(fused, METHODS[name], *place(mesh, *arguments), mesh=mesh, **options))
    assert_equal(ours, gradients(plain, METHODS[name], *arguments), 3e-6)
    want = numpy_statistics(*arguments, METHODS[name].temperature)
    jax.tree.map(partial(np.testing.assert_allclose, atol=3e-6), dict(ours[0][1]), want)


def test_the_loop_exchanges_only_numbers_per_token_and_nothing_is_gathered():
    mesh, chunk = make_mesh(2, 2, 2), 4
    arguments = case(8, 16, 16, 16, 128)

    def compiled(mesh_argument, arguments):
        loss = lambda h, t, heads, batch: fused(METHODS["jsd"], h, t, heads, batch, chunk=chunk, mesh=mesh_argument)  # noqa: E731
        run = jax.jit(jax.value_and_grad(lambda h, w, t, heads, b: loss(h, t, {**heads, "student": w}, b)[0], (0, 1)))
        hidden, teachers, heads, batch = arguments
        text = run.lower(hidden, heads["student"], teachers, heads, batch).compile().as_text()
        return [(c.kind, math.prod(c.largest[1]), c.dynamic) for c in collectives(text)]

    placed = place(mesh, *arguments)
    with jax.set_mesh(mesh):
        ours, left_to_the_compiler = compiled(mesh, placed), compiled(None, placed)
    assert {op for op, _, _ in ours} <= {"all-reduce", "reduce-scatter"}
    assert [size for _, size, looped in ours if looped] and all(size <= chunk for _, size, looped in ours if looped)
    # The reader of HLO must be able to see what it looks for: without shard_map tokens are gathered and logits or
    # gradients reduced in every chunk.
    assert [op for op, _, _ in left_to_the_compiler if op == "all-gather"]
    assert [size for _, size, looped in left_to_the_compiler if looped and size > chunk]


# --- memory


def temp_bytes(path, length, width=16, vocab=1024, **options):
    hidden, teachers, heads, batch = case(3, length, width, width, vocab)

    def loss(hidden, head, teachers, other, batch):
        return path(METHODS["jsd"], hidden, teachers, {"student": head, "teacher": other}, batch, **options)[0]

    compiled = (
        jax.jit(jax.grad(loss, (0, 1))).lower(hidden, heads["student"], teachers, heads["teacher"], batch).compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes


def test_temporary_memory_does_not_grow_with_length_beyond_the_gradient_of_the_hidden_states():
    more_tokens = 3 * (256 - 64)
    per_token = 4 * 16 * 2 + 64  # gradient of the hidden states, once accumulated and once cast, and a few numbers
    growth = temp_bytes(fused, 256, chunk=16) - temp_bytes(fused, 64, chunk=16)
    assert growth <= more_tokens * per_token
    full_logits = temp_bytes(plain, 256) - temp_bytes(plain, 64)
    assert full_logits >= more_tokens * 1024 * 4 * 2 > 10 * growth
