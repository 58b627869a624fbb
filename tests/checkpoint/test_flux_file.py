"""Flux in one file as Black Forest Labs publish it: bit for bit the tensors of the same model in diffusers' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from slipstream.checkpoint import check
from slipstream.checkpoint.cut import Cut, Piece
from slipstream.checkpoint.image_single import open_image_file
from slipstream.checkpoint.safetensors_source import SafetensorsSource
from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.models.image.registry import model_of
from slipstream.spec.source import Blocks, Source
from tests.models.image.harness import random_source
from tests.models.image.variants import FLUX

CONFIG: dict[str, Any] = {
    **FLUX,
    "attention_head_dim": 128,
    "num_attention_heads": 1,
    "axes_dims_rope": [16, 56, 56],
    "num_single_layers": 2,
    "out_channels": 4,
}
Tensors = dict[str, np.ndarray]


def original(tensors: Tensors) -> Tensors:
    """The same under the names of black-forest-labs/flux, fused and swapped as there."""
    found: Tensors = {}

    def move(old: str, new: str, kinds: tuple[str, ...] = ("weight", "bias")) -> None:
        found.update({f"{new}.{kind}": tensors[f"{old}.{kind}"] for kind in kinds})

    def fuse(olds: list[str], new: str) -> None:
        found.update(
            {f"{new}.{kind}": np.concatenate([tensors[f"{old}.{kind}"] for old in olds]) for kind in ("weight", "bias")}
        )

    def norms(old: str, new: str, added: str = "") -> None:
        for letter, word in (("q", "query"), ("k", "key")):
            found[f"{new}.{word}_norm.scale"] = tensors[f"{old}.norm_{added}{letter}.weight"]

    for old, new in (("timestep", "time"), ("guidance", "guidance"), ("text", "vector")):
        move(f"time_text_embed.{old}_embedder.linear_1", f"{new}_in.in_layer")
        move(f"time_text_embed.{old}_embedder.linear_2", f"{new}_in.out_layer")
    move("x_embedder", "img_in")
    move("context_embedder", "txt_in")
    for i in range(CONFIG["num_layers"]):
        old, new = f"transformer_blocks.{i}", f"double_blocks.{i}"
        fuse([f"{old}.attn.to_{letter}" for letter in "qkv"], f"{new}.img_attn.qkv")
        fuse([f"{old}.attn.add_{letter}_proj" for letter in "qkv"], f"{new}.txt_attn.qkv")
        norms(f"{old}.attn", f"{new}.img_attn.norm")
        norms(f"{old}.attn", f"{new}.txt_attn.norm", "added_")
        move(f"{old}.attn.to_out.0", f"{new}.img_attn.proj")
        move(f"{old}.attn.to_add_out", f"{new}.txt_attn.proj")
        for mark, stream in (("", "img"), ("_context", "txt")):
            move(f"{old}.norm1{mark}.linear", f"{new}.{stream}_mod.lin")
            move(f"{old}.ff{mark}.net.0.proj", f"{new}.{stream}_mlp.0")
            move(f"{old}.ff{mark}.net.2", f"{new}.{stream}_mlp.2")
    for i in range(CONFIG["num_single_layers"]):
        old, new = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
        fuse([*(f"{old}.attn.to_{letter}" for letter in "qkv"), f"{old}.proj_mlp"], f"{new}.linear1")
        norms(f"{old}.attn", f"{new}.norm")
        move(f"{old}.norm.linear", f"{new}.modulation.lin")
        move(f"{old}.proj_out", f"{new}.linear2")
    move("proj_out", "final_layer.linear")
    for kind in ("weight", "bias"):
        scale, shift = np.split(tensors[f"norm_out.linear.{kind}"], 2)
        found[f"final_layer.adaLN_modulation.1.{kind}"] = np.concatenate((shift, scale))
    return found


def tensors_of(source: Source) -> Tensors:
    return {name: np.ascontiguousarray(source.read(name)) for name in source.names()}


@pytest.fixture(scope="module")
def diffusers() -> Tensors:
    return tensors_of(random_source("FluxTransformer2DModel", CONFIG))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_file_is_the_folder(diffusers: Tensors, prefix: str, tmp_path: Path) -> None:
    file = tmp_path / "flux.safetensors"
    save_file({prefix + name: tensor for name, tensor in original(diffusers).items()}, file)
    parts = open_image_file(file)
    assert list(parts) == ["transformer"]
    model, source = model_of(parts["transformer"]), parts["transformer"].source
    assert model.config == model.module.from_diffusers(CONFIG)
    check(model.plan, source)
    assert set(source.names()) == diffusers.keys()
    for name, expected in diffusers.items():
        np.testing.assert_array_equal(source.read(name), expected, err_msg=name)
        assert source.shape(name) == expected.shape
        stored = source.blocks(name)
        assert stored is None or (isinstance(stored, Blocks) and stored.shape == expected.shape)
        if isinstance(stored, Blocks):
            np.testing.assert_array_equal(np.ascontiguousarray(stored.read()).view(np.float32), expected)
    assert source.blocks("transformer_blocks.0.attn.to_k.weight") is not None
    assert source.blocks("norm_out.linear.weight") is None


def test_without_guidance(diffusers: Tensors, tmp_path: Path) -> None:
    kept = {name: tensor for name, tensor in original(diffusers).items() if not name.startswith("guidance_in")}
    save_file(kept, tmp_path / "flux.safetensors")
    part = open_image_file(tmp_path / "flux.safetensors")["transformer"]
    assert part.config["guidance_embeds"] is False
    check(model_of(part).plan, part.source)


def test_what_no_name_fits_is_said(diffusers: Tensors, tmp_path: Path) -> None:
    """Nothing is dropped in silence, and nothing is made up."""
    tensors = original(diffusers) | {"vae.decoder.conv_in.weight": np.zeros((2, 2), np.float32)}
    del tensors["double_blocks.1.txt_mlp.0.bias"]
    save_file(tensors, tmp_path / "flux.safetensors")
    part = open_image_file(tmp_path / "flux.safetensors")["transformer"]
    with pytest.raises(CheckpointError) as error:
        check(model_of(part).plan, part.source)
    assert "1 tensor is missing:\n    transformer_blocks.1.ff_context.net.0.proj.bias" in str(error.value)
    assert "1 tensor is not read by the model:\n    vae.decoder.conv_in.weight" in str(error.value)


def test_files_that_are_refused(diffusers: Tensors, tmp_path: Path) -> None:
    file = tmp_path / "flux.safetensors"
    with pytest.raises(CheckpointError, match="other formats of one file are not read"):
        open_image_file(tmp_path / "flux.ckpt")
    save_file({"a": np.zeros(2)}, file)
    with pytest.raises(UnsupportedModel, match=r"no image model in a layout that is known: Flux\.1"):
        open_image_file(file)
    tensors = original(diffusers)
    for i in range(CONFIG["num_layers"]):
        for name in ("query", "key"):
            tensors[f"double_blocks.{i}.img_attn.norm.{name}_norm.scale"] = np.ones(64, np.float32)
    save_file(tensors, file)
    with pytest.raises(UnsupportedModel, match="heads of 64: how positions turn them is known for 128"):
        open_image_file(file)
    tensors = original(diffusers)
    tensors["single_blocks.0.linear1.weight"] = tensors["single_blocks.0.linear1.weight"][:300]
    save_file(tensors, file)
    with pytest.raises(
        CheckpointError, match=r"single_blocks\.0\.linear1\.weight has shape \(300, 128\), out of which"
    ):
        open_image_file(file)
    tensors = original(diffusers)
    del tensors["txt_in.weight"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"no txt_in\.weight of 2 axes"):
        open_image_file(file)


def test_pieces(tmp_path: Path) -> None:
    """Rows, several runs of them, other shapes, exchanged axes."""
    whole = np.arange(24, dtype=np.float32).reshape(6, 4)
    save_file({"a": whole, "b": np.arange(4, dtype=np.float32)}, tmp_path / "a.safetensors")
    source = SafetensorsSource([tmp_path / "a.safetensors"])
    pieces = {
        "rows": Piece("a", ((2, 4),)),
        "runs": Piece("a", ((4, 6), (0, 1))),
        "turned": Piece("a", transposed=True),
        "kernel": Piece("a", shape=(6, 4, 1, 1)),
        "part of a bias": Piece("b", ((1, 3),)),
    }
    cut = Cut(source, pieces)
    expected = {
        "rows": whole[2:4],
        "runs": np.concatenate((whole[4:6], whole[:1])),
        "turned": whole.T,
        "kernel": whole[..., None, None],
        "part of a bias": np.array([1, 2]),
    }
    assert {name: cut.shape(name) for name in cut.names()} == {name: x.shape for name, x in expected.items()}
    for name, x in expected.items():
        np.testing.assert_array_equal(cut.read(name), x)
    assert [name for name in pieces if cut.blocks(name) is not None] == ["rows"]
    for wrong in (Piece("a", ((4, 7),)), Piece("a", ((2, 2),)), Piece("b", transposed=True), Piece("a", shape=(5, 5))):
        with pytest.raises(CheckpointError, match="out of which x cannot be cut"):
            Cut(source, {"x": wrong})
