"""transformers' models that pool as the reference: tiny checkpoints that it writes, and what it computes from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from slipstream.models.registry import encoder
from tests.models.encoders import random_checkpoint

torch.set_num_threads(1)


def write_encoder(config: Mapping[str, Any], folder: Path) -> Any:
    """transformers' encoder for a config.json, with the weights of `random_checkpoint`, saved by transformers.

    A pooler that only another task reads keeps the weights that transformers drew.
    """
    settings = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    loaded = transformers.AutoConfig.for_model(config["model_type"], **settings)
    loaded._attn_implementation = "eager"
    model = getattr(transformers, config["architectures"][0])(loaded).to(torch.float32).eval()
    row, source = encoder(config), random_checkpoint(config).source
    assert row is not None
    wanted = set(source.names())
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if row.rename(name) in wanted:
                tensor.copy_(torch.from_numpy(source.read(row.rename(name))))
                wanted.remove(row.rename(name))
    assert not wanted, f"not in transformers' model: {sorted(wanted)}"
    model.save_pretrained(folder)
    return model


def write_decoder(config: Mapping[str, Any], folder: Path) -> Any:
    """transformers' decoder that classifies, with its own random weights, saved by transformers."""
    settings = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    loaded = transformers.AutoConfig.for_model(config["model_type"], **settings, pad_token_id=0)
    loaded._attn_implementation = "eager"
    torch.manual_seed(0)
    model = getattr(transformers, config["architectures"][0])(loaded).to(torch.float32).eval()
    with torch.no_grad():
        model.score.weight *= 20  # else all scores would be a half
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def states(model: Any, text: Sequence[int], second: int | None = None) -> np.ndarray:
    """The last hidden states [t, d] of a text, or of a pair whose second text begins at `second`."""
    return model(**_inputs(text, second)).last_hidden_state[0].numpy()


@torch.no_grad()
def score(model: Any, text: Sequence[int], second: int | None = None) -> float:
    """A reranker's one output, through a sigmoid as sentence-transformers has it."""
    return float(torch.sigmoid(model(**_inputs(text, second)).logits[0, 0]))


@torch.no_grad()
def shares(model: Any, text: Sequence[int], *, several: bool) -> np.ndarray:
    """The shares of a classifier's labels, of which one holds or `several` may."""
    logits = model(**_inputs(text, None)).logits[0]
    return (torch.sigmoid(logits) if several else torch.softmax(logits, -1)).numpy()


@torch.no_grad()
def answer(model: Any, text: Sequence[int], *, yes: int, no: int) -> float:
    """The probability that a language model says `yes` after a text, if it must say that or `no`."""
    logits = model(input_ids=torch.tensor([list(text)])).logits[0, -1]
    return float(torch.softmax(logits[[no, yes]], -1)[1])


@torch.no_grad()
def decoder_states(model: Any, text: Sequence[int]) -> np.ndarray:
    """The states [t, d] of a decoder's text, after its final norm."""
    return model.model(input_ids=torch.tensor([list(text)])).last_hidden_state[0].numpy()


def _inputs(text: Sequence[int], second: int | None) -> dict[str, torch.Tensor]:
    types = [int(second is not None and i >= second) for i in range(len(text))]
    ids = {"input_ids": torch.tensor([list(text)])}
    return ids | ({"token_type_ids": torch.tensor([types])} if any(types) else {})
