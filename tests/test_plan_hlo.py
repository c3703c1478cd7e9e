"""Reading collectives from the text of a compiled program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jopsd.mesh import make_mesh
from jopsd.plan.hlo import axes_of, collectives, largest_tensor, tensor_bytes, wire_bytes

# The shapes of text that the TPU and GPU compilers write, where the CPU compiler writes another.
TEXT = """\
HloModule jit_f, is_scheduled=true

%all-reduce-scatter.1 (input.1: bf16[512,512]) -> bf16[512,256] {
  %input.1 = bf16[512,512]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.9 = bf16[512,512]{1,0:T(8,128)(2,1)} all-reduce(%input.1), channel_id=9, replica_groups={{0,2},{1,3}}, \
use_global_device_ids=true, to_apply=%add
  ROOT %slice.1 = bf16[512,256]{1,0} dynamic-slice(%all-reduce.9, %zero, %place), dynamic_slice_sizes={512,256}
}

%condition.1 (state.1: (s32[], f32[8])) -> pred[] {
  %constant.7 = s32[]{:T(128)} constant(7)
  %state.1 = (s32[]{:T(128)}, f32[8]) parameter(0)
  %counter = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%counter, %constant.7), direction=LT
}

%body.1 (state.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state.2 = (s32[], f32[8]) parameter(0)
  %all-gather-start.1 = (f32[8]{0}, f32[16]{0}) all-gather-start(%part), channel_id=1, \
replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=2], device_ids=([2,2]T(1,0)) {'axis_0'}, dimensions={0}
  %all-gather-done.1 = f32[16]{0} all-gather-done(%all-gather-start.1)
  %collective-permute-start.1 = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%part), \
source_target_pairs={{0,1},{1,0}}
  ROOT %fusion.1 = (s32[], f32[8]) fusion(%state.2), kind=kCustom, calls=%all-reduce-scatter.1
}

%condition.2 (state.3: (s32[], f32[8])) -> pred[] {
  %state.3 = (s32[], f32[8]) parameter(0)
  %counter.2 = s32[] get-tuple-element(%state.3), index=0
  %bound = s32[] get-tuple-element(%state.3), index=1
  ROOT %less.2 = pred[] compare(%counter.2, %bound), direction=LT
}

%body.2 (state.4: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state.4 = (s32[], f32[8]) parameter(0)
  ROOT %all-reduce-start.1 = (f32[4]{0}, f32[2,2]{1,0}) all-reduce-start(%a, %b), replica_groups=[2,2]<=[4], \
to_apply=%add, metadata={op_name="jit(f)/while/body/psum"}
}

%wrapped (p: f32[8]) -> f32[2] {
  ROOT %reduce-scatter.1 = f32[2]{0} reduce-scatter(%p), replica_groups=[1,4]<=[4], dimensions={0}, to_apply=%add
}

