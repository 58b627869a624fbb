"""The path of prompts through cuDNN: on a CPU XLA stands for it, with the same arguments; and what a GPU is handed."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo  # What asks for cuDNN's version: here there is none.
from tests.kernels.test_pallas import Case

from slipstream.kernels import cudnn
from slipstream.kernels.attention import attend
from slipstream.kernels.cudnn import attend_cudnn
from slipstream.kernels.ragged import KVCache, Step

CUDNN = partial(attend_cudnn, interpret=True)
LONG = 100
# Whole prompts, chunks after a prefix, decoding rows, a chunk that is too short for cuDNN, in no order; one has page 0.
ROWS = [(LONG, 20), (16, 16), (40, 1), (40, 17), (20, 9), (1, 1), (22, 22), (60, 18)]


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudnn, "CONTEXTS", (32, 64, 512))
    monkeypatch.setattr(cudnn, "LEAST_QUERIES", 16)
    monkeypatch.setattr(cudnn, "ALIGNED", 16)


def test_mixed_steps_equal_the_reference() -> None:
    Case.of(ROWS, 108, 10, 16, 16).check(CUDNN, 4e-6)


def test_windows_and_bfloat16() -> None:
    """With a window of 50 two of the long rows are Pallas's."""
    Case.of(ROWS[:4], 60, 4, 16, 16, jnp.bfloat16).check(CUDNN, 2e-2, window=50)


@pytest.mark.parametrize(
    ("asked", "taken"), [({}, [True, True, False, True]), ({"window": 50}, [False, True, False, True])]
)
def test_which_rows_are_taken(asked: dict[str, Any], taken: list[bool]) -> None:
    step = Case.of(ROWS[:4], 60, 4, 16, 16).step
    assert cudnn._taken(step, asked.get("window"), 16).tolist() == taken


def test_what_a_gpu_is_handed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 3.1 8B's attention of a step of 512 tokens, lowered for CUDA without a device or cuDNN."""
    monkeypatch.undo()
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91002)
    tokens, rows, page = 512, 16, 64
    cache = jax.eval_shape(lambda: KVCache.zeros(2, 9, page, 8, 128, jnp.dtype(jnp.bfloat16), "by_row"))
    q, k = (jax.ShapeDtypeStruct((tokens, heads, 128), jnp.bfloat16) for heads in (32, 8))
    described = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((rows + 1,), (rows,), (rows, 8192 // page))]

    def lower(cache: KVCache, **asked: Any) -> str:
        def layer(cache: KVCache, q: jax.Array, k: jax.Array, v: jax.Array, *described: jax.Array) -> Any:
            return attend(
                cache,
                1,
                q,
                k,
                v,
                Step.of(described[0], described[1], described[2], tokens, kernels="cudnn"),
                scale=0.1,
                **asked,
            )

        return jax.jit(layer).trace(cache, q, k, k, *described).lower(lowering_platforms=("cuda",)).as_text()

    lowered = lower(cache)
    calls = re.findall(
        r'@__cudnn\$(\w+)\(.*?fmha_scale\\22: ([\d.]+).*?mask_type\\22: \\22(\w+)\\22.*?\}", .*: \((.*?)\) ->', lowered
    )
    own = "tensor<1x512x32x128xbf16>, tensor<1x{0}x8x128xbf16>, tensor<1x{0}x8x128xbf16>"
    lengths = "tensor<1xi32>, tensor<1xi32>"
    assert calls == [
        ("fmhaSoftmax", "0.1", "PADDING_CAUSAL", f"{own.format(512)}, {lengths}"),
        *(
            ("fmhaScaleBiasSoftmax", "0.1", "PADDING", f"{own.format(n)}, tensor<1x1x512x{n}xbf16>, {lengths}")
            for n in (2048, 8192)
        ),
    ]
    narrow = jax.eval_shape(lambda: KVCache.zeros(2, 9, page, 8, 128, jnp.dtype(jnp.int8), "by_row"))
    assert not any("fmha" in text for text in (lower(cache, soft_cap=30.0), lower(narrow)))
    assert lowered.count("slipstream_ragged_attention") >= 2, "decoding rows and short chunks are Pallas's"


def test_cudnn_is_missed() -> None:
    assert "cuDNN" in (cudnn.missing() or "")
