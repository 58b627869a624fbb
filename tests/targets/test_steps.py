"""Steps of models that people serve, compiled by XLA for TPUs and GPUs that are not here: memory, donation, talk.

Nothing runs: that the numbers are right is shown elsewhere, by the same code on a CPU.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo  # What asks for cuDNN's version.

from slipstream.checkpoint import RandomSource
from slipstream.checkpoint.outline import outline
from slipstream.engine import build
from slipstream.engine.config import EngineConfig
from slipstream.engine.memory import Budget, pages_for
from slipstream.engine.programs import Programs
from slipstream.engine.target import Outlined
from slipstream.engine.target_options import TargetOptions
from slipstream.errors import ConfigError, OutOfMemory
from slipstream.models.registry import family
from slipstream.parallel.ahead import compile_ahead
from slipstream.spec.source import Checkpoint, GenerationDefaults

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Case:
    """A model on a target. GiB on each device: `weights`, `kv_gib` of cache, at most `temporaries`."""

    model: str
    target: str
    weights: float
    scheme: str = "none"
    kv_gib: float = 4.0
    temporaries: float = 0.25

    @property
    def options(self) -> TargetOptions:
        return TargetOptions(target=self.target, scheme=self.scheme, max_model_len=8192)


CASES = [
    Case("llama-3.1-8b", "v5e-4", 3.74),
    Case("llama-3.1-8b", "v6e-4", 3.74),
    Case("llama-3.1-70b", "v6e-8", 8.46, scheme="int8"),
    Case("mixtral-8x7b", "v5e-8", 10.9, kv_gib=2.0),
    # Its compiler copies most of the weights into other tiles in every step: docs/targets.md.
    Case("qwen3-32b", "tpu7x-8", 7.63, temporaries=6.6),
    Case("llama-3.1-8b", "h100-1", 14.96, kv_gib=32.0),
    Case("llama-3.1-70b", "h100-8", 16.43, kv_gib=32.0),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model}-{case.target}")
def test_decode_keeps_its_cache_in_place_and_reduces_twice_a_layer(case: Case) -> None:
    outlined = Outlined.of(outline(case.model), case.options)
    assert outlined.weight_bytes / GIB == pytest.approx(case.weights, abs=0.05)
    pages = int(case.kv_gib * GIB) // outlined.lowering.kv.bytes_per_page
    kv = pages * outlined.lowering.kv.bytes_per_page
    step = outlined.compile(outlined.shapes.decode[-1], pages)
    assert step.donated >= kv, "the cache is copied"
    assert step.donated - kv < 4 * MIB, "the history of tokens is the only other thing donated"
    assert step.temporaries < case.temporaries * GIB
    assert step.arguments == pytest.approx(outlined.weight_bytes + kv, rel=0.01)
    alone = case.target.endswith("-1")
    assert step.collectives.looped == ({} if alone else {"all-reduce": 2}), "after attention and the feed-forward"
    assert step.collectives.once == ({} if alone else {"all-reduce": 1, "all-gather": 1}), "the embedding, the logits"


@pytest.mark.parametrize("target", ["v5e-4", "h100-1"])
def test_a_prefill_step(target: str) -> None:
    outlined = Outlined.of(outline("llama-3.1-8b"), TargetOptions(target=target, max_seqs=16, max_batched_tokens=512))
    pages = GIB // outlined.lowering.kv.bytes_per_page
    step = outlined.compile(outlined.shapes.mixed[-1], pages)
    assert (step.tokens, step.rows) == (512, 16)
    assert pages * outlined.lowering.kv.bytes_per_page <= step.donated < GIB + 4 * MIB
    assert step.temporaries < 256 * MIB
    assert step.collectives.looped.get("all-reduce", 0) == (0 if target == "h100-1" else 2)


def test_prompts_through_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler takes cuDNN's calls without a GPU: their graphs are built where the program is loaded."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91002)
    config = {**outline("llama-3.1-8b"), "num_hidden_layers": 2}
    options = TargetOptions(target="h100-8", max_seqs=16, max_batched_tokens=512, max_model_len=8192)
    outlined = Outlined.of(config, options)
    assert outlined.lowering.kernels == "cudnn"
    pages = GIB // outlined.lowering.kv.bytes_per_page
    lowered = outlined.lowering.step(outlined.shapes.mixed[-1], pages, outlined.weights)
    compiled, needs = compile_ahead(lowered.function(), *lowered.arguments)
    calls = Counter(re.findall(r'custom_call_target="__cudnn\$(\w+)"', compiled.as_text()))
    assert calls == {"fmhaSoftmax": 1, "fmhaScaleBiasSoftmax": 2}, (
        "of one row: alone, within 2,048 tokens, within 8,192"
    )
    assert needs.donated >= GIB - outlined.lowering.kv.bytes_per_page, "the cache is copied"
    assert needs.temporaries < 256 * MIB
    # The all-gather is one too many: docs/roadmap.md.
    assert needs.collectives.looped == {"all-reduce": 2, "all-gather": 1}


def test_what_is_compiled_is_what_an_engine_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine on devices that are not there, up to where it would compile its first step."""
    limits: dict[str, Any] = {"max_seqs": 8, "max_model_len": 512, "max_batched_tokens": 64, "kv_dtype": "int8"}
    config = {**outline("llama-3.1-8b"), "num_hidden_layers": 2}
    outlined = Outlined.of(config, TargetOptions(target="v5e-4", scheme="int8", **limits))
    mesh, found = outlined.lowering.mesh, []
    assert mesh is not None

    def compiling(programs: Programs, **limits: Any) -> None:
        found.append(programs)
        raise InterruptedError

    monkeypatch.setattr(jax, "local_devices", lambda: list(mesh.devices.flat))
    monkeypatch.setattr(build, "device_limit", lambda *of: outlined.limit)
    monkeypatch.setattr(build, "_weights", lambda *of: None)
    monkeypatch.setattr(Programs, "compile", compiling)
    members = family(config)
    source = RandomSource(members.plan(members.from_hf(config)))
    checkpoint = Checkpoint(Path("none"), config, source, None, GenerationDefaults())
    with pytest.raises(InterruptedError):
        build.build(checkpoint, EngineConfig(tp=4, quantization="int8", compile_cache="", **limits))
    [programs] = found
    assert programs.lowering == outlined.lowering
    assert (programs.lowering.kernels, programs.lowering.kv.page_size) == ("pallas_tpu", 128)
    assert (programs.weights, programs.shapes) == (outlined.weights, outlined.shapes)


