"""Parts of image models against recorded numbers of diffusers and transformers, and against themselves."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slipstream.checkpoint.placement import Placement
from slipstream.checkpoint.quantized.rounded import RoundedSource
from slipstream.kernels.native import library
from slipstream.kernels.packed import Packed
from slipstream.models.image.registry import MODULES, module_of
from slipstream.quant.leaf import Quantized
from slipstream.quant.rounding import SCHEMES
from slipstream.spec.param import params
from slipstream.spec.source import Blocks
from tests.models.image.harness import (
    GRIDS,
    POSITIONS,
    Built,
    FluxInputs,
    clip_tokens,
    random_source,
    relative,
    tokens_of,
)
from tests.models.image.variants import CLIPS, FLUX, FLUXES, KINDS, T5S, VARIANTS

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "models" / "images.npz")
TOLERANCE = 1e-4

built = cache(Built.random)


@pytest.mark.parametrize("name", CLIPS)
def test_recorded_clip(name: str) -> None:
    found = built(name)(clip_tokens(CLIPS[name]))
    assert relative(found.hidden[:, POSITIONS], GOLDEN[f"{name}/hidden"]) < TOLERANCE
    assert relative(found.penultimate[:, POSITIONS], GOLDEN[f"{name}/penultimate"]) < TOLERANCE
    assert relative(found.pooled, GOLDEN[f"{name}/pooled"]) < TOLERANCE


@pytest.mark.parametrize("name", T5S)
def test_recorded_t5(name: str) -> None:
    found = built(name)(tokens_of(T5S[name], 77))
    assert relative(found[:, POSITIONS], GOLDEN[f"{name}/states"]) < TOLERANCE


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", FLUXES)
def test_recorded_flux(name: str, grid: str) -> None:
    found = built(name)(*FluxInputs.of(FLUXES[name], grid).all)
    assert relative(found, GOLDEN[f"{name}/{grid}"]) < TOLERANCE


def test_a_batch_is_its_members() -> None:
    """Alone each has what it has among others, whose prompts, steps and guidances differ."""
    inputs = FluxInputs.of(FLUX, "wide").all
    together = built("dev")(*inputs)
    for i in range(2):
        alone = built("dev")(*(x[i : i + 1] for x in inputs[:5]), *inputs[5:])
        assert relative(together[i : i + 1], alone) < 1e-6


def test_coordinates_of_each_member() -> None:
    """With a leading axis; the same for all members they change nothing, others do."""
    *inputs, text_ids, image_ids = FluxInputs.of(FLUX, "wide").all
    expected = built("dev")(*inputs, text_ids, image_ids)
    text_ids, image_ids = np.stack([text_ids] * 2), np.stack([image_ids] * 2)
    np.testing.assert_allclose(built("dev")(*inputs, text_ids, image_ids), expected, atol=1e-6)
    image_ids[1, :, 1] *= 2
    found = built("dev")(*inputs, text_ids, image_ids)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
    assert relative(found[1], expected[1]) > 1e-3


def test_one_head_at_a_time() -> None:
    """As attention is computed on a CPU, with a bias for each head."""
    tokens = tokens_of(T5S["t5"], 300)
    assert relative(built("t5")(tokens, kernels="cpu"), built("t5")(tokens)) < 1e-5


def test_bfloat16() -> None:
    """The result's type is that of the latents, and it is near that of float32."""
    place = Placement(jax.devices()[0], np.dtype(jnp.bfloat16), False, "exact")
    latents, text, pooled, *rest = FluxInputs.of(FLUX, "wide").all
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in (latents, text, pooled)]
    found = Built.random("dev", place)(*narrow, *rest)
    assert found.dtype == jnp.bfloat16
    assert relative(found.astype(np.float32), built("dev")(latents, text, pooled, *rest)) < 0.05


@pytest.mark.parametrize("name", ["dev", "t5", "clip"])
def test_int8_weights(name: str) -> None:
    """Each matrix of a layer is a leaf of small numbers, and computes what its values in float32 do."""
    kind, config = KINDS[name], VARIANTS[name]
    module = module_of(kind)
    plan = module.plan(module.from_diffusers(config))
    rounded = RoundedSource(random_source(kind, config), plan, SCHEMES["int8"])
    small = Built.of(kind, config, rounded)
    leaves = jax.tree.leaves(small.weights, is_leaf=lambda node: isinstance(node, Quantized))
    products = sum(bool(param.contract) for _, param in params(plan))
    assert sum(isinstance(leaf, Quantized) for leaf in leaves) == products - (name != "dev")  # all but embeddings

    class Values:
        names, shape, read = rounded.names, rounded.shape, rounded.read

        def blocks(self, name: str) -> None:
            return None

    inputs: Any = FluxInputs.of(FLUX, "tall").all if name == "dev" else (clip_tokens(CLIPS["clip"]),)
    found, expected = (model(*inputs) for model in (small, Built.of(kind, config, Values())))
    found, expected = (x.pooled if name == "clip" else x for x in (found, expected))
    assert relative(found, expected) < 2e-5


