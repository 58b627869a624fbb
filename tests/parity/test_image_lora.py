"""LoRA files under each convention's names, as diffusers loads and fuses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from slipstream.checkpoint.image_folder import open_image_folder
from slipstream.checkpoint.lora import Lora, with_loras
from slipstream.checkpoint.lora_names import plain
from tests.models.image.variants import CLIP, CLIPS, FLUX, T5
from tests.parity import images as reference

RANK, SCALES = 3, (0.7, -0.4)
UNET: Mapping[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 2,
    "sample_size": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "transformer_layers_per_block": (1, 2),
    "projection_class_embeddings_input_dim": 6 * 8 + 24,
    "cross_attention_dim": 72,
    "norm_num_groups": 4,
}


def flux() -> Any:
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=None,
        tokenizer=None,
        tokenizer_2=None,
        text_encoder=reference.filled("CLIPTextModel", CLIP),
        text_encoder_2=reference.filled("T5EncoderModel", T5),
        transformer=reference.filled("FluxTransformer2DModel", FLUX),
    )


def sdxl() -> Any:
    torch.manual_seed(0)
    return diffusers.StableDiffusionXLPipeline(
        scheduler=diffusers.EulerDiscreteScheduler(),
        vae=None,
        tokenizer=None,
        tokenizer_2=None,
        text_encoder=reference.filled("CLIPTextModel", CLIP),
        text_encoder_2=reference.filled("CLIPTextModelWithProjection", CLIPS["clip-projected"]),
        unet=diffusers.UNet2DConditionModel(**UNET),
        add_watermarker=False,
    )


Change = tuple[str, tuple[str, ...]]
"""What a file calls a matrix, and the modules of diffusers whose weights it holds, one after the other."""

BLOCK, SINGLE = "transformer_blocks.0.", "single_transformer_blocks.0."
TEXTS = tuple(f"text_model.encoder.layers.1.self_attn.{part}_proj" for part in ("v", "out"))
QKV = tuple(f"{BLOCK}attn.to_{part}" for part in "qkv")
ADDED = tuple(f"{BLOCK}attn.add_{part}_proj" for part in "qkv")
SINGLES = tuple(f"{SINGLE}attn.to_{part}" for part in "qkv")
DOWN, MIDDLE, UP = "down_blocks.1.attentions.1.", "mid_block.attentions.0.", "up_blocks.0.attentions.2."
INNER = ("transformer_blocks.0.attn1.to_k", "transformer_blocks.1.attn2.to_out.0", "transformer_blocks.0.ff.net.0.proj")

CASES: dict[str, tuple[Callable[[], Any], tuple[str, str], Mapping[str, list[Change]]]] = {
    "flux-diffusers": (
        flux,
        ("lora_B.weight", "lora_A.weight"),
        {
            "transformer": [
                (f"transformer.{m}", (m,)) for m in (*QKV, f"{BLOCK}ff.net.2", f"{SINGLE}proj_out", "x_embedder")
            ],
            "text_encoder": [(f"text_encoder.{text}", (text,)) for text in TEXTS],
        },
    ),
    "flux-kohya": (
        flux,
        ("lora_up.weight", "lora_down.weight"),
        {
            "transformer": [
                ("lora_unet_double_blocks_0_img_attn_qkv", QKV),
                ("lora_unet_double_blocks_0_txt_attn_qkv", ADDED),
                ("lora_unet_double_blocks_0_img_attn_proj", (f"{BLOCK}attn.to_out.0",)),
                ("lora_unet_double_blocks_0_txt_mlp_2", (f"{BLOCK}ff_context.net.2",)),
                ("lora_unet_double_blocks_0_img_mod_lin", (f"{BLOCK}norm1.linear",)),
                # Not linear1: diffusers takes its parts for those of the real model's width.
                ("lora_unet_single_blocks_0_linear2", (f"{SINGLE}proj_out",)),
                ("lora_unet_single_blocks_0_modulation_lin", (f"{SINGLE}norm.linear",)),
            ],
            "text_encoder": [(f"lora_te1_{text.replace('.', '_')}", (text,)) for text in TEXTS],
        },
    ),
    "flux-xlabs": (
        flux,
        ("up.weight", "down.weight"),
        {
            "transformer": [
                ("double_blocks.0.processor.qkv_lora1", QKV),
                ("double_blocks.0.processor.qkv_lora2", ADDED),
                ("double_blocks.0.processor.proj_lora1", (f"{BLOCK}attn.to_out.0",)),
                ("double_blocks.0.processor.proj_lora2", (f"{BLOCK}attn.to_add_out",)),
                ("single_blocks.0.processor.qkv_lora", SINGLES),
                ("single_blocks.0.processor.proj_lora", (f"{SINGLE}proj_out",)),
            ]
        },
    ),
    "sdxl-diffusers": (
        sdxl,
        ("lora_B.weight", "lora_A.weight"),
        {
            "unet": [(f"unet.{at}{name}", (at + name,)) for at in (DOWN, MIDDLE, UP) for name in INNER],
            "text_encoder_2": [(f"text_encoder_2.{text}", (text,)) for text in TEXTS],
        },
    ),
    "sdxl-kohya": (
        sdxl,
        ("lora_up.weight", "lora_down.weight"),
        {
            "unet": [
                (f"lora_unet_{(at + name).replace('.', '_')}", (at + name,))
                for at in (DOWN, MIDDLE, UP)
                for name in INNER
            ],
            "text_encoder": [(f"lora_te1_{text.replace('.', '_')}", (text,)) for text in TEXTS],
            "text_encoder_2": [(f"lora_te2_{text.replace('.', '_')}", (text,)) for text in TEXTS],
        },
    ),
    "sdxl-kohya-original": (
        sdxl,
        ("lora_up.weight", "lora_down.weight"),
        {
            "unet": [
                (f"lora_unet_{at}_{name.replace('.', '_')}", (module + name,))
                for at, module in (("input_blocks_5_1", DOWN), ("middle_block_1", MIDDLE), ("output_blocks_2_1", UP))
                for name in INNER
            ]
        },
    ),
}


def written(path: Path, seed: int, pipeline: Any, endings: tuple[str, str], parts: Mapping[str, list[Change]]) -> Path:
    """A random file; kohya's has an alpha of another size than the rank."""
    draw = np.random.default_rng(seed)
    tensors = {}
    for part, changes in parts.items():
        weights = {plain(name): value for name, value in getattr(pipeline, part).state_dict().items()}
        for name, modules in changes:
            shapes = [tuple(weights[plain(f"{module}.weight")].shape) for module in modules]
            up = draw.standard_normal((sum(shape[0] for shape in shapes), RANK), np.float32)
            tensors[f"{name}.{endings[0]}"] = up
            tensors[f"{name}.{endings[1]}"] = draw.standard_normal((RANK, shapes[0][1]), np.float32)
            if endings[0] == "lora_up.weight":
                tensors[f"{name}.alpha"] = np.array(2, np.float32)
    save_file(tensors, path)
    return path


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_that_diffusers_fuses(case: str, tmp_path: Path) -> None:
    """Two files with a scale each."""
    make, endings, parts = CASES[case]
    pipeline = make()
    pipeline.save_pretrained(tmp_path / "model")
    files = [written(tmp_path / f"{i}.safetensors", i, pipeline, endings, parts) for i in (0, 1)]
    for i, file in enumerate(files):
        pipeline.load_lora_weights(str(file), adapter_name=str(i))
    pipeline.set_adapters(["0", "1"], list(SCALES))
    pipeline.fuse_lora(components=list(parts), adapter_names=["0", "1"])
    found = with_loras(
        open_image_folder(tmp_path / "model"),
        [Lora(file, scale) for file, scale in zip(files, SCALES, strict=True)],
    )
    for part, changes in parts.items():
        before = open_image_folder(tmp_path / "model").parts[part].source
        weights = {
            plain(name.replace(".base_layer", "")): value.detach().numpy()
            for name, value in getattr(pipeline, part).state_dict().items()
            if ".lora_" not in name
        }
        source = found.parts[part].source
        changed = {plain(f"{module}.weight") for _, modules in changes for module in modules}
        for name in source.names():
            expected = weights[plain(name)]
            np.testing.assert_allclose(source.read(name), expected, atol=1e-5 * np.abs(expected).max(), err_msg=name)
            assert (np.abs(expected - before.read(name)).max() > 0.1) == (plain(name) in changed), name