@pytest.mark.parametrize(
    ("target", "size", "refused"),
    [
        ("v5e-4", 16, r"16\.\d+ GiB of KV cache.*take more devices.*15\.75G"),
        (
            "h100-1",
            79,
            r"79\.\d+ GiB of KV cache.*take more devices.*The step needs 8\d\.\d+ GiB, the device has 79\.11 GiB",
        ),
    ],
    ids=["v5e-4", "h100-1"],
)
def test_a_cache_that_is_too_large_is_refused(target: str, size: int, refused: str) -> None:
    options = TargetOptions(target=target, max_seqs=8, max_model_len=1024)
    outlined = Outlined.of({**outline("llama-3.1-8b"), "num_hidden_layers": 2}, options)
    kv = outlined.lowering.kv
    with pytest.raises(OutOfMemory, match=refused):
        outlined.compile(outlined.shapes.decode[0], size * GIB // kv.bytes_per_page + 64)
    budget = Budget(outlined.limit, outlined.weight_bytes, 0)
    with pytest.raises(OutOfMemory, match="lower --kv-bytes"):
        pages_for(kv, budget, most=64, least=1, kv_bytes=size * GIB, most_kv_bytes=outlined.limit)


def test_what_does_not_go_together() -> None:
    config = outline("llama-3.1-8b")
    with pytest.raises(ConfigError, match="--tp 3 does not divide the 4 devices of v5e-4"):
        Outlined.of(config, TargetOptions(target="v5e-4", tp=3))
    with pytest.raises(ConfigError, match="made for 131072 tokens"):
        Outlined.of(config, TargetOptions(target="v5e-4", max_model_len=200_000))
