"""What an update sends between devices, read from the compiled program."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jopsd.batch import TrainBatch, View
from jopsd.mesh import make_mesh
from jopsd.methods.opsd import Opsd
from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.models.sharding import sharded_shapes
from jopsd.plan.hlo import axes_of, collectives
from jopsd.step import StepOptions, TrainState, make_update
from jopsd.teachers import Models, TeacherRule

LENGTH, CHUNK = 64, 32


def update_of(cfg, mesh, rows=8):
    """(collectives of a full-parameter update with a fixed teacher, shapes of what trains)."""
    shapes = lambda cfg: sharded_shapes(jax.eval_shape(lambda: Decoder(cfg, jax.random.key(0))), mesh)  # noqa: E731
    student, teacher = shapes(cfg), shapes(replace(cfg, param_dtype=cfg.dtype))
    optimizer = optax.adamw(1e-3)
    make = lambda t: TrainState(t, optimizer.init(t), jnp.zeros((), jnp.int32))  # noqa: E731
    state = sharded_shapes(jax.eval_shape(make, student), mesh)
    place = NamedSharding(mesh, P(("data", "fsdp")))
    of = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=place)  # noqa: E731
    view = View(of(2 * LENGTH), of(2 * LENGTH))
    batch = TrainBatch(
        of(LENGTH), of(LENGTH), {"student": view, "teacher": view}, reward=of(dtype=jnp.float32), group=of(), limit=of()
    )
    options = StepOptions(Opsd(alpha=0.5), TeacherRule(), 2, 1.0, token_chunk=CHUNK)
    with jax.set_mesh(mesh):
        compiled = make_update(options, optimizer, mesh, state).lower(state, Models(teacher), batch).compile()
    found = [(c, axes_of(c.groups, dict(mesh.shape))) for c in collectives(compiled.as_text())]
    return found, student


def moved(found, kinds, axis):
    """Bytes by all collectives of some kinds over an axis."""
    return sum(c.bytes * c.times for c, axes in found if c.kind in kinds and axis in axes)


def test_across_slices_only_gradients_are_summed_and_no_weight_is_gathered():
    cfg = ModelConfig(256, 64, 2, 4, 4, 16, 128)
    found, student = update_of(cfg, make_mesh(data=2, fsdp=2, tensor=2, slices=2))
    assert {c.kind for c, axes in found if "data" in axes} == {"all-reduce"}
    micro_batches, parts = 2, 4  # each slice sums its own share of a gradient with the others'
    matrices = sum(math.prod(x.shape) for x in jax.tree.leaves(student) if len(x.shape) > 1)
    crossing = moved(found, {"all-reduce"}, "data")
    assert 4 * matrices * micro_batches / parts <= crossing < 4 * matrices * micro_batches, (
        "the whole gradient would be four times a device's part"
    )


def test_no_collective_of_an_update_carries_logits():
    vocab, parts = 4096, 2  # no other length of the model or batch is a multiple of a device's part
    cfg = ModelConfig(vocab, 48, 2, 4, 4, 12, 96)
    found, _ = update_of(cfg, make_mesh(data=1, fsdp=4, tensor=parts))
    assert moved(found, {"all-reduce"}, "tensor") > 0
    for c, _ in found:
        dtype, shape = c.largest
        rows = math.prod(shape) // (vocab // parts) if shape and max(shape) >= vocab // parts else 0
        # What is as wide as the vocabulary is a table or its gradient: a part of [V,D], never [tokens,V].
        assert rows == 0 or shape in {(vocab // parts, 48), (vocab // parts, 12), (vocab, 48)}, c


@pytest.mark.slow
def test_on_a_tpu_gradients_of_weights_are_reduce_scattered_over_fsdp(monkeypatch):
    pytest.importorskip("libtpu")
    for name, value in {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}.items():
        monkeypatch.setenv(name, value)
    from jax.experimental.topologies import get_topology_desc

    devices = get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    # Kernels of a size that the compiler does not bundle with the gradients of norms.
    cfg = ModelConfig(
        4096, 2048, 2, 16, 8, 128, 4096, dtype="bfloat16", param_dtype="float32", remat="full", attention="splash"
    )
    found, student = update_of(cfg, make_mesh(1, 4, 2, devices=devices), rows=16)
    kernels = sum(math.prod(x.shape) for x in jax.tree.leaves(student.layers) if len(x.shape) > 2)
    scattered = moved(found, {"reduce-scatter"}, "fsdp")
    summed = moved(found, {"all-reduce"}, "fsdp")
    assert scattered >= 2 * 2 * kernels / 2, "two micro-batches of bfloat16, each device of tensor its half"
    assert summed < scattered / 100
