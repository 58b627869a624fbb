"""Mixtures of experts in the engine: `LLM` on checkpoints as they are published, on XLA's and on the native kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from slipstream import LLM, SamplingParams
from slipstream.kernels.native import library
from tests.engine import quantized, tiny
from tests.models.harness import Model, prompt_of, random_source
from tests.models.moe_variants import DEEPSEEK3, GPT_OSS, MIXTRAL, QWEN3

native = pytest.mark.skipif(library.reason() is not None, reason="the native kernels were not built here")
NEW = 8
# Sizes that the native kernels take: products over whole blocks of 32.
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": MIXTRAL | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_hidden_layers": 2},
    "qwen3_moe": QWEN3 | {"hidden_size": 64, "moe_intermediate_size": 32, "head_dim": 16, "num_hidden_layers": 2},
    "gpt_oss": GPT_OSS | {"hidden_size": 64, "intermediate_size": 32, "head_dim": 16, "num_hidden_layers": 2},
    "deepseek_v3": DEEPSEEK3 | {"hidden_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 2},
}


SETTINGS: dict[str, Any] = {
    "max_seqs": 2, "max_batched_tokens": 8, "page_size": 16, "max_model_len": 48, "kv_dtype": "float32",
    "compile_cache": "", "weight_cache": ""
}  # fmt: skip


def write(config: dict[str, Any], tensors: dict[str, np.ndarray], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def tensors_of(config: dict[str, Any]) -> dict[str, np.ndarray]:
    source = random_source(config)
    return {name: source.read(name) for name in source.names()}


def assert_replies(folder: Path, kernels: str, model: Model) -> None:
    """Prompts of all lengths together, in chunks and beside decoding rows, with padding in every step."""
    prompts = [prompt_of(model.config.vocab_size, length) for length in (1, 3, 30)]
    llm = LLM(folder, kernels=kernels, **SETTINGS)
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True), use_tqdm=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.outputs[0].token_ids == model.session([30 + NEW], 30).greedy(prompt, NEW)


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("mixtral", "reference"),
        pytest.param("mixtral", "cpu", marks=native),
        pytest.param("deepseek_v3", "cpu", marks=native),
    ],
)
def test_replies_are_those_of_the_full_forward(name: str, kernels: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    assert_replies(write(config, tensors_of(config), tmp_path), kernels, Model.random(config))


def test_gpt_oss_as_it_is_published(tmp_path: Path) -> None:
    """Experts in MXFP4, gate and up out of one tensor of numbers and one of scales: replies that their values give."""
    config, tensors = CONFIGS["gpt_oss"], tensors_of(CONFIGS["gpt_oss"])
    stored = {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        by_block = tensors[name].swapaxes(1, 2).reshape(*tensors[name].shape[::2], -1, 32)
        power = np.floor(np.log2(np.abs(by_block).max(-1, keepdims=True))) - 2
        numbers = (by_block / 2**power).astype(ml_dtypes.float4_e2m1fn)
        codes = numbers.view(np.uint8)
        # save_file writes an array as it lies in memory.
        stored[name + "_blocks"] = np.ascontiguousarray(codes[..., ::2] | codes[..., 1::2] << 4)
        stored[name + "_scales"] = np.ascontiguousarray(power[..., 0] + 127).astype(np.uint8)
        values = (numbers.astype(np.float32) * 2**power).reshape(tensors[name].swapaxes(1, 2).shape)
        tensors[name] = np.ascontiguousarray(values.swapaxes(1, 2), np.float32)
    plain = Model.open(write(config, tensors, tmp_path / "plain"))
    kept = {name: tensor for name, tensor in tensors.items() if name + "_blocks" not in stored}
    quantized_config = config | {"quantization_config": {"quant_method": "mxfp4"}}
    folder = write(quantized_config, kept | stored, tmp_path / "mxfp4")
    assert_replies(folder, "auto", plain)


@native
def test_experts_stay_in_the_blocks_of_their_file() -> None:
    """Experts of several block types within a stack: the replies that their values give."""
    config, kinds = CONFIGS["qwen3_moe"], ("Q8_0", "Q4_1", "F16")
    few = {"max_seqs": 2, "max_batched_tokens": 8}
    prompts = [prompt_of(config["vocab_size"], length) for length in (2, 21)]
    requests = [tiny.request(str(i), prompt, max_tokens=12, logprobs=1) for i, prompt in enumerate(prompts)]
    ours = tiny.engine(quantized.checkpoint(config, kinds=kinds), kernels="cpu", page_size=16, **few)
    theirs = tiny.engine(quantized.checkpoint(config, kinds=kinds, offers_blocks=False), **few)
    assert ours.info.weight_bytes < 0.5 * theirs.info.weight_bytes
    found, expected = tiny.run(ours, requests), tiny.run(theirs, requests)
    for name in expected:
        assert tiny.tokens(found[name]) == tiny.tokens(expected[name])
        for a, b in zip(found[name], expected[name], strict=True):
            pairs = [*zip(a.logprobs or [], b.logprobs or [], strict=True)]
            assert np.allclose([x.logprob for x, _ in pairs], [y.logprob for _, y in pairs], atol=2e-3)
