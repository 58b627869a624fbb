"""Image models of real size, compiled by XLA for TPUs that are not here: memory, and talk among devices."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from slipstream.engine.hlo import collectives
from slipstream.engine.memory import bytes_on_device
from slipstream.engine.placement import Placement
from slipstream.engine.topology import devices_of
from slipstream.hardware.profile import target_of
from slipstream.models.image import flux
from slipstream.parallel.mesh import make_mesh
from slipstream.parallel.rules import rules_of
from slipstream.parallel.spread import whole
from slipstream.spec.param import map_params

GIB = 2**30


@pytest.mark.long
def test_a_step_of_flux_dev() -> None:
    """One picture of 1024 x 1024 on a v6e-4, in bfloat16: 23.8 GB of weights on four devices."""
    c = flux.Config.from_diffusers({"guidance_embeds": True})
    devices = devices_of(target_of("v6e-4"))
    mesh = make_mesh(devices, c.heads)
    place = Placement(devices[0], jnp.dtype(jnp.bfloat16), False, "exact", mesh, rules_of())
    weights = map_params(place.of_shape, flux.plan(c))
    wide = partial(jax.ShapeDtypeStruct, dtype=jnp.float32, sharding=whole(mesh))
    narrow = partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16, sharding=whole(mesh))
    pixels = (1024 // 16) ** 2
    inputs = (narrow((1, pixels, 64)), narrow((1, 512, 4096)), narrow((1, 768)), wide((1,)), wide((1,)))
    coordinates = wide((512, 3)), wide((pixels, 3))
    step = jax.jit(lambda w, *inputs: flux.forward(w, c, *inputs), out_shardings=whole(mesh))
    compiled = step.lower(weights, *inputs, *coordinates).compile()
    held, memory = sum(map(bytes_on_device, jax.tree.leaves(weights))), compiled.memory_analysis()
    print(f"weights {held / GIB:.2f} GiB, temporaries {memory.temp_size_in_bytes / GIB:.2f} GiB on each device")
    assert held / GIB == pytest.approx(5.56, abs=0.01)
    assert memory.temp_size_in_bytes < 0.25 * GIB
    found = collectives(compiled.as_text())
    assert found.looped == {"all-reduce": 2 + 1, "all-gather": 2 + 1}, "of a double block and a single one"
