"""llama.cpp: its own decoding loop over many sequences, as its server's, through llama-cpp-python's bindings.

Prompts go in together, then a token of every sequence a call. Each sequence has a cache of its own (kv_unified off,
which is the faster of the two with many sequences); flash attention is left to llama.cpp (auto). The next token is
taken by numpy's argmax, which is faster than llama.cpp's own greedy sampler.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import llama_cpp
import numpy as np

from .protocol import Clock, Prompts

_BATCH = 2048
_MICRO_BATCH = 512


class LlamaCpp:
    """`settings`: model (a GGUF file), threads, streams (most sequences at once), context (tokens of a sequence)."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.versions = {"llama-cpp-python": version("llama-cpp-python")}
        llama_cpp.llama_backend_init()
        streams = settings["streams"]
        self._model = llama_cpp.llama_model_load_from_file(
            settings["model"].encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot read {settings['model']}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = streams * settings["context"]
        parameters.n_seq_max = streams
        parameters.n_batch = _BATCH
        parameters.n_ubatch = _MICRO_BATCH
        parameters.n_threads = parameters.n_threads_batch = settings["threads"]
        parameters.kv_unified = settings.get("unified", False)
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError("llama.cpp cannot make a context")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)

    def generate(self, prompts: Prompts, clock: Clock) -> None:
        """See protocol.Participant."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        last: list[int] = [0] * len(prompts)
        rows: list[tuple[int, int, int, bool]] = []  # token, position, sequence, whether its logits are wanted
        for sequence, prompt in enumerate(prompts):
            end = len(prompt) - 1
            rows += [(token, at, sequence, at == end) for at, token in enumerate(prompt)]
        for begin in range(0, len(rows), _BATCH):
            self._decode(rows[begin : begin + _BATCH], last, clock)
        for step in range(clock.tokens - 1):
            self._decode([(last[i], len(prompt) + step, i, True) for i, prompt in enumerate(prompts)], last, clock)

    def _decode(self, rows: list[tuple[int, int, int, bool]], last: list[int], clock: Clock) -> None:
        """One call; `last` gets the next token of each sequence whose logits were wanted."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for row, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[row] = token
            batch.pos[row] = position
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = sequence
            batch.logits[row] = wanted
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        for row, (_, _, sequence, wanted) in enumerate(rows):
            if wanted:
                logits = llama_cpp.llama_get_logits_ith(self._context, row)
                last[sequence] = int(np.argmax(np.ctypeslib.as_array(logits, (self._vocabulary,))))
                clock.came(sequence)


load = LlamaCpp
