"""diffusers' pipelines as the reference: tiny random checkpoints in its layout, and what it makes of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from tests.diffusion.samplers import FLUX_DEV, FLUX_SCHNELL, SDXL
from tests.golden.corpus import CORPUS
from tests.parity.test_image_tokenizers import write_clip

torch.set_num_threads(1)

TEXT_TOKENS = 24
"""Of T5: some of the prompts are longer."""

LINES = [line for text in CORPUS for line in text.splitlines() if line.strip()]

CLIP: Mapping[str, Any] = {
    "vocab_size": 2000,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "projection_dim": 32,
    "hidden_act": "quick_gelu",
}
T5: Mapping[str, Any] = {
    "vocab_size": 400,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
}
FLUX: Mapping[str, Any] = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": [4, 4, 8],
}
UNET: Mapping[str, Any] = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [2, 4],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "transformer_layers_per_block": [1, 2],
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
    "cross_attention_dim": 64,
    "norm_num_groups": 4,
}
VAE: Mapping[str, Any] = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 16,
}

KINDS: Mapping[str, Mapping[str, Any]] = {
    "dev": {"guidance_embeds": True},
    "schnell": {"guidance_embeds": False},
    # Two pictures' latents of 4 channels and 4 pixels of the mask for each, in squares of 4.
    "fill": {"guidance_embeds": True, "in_channels": 48, "out_channels": 16},
    "sdxl": {},
    "sdxl-inpaint": {"in_channels": 9},
}
"""Checkpoints: what each changes of the model that denoises."""


def written(kind: str, folder: Path) -> Any:
    """diffusers' pipeline of a kind with random weights, which are saved to `folder`."""
    torch.manual_seed(3)
    pipeline = _sdxl(kind, folder) if kind.startswith("sdxl") else _flux(kind, folder)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            _fill(part)
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def as_class(pipeline: Any, name: str) -> Any:
    """The same parts in another of diffusers' pipelines."""
    made = getattr(diffusers, name)(**pipeline.components)
    made.set_progress_bar_config(disable=True)
    return made


@contextmanager
def given_noise(noise: np.ndarray, steps: Sequence[np.ndarray] = ()) -> Iterator[None]:
    """diffusers starts from `noise` [n, c, h, w] and draws `steps` in turn; of an encoded picture it takes the mean."""
    left = iter(steps)

    def start(shape: Any, **_: Any) -> torch.Tensor:
        assert tuple(shape) == noise.shape
        return torch.from_numpy(noise)

    modules = [f"pipelines.flux.pipeline_flux_{name}" for name in ("img2img", "inpaint", "fill")]
    modules += [f"pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_{name}" for name in ("img2img", "inpaint")]
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(patch(f"diffusers.{module}.randn_tensor", start))
        zeros = lambda shape, **_: torch.zeros(shape)  # noqa: E731
        stack.enter_context(patch("diffusers.models.autoencoders.vae.randn_tensor", zeros))
        for name in ("lcm", "euler_ancestral_discrete"):
            drawn = lambda *_, **__: torch.from_numpy(next(left))  # noqa: E731
            stack.enter_context(patch(f"diffusers.schedulers.scheduling_{name}.randn_tensor", drawn))
        yield


def packed(latents: np.ndarray) -> torch.Tensor:
    """[n, c, h, w] as Flux's pipelines take them."""
    n, c, h, w = latents.shape
    return diffusers.FluxPipeline._pack_latents(torch.from_numpy(latents), n, c, h, w)


def unpacked(latents: torch.Tensor, height: int, width: int) -> np.ndarray:
    """[n, c, h, w] of what Flux's pipelines give for so many pixels, two to a latent."""
    return diffusers.FluxPipeline._unpack_latents(latents, height, width, 2).numpy()


def _flux(kind: str, folder: Path) -> Any:
    first, second = folder / "tokenizer", folder / "tokenizer_2"
    _clip_tokenizer(first, "<|endoftext|>")
    _t5_tokenizer(second)
    cls = diffusers.FluxFillPipeline if kind == "fill" else diffusers.FluxPipeline
    config = FLUX_SCHNELL if kind == "schnell" else FLUX_DEV
    return cls(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_config(dict(config)),
        text_encoder=_text(transformers.CLIPTextModel, first),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(first),
        text_encoder_2=transformers.T5EncoderModel(transformers.T5Config(**T5)),
        tokenizer_2=transformers.AutoTokenizer.from_pretrained(second),
        transformer=diffusers.FluxTransformer2DModel(**{**FLUX, **KINDS[kind]}),
        vae=diffusers.AutoencoderKL(**VAE, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False),
    )


def _sdxl(kind: str, folder: Path) -> Any:
    first, second = folder / "tokenizer", folder / "tokenizer_2"
    _clip_tokenizer(first, "<|endoftext|>")
    _clip_tokenizer(second, "!")
    inpaint = kind == "sdxl-inpaint"
    cls = diffusers.StableDiffusionXLInpaintPipeline if inpaint else diffusers.StableDiffusionXLPipeline
    return cls(
        scheduler=diffusers.EulerDiscreteScheduler.from_config(dict(SDXL)),
        text_encoder=_text(transformers.CLIPTextModel, first),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(first),
        text_encoder_2=_text(transformers.CLIPTextModelWithProjection, second, hidden_act="gelu"),
        tokenizer_2=transformers.CLIPTokenizer.from_pretrained(second),
        unet=diffusers.UNet2DConditionModel(**{**UNET, **KINDS[kind]}),
        vae=diffusers.AutoencoderKL(**VAE, scaling_factor=0.13025),
        add_watermarker=False,
    )


def _text(cls: Any, tokenizer: Path, **changes: Any) -> Any:
    vocab = json.loads((tokenizer / "vocab.json").read_text())
    end = {"eos_token_id": vocab["<|endoftext|>"], "bos_token_id": vocab["<|startoftext|>"], "pad_token_id": vocab["!"]}
    return cls(transformers.CLIPTextConfig(**{**CLIP, **end, **changes}))


def _clip_tokenizer(folder: Path, pad: str) -> None:
    folder.mkdir(parents=True)
    write_clip(folder, pad)


def _t5_tokenizer(folder: Path) -> None:
    """A Unigram tokenizer.json that ends texts as T5's does."""
    folder.mkdir(parents=True)
    learned = Tokenizer(models.Unigram())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.train_from_iterator(
        LINES,
        trainers.UnigramTrainer(
            vocab_size=380, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    learned.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=learned, model_max_length=TEXT_TOKENS, **special)
    made.save_pretrained(folder)


def _fill(model: torch.nn.Module) -> None:
    """Weights whose products keep the size of what goes in, so that every part of the model is seen at the end."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim > 1:
                tensor.normal_(0, 1 / math.sqrt(tensor[0].numel()))
            elif "norm" in name and name.endswith("weight"):
                tensor.normal_(1, 0.1)
            else:
                tensor.normal_(0, 0.1)
    model.to(torch.float32).eval()
