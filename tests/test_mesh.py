"""The device mesh, on eight virtual CPU devices."""

import jax
import numpy as np
import pytest

from jopsd.mesh import make_mesh, put_rows, relaid, sampling_mesh, token_shards
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


def test_context_stands_before_tensor_and_only_where_it_is_asked_for():
    mesh = make_mesh(1, 2, 2, context=2)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "context": 2, "tensor": 2}
    assert token_shards(mesh) == 2


@pytest.mark.parametrize("slices", [1, 2, 4])
def test_only_data_spans_slices(slices):
    mesh = make_mesh(data=4, fsdp=1, tensor=2, slices=slices)
    runs = [set(range(i * 8 // slices, (i + 1) * 8 // slices)) for i in range(slices)]
    for index, part in enumerate(np.split(mesh.devices, slices, axis=0)):
        assert {device.id for device in part.flat} == runs[index]


class Sliced:
    """A device that says which slice it is in, as a TPU of several slices does."""

    platform, device_kind, process_index = "cpu", "cpu", 0

    def __init__(self, number, slice_index):
        self.id, self.slice_index = number, slice_index


def test_devices_that_name_their_slice_are_kept_together_whatever_their_order():
    devices = [Sliced(i, i % 2) for i in range(8)]
    mesh = make_mesh(data=2, fsdp=4, slices=2, devices=devices)
    assert [{d.slice_index for d in part.flat} for part in mesh.devices] == [{0}, {1}]
    with pytest.raises(ValueError, match="these devices are 2 slices, not 1: set mesh.slices: 2"):
        make_mesh(data=2, fsdp=4, devices=devices)


def test_slices_that_do_not_divide_data_are_refused():
    with pytest.raises(ValueError, match="mesh.data 1 is not a multiple of mesh.slices 2"):
        make_mesh(data=1, slices=2)


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
    home = sampling_mesh(mesh, jax.devices(), None, cfg.num_kv_heads)
    assert dict(home.shape) == {"data": 8 // cfg.num_kv_heads, "fsdp": 1, "tensor": cfg.num_kv_heads}
    own_layout = relaid(split, mesh, home, "float32")
    splits = {axis for x in jax.tree.leaves(own_layout) for axis in x.sharding.spec if axis and home.shape[axis] > 1}
    assert splits == {"tensor"}
    for eight in (drawn(split, mesh), drawn(own_layout, home)):
        for seed, (tokens, logprobs) in one.items():
            assert eight[seed][0] == tokens
            np.testing.assert_allclose(eight[seed][1], logprobs, atol=1e-4)


def test_weights_in_the_dtype_that_computes_draw_the_bits_of_the_wider_ones():
    directory, mesh = BUILTIN["builtin:sums"], make_mesh(devices=jax.devices()[:1])
    cfg = read_config(directory, dtype="bfloat16", param_dtype="float32")
    masters = Policy(load_pretrained(directory, cfg, mesh), None)
    lean = relaid(masters, mesh, mesh, "bfloat16")
    assert {x.dtype.name for x in jax.tree.leaves(lean)} == {"bfloat16"}
    request = Request((5, 6, 7), 4, 1, SamplingParams(8), id=0)

    def drawn(policy):
        sampler = make_sampler("loop", cfg, policy, slots=4, max_length=16, chunk=8)
        return {c.index: (c.completion_ids.tolist(), c.logprobs.tolist()) for c in sampler.sample([request])}

    assert drawn(lean) == drawn(masters)


@pytest.mark.parametrize(
    ("sizes", "tensor", "heads", "shape"),
    [
        ((1, 1, 8), None, 2, None),  # gathers nothing
        ((8, 1, 1), None, 4, None),
        ((1, 8, 1), "mesh", 4, None),
        ((1, 8, 1), None, 4, (2, 1, 4)),
        ((2, 2, 2), None, 6, (4, 1, 2)),
        ((1, 8, 1), 8, 2, (1, 1, 8)),
    ],
)
def test_a_sampler_has_a_layout_of_its_own_where_the_trainer_gathers_weights(sizes, tensor, heads, shape):
    mesh = make_mesh(*sizes)
    home = sampling_mesh(mesh, list(mesh.devices.flat), tensor, heads)
    assert home is mesh if shape is None else tuple(home.shape.values()) == shape


def test_a_layout_that_the_devices_do_not_give_is_refused():
    mesh = make_mesh(1, 8, 1)
    with pytest.raises(ValueError, match="sampling.tensor 3 does not divide the 8 devices"):
        sampling_mesh(mesh, list(mesh.devices.flat), 3, 4)
    with pytest.raises(ValueError, match="use backend loop"):
        sampling_mesh(mesh, list(mesh.devices.flat)[:4], "mesh", 4)
