"""transformers as the reference: tiny random checkpoints that it writes, and what it computes from them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH, GGUFReader, dequantize, get_tensor_name_map
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from tests.models.harness import random_source

torch.set_num_threads(1)


def write_checkpoint(config: Mapping[str, Any], folder: Path, seed: int = 0) -> Any:
    """transformers' model for a config.json, with the weights of `random_source`, saved to `folder` by transformers."""
    model = _empty(config)
    source = random_source(config, seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(torch.from_numpy(source.read(name)))
    model.save_pretrained(folder)
    return model


def write_stored(config: Mapping[str, Any], folder: Path, seed: int = 0) -> Any:
    """A checkpoint of `random_source` as it is published, and what transformers makes of it.

    For families whose parameters transformers does not hold as the checkpoint does: it then fuses tensors as it reads.
    """
    source = random_source(config, seed)
    save_file({name: source.read(name) for name in source.names()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


def write_multimodal(config: Mapping[str, Any], folder: Path) -> Any:
    """A Gemma 3 with an image tower around the text model of `write_checkpoint`, saved by transformers."""
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = {key: value for key, value in config.items() if key != "architectures"}
    whole = AutoConfig.for_model(
        "gemma3",
        text_config=text,
        vision_config={**vision, "image_size": 16, "patch_size": 4},
        mm_tokens_per_image=4,
        image_token_index=5,
        boi_token_index=3,
        eoi_token_index=4,
    )
    whole._attn_implementation = "eager"
    model = AutoModelForImageTextToText.from_config(whole, dtype=torch.float32).eval()
    model.model.language_model.load_state_dict(write_checkpoint(config, folder / "text").model.state_dict())
    model.save_pretrained(folder)
    return model


def _empty(config: Mapping[str, Any]) -> Any:
    """transformers' model for a config.json, its weights not set."""
    settings = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    loaded = AutoConfig.for_model(config["model_type"], **settings)
    loaded._attn_implementation = "eager"
    return AutoModelForCausalLM.from_config(loaded, dtype=torch.float32).eval()


class Session:
    """One sequence with transformers' own cache."""

    def __init__(self, model: Any, **settings: Any) -> None:
        self.model, self.settings = model, settings
        self.cache = None
        # transformers 5.24 renamed it, in arguments and in what comes out.
        renamed = "cache" in inspect.signature(model.forward).parameters
        self.cache_name = "cache" if renamed else "past_key_values"

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits [tokens, v] of the next tokens."""
        ids = torch.tensor([list(tokens)])
        out = self.model(input_ids=ids, use_cache=True, **{self.cache_name: self.cache}, **self.settings)
        self.cache = getattr(out, self.cache_name)
        return out.logits[0].numpy()

    def feed(self, tokens: Sequence[int]) -> np.ndarray:
        """Decode given tokens, a call each; logits [tokens, v]."""
        return np.concatenate([self.step([token]) for token in tokens])

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """`count` greedy tokens after a prompt."""
        tokens = [int(self.step(prompt)[-1].argmax())]
        while len(tokens) < count:
            tokens.append(int(self.step(tokens[-1:])[-1].argmax()))
        return tokens


def ropes(model: Any) -> dict[str, tuple[np.ndarray, float]]:
    """Frequencies and magnitude of every rotary table of a model, by the type of the layers that use it ("" if one)."""
    table = model.model.rotary_emb
    kinds = getattr(table, "layer_types", [""])
    names = [f"{kind}_" if kind else "" for kind in kinds]
    # A longrope table holds its short set until a prompt over the pretraining length has come.
    model(input_ids=torch.zeros((1, 41), dtype=torch.int64))
    return {
        kind: (getattr(table, f"{name}inv_freq").numpy(), float(getattr(table, f"{name}attention_scaling")))
        for kind, name in zip(kinds, names, strict=True)
    }


GGUF_CONFIGS: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
    },
    "gemma3-270m": {
        "model_type": "gemma3_text",
        "vocab_size": 262144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "sliding_window": 512,
        "query_pre_attn_scalar": 256,
    },
}
"""The published config.json of the built-in models, without what is the same by default."""


def open_gguf(name: str, path: Path) -> Any:
    """A built-in model in transformers, with the tensors that the gguf package reads and dequantizes.

    Names come from gguf's own table. Undone here as llama.cpp's converter did it: the order of Llama's query and key
    rows (interleaved pairs), and the 1 added to Gemma's norms. transformers has a GGUF reader of its own, which gives
    the same tensors for these two files, but it needs `accelerate` and takes five times as long.
    """
    config = GGUF_CONFIGS[name]
    model = _empty(config)
    architecture = {"llama": MODEL_ARCH.LLAMA, "gemma3_text": MODEL_ARCH.GEMMA3}[config["model_type"]]
    names = get_tensor_name_map(architecture, config["num_hidden_layers"])
    stored = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    with torch.no_grad():
        for target, tensor in model.named_parameters():
            found = stored.pop(names.get_name(target, try_suffixes=(".weight",)))
            values = dequantize(found.data, found.tensor_type)
            if architecture == MODEL_ARCH.LLAMA and ("q_proj" in target or "k_proj" in target):
                halves = values.reshape(-1, tensor.shape[1] // config["num_attention_heads"] // 2, 2, tensor.shape[1])
                values = halves.swapaxes(1, 2).reshape(tensor.shape)
            if architecture == MODEL_ARCH.GEMMA3 and "norm" in target:
                values = values - 1
            tensor.copy_(torch.tensor(values))
    assert not stored, f"not read: {sorted(stored)}"
    return model
