"""What a compiled step copies into other orders of axes, read from its text, and weights laid out so before."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout
from jax.sharding import SingleDeviceSharding

from slipstream.engine import layouts

# As XLA writes steps for TPUs. A copy into other tiles (data-format.1) is none that arguments could be given in.
TEXT = """HloModule jit_step, is_scheduled=true

%other (p: bf16[4,256]) -> bf16[4,256] {
  %param.9 = bf16[4,256]{1,0:T(8,128)(2,1)} parameter(3)
  %copy.9 = bf16[4,256]{0,1:T(8,128)(2,1)} copy(%param.9)
}

ENTRY %main (param.66: bf16[64,256], param.81: bf16[4,32,256], param.3: bf16[16,128]) -> bf16[64,256] {
  %param.81 = bf16[4,32,256]{2,1,0:T(8,128)(2,1)} parameter(1), sharding={devices=[1,8,1]<=[8]}
  %param.66 = bf16[64,256]{1,0:T(8,128)(2,1)} parameter(0)
  %param.3 = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(2)
  %copy-start.12 = (bf16[64,256]{1,0:T(8,128)(2,1)S(1)}, bf16[64,256]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%param.66)
  %data-format.1 = ((bf16[4,32,256]{2,1,0:T(8,128)(2,1)}, token[]), bf16[4,32,256]{2,1,0:T(16,128)(2,1)}) call-start(%param.81, %p)
  %copy.5 = bf16[16,128]{0,1:T(8,128)(2,1)S(1)} copy(%param.3), metadata={op_name="jit(step)"}
  %copy.6 = s4[16,128]{0,1:T(8,128)(8,1)E(4)} copy(%copy.5)
}
"""  # noqa: E501


def test_copies_of_parameters_are_found() -> None:
    assert layouts.copied(TEXT) == {"2": "bf16[16,128]{0,1}"}


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=SingleDeviceSharding(jax.devices()[0]))


def test_weights_are_asked_for_in_those_orders() -> None:
    weights = [shape(64, 256), {"a": shape(4, 32, 256), "b": shape(16, 128)}]
    first, second, turned = jax.tree.leaves(layouts.asked(weights, layouts.copied(TEXT)))
    assert [first, second] == jax.tree.leaves(weights)[:2]
    assert turned.format.layout == Layout((1, 0))
    assert layouts.names(weights) == []
    assert layouts.names([first, turned])[0] == "None"
    assert layouts.asked(weights[:1], layouts.copied(TEXT)) == weights[:1]  # The third parameter is no weight.
    with pytest.raises(ValueError, match=r"shape \(16, 128\), and the weight of its number \(9,\)"):
        layouts.asked([*weights[:1], shape(4), shape(9)], layouts.copied(TEXT))


def test_weights_are_laid_out_and_what_was_copied_is_given_up() -> None:
    stays, moves = jnp.arange(6.0).reshape(2, 3), jnp.arange(6.0).reshape(2, 3) + 1
    where = moves.sharding
    wanted = [
        jax.ShapeDtypeStruct((2, 3), jnp.float32, sharding=where),
        jax.ShapeDtypeStruct((2, 3), jnp.float32, sharding=Format(Layout((1, 0)), where)),
    ]
    first, second = layouts.laid_out([stays, moves], wanted)
    assert first is stays and moves.is_deleted()
    assert second.format.layout.major_to_minor == (1, 0)
    np.testing.assert_array_equal(second, np.arange(6.0).reshape(2, 3) + 1)
