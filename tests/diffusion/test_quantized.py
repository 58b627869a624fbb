"""Whole pipelines whose matrices are rounded to few bits, against the same in float32."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from slipstream.diffusion.engine import PictureEngine, PoolOptions
from slipstream.diffusion.loading import load_engine
from slipstream.errors import ConfigError
from slipstream.kernels.packed import Packed
from slipstream.kernels.ragged import Kernels
from slipstream.quant.leaf import Quantized
from slipstream.spec.tokenizer import TokenizerSpec
from tests.diffusion.fakes import request, run
from tests.diffusion.tiny import checkpoint, tokenizer_in

WIDE = {"text_encoder_2": {"d_ff": 32, "d_model": 32}, "transformer": {"joint_attention_dim": 32}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerSpec:
    return tokenizer_in(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def wide() -> dict[str, np.ndarray]:
    """Pictures in float32 by the kind of model, filled as they are made."""
    return {}


def loaded(kind: str, tokenizer: TokenizerSpec, scheme: str | None, kernels: Kernels | None = None) -> PictureEngine:
    changes = WIDE if kind == "FluxPipeline" else {}
    return load_engine(
        checkpoint(kind, tokenizer, **changes),
        dtype=np.dtype(np.float32),
        quantization=scheme,
        options=PoolOptions(batches=(2,)),
        kernels=kernels,
    )


def picture(engine: PictureEngine) -> np.ndarray:
    [done] = run(engine, [request("one", "a red apple", steps=3, width=16, height=12)]).values()
    assert done.picture is not None
    return done.picture


def decibels(found: np.ndarray, expected: np.ndarray) -> float:
    """PSNR of pictures in 0..1."""
    return float(-10 * np.log10(np.mean(np.square(found - expected))))


@pytest.mark.parametrize(
    ("kind", "scheme", "least"),
    [("FluxPipeline", "int8", 40), ("StableDiffusionXLPipeline", "int8", 40), ("FluxPipeline", "fp8", 30)],
)
def test_pictures(kind: str, scheme: str, least: float, tokenizer: TokenizerSpec, wide: dict[str, np.ndarray]) -> None:
    """On the native kernels where they know the numbers, which is int8; by XLA for others."""
    if kind not in wide:
        wide[kind] = picture(loaded(kind, tokenizer, None))
    assert decibels(picture(loaded(kind, tokenizer, scheme)), wide[kind]) > least


def test_what_is_rounded(tokenizer: TokenizerSpec) -> None:
    """Matrices of layers. What takes times and latents in and out, CLIP and the autoencoder have few, and stay."""
    weights = loaded("FluxPipeline", tokenizer, "int8", "reference")._weights
    assert isinstance(weights.denoiser.double.image.q.weight, Quantized)
    assert isinstance(weights.denoiser.single.down.weight, Quantized)
    assert isinstance(weights.encoders[1].blocks.q.weight, Quantized)
    for tree in (weights.denoiser.image, weights.denoiser.time, weights.denoiser.out, weights.encoders[0]):
        assert not [leaf for leaf in jax.tree.leaves(tree, is_leaf=_is_small) if _is_small(leaf)]
    with pytest.raises(ConfigError, match="no whole groups of 128"):
        loaded("FluxPipeline", tokenizer, "int4-g128")


def _is_small(leaf: object) -> bool:
    return isinstance(leaf, Quantized | Packed)
