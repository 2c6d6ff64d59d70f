"""Reading a compiled program: bytes of types, collectives in loops and branches, XLA's cycles."""

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from revelio_jax.planning import hlo
from revelio_jax.sae import sharding

DTYPES = {"f32": np.float32, "bf16": ml_dtypes.bfloat16, "s8": np.int8, "u64": np.uint64, "pred": np.bool_}
LAYOUTS = ("", "{0}", "{1,0:T(8,128)S(1)}", "{1,0:T(8,128)(2,1)}")

arrays = st.tuples(st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 300), max_size=4))


@given(st.lists(arrays, min_size=1, max_size=12), st.sampled_from(LAYOUTS))
def test_bytes_of_a_type(members, layout):
    names = [f"{dtype}[{','.join(map(str, dims))}]{layout}" for dtype, dims in members]
    expected = sum(math.prod(dims) * np.dtype(DTYPES[dtype]).itemsize for dtype, dims in members)
    assert hlo.array_bytes(names[0] if len(names) == 1 else f"({', '.join(names)})") == expected


def test_bytes_of_uncommon_types():
    assert hlo.array_bytes("s4[3]") == 2
    assert hlo.array_bytes("c64[2]") == 16
    assert hlo.array_bytes("f8e4m3fn[5]") == 5
    assert hlo.array_bytes("f32[<=8,2]") == 64
    assert hlo.array_bytes("(token[], opaque[])") == 0


def compiled(function, out, data=2, feature=4):
    mesh = sharding.make_mesh(data, feature, 8, 8)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=P("data", "feature"), out_specs=out)
    place = jax.sharding.NamedSharding(mesh, P("data", "feature"))
    x = jax.ShapeDtypeStruct((64, 256), jnp.float32, sharding=place)  # [32, 64] a device
    return jax.jit(mapped).lower(x).compile().as_text()


def test_collectives_of_a_compiled_program_are_read():
    text = compiled(lambda x: jax.lax.psum(x, "feature"), P("data"))
    assert hlo.cost(text, 8).collectives == {hlo.Collective("all-reduce", 32 * 64 * 4, 4): 1}
    text = compiled(lambda x: jax.lax.all_gather(x, "data", axis=0, tiled=True), P(("data",), "feature"))
    assert hlo.cost(text, 8).collectives == {hlo.Collective("all-gather", 64 * 64 * 4, 2): 1}


def test_a_loop_is_multiplied_by_its_trips():
    def function(x):
        return jax.lax.scan(lambda x, _: (jax.lax.psum(jnp.sin(x), "data") * jnp.cos(x), None), x, None, 7)[0]

    collectives = hlo.cost(compiled(function, P("data", "feature")), 8).collectives
    assert collectives == {hlo.Collective("all-reduce", 32 * 64 * 4, 2): 7}


TPU = """HloModule m, is_scheduled=true

%fused (p: f32[8,128], i: s32[8], u: f32[8,128]) -> f32[64,128] {
  %p = f32[64,128]{1,0:T(8,128)} parameter(0)
  %i = s32[8]{0:T(128)} parameter(1)
  %u = f32[8,128]{1,0:T(8,128)} parameter(2)
  ROOT %s = f32[64,128]{1,0:T(8,128)} scatter(%p, %i, %u), update_window_dims={1}, to_apply=%add
}

%cheap (c: f32[8,128]) -> f32[8,128] {
  ROOT %n = f32[8,128]{1,0} negate(%c), backend_config={"estimated_cycles":"10"}
}

%dear (d: f32[8,128]) -> f32[8,128] {
  %d = f32[8,128]{1,0} parameter(0)
  ROOT %r = f32[8,128]{1,0} all-reduce(%d), replica_groups=GROUPS, to_apply=%add
  %e = f32[8,128]{1,0} exponential(%d), backend_config={"estimated_cycles":"5000"}
}

%condition (t: (s32[], f32[64,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(64)
  ROOT %lt = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%body (t: (s32[], f32[64,128], /*index=2*/f32[8])) -> (s32[], f32[64,128], /*index=2*/f32[8]) {
  %sf = f32[64,128]{1,0:T(8,128)} fusion(%a, %b, %c), kind=kCustom, calls=%fused
  ROOT %t2 = (s32[], f32[64,128], /*index=2*/f32[8]) tuple(%o, %sf), backend_config={"estimated_cycles":"3"}
}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %ag = (f32[8,128], f32[32,128]) all-gather-start(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %agd = f32[32,128] all-gather-done(%ag)
  %w = (s32[], f32[64,128], /*index=2*/f32[8]) while(%t0), condition=%condition, body=%body
  %k = f32[8,128] conditional(%which, %x, %x), branch_computations={%cheap, %dear}, metadata={op_name="aux_k/cond"}
  ROOT %y = f32[8,128] fusion(%k), kind=kLoop, calls=%other, backend_config={"estimated_cycles":"100"}
}
"""


