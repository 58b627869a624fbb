"""The names that LoRA files give to the matrices which they change: diffusers' and peft's, kohya's, XLabs'.

Each is read as a `Place`: a module of diffusers or transformers in a part of the pipeline, or one of Flux under the
names of Black Forest Labs, which keeps several of diffusers' in one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

DENOISER, FIRST, SECOND = "denoiser", "text_encoder", "text_encoder_2"
"""Parts: `denoiser` is the transformer or the UNet."""

ENDINGS: Mapping[str, str] = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".down.weight": "down",
    ".up.weight": "up",
    ".alpha": "alpha",
    ".lora.alpha": "alpha",
}
"""What a tensor is, by the end of its name; the longest that fits counts."""

_PREFIXES: Mapping[str, str] = {
    "base_model.model.transformer.": DENOISER,
    "base_model.model.unet.": DENOISER,
    "transformer.": DENOISER,
    "unet.": DENOISER,
    "diffusion_model.": DENOISER,
    "text_encoder_2.": SECOND,
    "text_encoder.": FIRST,
}
_KOHYA: Mapping[str, str] = {
    "lora_unet_": DENOISER,
    "lora_transformer_": DENOISER,
    "lora_te1_": FIRST,
    "lora_te2_": SECOND,
    "lora_te_": FIRST,
}
_FLUX_KOHYA = re.compile(r"(double|single)_blocks_(\d+)_(.+)")
_FLUX_PARTS: Mapping[str, str] = {
    **{f"{side}_attn_{part}": f"{side}_attn.{part}" for side in ("img", "txt") for part in ("qkv", "proj")},
    **{f"{side}_mlp_{part}": f"{side}_mlp.{part}" for side in ("img", "txt") for part in "02"},
    **{f"{side}_mod_lin": f"{side}_mod.lin" for side in ("img", "txt")},
    "linear1": "linear1",
    "linear2": "linear2",
    "modulation_lin": "modulation.lin",
}
_XLABS = re.compile(r"(double|single)_blocks\.(\d+)\.processor\.(qkv|proj)_lora([12]?)")
_PROCESSOR = re.compile(r"(.+)\.processor\.(to_q|to_k|to_v|to_out)_lora")


class Place(NamedTuple):
    """Where a matrix belongs. `native`: the module has Black Forest Labs' name, not diffusers'."""

    part: str
    module: str
    native: bool = False


def split(name: str) -> tuple[str, str] | None:
    """A tensor's name as that of what it changes and its kind: down, up or alpha. None for another kind."""
    fitting = [ending for ending in ENDINGS if name.endswith(ending)]
    if not fitting:
        return None
    ending = max(fitting, key=len)
    return name.removesuffix(ending), ENDINGS[ending]


def plain(name: str) -> str:
    """The name without `text_model`, which transformers has put before those of a text encoder, and left out again."""
    return name.removeprefix("text_model.")


def place(name: str, modules: Mapping[str, Collection[str]]) -> Place | None:
    """Where what a file calls `name` belongs; None where no convention has such a name.

    `modules`: of each part, those that have a weight, `plain`.
    """
    return _kohya(name, modules) or _xlabs(name) or _dotted(name, modules)


def _kohya(name: str, modules: Mapping[str, Collection[str]]) -> Place | None:
    prefix = next((prefix for prefix in _KOHYA if name.startswith(prefix)), None)
    if prefix is None:
        return None
    part, flat = _KOHYA[prefix], name.removeprefix(prefix).removeprefix("text_model_")
    # Dots have become underscores, of which names have others: only the model's own names tell which is which.
    for spelled in _SPELLINGS:
        for module in modules.get(part, ()):
            if spelled(module).replace(".", "_") == flat:
                return Place(part, module)
    if part == DENOISER and (found := _FLUX_KOHYA.fullmatch(flat)) and found[3] in _FLUX_PARTS:
        return Place(part, f"{found[1]}_blocks.{found[2]}.{_FLUX_PARTS[found[3]]}", native=True)
    return None


def _xlabs(name: str) -> Place | None:
    found = _XLABS.fullmatch(name.removeprefix("diffusion_model."))
    if found is None:
        return None
    kind, block, part, side = found.groups()
    if kind == "single":
        return Place(DENOISER, f"single_blocks.{block}.{'linear1' if part == 'qkv' else 'linear2'}", native=True)
    return Place(DENOISER, f"double_blocks.{block}.{'txt' if side == '2' else 'img'}_attn.{part}", native=True)


def _dotted(name: str, modules: Mapping[str, Collection[str]]) -> Place | None:
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    part = _PREFIXES.get(prefix, DENOISER)
    module = plain(name.removeprefix(prefix))
    if found := _PROCESSOR.fullmatch(module):
        module = f"{found[1]}.{'to_out.0' if found[2] == 'to_out' else found[2]}"
    if module in modules.get(part, ()):
        return Place(part, module)
    native = re.fullmatch(r"(double|single)_blocks\.\d+\..+", module) is not None
    return Place(part, module, native=True) if part == DENOISER and native else None


def _original(module: str) -> str:
    """A module of SDXL's UNet under its authors' names, as kohya's scripts write them."""
    for pattern, name in _ORIGINAL.items():
        if found := re.fullmatch(pattern, module):
            *numbers, rest = found.groups()
            return f"{name(*map(int, numbers))}.{_INNER.get(rest, rest)}"
    return module


_LAYERS = 3
"""Blocks of the authors' numbering in one of diffusers': two resnets, and what changes the resolution."""

_ORIGINAL: Mapping[str, Callable[..., str]] = {
    r"down_blocks\.(\d+)\.resnets\.(\d+)\.(.+)": lambda b, i: f"input_blocks.{_LAYERS * b + 1 + i}.0",
    r"down_blocks\.(\d+)\.attentions\.(\d+)\.(.+)": lambda b, i: f"input_blocks.{_LAYERS * b + 1 + i}.1",
    r"down_blocks\.(\d+)\.(downsamplers\.0\.conv)": lambda b: f"input_blocks.{_LAYERS * (b + 1)}.0",
    r"mid_block\.resnets\.(\d+)\.(.+)": lambda i: f"middle_block.{2 * i}",
    r"mid_block\.attentions\.0\.(.+)": lambda: "middle_block.1",
    r"up_blocks\.(\d+)\.resnets\.(\d+)\.(.+)": lambda b, i: f"output_blocks.{_LAYERS * b + i}.0",
    r"up_blocks\.(\d+)\.attentions\.(\d+)\.(.+)": lambda b, i: f"output_blocks.{_LAYERS * b + i}.1",
    r"up_blocks\.(\d+)\.upsamplers\.0\.(conv)": lambda b: f"output_blocks.{_LAYERS * b + 2}.2",
}
_INNER: Mapping[str, str] = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "downsamplers.0.conv": "op",
}
_SPELLINGS: tuple[Callable[[str], str], ...] = (lambda module: module, _original)
