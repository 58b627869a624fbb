"""vLLM on a CPU reads what `slipstream quantize` writes, and computes the same. `scripts/bench peers` installs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
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

pytestmark = pytest.mark.skipif(
    not python_of("vllm").is_file(), reason="scripts/bench peers has not installed vLLM here"
)

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
WRITTEN = {
    "int4-g128": ("int4-g128", False),
    "int8, inputs rounded": ("int8", True),
    "fp8, inputs rounded": ("fp8", True),
    "int8": ("int8", False),
    "fp8": ("fp8", False),
}
"""The scheme, and whether inputs are rounded."""
WITHOUT_KERNELS = {"int8": "uint8b128.*not supported by CPUWNA16", "fp8": "kernel.*ScaledMM linear layer"}
"""What vLLM's CPU backend says to formats that it reads and has no product for."""
TOLERANCE = {"int4-g128": 0.1, "int8, inputs rounded": 0.4, "fp8, inputs rounded": 0.6}
"""In the logarithm of a probability. vLLM computes in bfloat16: some inputs then lie on the other side of a step."""
VARIABLES = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("written")
    reference.write_checkpoint(CONFIG, root / "plain")
    checkpoint = open_checkpoint(root / "plain")
    row = family(checkpoint.config)
    plan = row.plan(row.from_hf(checkpoint.config))
    for name, (scheme, rounding) in WRITTEN.items():
        write_quantized(checkpoint, plan, SCHEMES[scheme], rounding, root / name)
    return {name: root / name for name in WRITTEN}


@pytest.fixture(scope="module")
def replies(folders: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """What `vllm_reader` says of each folder; one process for all, for it takes long to start."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [python_of("vllm"), vllm_reader.__file__, *folders.values()],
        input=json.dumps(PROMPTS),
        env=environment | VARIABLES,
        capture_output=True,
        text=True,
        timeout=280,
    )
    marked = (line for line in done.stdout.splitlines() if line.startswith(vllm_reader.MARK))
    found = [json.loads(line.removeprefix(vllm_reader.MARK)) for line in marked]
    assert len(found) == len(folders), done.stdout + done.stderr
    return {Path(one["folder"]).name: one for one in found}


@pytest.mark.parametrize("name", TOLERANCE)
def test_vllm_computes_the_same(
    name: str, folders: Mapping[str, Path], replies: Mapping[str, Mapping[str, Any]]
) -> None:
    """Its greedy tokens have the probabilities that it says, and none is far behind our likeliest."""
    ours, theirs = Model.open(folders[name]), replies[name]
    for prompt, tokens, expected in zip(PROMPTS, theirs["tokens"], theirs["logprobs"], strict=True):
        given = [*prompt, *tokens[:-1]]
        logits = ours.session([len(given)], len(given)).step(given)[0][len(prompt) - 1 :].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        chosen = logprobs[np.arange(len(tokens)), tokens]
        np.testing.assert_allclose(chosen, expected, rtol=0, atol=TOLERANCE[name])
        assert (logprobs.max(-1) - chosen < TOLERANCE[name]).all()


@pytest.mark.parametrize("name", WITHOUT_KERNELS)
def test_vllm_reads_the_config_and_has_no_product(name: str, replies: Mapping[str, Mapping[str, Any]]) -> None:
    assert re.search(WITHOUT_KERNELS[name], replies[name]["error"], re.DOTALL)
