"""The device mesh, on eight virtual CPU devices."""

import jax
import numpy as np
import pytest

from jopsd.mesh import make_mesh, put_rows, token_shards
from jopsd.models.hf import load_pretrained, read_config
from jopsd.models.lora import init_adapter
from jopsd.models.sharding import tree_shardings
from jopsd.sampling import Policy, Request, SamplingParams, make_sampler
from jopsd.setup import BUILTIN


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (1, 8, 1)),
        ({"data": 2}, (2, 4, 1)),
        ({"data": -1, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"fsdp": 1, "tensor": -1}, (1, 1, 8)),
        ({"data": 4, "fsdp": 1, "tensor": 2}, (4, 1, 2)),
    ],
)
def test_minus_one_takes_the_devices_that_are_left(sizes, shape):
    mesh = make_mesh(**sizes)
    assert tuple(mesh.shape.values()) == shape and mesh.axis_names == ("data", "fsdp", "tensor")
    assert {device.id for device in mesh.devices.flat} == set(range(8))
    assert token_shards(mesh) == shape[0] * shape[1]


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"data": 3}, "does not fit 8 devices"),
        ({"data": 2, "fsdp": 2, "tensor": 1}, "does not fit 8 devices"),
        ({"data": 16}, "does not fit 8 devices"),
        ({"data": 0}, "must be positive"),
        ({"data": -2}, "must be positive"),
        ({"data": -1, "fsdp": -1}, "one may be -1"),
    ],
)
def test_sizes_that_do_not_multiply_to_the_devices_are_refused(sizes, told):
    with pytest.raises(ValueError, match=told):
        make_mesh(**sizes)


def test_rows_are_split_over_data_and_fsdp_and_whole_over_tensor():
    mesh = make_mesh(2, 2, 2)
    rows = {"a": np.arange(8 * 3).reshape(8, 3), "b": np.arange(4.0)}
    placed = put_rows(rows, mesh)
    for name, host in rows.items():
        np.testing.assert_array_equal(placed[name], host)
        by_device = {shard.device: np.asarray(shard.data) for shard in placed[name].addressable_shards}
        for part, devices in enumerate(mesh.devices.reshape(4, 2)):
            share = len(host) // 4
            for device in devices:
                np.testing.assert_array_equal(by_device[device], host[part * share : (part + 1) * share])


def test_one_device_is_enough():
    mesh = make_mesh(devices=jax.devices()[:1])
    assert mesh.size == 1 and token_shards(mesh) == 1


def test_an_adapter_on_all_three_axes_draws_the_tokens_of_one_device():
    directory = BUILTIN["builtin:sums"]
    cfg = read_config(directory, dtype="float32", param_dtype="float32")
    adapter = init_adapter(cfg.projections, cfg.num_layers, 4, 8.0, jax.random.key(0))
    noise = jax.tree.map(lambda x: 0.02 * jax.random.normal(jax.random.key(1), x.shape), adapter.b)
    adapter = type(adapter)(adapter.a, noise, adapter.scale)
    prompts = np.random.default_rng(0).integers(3, 60, (4, 20)).tolist()
    requests = [Request(tuple(ids), 1, seed, SamplingParams(12), id=seed) for seed, ids in enumerate(prompts)]

    def drawn(policy, mesh):
        sampler = make_sampler("loop", cfg, policy, slots=4, max_length=32, chunk=12, mesh=mesh)
        return {c.request_id: (c.completion_ids.tolist(), c.logprobs) for c in sampler.sample(requests)}

    one = drawn(Policy(load_pretrained(directory, cfg), adapter), None)
    mesh = make_mesh(2, 2, 2)
    split = Policy(load_pretrained(directory, cfg, mesh), jax.device_put(adapter, tree_shardings(adapter, mesh)))
    eight = drawn(split, mesh)
    for seed, (tokens, logprobs) in one.items():
        assert eight[seed][0] == tokens
        np.testing.assert_allclose(eight[seed][1], logprobs, atol=1e-4)
