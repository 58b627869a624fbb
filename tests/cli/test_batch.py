"""The batch files and the run over them, against a server in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest

from slipstream.cli.batch_file import BadLine, BatchRequest, ResultFile, read_requests
from slipstream.cli.batch_run import RETRIES, Tally, run_batch
from slipstream.errors import ConfigError, RequestFailed

Handler = Callable[[httpx.Request], httpx.Response]


def line(custom_id: str, **changes: Any) -> str:
    body = {"messages": [{"role": "user", "content": custom_id}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body} | changes)


def write(path: Path, lines: Iterable[str]) -> Path:
    path.write_text("".join(text + "\n" for text in lines))
    return path


def results(path: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    assert len({row["custom_id"] for row in rows}) == len(rows)
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["custom_id"]: row for row in rows}


def echo(request: httpx.Request) -> httpx.Response:
    content = json.loads(request.content)["messages"][0]["content"]
    return httpx.Response(200, json={"echo": content}, headers={"x-request-id": f"req-{content}"})


class Pauses:
    """Counts the seconds that would have been waited."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


async def run(
    source: Path, target: Path, handler: Handler = echo, concurrency: int = 4, pauses: Pauses | None = None
) -> Tally:
    file = ResultFile(target)
    transport = httpx.MockTransport(handler)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await run_batch(
                list(read_requests(source)),
                file,
                http,
                concurrency=concurrency,
                step=lambda: None,
                pause=pauses or Pauses(),
            )
    finally:
        file.close()


async def test_every_line_gets_its_answer(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [line(f"id-{i}") for i in range(50)])
    tally = await run(source, tmp_path / "out.jsonl")
    assert tally == Tally(answered=50)
    found = results(tmp_path / "out.jsonl")
    for i in range(50):
        assert found[f"id-{i}"]["response"] == {
            "status_code": 200,
            "request_id": f"req-id-{i}",
            "body": {"echo": f"id-{i}"},
        }
        assert found[f"id-{i}"]["error"] is None


async def test_a_refusal_and_bad_lines_do_not_stop_the_others(tmp_path: Path) -> None:
    lines = [
        line("good"),
        "{",
        "[]",
        json.dumps({"url": "/v1/completions", "body": {}}),
        line("get", method="GET"),
        line("speak", url="/v1/audio/speech"),
        line("body", body="text"),
        line("stream", body={"stream": True}),
        "",
        line("good"),
        line("refused"),
        line("last"),
    ]

    def handler(request: httpx.Request) -> httpx.Response:
        if b"refused" in request.content:
            return httpx.Response(400, json={"error": {"message": "no", "param": "messages"}})
        return echo(request)

    tally = await run(write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl", handler)
    assert tally == Tally(answered=2, failed=9)
    found = results(tmp_path / "out.jsonl")
    codes = {key: row["error"]["code"] for key, row in found.items() if row["error"]}
    assert codes == {
        "line:2": "invalid_json",
        "line:3": "invalid_request",
        "line:4": "missing_custom_id",
        "get": "invalid_method",
        "speak": "invalid_url",
        "body": "invalid_body",
        "stream": "stream_not_supported",
        "line:10": "duplicate_custom_id",
    }
    assert all(row["response"] is None for row in found.values() if row["error"])
    assert found["refused"]["response"]["status_code"] == 400
    assert found["refused"]["response"]["body"]["error"]["param"] == "messages"
    assert set(found) == {*codes, "good", "refused", "last"}


async def test_resume_skips_what_is_done_and_redoes_a_torn_line(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [line(f"id-{i}") for i in range(6)] + ["{"])
    target = tmp_path / "out.jsonl"
    asked: list[str] = []

    def counting(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content)["messages"][0]["content"])
        return echo(request)

    await run(source, target, counting, concurrency=1)
    whole = target.read_bytes().splitlines(keepends=True)
    target.write_bytes(b"".join(whole[:3]) + whole[3][:40])
    asked.clear()
    tally = await run(source, target, counting, concurrency=1)
    assert asked == ["id-3", "id-4", "id-5"]
    assert tally == Tally(answered=3, failed=1, skipped=3)
    assert set(results(target)) == {*(f"id-{i}" for i in range(6)), "line:7"}

    asked.clear()
    assert await run(source, target, counting) == Tally(skipped=7)
    assert asked == []


async def test_a_busy_server_is_asked_again(tmp_path: Path) -> None:
    answers = iter([429] * (RETRIES + 3) + [200])

    def handler(request: httpx.Request) -> httpx.Response:
        status = next(answers)
        return echo(request) if status == 200 else httpx.Response(status, headers={"retry-after": "7"})

    pauses = Pauses()
    source = write(tmp_path / "in.jsonl", [line("only")])
    assert await run(source, tmp_path / "out.jsonl", handler, pauses=pauses) == Tally(answered=1)
    assert pauses.seconds == [7.0] * (RETRIES + 3)


@pytest.mark.parametrize("status", [503, None])
async def test_a_dead_server_ends_the_run_and_keeps_what_is_done(tmp_path: Path, status: int | None) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if b"id-0" in request.content:
            return echo(request)
        if status is None:
            raise httpx.ConnectError("refused", request=request)
        return httpx.Response(status)

    source = write(tmp_path / "in.jsonl", [line(f"id-{i}") for i in range(3)])
    with pytest.raises(RequestFailed, match="run the same command again"):
        await run(source, tmp_path / "out.jsonl", handler, concurrency=1)
    assert set(results(tmp_path / "out.jsonl")) == {"id-0"}
    assert await run(source, tmp_path / "out.jsonl") == Tally(answered=2, skipped=1)


def test_an_output_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    target = write(tmp_path / "notes.txt", ["dear diary", "..."])
    with pytest.raises(ConfigError, match="line 1 is not a result"):
        ResultFile(target)
    assert target.read_text() == "dear diary\n...\n"


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_file_of_requests_is_no_output(tmp_path: Path, end: str) -> None:
    target = tmp_path / "in.jsonl"
    target.write_text(line("a") + end)
    with pytest.raises(ConfigError, match="line 1 is not a result"):
        ResultFile(target)
    assert target.read_text() == line("a") + end


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        list(read_requests(tmp_path / "absent.jsonl"))
    with pytest.raises(ConfigError, match="cannot write"):
        ResultFile(tmp_path / "no" / "folder.jsonl")


def test_a_line_is_read_as_it_stands(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [line("é", body={"prompt": [1, 2]}, url="/v1/completions")])
    assert list(read_requests(source)) == [BatchRequest("é", "/v1/completions", {"prompt": [1, 2]})]
    source.write_bytes(b"\xff\xfe\n")
    [bad] = read_requests(source)
    assert isinstance(bad, BadLine)
    assert bad.code == "invalid_json"
