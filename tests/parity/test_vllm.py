"""vLLM itself reads what `slipstream quantize` writes, and computes the same. `scripts/bench peers` installs it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slipstream.bench.peers.environments import python_of
from slipstream.checkpoint import open_checkpoint
from slipstream.checkpoint.quantized.writing import write_quantized
from slipstream.models.registry import family
from slipstream.quant.rounding import SCHEMES
from tests.models.harness import Model, prompt_of
from tests.parity import reference, vllm_reader

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
PROMPTS = [prompt_of(CONFIG["vocab_size"], length) for length in (5, 17, 40)]
TOLERANCE = 0.06
"""In the logarithm of a probability: vLLM computes in bfloat16."""
VARIABLES = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
}


def quantized(scheme: str, rounding: bool, folder: Path) -> Path:
    reference.write_checkpoint(CONFIG, folder / "plain")
    checkpoint = open_checkpoint(folder / "plain")
    row = family(checkpoint.config)
    plan = row.plan(row.from_hf(checkpoint.config))
    write_quantized(checkpoint, plan, SCHEMES[scheme], rounding, folder / "quantized")
    return folder / "quantized"


def read_by_vllm(folder: Path) -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [python_of("vllm"), vllm_reader.__file__, folder],
        input=json.dumps(PROMPTS),
        env=environment | VARIABLES,
        capture_output=True,
        text=True,
        timeout=280,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(vllm_reader.MARK)]
    assert lines, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(lines[0].removeprefix(vllm_reader.MARK))
    return found


@pytest.mark.skipif(not python_of("vllm").is_file(), reason="scripts/bench peers did not install vLLM here")
@pytest.mark.parametrize(("scheme", "rounding"), [("int8", False), ("int8", True), ("int4-g128", False)])
def test_vllm_computes_the_same(scheme: str, rounding: bool, tmp_path: Path) -> None:
    """The probabilities of vLLM's own greedy tokens, and that they are among our likeliest."""
    folder = quantized(scheme, rounding, tmp_path)
    theirs, ours = read_by_vllm(folder), Model.open(folder)
    for prompt, tokens, logprobs in zip(PROMPTS, theirs["tokens"], theirs["logprobs"], strict=True):
        given = [*prompt, *tokens[:-1]]
        logits = ours.session([len(given)], len(given)).step(given)[0][len(prompt) - 1 :].astype(np.float64)
        ours_all = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        chosen = ours_all[np.arange(len(tokens)), tokens]
        np.testing.assert_allclose(chosen, logprobs, atol=TOLERANCE)
        assert (ours_all.max(-1) - chosen < TOLERANCE).all()
