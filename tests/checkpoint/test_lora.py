"""LoRA files under each convention's names change the same weights by the same amounts."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from slipstream.checkpoint.lora import METADATA, Lora, parse, with_loras
from slipstream.errors import CheckpointError
from slipstream.spec.image import Component, ImageCheckpoint
from slipstream.spec.source import Blocks, Stored

WIDTH, RANK = 8, 2
DRAW = np.random.default_rng(3)

BLOCK, SINGLE = "transformer_blocks.0.", "single_transformer_blocks.1."
FLUX = {
    "x_embedder": (WIDTH, 4),
    **{f"{BLOCK}attn.{name}": (WIDTH, WIDTH) for name in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")},
    **{f"{BLOCK}attn.add_{name}_proj": (WIDTH, WIDTH) for name in "qkv"},
    **{f"{BLOCK}ff{mark}.net.0.proj": (4 * WIDTH, WIDTH) for mark in ("", "_context")},
    f"{BLOCK}norm1.linear": (6 * WIDTH, WIDTH),
    **{f"{SINGLE}attn.to_{name}": (WIDTH, WIDTH) for name in "qkv"},
    f"{SINGLE}proj_mlp": (4 * WIDTH, WIDTH),
    f"{SINGLE}proj_out": (WIDTH, 5 * WIDTH),
}
LAYER = "text_model.encoder.layers.0.self_attn.q_proj"
ATTENTION = "attentions.1.transformer_blocks.0.attn1.to_k"
UNET = {
    f"down_blocks.1.{ATTENTION}": (WIDTH, WIDTH),
    f"mid_block.{ATTENTION.replace('s.1', 's.0')}": (WIDTH, WIDTH),
    f"up_blocks.0.{ATTENTION}": (WIDTH, WIDTH),
    "down_blocks.0.resnets.1.conv1": (WIDTH, 4, 3, 3),
    "up_blocks.2.resnets.2.conv_shortcut": (WIDTH, 4, 1, 1),
    "down_blocks.0.downsamplers.0.conv": (WIDTH, WIDTH, 3, 3),
}


@dataclass
class Held:
    """A Source of arrays."""

    arrays: dict[str, np.ndarray]

    def names(self) -> Collection[str]:
        return self.arrays.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.arrays[name].shape

    def read(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def blocks(self, name: str) -> Stored | None:
        return Blocks("F32", self.shape(name), lambda: self.arrays[name].view(np.uint8))


def held(shapes: dict[str, tuple[int, ...]]) -> Held:
    return Held({f"{name}.weight": DRAW.standard_normal(shape, np.float32) for name, shape in shapes.items()})


def flux() -> ImageCheckpoint:
    parts = {"transformer": Component("FluxTransformer2DModel", {}, held(FLUX))}
    parts |= {name: Component("CLIPTextModel", {}, held({LAYER: (WIDTH, WIDTH)})) for name in ("text_encoder",)}
    return ImageCheckpoint(Path("m"), "FluxPipeline", parts, {}, {}, {})


def sdxl() -> ImageCheckpoint:
    parts = {"unet": Component("UNet2DConditionModel", {}, held(UNET))}
    names = ("text_encoder", "text_encoder_2")
    parts |= {name: Component("CLIPTextModel", {}, held({LAYER: (WIDTH, WIDTH)})) for name in names}
    return ImageCheckpoint(Path("m"), "StableDiffusionXLPipeline", parts, {}, {}, {})


def pair(shape: tuple[int, ...], rank: int = RANK) -> tuple[np.ndarray, np.ndarray]:
    """up and down of a weight."""
    kernel = (1,) * (len(shape) - 2)
    up = DRAW.standard_normal((shape[0], rank, *kernel), np.float32)
    return up, DRAW.standard_normal((rank, *shape[1:]), np.float32)


def product(up: np.ndarray, down: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return (up.reshape(len(up), -1) @ down.reshape(len(down), -1)).reshape(shape)


def check(before: ImageCheckpoint, after: ImageCheckpoint, part: str, changes: dict[str, np.ndarray]) -> None:
    """Those tensors of a part have changed so, and no others; what changed is read as floats."""
    old, new = before.parts[part].source, after.parts[part].source
    assert set(new.names()) == set(old.names())
    for name in old.names():
        module = name.removesuffix(".weight")
        expected = old.read(name) + changes.get(module, np.float32(0))
        np.testing.assert_allclose(new.read(name), expected, atol=1e-5)
        if module in changes:
            stored = new.blocks(name)
            assert isinstance(stored, Blocks)
            np.testing.assert_array_equal(stored.read().view(np.float32), new.read(name))
        assert new.shape(name) == old.shape(name)


PEFT = ("lora_B.weight", "lora_A.weight")
STYLES: dict[str, tuple[str, tuple[str, str]]] = {
    "diffusers": ("transformer.{}.", PEFT),
    "peft": ("base_model.model.transformer.{}.", PEFT),
    "bare": ("{}.", PEFT),
    "older": ("transformer.{}.", ("lora.up.weight", "lora.down.weight")),
    "kohya": ("lora_transformer_{_}.", ("lora_up.weight", "lora_down.weight")),
}


@pytest.mark.parametrize("style", STYLES)
def test_names_of_diffusers_modules(style: str, tmp_path: Path) -> None:
    pattern, (up_name, down_name) = STYLES[style]
    before, tensors, changes = flux(), {}, {}
    for module in (f"{BLOCK}attn.to_q", f"{BLOCK}ff.net.0.proj", f"{SINGLE}proj_out"):
        up, down = pair(FLUX[module])
        at = pattern.replace("{_}", module.replace(".", "_")).replace("{}", module)
        tensors |= {at + up_name: up, at + down_name: down, at + "alpha": np.array(1, np.float32)}
        changes[module] = 0.5 * product(up, down, FLUX[module]) / RANK
    save_file(tensors, tmp_path / "l.safetensors")
    check(before, with_loras(before, [Lora(tmp_path / "l.safetensors", 0.5)]), "transformer", changes)


@pytest.mark.parametrize("kind", ["kohya", "xlabs", "native"])
def test_names_of_flux_as_it_was_published(kind: str, tmp_path: Path) -> None:
    """Queries, keys and values are one matrix there."""
    before, tensors, changes = flux(), {}, {}
    xlabs = {
        "double_blocks.0.img_attn.qkv": "double_blocks.0.processor.qkv_lora1",
        "double_blocks.0.txt_attn.qkv": "double_blocks.0.processor.qkv_lora2",
        "double_blocks.0.img_attn.proj": "double_blocks.0.processor.proj_lora1",
        "double_blocks.0.txt_attn.proj": "double_blocks.0.processor.proj_lora2",
        "single_blocks.1.linear1": "single_blocks.1.processor.qkv_lora",
        "single_blocks.1.linear2": "single_blocks.1.processor.proj_lora",
    }
    for stored, modules in {
        "double_blocks.0.img_attn.qkv": [f"{BLOCK}attn.to_{part}" for part in "qkv"],
        "double_blocks.0.txt_attn.qkv": [f"{BLOCK}attn.add_{part}_proj" for part in "qkv"],
        "double_blocks.0.img_attn.proj": [f"{BLOCK}attn.to_out.0"],
        "double_blocks.0.txt_attn.proj": [f"{BLOCK}attn.to_add_out"],
        "double_blocks.0.txt_mlp.0": [f"{BLOCK}ff_context.net.0.proj"],
        "double_blocks.0.img_mod.lin": [f"{BLOCK}norm1.linear"],
        "single_blocks.1.linear1": [*(f"{SINGLE}attn.to_{part}" for part in "qkv"), f"{SINGLE}proj_mlp"],
        "single_blocks.1.linear2": [f"{SINGLE}proj_out"],
    }.items():
        if kind == "xlabs":
            if stored not in xlabs:
                continue
            modules = modules[:3]  # its single blocks leave the feed-forward out
        rows = [FLUX[module][0] for module in modules]
        shape = (sum(rows), FLUX[modules[0]][1])
        up, down = pair(shape)
        if kind == "xlabs":
            tensors |= {f"{xlabs[stored]}.up.weight": up, f"{xlabs[stored]}.down.weight": down}
        elif kind == "kohya":
            at = "lora_unet_" + stored.replace(".", "_")
            tensors |= {
                f"{at}.lora_up.weight": up,
                f"{at}.lora_down.weight": down,
                f"{at}.alpha": np.array(RANK, np.float32),
            }
        else:
            at = "diffusion_model." + stored
            tensors |= {f"{at}.lora_B.weight": up, f"{at}.lora_A.weight": down}
        whole = np.split(product(up, down, shape), np.cumsum(rows)[:-1])
        changes |= dict(zip(modules, whole, strict=True))
    save_file(tensors, tmp_path / "l.safetensors")
    check(before, with_loras(before, [Lora(tmp_path / "l.safetensors")]), "transformer", changes)


@pytest.mark.parametrize("original", [False, True])
def test_kohyas_names_of_sdxl(original: bool, tmp_path: Path) -> None:
    names = {
        f"down_blocks.1.{ATTENTION}": "input_blocks_5_1_transformer_blocks_0_attn1_to_k",
        f"mid_block.{ATTENTION.replace('s.1', 's.0')}": "middle_block_1_transformer_blocks_0_attn1_to_k",
        f"up_blocks.0.{ATTENTION}": "output_blocks_1_1_transformer_blocks_0_attn1_to_k",
        "down_blocks.0.resnets.1.conv1": "input_blocks_2_0_in_layers_2",
        "up_blocks.2.resnets.2.conv_shortcut": "output_blocks_8_0_skip_connection",
        "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
    }
    before, tensors, changes = sdxl(), {}, {}
    for module, name in names.items():
        up, down = pair(UNET[module])
        at = "lora_unet_" + (name if original else module.replace(".", "_"))
        tensors |= {f"{at}.lora_up.weight": up, f"{at}.lora_down.weight": down, f"{at}.alpha": np.array(4, np.float32)}
        changes[module] = product(up, down, UNET[module]) * 4 / RANK
    texts = {}
    for part, prefix in (("text_encoder", "lora_te1_"), ("text_encoder_2", "lora_te2_")):
        up, down = pair((WIDTH, WIDTH))
        at = prefix + LAYER.replace(".", "_")
        tensors |= {f"{at}.lora_up.weight": up, f"{at}.lora_down.weight": down}
        texts[part] = {LAYER: product(up, down, (WIDTH, WIDTH))}
    save_file(tensors, tmp_path / "l.safetensors")
    after = with_loras(before, [Lora(tmp_path / "l.safetensors")])
    check(before, after, "unet", changes)
    for part, change in texts.items():
        check(before, after, part, change)


def test_several_add_up_each_with_its_scale(tmp_path: Path) -> None:
    before, module = flux(), f"{BLOCK}attn.to_k"
    total: Any = 0
    loras = []
    for i, (scale, rank) in enumerate(((1.0, 2), (-0.5, 4), (0.25, 1))):
        up, down = pair(FLUX[module], rank)
        at = f"transformer.{module}."
        metadata = {METADATA: json.dumps({"transformer.lora_alpha": 3, "transformer.r": rank})}
        path = tmp_path / f"{i}.safetensors"
        save_file({at + "lora_A.weight": down, at + "lora_B.weight": up}, path, metadata)
        loras.append(Lora(path, scale))
        total = total + scale * 3 / rank * product(up, down, FLUX[module])
    check(before, with_loras(before, loras), "transformer", {module: total})
    assert with_loras(before, []).parts == before.parts


def test_what_is_refused(tmp_path: Path) -> None:
    module = f"transformer.{BLOCK}attn.to_q"
    up, down = pair((WIDTH, WIDTH))
    good = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    for tensors, metadata, said in (
        ({}, None, "no whole LoRA"),
        ({f"{module}.lora_A.weight": down}, None, "lacks a matrix"),
        (good | {f"{module}.dora_scale": up}, None, "no other kind of change"),
        (good | {"transformer.nowhere.lora_A.weight": down, "transformer.nowhere.lora_B.weight": up}, None, "nowhere"),
        ({f"{module}.lora_A.weight": down[:, :3], f"{module}.lora_B.weight": up}, None, "another model"),
        ({f"{module}.lora_A.weight": down[:1], f"{module}.lora_B.weight": up}, None, "another model"),
        ({"lora_unet_input_blocks_4_1_x.lora_down.weight": down, "lora_unet_input_blocks_4_1_x.lora_up.weight": up},
         None, "another model"),
        (good, {METADATA: json.dumps({"transformer.use_dora": True})}, "use_dora"),
        (good, {METADATA: "{"}, "no JSON"),
    ):  # fmt: skip
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, tmp_path / "l", metadata)
        with pytest.raises(CheckpointError, match=said):
            with_loras(flux(), [Lora(tmp_path / "l")])
    (tmp_path / "l").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError):
        with_loras(flux(), [Lora(tmp_path / "l")])


def test_a_path_with_a_scale(tmp_path: Path) -> None:
    path = tmp_path / "a=b.safetensors"
    path.touch()
    assert parse(f"{path}=0.5") == Lora(path, 0.5)
    other = tmp_path / "a.safetensors"
    other.touch()
    assert parse(str(other)) == Lora(other)
    for wrong in (str(tmp_path / "none"), f"{other}=much"):
        with pytest.raises(CheckpointError):
            parse(wrong)
