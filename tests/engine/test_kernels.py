"""Which kernels an engine chooses, and what they need of its cache. Their replies: tests/parallel/eight."""

from __future__ import annotations

import logging
from typing import Any

import jax
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo  # What asks for cuDNN's version: here there is none.

from slipstream.engine.blueprint import Blueprint
from slipstream.engine.config import EngineConfig
from slipstream.engine.kernels import Chosen, choose_kernels
from slipstream.errors import ConfigError
from slipstream.kernels.native import library
from tests.engine import tiny

BF16, INT8, F16, FP8 = (np.dtype(jax.numpy.dtype(name)) for name in ("bfloat16", "int8", "float16", "float8_e4m3fn"))


@pytest.mark.parametrize(
    ("platform", "asked", "chosen"),
    [
        ("tpu", "auto", Chosen("pallas_tpu")),
        ("gpu", "auto", Chosen("pallas_gpu")),
        ("cuda", "auto", Chosen("pallas_gpu")),
        ("metal", "auto", Chosen("reference")),
        ("tpu", "reference", Chosen("reference")),
        ("cpu", "reference", Chosen("reference")),
        ("cpu", "pallas_tpu", Chosen("pallas_tpu", interpreted=True)),
        ("gpu", "pallas_tpu", Chosen("pallas_tpu", interpreted=True)),
        ("gpu", "pallas_gpu", Chosen("pallas_gpu")),
        ("cpu", "cudnn", Chosen("cudnn", interpreted=True)),
        ("rocm", "auto", Chosen("pallas_gpu")),
    ],
)
def test_the_platform_chooses(platform: str, asked: Any, chosen: Chosen) -> None:
    assert choose_kernels(EngineConfig(kernels=asked), platform, 4) == chosen


def test_the_native_kernels_are_chosen_where_they_run(caplog: pytest.LogCaptureFixture) -> None:
    there = library.reason() is None
    assert choose_kernels(EngineConfig(), "cpu", 1) == Chosen("cpu" if there else "reference")
    with caplog.at_level(logging.WARNING):
        assert choose_kernels(EngineConfig(tp=2), "cpu", 2) == Chosen("reference")
    assert "run on one device" in caplog.text
    if there:
        assert choose_kernels(EngineConfig(kv_dtype="fp8"), "cpu", 1) == Chosen("reference")
        with pytest.raises(ConfigError, match="read no fp8 cache: choose --kv-dtype int8"):
            choose_kernels(EngineConfig(kernels="cpu", kv_dtype="fp8"), "cpu", 1)
    with pytest.raises(ConfigError, match="needs a CPU, this is a tpu"):
        choose_kernels(EngineConfig(kernels="cpu"), "tpu", 1)


def test_cudnn_is_chosen_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--kernels cudnn: cuDNN .*or use --kernels pallas_gpu"):
        choose_kernels(EngineConfig(kernels="cudnn"), "cuda", 1)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91002)
    for platform in ("gpu", "cuda"):
        assert choose_kernels(EngineConfig(), platform, 1) == Chosen("cudnn")


def test_pages_are_what_the_kernels_need() -> None:
    tpu, plain = Chosen("pallas_tpu"), Chosen("reference")
    assert [plain.page_size(EngineConfig(), INT8), tpu.page_size(EngineConfig(), BF16)] == [16, 64]
    assert [tpu.page_size(EngineConfig(), kind) for kind in (FP8, INT8)] == [64, 128]
    assert tpu.page_size(EngineConfig(page_size=96), BF16) == 96
    with pytest.raises(ConfigError, match=r"multiple of 32 tokens for bfloat16, not of 40.*set it to 64"):
        tpu.page_size(EngineConfig(page_size=40), BF16)
    with pytest.raises(ConfigError, match="multiple of 128 tokens for int8, not of 64"):
        tpu.page_size(EngineConfig(page_size=64), INT8)
    with pytest.raises(ConfigError, match="not of float16: choose another --kv-dtype, or --kernels reference"):
        tpu.page_size(EngineConfig(), F16)


def test_heads_take_a_tpus_rows() -> None:
    family, model = tiny.model()
    blueprint = Blueprint.of(
        family,
        model,
        EngineConfig(kv_dtype="int8", page_size=128),
        64,
        jax.local_devices()[:1],
        Chosen("pallas_tpu", True),
    )
    cache = jax.eval_shape(lambda: blueprint.lowering.kv.cache(3, "pallas_tpu"))
    assert (cache.layout, cache.k.shape) == ("by_row", (model.layers, 3, model.kv_heads, 128, 128))
    assert cache.k_scale is not None and cache.k_scale.shape == (model.layers, 3, model.kv_heads, 128)
