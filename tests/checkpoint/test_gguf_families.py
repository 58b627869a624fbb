"""A GGUF of each architecture: the same config and the same tensors as the checkpoint that it was made from.

The files are written here as llama.cpp's converter does it, with the gguf package's own table of tensor names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from slipstream.checkpoint import open_checkpoint
from slipstream.errors import CheckpointError
from slipstream.models.registry import family
from tests.checkpoint.gguf_files import write
from tests.models.harness import random_source
from tests.models.variants import VARIANTS, qwen
from tests.models.variants.gemma import GEMMA2, GEMMA3
from tests.models.variants.granite import GRANITE
from tests.models.variants.llama import LLAMA
from tests.models.variants.olmo2 import OLMO2
from tests.models.variants.phi3 import FACTORS, PHI3

# As a GGUF file can hold them: in float32.
STORED = {name: [float(np.float32(factor)) for factor in factors] for name, factors in FACTORS.items()}
LONGROPE = {"type": "longrope", "attention_factor": 1.25, **STORED}
PARTIAL = {**VARIANTS["phi3-tied-mqa-partial"], "rope_scaling": LONGROPE}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "mistral": VARIANTS["mistral"],
    "qwen2": qwen.QWEN2,
    "qwen3": {**qwen.QWEN3, "attention_bias": True},
    "gemma2": {**GEMMA2, "query_pre_attn_scalar": 12},
    "gemma3": {**GEMMA3, "query_pre_attn_scalar": 12},
    "phi3": PHI3,
    "phi3-longrope": {**PARTIAL, "tie_word_embeddings": False},
    "olmo2": {**OLMO2, "num_key_value_heads": 2},
    "granite": {**GRANITE, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
}
ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}  # the others are called alike

COMMON = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_scale": "embedding_multiplier",
    "attention.scale": "attention_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


def convert(config: dict[str, Any], path: Path) -> Path:
    """The GGUF of a config with the weights of `random_source`."""
    kind = ARCHITECTURES.get(config["model_type"], config["model_type"])
    # The converter writes a window only for those models that have one throughout.
    said = config if "use_sliding_window" not in config else {**config, "sliding_window": None}
    metadata = {f"{kind}.{key}": said[name] for key, name in COMMON.items() if said.get(name) is not None}
    scaling = config.get("rope_scaling") or {}
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    metadata[f"{kind}.rope.dimension_count"] = int(head_dim * config.get("partial_rotary_factor", 1.0))
    tensors: dict[str, tuple[str, np.ndarray]] = {}
    if scaling:
        metadata[f"{kind}.rope.scaling.attn_factor"] = scaling["attention_factor"]
        for size in ("short", "long"):
            tensors[f"rope_factors_{size}.weight"] = "F32", np.asarray(scaling[f"{size}_factor"], np.float32)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, kind.upper()), config["num_hidden_layers"])
    source = random_source({name: said for name, said in config.items() if name != "rope_scaling"})
    for name in source.names():
        value = source.read(name)
        if kind in ("llama", "granite") and ("q_proj" in name or "k_proj" in name):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            halves = value.reshape(heads, 2, value.shape[0] // heads // 2, -1)
            value = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(value.shape)
        if kind.startswith("gemma") and "norm" in name:
            value = value + np.float32(1)
        tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))] = "F32", value
    return write(path, kind, metadata, tensors)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_and_tensors(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    checkpoint = open_checkpoint(convert(config, tmp_path / "x.gguf"))
    chosen = family(config)
    assert family(checkpoint.config) is chosen
    assert chosen.from_hf(checkpoint.config) == chosen.from_hf(config)
    source = random_source(config)
    assert set(checkpoint.source.names()) - {f"rope_factors_{size}.weight" for size in ("short", "long")} == set(
        source.names()
    )
    for tensor in source.names():
        shifted = config["model_type"].startswith("gemma") and "norm" in tensor
        np.testing.assert_allclose(checkpoint.source.read(tensor), source.read(tensor), rtol=0, atol=1e-7 * shifted)


def test_the_window_of_the_first_phi3_files(tmp_path: Path) -> None:
    """Their metadata does not say it."""
    config = {**PHI3, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "hidden_size": 8}
    for layers, window in ((32, 2047), (3, None)):
        path = convert({**config, "num_hidden_layers": layers, "sliding_window": None}, tmp_path / f"{layers}.gguf")
        assert open_checkpoint(path).config["sliding_window"] == window


def test_factors_belong_to_the_magnitude_and_the_pairs(tmp_path: Path) -> None:
    path = convert({**PARTIAL, "rope_scaling": {**LONGROPE, "short_factor": [1.0] * 5}}, tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match=r"rope_factors_short.weight is F32 \(5,\)"):
        open_checkpoint(path)
