"""transformers: `generate` in float32 on a batch of prompts of one length."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from .protocol import Clock, Prompts


class _Streamer:
    """Is called with the prompts first, then with a token of each."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begun = False

    def put(self, tokens: Any) -> None:
        """A step's tokens, one of each prompt."""
        if self._begun:
            for index in range(len(self._clock.times)):
                self._clock.came(index)
        self._begun = True

    def end(self) -> None:
        """Nothing is left to say."""


class Transformers:
    """`settings`: model (a folder), threads."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.versions = {name: version(name) for name in ("transformers", "torch")}
        torch.set_num_threads(settings["threads"])
        self._model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32).eval()

    def generate(self, prompts: Prompts, clock: Clock) -> None:
        """See protocol.Participant. All prompts have the same length."""
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=clock.tokens,
                max_new_tokens=clock.tokens,
                do_sample=False,
                streamer=_Streamer(clock),
            )


load = Transformers