@pytest.mark.skipif(library.reason() is not None, reason="the native kernels are not built")
@pytest.mark.parametrize("name", ["dev", "t5", "clip"])
def test_native_products(name: str) -> None:
    """Every matrix as the native CPU kernels read it, among them the two halves of a stored one."""
    kind, config = KINDS[name], VARIANTS[name]
    source, plan = random_source(kind, config), module_of(kind).plan(module_of(kind).from_diffusers(config))
    tensors = {tensor: source.read(tensor) for tensor in source.names()}

    class Held:
        names, shape, read = source.names, source.shape, source.read

        def blocks(self, name: str) -> Blocks:
            return Blocks("F32", tensors[name].shape, lambda: tensors[name].view(np.uint8))

    place = Placement(jax.devices()[0], np.dtype(np.float32), True, "exact")
    native = Built.of(kind, config, Held(), place)
    leaves = jax.tree.leaves(native.weights, is_leaf=lambda node: isinstance(node, Packed))
    assert sum(isinstance(leaf, Packed) for leaf in leaves) == sum(bool(param.contract) for _, param in params(plan))
    inputs: Any = FluxInputs.of(FLUX, "tall").all if name == "dev" else (clip_tokens(CLIPS["clip"]),)
    found, expected = native(*inputs, kernels="cpu"), built(name)(*inputs)
    found, expected = (x.pooled if name == "clip" else x for x in (found, expected))
    assert relative(found, expected) < 1e-5


def test_guidance_where_there_is_none() -> None:
    """And none where there must be one."""
    inputs = list(FluxInputs.of(FLUX, "wide").all)
    inputs[4] = None
    with pytest.raises(ValueError, match="needs a guidance"):
        built("dev")(*inputs)
    schnell = list(FluxInputs.of(FLUXES["schnell"], "wide").all)
    schnell[4] = np.ones(2, np.float32)
    with pytest.raises(ValueError, match="takes no guidance"):
        built("schnell")(*schnell)


def test_texts_longer_than_the_positions() -> None:
    with pytest.raises(ValueError, match="78 tokens are more than the 77 positions"):
        built("clip")(np.zeros((1, 78), np.int32))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_index_of_every_tensor_once(name: str) -> None:
    """Leaves that share a tensor take parts of it that do not overlap, and leave nothing of it."""
    module = module_of(KINDS[name])
    read: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for _, leaf in params(module.plan(module.from_diffusers(VARIANTS[name]))):
        for tensor in leaf.names:
            read[tensor] = read.get(tensor, 0) + int(np.prod(leaf.dims.shape))
            sizes[tensor] = int(np.prod(leaf.stored_shape))
    assert read == sizes


def test_shapes_of_flux() -> None:
    """At the size of FLUX.1-dev."""
    module = module_of("FluxTransformer2DModel")
    published = {"in_channels": 64, "num_layers": 19, "num_single_layers": 38, "guidance_embeds": True}
    shapes = {path: leaf.shape for path, leaf in params(module.plan(module.from_diffusers(published)))}
    d, n, h, f = 3072, 24, 128, 12_288
    for stream in ("double.image", "double.text"):
        assert shapes[f"{stream}.modulation.weight"] == (19, d, 6, d)
        assert shapes[f"{stream}.q.weight"] == (19, d, n, h)
        assert shapes[f"{stream}.out.weight"] == (19, n, h, d)
        assert shapes[f"{stream}.up.weight"] == (19, d, f)
    assert shapes["single.modulation.bias"] == (38, 3, d)
    assert shapes["single.out.weight"] == (38, n, h, d)
    assert shapes["single.down.weight"] == (38, f, d)
    assert shapes["guidance.up.weight"] == (256, d)
    assert shapes["pooled.up.weight"] == (768, d)
    assert shapes["text.weight"] == (4096, d)
    assert shapes["out.weight"] == (d, 64)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 11_901_408_320


def test_every_module_has_a_variant() -> None:
    assert {name for module in MODULES for name in module.classes} <= {*KINDS.values()} | OF_OTHER_TESTS


OF_OTHER_TESTS = {"AutoencoderKL", "UNet2DConditionModel"}
"""Classes whose variants are in files of their own: unets.py."""
