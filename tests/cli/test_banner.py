"""What `serve` prints can be run as it stands."""

from __future__ import annotations

import json
import shlex

import pytest
from msgspec.structs import replace

from slipstream.api.engine import EngineInfo, PoolingInfo
from slipstream.api.image_engine import ImageEngineInfo
from slipstream.cli.banner import Banner, Prompting
from slipstream.cli.serve import prompting
from slipstream.cluster.client import WorkerState

INFO = EngineInfo(
    model="m", vocab_size=100, max_model_len=2048, max_seqs=32, max_batched_tokens=512, page_size=16, num_pages=1000,
    kv_bytes=3 << 29, weight_bytes=514 << 20, temporary_bytes=1, dtype="float32", kv_dtype="float32",
    platform="cpu", device="cpu", num_devices=1, compile_seconds=2.5, num_shapes=9,
)  # fmt: skip

IMAGES = ImageEngineInfo(
    model="p", family="flux", width=512, height=256, multiple=16, max_pixels=4194304, steps=28, max_steps=150,
    guidance=3.5, sampler="flow", samplers=("flow",), slots=4, weight_bytes=23 << 30, dtype="bfloat16", platform="gpu",
    device="H100", num_devices=1, compile_seconds=4.0, num_shapes=3,
)  # fmt: skip


def banner(prompting: Prompting = Prompting.CHAT, needs_key: bool = False) -> Banner:
    return Banner("0.1.0", "smollm2-135m", "http://127.0.0.1:8000", INFO, prompting, needs_key, 6.25)


@pytest.mark.parametrize(
    ("prompting", "path"),
    [
        (Prompting.CHAT, "/v1/chat/completions"),
        (Prompting.TEXT, "/v1/completions"),
        (Prompting.TOKENS, "/v1/completions"),
        (Prompting.EMBED, "/v1/embeddings"),
        (Prompting.SCORE, "/v1/rerank"),
        (Prompting.IMAGE, "/v1/images/generations"),
    ],
)
def test_the_curl_line_is_one_shell_command(prompting: Prompting, path: str) -> None:
    words = shlex.split(banner(prompting).curl())
    assert words[:2] == ["curl", "http://127.0.0.1:8000" + path]
    body = json.loads(words[words.index("-d") + 1])
    assert ("messages" in body) == (prompting is Prompting.CHAT)


@pytest.mark.parametrize("prompting", list(Prompting))
@pytest.mark.parametrize("needs_key", [False, True])
def test_the_program_compiles_and_names_the_model(prompting: Prompting, needs_key: bool) -> None:
    program = banner(prompting, needs_key).snippet()
    compile(program, "snippet", "exec")
    assert 'model="smollm2-135m"' in program or '"model": "smollm2-135m"' in program
    # A model without a tokenizer answers with ids; its text is always empty.
    assert ("token_ids" in program) == (prompting is Prompting.TOKENS)
    assert ("SLIPSTREAM_API_KEY" in program) == needs_key


def test_a_pipe_gets_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    banner().show()
    shown = capsys.readouterr().out
    assert "Slipstream 0.1.0 serves smollm2-135m at http://127.0.0.1:8000" in shown
    assert "KV cache 1.5 GiB (float32): 16,000 tokens in 1,000 pages; 32 sequences" in shown
    assert "ready after 6.2 s" in shown
    assert "\n" + banner().curl() + "\n" in shown
    assert "\x1b" not in shown


def test_a_model_without_a_cache() -> None:
    info = replace(INFO, kv_bytes=0, pooling=PoolingInfo(task="embed", size=384))
    facts = Banner("0.1.0", "minilm", "http://127.0.0.1:8000", info, Prompting.EMBED, False, 1.0).facts()
    assert facts[1] == "no KV cache: texts of at most 2,048 tokens, 512 tokens a step"
    assert prompting(None, info) is Prompting.EMBED


def test_images_alone_and_beside_a_language_model() -> None:
    alone = Banner("0.1.0", "painter", "http://h", IMAGES, Prompting.IMAGE, False, 1.0)
    assert alone.facts()[:2] == [
        "bfloat16 on 1 x H100; weights 23.0 GiB",
        "flux: 512x256 in 28 steps if nothing is asked for, at most 4,194,304 pixels; 4 slots a step",
    ]
    both = Banner("0.1.0", "talker", "http://h", INFO, Prompting.CHAT, False, 1.0, ("painter", IMAGES))
    assert len(both.facts()) == 6
    assert "12 step shapes, compiled or read from the cache in 6.5 s" in both.facts()[4]


def test_several_workers_say_where_they_compute() -> None:
    def worker(index: int, role: str, processors: tuple[int, ...] | None, threads: int | None) -> WorkerState:
        return WorkerState(
            index=index, role=role, state="ready", reason=None, model="m", pid=1, restarts=0, requests=0,
            processors=processors, threads=threads, info=INFO, stats=None,
        )  # fmt: skip

    states = (worker(0, "prefill", (0, 1, 2, 5), None), worker(1, "decode", (7,), 1), worker(2, "both", None, 2))
    facts = Banner("0.1.0", "m", "http://h", INFO, Prompting.CHAT, False, 1.0, workers=states).facts()
    holds = "32 sequences, 16,000 tokens of KV cache, 512 tokens a step"
    assert facts[2:5] == [
        f"worker 0: prefill; {holds}; processors 0-2,5, 4 threads",
        f"worker 1: decode; {holds}; processors 7, 1 thread",
        f"worker 2: {holds}; all processors, 2 threads",
    ]
    alone = Banner("0.1.0", "m", "http://h", INFO, Prompting.CHAT, False, 1.0, workers=states[:1])
    assert not any("worker" in fact for fact in alone.facts())
