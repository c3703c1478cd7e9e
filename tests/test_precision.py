"""Parameters in fewer bits: bfloat16 that trains without losing small updates, int8 for the sampler alone."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jopsd.methods import Opsd
from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.models.products import kernel_product
from jopsd.models.quantize import Int8, int8_projections, quantize
from jopsd.models.sharding import tree_shardings
from jopsd.optimizer import make_optimizer, stochastic_bfloat16
from jopsd.sampling import Policy, Request, SamplingParams, make_sampler
from jopsd.schema import Optimizer
from jopsd.step import StepOptions, init_state, make_update
from jopsd.teachers import Models, TeacherRule
from tests.runs import write_config
from tests.test_step import random_batch, single_device_mesh

CFG = ModelConfig(64, 32, 2, 4, 2, 8, 64, tie_embeddings=True, param_dtype="bfloat16")

# ------------------------------------------------------------------------------------------------------ bfloat16


def test_stochastic_rounding_gives_a_neighbour_and_the_value_on_average():
    x = jnp.float32(1 + 0.3 / 128)  # 0.3 of the way from 1 to the next bfloat16
    drawn = np.asarray(stochastic_bfloat16(jnp.full(100_000, x), jax.random.key(0)), np.float64)
    assert set(drawn) == {1.0, 1 + 1 / 128}
    standard_error = np.sqrt(0.3 * 0.7 / 100_000) / 128
    assert abs(drawn.mean() - float(x)) < 4 * standard_error


def test_stochastic_rounding_keeps_what_is_representable_signed_infinite_or_nan():
    exact = jnp.array([0.0, -0.0, 1.5, -2.0, 1e-38, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    exact = exact.astype(jnp.bfloat16).astype(jnp.float32)
    for seed in range(20):
        np.testing.assert_array_equal(stochastic_bfloat16(exact, jax.random.key(seed)).astype(jnp.float32), exact)
    negative = np.asarray(stochastic_bfloat16(jnp.full(1000, -1.003, jnp.float32), jax.random.key(1)), np.float32)
    assert set(negative) == {-1.0, np.float32(-1 - 1 / 128)}


def trained(cfg: ModelConfig, steps: int, learning_rate: float, seed: int = 0):
    """(initial model, state) after `steps` of OPSD on one batch, with all parameters training."""
    model = jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, Decoder(cfg, jax.random.key(0)))
    mesh = single_device_mesh()
    optimizer, _ = make_optimizer(Optimizer(learning_rate=learning_rate, schedule="constant", clip_norm=None), steps)
    options = StepOptions(Opsd(alpha=1.0), TeacherRule("fixed"), 1, 1.0, token_chunk=16, seed=seed)
    state = init_state(model, optimizer, mesh)
    base = jax.tree.map(lambda x: jnp.copy(x.astype(cfg.dtype)), model)
    update = make_update(options, optimizer, mesh, state)
    for _ in range(steps):
        state, metrics = update(state, Models(base=base), random_batch())
    return model, state


def test_bfloat16_parameters_have_a_float32_optimiser_and_stay_bfloat16():
    _, state = trained(CFG, 2, 1e-3)
    assert {str(x.dtype) for x in jax.tree.leaves(state.trainable)} == {"bfloat16"}
    moments = {str(x.dtype) for x in jax.tree.leaves(state.optimizer) if jnp.issubdtype(x.dtype, jnp.floating)}
    assert moments == {"float32"}


def test_updates_far_below_the_spacing_of_bfloat16_move_its_parameters_as_they_move_float32():
    rate, steps = 1e-5, 30  # spacing near 0.08 is 5e-4: rounded to the nearest, nothing would ever move
    wide_start, wide = trained(replace(CFG, param_dtype="float32"), steps, rate)
    start, narrow = trained(CFG, steps, rate)
    exact = lambda tree: np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree.layers)])  # noqa: E731
    initial, moved = exact(start), exact(narrow.trainable) - exact(start)
    wanted = exact(wide.trainable) - exact(wide_start)
    large = np.abs(initial) > 0.05  # where the nearest bfloat16 is far away
    assert np.abs(wanted[large]).max() < 4e-4 and np.abs(wanted[large]).mean() > 1e-4
    # Each moves by 0 or a whole spacing; together they move as far in the wanted direction as float32 does.
    along = (moved * np.sign(wanted))[large]
    assert along.mean() == pytest.approx(np.abs(wanted[large]).mean(), rel=0.1)


def test_the_seed_decides_the_rounding():
    leaves = lambda seed: jax.tree.leaves(trained(CFG, 2, 1e-4, seed)[1].trainable)  # noqa: E731
    assert any((a != b).any() for a, b in zip(leaves(0), leaves(1), strict=True))


# ------------------------------------------------------------------------------------------------------ int8


def test_int8_is_within_half_a_step_of_the_kernel_column_by_column():
    kernel = jax.random.normal(jax.random.key(0), (3, 40, 7)) * jnp.exp(jnp.arange(7.0) - 3)
    kernel = kernel.at[1, :, 2].set(0)
    rounded = quantize(kernel)
    assert rounded.value.dtype == jnp.int8 and rounded.scale.shape == (3, 1, 7)
    error = np.abs(rounded.value * rounded.scale - kernel)
    assert (error <= jnp.abs(kernel).max(axis=1, keepdims=True) / 253.9).all()
    assert (np.asarray(rounded.value)[1, :, 2] == 0).all()


def test_a_product_with_int8_is_the_product_with_what_it_stands_for():
    h, kernel = jax.random.normal(jax.random.key(0), (5, 40)), jax.random.normal(jax.random.key(1), (1, 40, 7))
    rounded = quantize(kernel)
    meant = (rounded.value * rounded.scale)[0]
    one = Int8(rounded.value[0], rounded.scale[0])
    np.testing.assert_allclose(kernel_product(h, one), h @ meant, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(kernel_product(h, nnx.Param(meant)), h @ meant, rtol=1e-6)


def test_only_projections_are_rounded_and_the_model_given_keeps_its_own():
    model = Decoder(CFG, jax.random.key(0))
    before = jax.tree.leaves(model)
    small = jax.jit(int8_projections)(model)
    kernels = {name: getattr(small.layers, name) for name in CFG.projections}
    assert all(isinstance(kernel, Int8) for kernel in kernels.values())
    for name in ("attn_norm", "mlp_norm", "q_norm", "k_norm"):
        np.testing.assert_array_equal(getattr(small.layers, name)[...], getattr(model.layers, name)[...])
    np.testing.assert_array_equal(small.embed[...], model.embed[...])
    assert all(a is b for a, b in zip(jax.tree.leaves(model), before, strict=True))
    assert sum(k.value.nbytes for k in kernels.values()) * 2 == sum(
        getattr(model.layers, name)[...].nbytes for name in CFG.projections
    )


def test_int8_projections_are_sharded_as_the_kernels_they_stand_for():
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
    shapes = jax.eval_shape(lambda: int8_projections(Decoder(CFG, jax.random.key(0))))
    shardings = tree_shardings(shapes, mesh)
    assert shardings.layers.q.value.spec == jax.P(None, "fsdp", "tensor")
    assert shardings.layers.down.value.spec == jax.P(None, "tensor", "fsdp")


def test_a_sampler_reports_the_log_probabilities_of_the_int8_policy_that_it_draws_from():
    cfg = replace(CFG, param_dtype="float32")
    exact = jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, Decoder(cfg, jax.random.key(0)))
    policy = Policy(jax.jit(int8_projections)(exact), None)
    sampler = make_sampler("loop", cfg, policy, slots=2, max_length=32, chunk=4)
    request = Request((3, 4, 5), 2, 0, SamplingParams(20))
    for completion in sampler.sample([request]):
        tokens = np.concatenate([completion.prompt_ids, completion.completion_ids])
        taken = partial(forced_logprobs, tokens=tokens, prompt=3)
        np.testing.assert_allclose(completion.logprobs, taken(policy.model), atol=1e-4)
        gap = np.abs(completion.logprobs - taken(exact))
        assert 1e-4 < gap.mean() < 0.1  # rounding shows, and is small
    sampler.close()


def forced_logprobs(model: Decoder, tokens: np.ndarray, prompt: int) -> np.ndarray:
    logits = model.unembed(model.hidden(jnp.asarray(tokens[None], jnp.int32)))[0]
    return np.asarray(jax.nn.log_softmax(logits))[np.arange(prompt - 1, len(tokens) - 1), tokens[prompt:]]


# ------------------------------------------------------------------------------------------------------ one copy


def test_under_lora_one_copy_of_the_base_serves_student_teacher_and_sampler(tmp_path):
    from jopsd.config import load_config
    from jopsd.mesh import make_mesh
    from jopsd.setup import load_weights
    from jopsd.teachers import student_policy, teacher_readers

    config = load_config(write_config(tmp_path, model={"dtype": "bfloat16"}))
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    before = {id(x) for x in jax.live_arrays()}
    weights = load_weights(config, mesh)
    new = sum(x.nbytes for x in jax.live_arrays() if id(x) not in before)
    base = sum(x.nbytes for x in jax.tree.leaves(weights.models.base))
    adapter = sum(x.nbytes for x in jax.tree.leaves(weights.state.trainable))
    assert new < base + 3 * adapter + 10_000  # the adapter and its two moments
    assert {str(x.dtype) for x in jax.tree.leaves(weights.models.base)} == {"bfloat16"}
    assert {str(x.dtype) for x in jax.tree.leaves(weights.state.trainable)} == {"float32"}
    student = student_policy(weights.state.trainable, weights.models.base)
    [teacher] = teacher_readers(TeacherRule("fixed"), weights.state.trainable, None, weights.models)[""].policies
    assert student.model is teacher.model is weights.models.base and teacher.adapter is None
