"""What a compiled program's text tells, on text written by hand and on a program with a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selfexplain_jax.program_text import collectives_in, computations_of, turns


def test_collectives_are_counted_with_their_bytes():
    hlo = """
      %all-reduce.1 = (f32[8]{0}, /*index=1*/bf16[2,3]{1,0}) all-reduce(%p.1, %q), replica_groups={{0,1}}, to_apply=%add
      %all-reduce-start.2 = f32[8]{0} all-reduce-start(%p.2), channel_id=2
      %all-reduce-done.2 = f32[8]{0} all-reduce-done(%all-reduce-start.2)
      %all-gather-start = (f32[8]{0}, f32[16]{0}) all-gather-start(%p.1), dimensions={0}
      ROOT %all-gather-done = f32[16]{0:T(128)} all-gather-done(%all-gather-start)
      %r = f32[8,2]{1,0:T(8,128)} reduce-scatter(%p.3), replica_groups=[2,4]<=[8], dimensions={0}
      %s = pred[8]{0} reduce-scatter(%p.3), replica_groups={{0,1},{2,3}}, dimensions={0}
      %t = s32[4]{0} reduce-scatter(%p.3), replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, dimensions={0}
      %add.3 = f32[8]{0} add(%all-reduce.1, %all-gather-done)
    """
    assert collectives_in(hlo) == {
        "all-reduce": {"count": 2, "bytes": 4 * 8 + 2 * 6 + 4 * 8},
        "all-gather": {"count": 1, "bytes": 4 * 16},
        "reduce-scatter": {"count": 3, "bytes": 4 * 4 * 16 + 2 * 8 + 2 * 4 * 4},
    }


LOOPS = """
HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%inner_condition (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %one = s32[] constant(1)
  %all-reduce.1 = f32[8]{0} all-reduce(%v), replica_groups={{0,1}}, to_apply=%add
  ROOT %t = (s32[], f32[8]) tuple(%j, %all-reduce.1)
}

%outer_condition (p: (s32[], f32[8])) -> pred[] {
  ROOT %less.1 = pred[] compare(%i, %other), direction=LT
}

%outer (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  ROOT %while.1 = (s32[], f32[8]{0}) while(%p), condition=%inner_condition, body=%inner
}

%unknown (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %all-reduce.2 = f32[8]{0} all-reduce(%v), replica_groups={{0,1}}, to_apply=%add
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %while.2 = (s32[]) while(%t), condition=%outer_condition, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %while.3 = (s32[], f32[8]{0}) while(%t), condition=%outer_condition, body=%unknown
  ROOT %all-reduce.3 = f32[8]{0} all-reduce(%w), replica_groups={{0,1}}, to_apply=%add
}
"""


def test_what_stands_in_a_loop_counts_as_often_as_it_runs():
    times = turns(computations_of(LOOPS))
    # Five turns that XLA tells, of three by the condition's number; a loop that tells nothing counts once.
    assert times == {"": 1, "outer": 5, "inner": 15, "unknown": 1, "add": 17} | dict.fromkeys(
        ("inner_condition", "outer_condition"), 0
    )
    assert collectives_in(LOOPS) == {"all-reduce": {"count": 17, "bytes": 17 * 32}}


def test_gradients_of_a_loop_are_sent_in_each_of_its_turns():
    if len(jax.devices()) < 2:
        pytest.skip("two devices send each other something")
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    kernels = jax.ShapeDtypeStruct((8, 64, 64), jnp.float32, sharding=whole)
    rows = jax.ShapeDtypeStruct((32, 64), jnp.float32, sharding=split)

    def loss(kernels, rows):
        return jax.lax.map(lambda kernel: (jnp.tanh(rows @ kernel) ** 2).mean(), kernels).sum()

    text = jax.jit(jax.grad(loss), out_shardings=whole).lower(kernels, rows).compile().as_text()
    assert collectives_in(text)["all-reduce"]["bytes"] >= 8 * 64 * 64 * 4