ENTRY %main.1 (x: f32[8]) -> f32[8] {
  %while.1 = (s32[]{:T(128)}, f32[8]) while(%tuple.1), condition=%condition.1, body=%body.1
  %while.2 = (s32[], f32[8]) while(%tuple.2), condition=%condition.2, body=%body.2
  %async-start.1 = ((f32[8]), f32[2], u32[]) async-start(%x), calls=%wrapped
  %async-done.1 = f32[2]{0} async-done(%async-start.1), calls=%wrapped
  ROOT %all-to-all.1 = (f32[2]{0}, f32[2]{0}) all-to-all(%c, %d), replica_groups={{0,1},{2,3}}
}
"""


def test_collectives_are_found_in_every_form_that_compilers_write():
    found, pairs = {one.kind: one for one in collectives(TEXT)}, ((0, 1), (2, 3))
    assert len(collectives(TEXT)) == 6
    assert found["all-gather"][:4] == ("all-gather", 64, 7, ((0, 1), (2, 3)))
    assert found["collective-permute"][:4] == ("collective-permute", 32, 7, ((0, 1), (1, 0)))
    assert found["all-reduce"][:4] == ("all-reduce", 32, 1, pairs)
    assert found["all-reduce"].dynamic and found["all-reduce"].where == "jit(f)/while/body/psum"
    assert found["all-to-all"][:4] == ("all-to-all", 16, 1, pairs)
    assert not found["all-gather"].dynamic


def test_a_fused_slice_of_a_sum_is_a_reduce_scatter_and_an_asynchronous_one_counts_once():
    fused, plain = [one for one in collectives(TEXT + "\n") if one.kind == "reduce-scatter"]
    assert fused[:4] == ("reduce-scatter", 512 * 512 * 2, 7, ((0, 2), (1, 3)))
    assert plain[:4] == ("reduce-scatter", 32, 1, ((0, 1, 2, 3),))
    assert largest_tensor(collectives(TEXT)) == ("bf16", (512, 512))
    assert largest_tensor([]) == ("", ())


def test_what_slices_send_each_other_through_their_hosts_is_a_collective_between_them():
    attributes = """frontend_attributes={_xla_host_transfer_rendezvous="psum.1",_xla_megascale_reduce_operation="SUM",\
_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}"""
    text = f"""ENTRY %main (x: f32[8]) -> f32[8] {{
  %send.1 = (f32[8,128]{{1,0:T(8,128)}}, u32[], token[]) send(%x, %token), channel_id=2, is_host_transfer=true, \
{attributes}
  %recv.1 = (f32[8,128]{{1,0:T(8,128)}}, u32[], token[]) recv(%token), channel_id=1, is_host_transfer=true, {attributes}
}}"""
    (one,) = collectives(text)
    assert one[:4] == ("all-reduce", 8 * 128 * 4, 1, ((0, 4), (1, 5), (2, 6), (3, 7)))
    assert axes_of(one.groups, {"data": 2, "fsdp": 4}) == ("data",)


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("module {}")


@pytest.mark.parametrize(
    ("notation", "groups"),
    [
        ("{{0,2},{1,3}}", ((0, 2), (1, 3))),
        ("[2,4]<=[8]", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("[4,2]<=[2,4]T(1,0)", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['a'=2,'b'=4] {'b'}", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("mesh['a'=2,'b'=4] {'a'}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['a'=2,'b'=4] {'b':(2)2}", ((0, 1), (2, 3), (4, 5), (6, 7))),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", ((0, 2), (1, 3))),
    ],
)
def test_replica_groups_are_read_in_all_notations(notation, groups):
    text = (
        f"ENTRY %main (x: f32[8]) -> f32[8] {{\n  %r = f32[8]{{0}} all-reduce(%x), replica_groups={notation}, x=1\n}}"
    )
    assert collectives(text)[0].groups == groups


def test_groups_are_named_by_the_axes_along_which_their_members_differ():
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    assert axes_of(((0, 1), (2, 3)), mesh) == ("tensor",)
    assert axes_of(((0, 2), (1, 3)), mesh) == ("fsdp",)
    assert axes_of(((0, 3, 4, 7),), mesh) == ("data", "fsdp", "tensor")
    assert axes_of((), mesh) == ("data", "fsdp", "tensor")
    assert axes_of(((0,), (1,)), mesh) == ()


def test_bits_of_a_type_are_read_from_its_name():
    assert [tensor_bytes(d, (4,)) for d in ("f32", "bf16", "s8", "pred", "s4", "f8e4m3fn")] == [16, 8, 4, 4, 2, 4]


# ------------------------------------------------------------------------------------------------- programs of our own


def compiled(body, spec, shape, mesh, out=None):
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    out = None if out is None else NamedSharding(mesh, out)
    return jax.jit(body, out_shardings=out).lower(x).compile().as_text()


def test_what_a_program_of_known_collectives_sends_is_found_with_its_axis_and_its_loop():
    mesh = make_mesh(1, 4, 2)

    @partial(jax.shard_map, mesh=mesh, in_specs=P("fsdp", "tensor"), out_specs=P("fsdp"), check_vma=False)
    def body(x):  # [8,32] -> [2,16] on each device
        def step(total, _):
            whole = jax.lax.all_gather(x * total.sum(), "fsdp", axis=0, tiled=True)  # [8,16]
            part = jax.lax.psum_scatter(whole, "fsdp", scatter_dimension=0, tiled=True)  # [2,16]
            return total + part, None

        total, _ = jax.lax.scan(step, x, None, length=5)
        return jax.lax.psum(total, "tensor")  # [2,16]

    found = collectives(compiled(body, P("fsdp", "tensor"), (8, 32), mesh))
    facts = {(c.kind, axes_of(c.groups, dict(mesh.shape)), c.bytes, c.times) for c in found}
    assert facts == {
        ("all-gather", ("fsdp",), 8 * 16 * 4, 5),
        ("reduce-scatter", ("fsdp",), 8 * 16 * 4, 5),
        ("all-reduce", ("tensor",), 2 * 16 * 4, 1),
    }
    by_kind = {c.kind: wire_bytes(c) for c in found}
    # A device keeps a quarter of what it gathers; a sum is a scatter and a gather.
    assert by_kind == {"all-gather": 384, "reduce-scatter": 384, "all-reduce": 128}


def test_a_loop_whose_length_only_the_data_knows_is_marked():
    mesh = make_mesh(1, 8, 1)

    @partial(jax.shard_map, mesh=mesh, in_specs=P("fsdp"), out_specs=P(), check_vma=False)
    def body(x):
        count = jax.lax.psum(x.sum(), "fsdp").astype(jnp.int32)
        return jax.lax.fori_loop(0, count, lambda i, y: jax.lax.psum(y, "fsdp"), x)

    found = collectives(compiled(body, P("fsdp"), (8, 4), mesh))
    assert sorted((c.dynamic, c.bytes, c.times) for c in found) == [(False, 4, 1), (True, 16, 1)]


def test_a_permute_is_read_with_its_pairs():
    mesh = make_mesh(1, 4, 1, devices=jax.devices()[:4])
    ring = [(i, (i + 1) % 4) for i in range(4)]

    @partial(jax.shard_map, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"))
    def body(x):
        return jax.lax.ppermute(x, "fsdp", ring)

    (one,) = collectives(compiled(body, P("fsdp"), (4, 8), mesh))
    assert (one.kind, one.bytes, set(one.groups)) == ("collective-permute", 32, set(ring))
    assert wire_bytes(one) == 32 and np.prod(one.largest[1]) == 8