@pytest.mark.parametrize(
    ("groups", "chips"),
    [
        ("{{0,4},{1,5},{2,6},{3,7}}", 2),
        ("[2,4]<=[8]", 4),
        ("mesh['axis_0'=2,'axis_1'=4], device_ids=([2,4]T(1,0)) {'axis_1'}", 4),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("{}", 8),
    ],
)
def test_a_program_of_libtpu_is_read(groups, chips):
    text = TPU.replace("GROUPS", groups)
    gather = hlo.Collective("all-gather", 32 * 128 * 4, 4)
    cheap, dear = (hlo.cost(text, 8, scope) for scope in ("", "aux_k"))
    assert cheap.cycles == 64 * 3 + 10 + 100
    assert dear.cycles == 64 * 3 + 5000 + 100
    assert cheap.moved == dear.moved == 64 * 2 * 8 * 128 * 4  # what the scatter adds, read and written
    assert cheap.collectives == {gather: 1}
    assert dear.collectives == {gather: 1, hlo.Collective("all-reduce", 8 * 128 * 4, chips): 1}
    assert cheap.sent == 3 / 4 * gather.bytes


GPU = """HloModule m, is_scheduled=true

%none (c: f32[8,128]) -> f32[8,128] {
  ROOT %n = f32[8,128]{1,0} negate(%c)
}

%many (d: f32[8,128]) -> f32[8,128] {
  %d = f32[8,128]{1,0} parameter(0)
  %top = (f32[8,4]{1,0}, s32[8,4]{1,0}) custom-call(%d), custom_call_target="TopK", called_computations={%gt}
  ROOT %r = f32[8,128]{1,0} all-reduce(%d), replica_groups=[1,8]<=[8], to_apply=%add
}

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %part = f32[8,16]{1,0} custom-call(%t, %x), custom_call_target="PartialReduce"
  ROOT %ag = f32[32]{0} all-gather(%g), replica_groups=[2,4]<=[8], dimensions={0}
}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %ar = f32[8,128]{1,0} all-reduce-start(%x), replica_groups=[1,8]<=[8], to_apply=%add
  %w = (s32[], f32[8]) while(%t0), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  %scores = f32[8,128]{1,0} custom-call(%x), custom_call_target="__cublas$gemm"
  ROOT %k = f32[8,128] conditional(%which, %x, %x), branch_computations={%none, %many}, metadata={op_name="aux_k/cond"}
}
"""


def test_a_program_for_gpus_has_bytes_and_collectives_but_no_cycles():
    reduced, gathered = hlo.Collective("all-reduce", 8 * 128 * 4, 8), hlo.Collective("all-gather", 32 * 4, 4)
    none, many = (hlo.cost(GPU, 8, scope) for scope in ("", "aux_k"))
    assert hlo.cost(GPU, 8, "other") == none
    assert none.cycles == many.cycles == 0
    assert none.collectives == {reduced: 1, gathered: 6}
    assert many.collectives == {reduced: 2, gathered: 6}
    # PartialReduce writes its result on each trip (its operands are not in this text), TopK reads %d as well.
    assert none.moved == 6 * 8 * 16 * 4
    assert many.moved - none.moved == 8 * 128 * 4 + 2 * 8 * 4 * 4


def test_bytes_sent_follow_the_ring_formulas():
    sent = {kind: hlo.Collective(kind, 1200, 4).sent for kind in ("all-reduce", "reduce-scatter")}
    assert sent == {"all-reduce": 1800, "reduce-scatter": 3600}
