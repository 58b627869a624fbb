"""transformers as the reference: tiny random checkpoints that it writes, and what it computes from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.models.harness import random_source

torch.set_num_threads(1)


def write_checkpoint(config: Mapping[str, Any], folder: Path, seed: int = 0) -> Any:
    """transformers' model for a config.json, with the weights of `random_source`, saved to `folder` by transformers."""
    settings = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    loaded = AutoConfig.for_model(config["model_type"], **settings)
    loaded._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(loaded, dtype=torch.float32).eval()
    source = random_source(config, seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(torch.from_numpy(source.read(name)))
    model.save_pretrained(folder)
    return model


class Session:
    """One sequence with transformers' own cache."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cache = None

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits [tokens, v] of the next tokens."""
        out = self.model(input_ids=torch.tensor([list(tokens)]), past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
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
