"""Adapters beside the weights: each picture as from a model that they were merged into, in any company."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from slipstream.checkpoint.adapters import parse_all, parse_named
from slipstream.checkpoint.lora import Lora, with_loras
from slipstream.diffusion.engine import PictureEngine, PoolOptions
from slipstream.diffusion.loading import load_engine
from slipstream.diffusion.programs import Programs
from slipstream.errors import CheckpointError, RequestError
from slipstream.kernels.compiles import CompileCounter
from slipstream.spec.image import ImageCheckpoint
from tests.diffusion.fakes import request, run
from tests.diffusion.test_families import checkpoint
from tests.diffusion.test_families import tokenizer as tokenizer

RANKS = {"ink": 2, "face": 3, "glow": 1}
CHANGED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    # All that LoRA files hold: of stacked layers, of one tensor in several weights, of the text encoders.
    "FluxPipeline": {
        "ink": (
            "transformer.transformer_blocks.0.attn.to_q",
            "transformer.transformer_blocks.0.norm1.linear",
            "transformer.single_transformer_blocks.0.proj_out",
            "text_encoder.encoder.layers.1.self_attn.v_proj",
            "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
        ),
        "face": ("transformer.transformer_blocks.0.attn.to_q", "transformer.x_embedder"),
        "glow": ("transformer.single_transformer_blocks.0.attn.to_v",),
    },
    "StableDiffusionXLPipeline": {
        "ink": (
            "unet.down_blocks.1.resnets.0.conv1",
            "unet.down_blocks.0.downsamplers.0.conv",
            "unet.up_blocks.0.upsamplers.0.conv",
            "unet.up_blocks.0.resnets.0.conv_shortcut",
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
            "text_encoder_2.encoder.layers.0.mlp.fc1",
        ),
        "face": (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
            "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
            "unet.mid_block.attentions.0.proj_in",
        ),
        "glow": ("unet.down_blocks.1.resnets.0.time_emb_proj", "text_encoder.encoder.layers.0.self_attn.out_proj"),
    },
}
USES: tuple[Mapping[str, float], ...] = ({}, {"ink": 1.0}, {"ink": 0.5, "face": -0.7}, {"glow": 1.5})


def files(kind: str, found: ImageCheckpoint, folder: Path) -> dict[str, Path]:
    """A file for each adapter, of matrices as large as the weights."""
    draw = np.random.default_rng(4)
    made = {}
    for name, modules in CHANGED[kind].items():
        tensors = {}
        for module in modules:
            part, _, inner = module.partition(".")
            source = found.parts[part].source
            stored = inner if f"{inner}.weight" in source.names() else f"text_model.{inner}"
            out, *given = source.shape(f"{stored}.weight")
            rank, points = RANKS[name], (1,) * (len(given) - 1)
            tensors[f"{module}.lora_B.weight"] = draw.standard_normal((out, rank, *points), np.float32) / 2
            tensors[f"{module}.lora_A.weight"] = draw.standard_normal((rank, *given), np.float32) / 2
        made[name] = folder / f"{name}.safetensors"
        save_file(tensors, made[name])
    return made


@cache
def programs(height: int, width: int) -> Programs:
    """Those of all engines here: where weights have the same forms, nothing is compiled again."""
    return Programs()


def load(found: ImageCheckpoint, **options: Any) -> PictureEngine:
    """An engine whose steps have one size."""
    made = load_engine(found, dtype=np.dtype(np.float32), options=PoolOptions(batches=(2 * len(USES),)), **options)
    made._programs_of = programs
    return made


@pytest.mark.parametrize("kind", CHANGED)
def test_pictures_of_different_adapters_share_steps(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    """Within 1e-4 of those of the merged model, and of each alone; a new combination compiles nothing."""
    found = checkpoint(kind, tokenizer)
    paths = files(kind, found, tmp_path)
    one = load(found, adapters=paths)
    assert one.adapters == tuple(paths)
    common = {"height": 8, "width": 8, "steps": 3}
    guided = {"negative_prompt": "green", "true_guidance" if kind == "FluxPipeline" else "guidance": 3.0}
    asked = [request(str(i), "a red apple", loras=uses, **common, **guided) for i, uses in enumerate(USES)]
    run(one, [asked[0]])
    counter = CompileCounter()
    together = run(one, asked)
    alone = run(one, [asked[2]])["2"]
    assert counter.total == 0
    counter.close()
    largest = np.abs(together["0"].latents).max()
    assert np.abs(together["2"].latents - alone.latents).max() < 1e-5 * largest
    plain = load(found)
    assert not plain.adapters
    np.testing.assert_allclose(
        together["0"].latents, run(plain, [asked[0]])["0"].latents, atol=1e-5 * largest, err_msg="none is used"
    )
    uses = USES[2]
    merged = load(with_loras(found, [Lora(paths[name], scale) for name, scale in uses.items()]))
    expected = run(merged, [replace(asked[2], loras=None)])["2"].latents
    assert np.abs(together["2"].latents - expected).max() < 1e-4 * np.abs(expected).max()
    for i in range(1, len(USES)):
        assert np.abs(together[str(i)].latents - together["0"].latents).max() > 0.01 * largest


def test_what_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    found = checkpoint("FluxPipeline", tokenizer)
    one = load(found, adapters=files("FluxPipeline", found, tmp_path))
    for loras, said in (({"inc": 1.0}, "ink, face, glow"), ({"ink": float("nan")}, "number"), ({"ink": "1"}, "number")):
        with pytest.raises(RequestError, match=said):
            one.check(request("r", loras=loras))
    with pytest.raises(RequestError, match="none was named"):
        load(found).check(request("r", loras={"ink": 1.0}))
    table = {"text_encoder.embeddings.token_embedding": (40, 16)}
    tensors: dict[str, np.ndarray] = {}
    for module, (out, given) in table.items():
        tensors |= {f"{module}.lora_B.weight": np.ones((out, 1), np.float32)}
        tensors |= {f"{module}.lora_A.weight": np.ones((1, given), np.float32)}
    save_file(tensors, tmp_path / "table.safetensors")
    with pytest.raises(CheckpointError, match="neither a product nor a convolution"):
        load(found, adapters={"table": tmp_path / "table.safetensors"})


def test_texts_are_remembered_with_the_adapters_that_change_them(tokenizer: Any, tmp_path: Path) -> None:
    """Flux's `ink` changes text encoders, `face` does not."""
    found = checkpoint("FluxPipeline", tokenizer)
    one = load(found, adapters=files("FluxPipeline", found, tmp_path))
    texts = [one.text("a red apple", scales) for scales in ((), (0, 0.5, 0), (0.5, 0, 0), (0.6, 1, 1))]
    assert (one.texts.hits, one.texts.misses) == (1, 3)
    assert texts[0] is texts[1]
    for other in texts[2:]:
        for part, plain in zip(other, texts[0], strict=True):
            assert np.abs(np.asarray(part) - np.asarray(plain)).max() > 1e-3


def test_names(tmp_path: Path) -> None:
    path = tmp_path / "a=b.safetensors"
    path.touch()
    assert parse_named(f"ink={path}") == ("ink", path)
    assert parse_all([f"ink={path}", f"face={path}"]) == {"ink": path, "face": path}
    for wrong in (str(tmp_path / "none"), f"in k={path}", f"={path}", "ink=nowhere"):
        with pytest.raises(CheckpointError):
            parse_named(wrong)
    with pytest.raises(CheckpointError, match="two LoRAs"):
        parse_all([f"ink={path}", f"ink={path}"])
