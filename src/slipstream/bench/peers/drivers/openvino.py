"""OpenVINO GenAI: its continuous batching pipeline on a GGUF file, with its defaults."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import openvino_genai
from openvino import Tensor

from .protocol import Clock, Prompts


class OpenVino:
    """`settings`: model (a GGUF file), threads."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.versions = {name: version(name) for name in ("openvino-genai", "openvino")}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            settings["model"],
            openvino_genai.SchedulerConfig(),
            "CPU",
            {"INFERENCE_NUM_THREADS": settings["threads"]},
        )
        self._requests = 0

    def generate(self, prompts: Prompts, clock: Clock) -> None:
        """See protocol.Participant."""
        config = openvino_genai.GenerationConfig(max_new_tokens=clock.tokens, ignore_eos=True, do_sample=False)
        handles = []
        for prompt in prompts:
            self._requests += 1
            handles.append(self._pipeline.add_request(self._requests, Tensor(np.array([prompt])), config))
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for index, handle in enumerate(handles):
                if handle.can_read():
                    clock.came(index, sum(len(output.generated_ids) for output in handle.read().values()))


load = OpenVino
