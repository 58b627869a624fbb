"""Who takes part: Slipstream in its precisions, and its peers, each with the model in the form that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PRECISIONS = ("exact", "fast")


@dataclass(frozen=True)
class Model:
    """A built-in model. `vocabulary`: random prompts take ids under this."""

    name: str
    about: str
    vocabulary: int


MODELS: Mapping[str, Model] = {
    "smollm2": Model("smollm2-135m", "SmolLM2-135M-Instruct, Q4_1", 49152),
    "gemma3": Model("gemma3-270m", "Gemma 3 270M, Q4_K_M", 262144),
}


@dataclass(frozen=True)
class Participant:
    """One column of the comparison.

    `name` is its key in the JSON report. `environment` is a key of environments.ENVIRONMENTS, None for our own.
    `driver` is a module of drivers/. `form` is a key of forms.FORMS. `precision` is None for a peer. `http`: it is
    measured as a server. `variables` are environment variables, in which {cpus} and {cache} (a folder) are filled in.
    """

    name: str
    label: str
    driver: str
    form: str
    models: tuple[str, ...]
    environment: str | None = None
    precision: str | None = None
    http: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)


def _slipstream(precision: str, http: bool) -> Participant:
    name = f"slipstream-{'http-' * http}{precision}"
    return Participant(
        name=name,
        label=f"Slipstream {precision}{', HTTP' * http}",
        driver="http" if http else "slipstream",
        form="gguf",
        models=tuple(MODELS),
        precision=precision,
        http=http,
        settings={"cpu_precision": precision},
    )


def _llama(form: str, name: str, model: str) -> Participant:
    return Participant(
        name=f"llamacpp-{name}",
        label=f"llama.cpp {name.upper()}",
        driver="llamacpp",
        form=form,
        models=(model,),
        environment="llamacpp",
    )


PARTICIPANTS = (
    *(_slipstream(precision, http) for http in (False, True) for precision in PRECISIONS),
    Participant("openvino", "OpenVINO Q4_1", "openvino", "gguf", ("smollm2",), "openvino"),
    _llama("gguf", "q4_1", "smollm2"),
    _llama("q4_0", "q4_0", "smollm2"),
    _llama("q8_0", "q8_0", "smollm2"),
    _llama("gguf", "q4_k_m", "gemma3"),
    Participant(
        name="vllm",
        label="vLLM CPU bf16",
        driver="vllm",
        form="floats",
        models=("smollm2",),
        environment="vllm",
        # A gigabyte of cache is far more than the workloads need, and far less than vLLM would take.
        variables={
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "{cpus}",
            "VLLM_CACHE_ROOT": "{cache}/vllm",
        },
    ),
    Participant("transformers", "transformers f32", "transformers", "floats", ("smollm2",), "transformers"),
)
"""Slipstream's own names start with slipstream-; a peer's variant follows a dash."""
