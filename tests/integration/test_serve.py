"""`slipstream serve` as a user starts it: two processes, a real socket, the default model, the openai client."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
FLAGS = ["--max-model-len", "1024", "--max-batched-tokens", "128", "--kv-bytes", "256MiB", "--port", "0"]
STREAMS, STREAM_TOKENS = 32, 40


@dataclass
class Server:
    """A running `slipstream serve`."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def metric(self, name: str) -> float:
        """The sum of a metric's samples over its labels."""
        text = httpx.get(f"{self.url}/metrics").text
        families = text_string_to_metric_families(text)
        return sum(s.value for f in families for s in f.samples if s.name == name)

    def worker(self) -> int:
        """The pid of the worker process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        [pid] = [
            int(pid) for pid in children if b"slipstream.cluster.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        return pid

    def client(self) -> openai.OpenAI:
        """A client without retries: each failure must show."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def start(log: Path, *flags: str) -> Server:
    """Start a server and wait until it is ready."""
    with log.open("w") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "slipstream", "serve", *FLAGS, *flags],
            stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
    found: list[str] = []

    def printed() -> bool:
        assert process.poll() is None, f"the server ended with {process.returncode}:\n{log.read_text()[-3000:]}"
        found[:] = re.findall(r"serves smollm2-135m at (http://[\d.:]+)", log.read_text())
        return bool(found)

    until(printed, 150, "the address in the server's output")
    return Server(process, found[0], log)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that leave it running."""
    running = start(tmp_path_factory.mktemp("serve") / "log")
    yield running
    running.process.kill()
    running.process.wait()


def test_the_curl_line_of_the_readme(server: Server) -> None:
    """curl -d sends a form's content type; the body is JSON all the same."""
    body = '{"messages":[{"role":"user","content":"What is the capital of France?"}],"temperature":0}'
    form = {"content-type": "application/x-www-form-urlencoded"}
    reply = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=form, timeout=60)
    assert reply.status_code == 200
    assert reply.json()["choices"][0]["message"]["content"] == ANSWER


def test_the_openai_client_streams(server: Server) -> None:
    stream = server.client().chat.completions.create(
        model="smollm2-135m", messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert "".join(text) == ANSWER
    assert len(text) > 4
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


def test_completions_echo_and_log_probabilities(server: Server) -> None:
    reply = server.client().completions.create(
        model="smollm2-135m", prompt="The capital of France is", max_tokens=1, temperature=0, echo=True, logprobs=1
    )
    choice = reply.choices[0]
    assert choice.text == "The capital of France is Paris"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["The", " capital", " of", " France", " is", " Paris"]
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.text_offset == [0, 3, 11, 14, 21, 24]


def test_a_client_that_leaves_frees_its_pages(server: Server) -> None:
    stream = server.client().chat.completions.create(
        model="smollm2-135m", messages=QUESTION, max_tokens=900, extra_body={"ignore_eos": True}, stream=True
    )
    next(iter(stream))
    until(lambda: server.metric("vllm:num_requests_running") == 1, 10, "one running request")
    stream.close()
    until(lambda: server.metric("vllm:num_requests_running") == 0, 10, "no running request after the disconnect")
    until(lambda: server.metric("vllm:kv_cache_usage_perc") == 0, 10, "no page in use")


def test_32_streams_survive_kill_9_of_the_worker(server: Server) -> None:
    """Each stream's text is what it was in a run without a kill: nothing lost, nothing said twice."""
    client = server.client()
    progress = [0] * STREAMS

    def one(i: int) -> str:
        progress[i] = 0
        stream = client.chat.completions.create(
            model="smollm2-135m",
            messages=[{"role": "user", "content": f"Tell me a story about the number {i}."}],
            temperature=0.8 if i % 2 else 0,
            seed=i,
            max_tokens=STREAM_TOKENS,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        parts = []
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                parts.append(chunk.choices[0].delta.content)
                progress[i] += 1
        return "".join(parts)

    with ThreadPoolExecutor(STREAMS) as pool:
        expected = list(pool.map(one, range(STREAMS)))
        restarts = server.metric("slipstream:worker_restarts_total")
        replies = [pool.submit(one, i) for i in range(STREAMS)]
        until(
            lambda: all(n > 2 for n in progress) and sum(progress) > STREAMS * STREAM_TOKENS // 3,
            60,
            "streams half way",
        )
        assert not any(reply.done() for reply in replies)
        killed = server.worker()
        os.kill(killed, signal.SIGKILL)
        assert [reply.result(timeout=120) for reply in replies] == expected
    assert server.worker() != killed
    assert server.metric("slipstream:worker_restarts_total") == restarts + 1
    assert server.metric("slipstream:compiles_after_ready_total") == 0


def test_metrics_speak_vllms_names_of_real_work(server: Server) -> None:
    assert server.metric("vllm:generation_tokens_total") > STREAMS * STREAM_TOKENS
    assert server.metric("vllm:prompt_tokens_total") > 0
    assert server.metric("vllm:prefix_cache_hits_total") > 0
    assert server.metric("vllm:time_to_first_token_seconds_count") > STREAMS
    assert server.metric("vllm:request_success_total") > STREAMS


def test_sigterm_finishes_what_runs_and_exits_with_0(tmp_path: Path) -> None:
    server = start(tmp_path / "log")
    client = server.client()
    stream = client.chat.completions.create(
        model="smollm2-135m",
        messages=QUESTION,
        max_tokens=900,  # seconds of work: the server must still be at it when it is asked again
        stream=True,
        extra_body={"ignore_eos": True},
        temperature=0,
    )
    chunks = iter(stream)
    first = next(chunks)
    worker = server.worker()
    server.process.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{server.url}/ready").status_code == 503, 10, "/ready says 503")
    late = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": QUESTION})
    assert late.status_code == 503
    assert "retry-after" in late.headers
    rest = list(chunks)
    assert (rest[-1].choices or first.choices)[0].finish_reason == "length"
    assert server.process.wait(30) == 0
    until(lambda: not Path(f"/proc/{worker}").exists(), 10, "the worker has gone too")
    assert not re.search(r'"level":"(error|warning)"', server.log.read_text()), server.log.read_text()[-2000:]
