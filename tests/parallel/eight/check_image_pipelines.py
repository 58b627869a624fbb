"""On several devices whole pipelines make the pictures that they make on one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slipstream.diffusion.engine import PictureEngine, PoolOptions
from slipstream.diffusion.loading import kernels_of, load_engine
from slipstream.errors import ConfigError
from slipstream.kernels.compiles import CompileCounter
from slipstream.kernels.sharded import Sharded
from slipstream.spec.image import ImageCheckpoint
from tests.diffusion.fakes import request, run
from tests.diffusion.tiny import checkpoint, tokenizer_in
from tests.models.image.harness import relative

TOLERANCE = 1e-3
FLUX: Mapping[str, Any] = {"text_encoder_2": {"num_heads": 4}, "transformer": {"num_attention_heads": 4}}
KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "dev": ("FluxPipeline", FLUX),
    "schnell": ("FluxPipeline", {**FLUX, "transformer": {"num_attention_heads": 4, "guidance_embeds": False}}),
    # One level has heads that four devices divide, another has not: those are whole on each.
    "sdxl": (
        "StableDiffusionXLPipeline",
        {
            "unet": {
                "down_block_types": ["CrossAttnDownBlock2D"] * 2,
                "up_block_types": ["CrossAttnUpBlock2D"] * 2,
                "attention_head_dim": [2, 4],
                "norm_num_groups": 4,
            },
            "vae": {"norm_num_groups": 4, "mid_block_add_attention": True},
        },
    ),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    tokenizer = tokenizer_in(tmp_path_factory.mktemp("tokenizer"))

    @cache
    def one(kind: str) -> ImageCheckpoint:
        return checkpoint(KINDS[kind][0], tokenizer, **KINDS[kind][1])

    return one


def engine(found: ImageCheckpoint, tp: int, **settings: Any) -> PictureEngine:
    options = PoolOptions(batches=(2,))
    settings = {"kernels": "reference", "options": options, **settings}
    return load_engine(found, dtype=np.dtype(np.float32), tp=tp, **settings)


def latents(engine: PictureEngine, kind: str, id: str) -> tuple[np.ndarray, np.ndarray]:
    """Of a picture that is changed against a negative prompt; and the picture."""
    picture = np.random.default_rng(1).random((8, 12, 3), np.float32)
    true = {"guidance": 4.0} if kind == "sdxl" else {"true_guidance": 4.0}
    asked = request(id, "a red apple", negative_prompt="green", steps=3, height=8, width=12, **true)
    edit = request(id + "-edit", "a red apple", picture=picture, strength=0.7, steps=3, height=8, width=12)
    found = run(engine, [asked, edit])
    assert found[id].picture is not None
    return np.stack([found[id].latents, found[id + "-edit"].latents]), found[id].picture


@pytest.mark.parametrize(("kind", "tp", "scheme"), [("dev", 4, None), ("schnell", 2, "int8"), ("sdxl", 4, None)])
def test_several_devices_are_one(kind: str, tp: int, scheme: str | None, opened: Any) -> None:
    """And nothing is compiled again for a request more; each device holds its part."""
    alone, several = (engine(opened(kind), count, quantization=scheme) for count in (1, tp))
    expected, picture = latents(alone, kind, "one")
    assert several.num_devices == tp
    found, seen = latents(several, kind, "several")
    assert relative(found, expected) < TOLERANCE
    assert np.abs(seen - picture).max() < TOLERANCE
    compiles = CompileCounter()
    before = compiles.total
    latents(several, kind, "again")
    assert compiles.total == before
    assert several.weight_bytes < 0.6 * alone.weight_bytes


def test_what_is_cut(opened: Any) -> None:
    """Layers' heads where they divide, feed-forwards, and what is between the two convolutions of a residual block."""
    unet = engine(opened("sdxl"), 4)._weights.denoiser

    def is_cut(leaf: Any) -> bool:
        return isinstance(leaf, Sharded) and leaf.spread.sharded

    first, second = (level.transformers[0].blocks for level in unet.down)
    assert is_cut(second.own.q.weight) and not is_cut(first.own.q.weight)
    assert is_cut(first.up.weight) and is_cut(first.down.weight)
    resnet = unet.down[0].resnets[0]
    assert is_cut(resnet.conv1.weight) and is_cut(resnet.conv2.weight) and is_cut(resnet.time.weight)
    assert not is_cut(unet.conv_in.weight)


def test_what_cannot_be(opened: Any) -> None:
    with pytest.raises(ConfigError, match=r"--tp 3 would cut too little of this model: .*heads has size 4.*1, 2, 4"):
        engine(opened("dev"), 3)
    with pytest.raises(ConfigError, match=r"--tp 16 needs 16 devices, there are 8 \(cpu\): lower it"):
        engine(opened("dev"), 16)
    with pytest.raises(ConfigError, match="one device"):
        kernels_of("cpu", "cpu", 2)
    assert kernels_of(None, "cpu", 2) == "reference"
    assert kernels_of(None, "cpu", 1) == "cpu"


def test_the_checkpoint_is_read_by_parts(tmp_path: Path) -> None:
    """See `checkpoint.assembly`: `place_parts` is asked before `place`, which would hold a whole weight."""
    found = checkpoint("FluxPipeline", tokenizer_in(tmp_path), **FLUX)
    whole = engine(found, 4)._weights.denoiser.single.up.weight
    assert {shard.data.shape[-1] for shard in whole.inner.addressable_shards} == {whole.inner.shape[-1] // 4}
