"""Attention backends against each other and against a loop over queries. The kernels run interpreted or as XLA here."""

from dataclasses import replace
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopsd.mesh import make_mesh
from jopsd.models import attention
from jopsd.models.attention import Sight, choose, cudnn_attention, flash_attention, splash_attention, xla_attention
from jopsd.models.blocks import block_attention
from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.models.rope import Yarn

B, T, HEADS, KV_HEADS, SIZE = 2, 40, 4, 2, 16
# Left padding, and two segments in a row with padding on both sides.
SEGMENTS = np.array([[0] * 7 + [1] * 33, [0] * 2 + [1] * 15 + [2] * 20 + [0] * 3], np.int32)
KERNELS = {
    "splash": partial(splash_attention, interpret=True),
    # The call is the same on a GPU but for the name of the implementation.
    "cudnn": partial(cudnn_attention, implementation="xla"),
    "blocks": block_attention,
}


def arrays(batch=B, length=T, heads=HEADS, kv_heads=KV_HEADS, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = (batch, length, heads, SIZE), (batch, kv_heads, length, SIZE), (batch, kv_heads, length, SIZE)
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def by_hand(q, k, v, segments, window):
    """The definition, query by query, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, t, n in product(range(q.shape[0]), range(q.shape[1]), range(q.shape[2])):
        first = 0 if window is None else max(0, t - window + 1)
        seen = [s for s in range(first, t + 1) if segments[b, s] == segments[b, t]]
        scores = k[b, n // (q.shape[2] // k.shape[1]), seen] @ q[b, t, n] / SIZE**0.5
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights @ v[b, n // (q.shape[2] // k.shape[1]), seen] / weights.sum()
    return out


def through_xla(q, k, v, segments, window):
    sight = Sight(segments, segments, jnp.arange(segments.shape[1])[None], window)
    return xla_attention(q, k, v, sight.mask())


@pytest.mark.parametrize("window", [None, 1, 5, 64])
@pytest.mark.parametrize("name", ["xla", *KERNELS])
def test_every_backend_equals_the_definition(name, window):
    q, k, v = arrays()
    run = KERNELS.get(name, through_xla)
    out = run(q, k, v, jnp.asarray(SEGMENTS), window)
    np.testing.assert_allclose(out, by_hand(q, k, v, SEGMENTS, window), atol=2e-5, rtol=0)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("name", KERNELS)
def test_every_backend_has_the_gradient_of_xla(name, window):
    segments = jnp.asarray(SEGMENTS)
    weight = jax.random.normal(jax.random.key(9), (B, T, HEADS, SIZE)) * (segments != 0)[..., None, None]

    def gradients(run):
        return jax.grad(lambda q, k, v: (run(q, k, v, segments, window) * weight).sum(), argnums=(0, 1, 2))(*arrays())

    for ours, expected in zip(gradients(KERNELS[name]), gradients(through_xla), strict=True):
        np.testing.assert_allclose(ours, expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("length", [1, 127, 128, 300])
def test_splash_takes_any_length(length):
    q, k, v = arrays(1, length)
    segments = jnp.ones((1, length), jnp.int32)
    out = splash_attention(q, k, v, segments, None, interpret=True)
    np.testing.assert_allclose(out, through_xla(q, k, v, segments, None), atol=2e-5, rtol=0)


@pytest.mark.slow
def test_cudnn_is_given_even_lengths(monkeypatch):
    attend, lengths = jax.nn.dot_product_attention, []

    def recorded(q, *args, **kwargs):
        lengths.append(q.shape[1])
        return attend(q, *args, **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    for length in (6, 7):
        q, k, v = arrays(1, length)
        segments = jnp.ones((1, length), jnp.int32)
        out = KERNELS["cudnn"](q, k, v, segments, 3)
        np.testing.assert_allclose(out, through_xla(q, k, v, segments, 3), atol=2e-5, rtol=0)
    assert lengths == [6, 8]


@pytest.mark.parametrize(
    ("shape", "heads", "kv_heads"),
    [((2, 2, 2), 4, 2), ((1, 2, 4), 8, 2), ((2, 1, 4), 4, 1), ((8, 1, 1), 4, 2), ((1, 1, 8), 4, 2)],
    ids=["split", "repeated", "one kv head", "rows", "whole heads"],
)
def test_a_kernel_on_a_mesh_equals_one_device(shape, heads, kv_heads, monkeypatch):
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    monkeypatch.setitem(attention.FLASH, "splash", KERNELS["splash"])
    q, k, v = arrays(8, T, heads, kv_heads)
    segments = jnp.asarray(np.tile(SEGMENTS, (4, 1)))
    expected = through_xla(q, k, v, segments, 5)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(shape), ("data", "fsdp", "tensor"))
    run = jax.jit(partial(flash_attention, "splash", window=5))
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(run(q, k, v, segments), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("window", [None, 150])
@pytest.mark.parametrize("name", KERNELS)
def test_columns_split_over_the_context_axis_see_what_they_see_on_one_device(name, window, monkeypatch):
    monkeypatch.setitem(attention.FLASH, name, KERNELS[name])
    keys = jax.random.split(jax.random.key(3), 4)
    q, k, v, weight = (jax.random.normal(key, (2, 300, 4, SIZE)) for key in keys)
    k, v = k[:, :, :2].swapaxes(1, 2), v[:, :, :2].swapaxes(1, 2)
    segments = jnp.asarray(np.repeat([[0, 1, 2], [0, 1, 0]], [7, 200, 93], axis=1))
    real = (segments != 0)[..., None, None]

    def outputs(run, q, k, v):
        summed = lambda q, k, v: (jnp.where(real, run(q, k, v, segments, window), 0) * weight).sum()  # noqa: E731
        return jax.value_and_grad(summed, (0, 1, 2))(q, k, v)

    expected = outputs(through_xla, q, k, v)
    with jax.set_mesh(make_mesh(1, 2, 2, 2)):
        ours = jax.jit(partial(outputs, partial(flash_attention, name)))(q, k, v)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-4), ours, expected)


@pytest.mark.parametrize("name", KERNELS)
def test_a_decoder_has_the_same_states_and_gradients_with_every_backend(name, monkeypatch):
    monkeypatch.setitem(attention.FLASH, name, KERNELS[name])
    cfg = ModelConfig(
        31, 32, 4, 4, 2, 8, 24, pattern=("sliding", "full"), window=5, remat="full", attention="xla",
        rope_scaling=Yarn(4.0, 16, 1.1), stretch_sliding=False, norm="post", qk_norm="projection",
    )  # fmt: skip
    leaves = jax.tree.leaves(Decoder(cfg, jax.random.key(0)))
    tokens = jax.random.randint(jax.random.key(1), SEGMENTS.shape, 0, 31)
    real = jnp.asarray(SEGMENTS != 0)[..., None]

    def summed(leaves, backend):
        shapes = jax.eval_shape(lambda: Decoder(replace(cfg, attention=backend), jax.random.key(0)))
        model = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        h = jnp.where(real, model.hidden(tokens, segments=jnp.asarray(SEGMENTS)), 0)
        return (h * jnp.cos(jnp.arange(h.size)).reshape(h.shape)).sum(), h

    both = {b: jax.value_and_grad(partial(summed, backend=b), has_aux=True)(leaves) for b in ("xla", name)}
    ((_, h), gradient), ((_, expected_h), expected) = both[name], both["xla"]
    np.testing.assert_allclose(h, expected_h, atol=5e-5, rtol=0)
    for ours, theirs in zip(gradient, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3 * float(jnp.abs(theirs).max()), rtol=0)


@pytest.mark.parametrize(
    ("platform", "capability", "dtype", "head_dim", "expected"),
    [
        ("cpu", None, "bfloat16", 128, "blocks"),
        ("tpu", None, "bfloat16", 128, "splash"),
        ("tpu", None, "float32", 128, "splash"),
        ("tpu", None, "bfloat16", 64, "xla"),
        ("gpu", "9.0", "bfloat16", 128, "cudnn"),
        ("gpu", "9.0", "float32", 128, "xla"),
        ("gpu", "7.5", "bfloat16", 128, "xla"),
        ("gpu", "gfx942", "bfloat16", 128, "xla"),
    ],
)
def test_auto_is_what_suits_device_dtype_and_head_size(monkeypatch, platform, capability, dtype, head_dim, expected):
    class Device:
        compute_capability = capability

    monkeypatch.setattr(attention.jax, "default_backend", lambda: platform)
    monkeypatch.setattr(attention.jax, "devices", lambda: [Device()])
    assert choose("auto", dtype, head_dim) == expected
    assert choose("xla", dtype, head_dim) == "xla"


def test_a_backend_that_the_device_lacks_is_named_before_anything_compiles():
    assert "splash attention runs on a TPU, and this process computes on cpu" in attention.unavailable(
        "splash", "bfloat16"
    )
    assert "cudnn attention runs on a GPU" in attention.unavailable("cudnn", "bfloat16")
    assert attention.unavailable("auto", "float32") is None
    assert attention.unavailable("xla", "float32") is None
