"""`slipstream serve` with an image model of random weights: pictures, and hostile requests to the real processes."""

from __future__ import annotations

import base64
import io
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.diffusion.tiny import written
from tests.server.test_image_refusals import bomb, chunk

FLAGS = ["--image.tp", "2", "--image.vae-tiling", "always", "--image.quantization", "int8", "--image.slots", "2"]
PATH, EDITS = "/v1/images/generations", "/v1/images/edits"
P = {"prompt": "a red apple"}
GROWTH = 150 << 20
"""Bytes that all processes together may grow by, whatever is sent: two uploads of the largest size, decoded."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The address, and the process."""
    folder = tmp_path_factory.mktemp("images")
    model, log = written("FluxPipeline", folder / "tiny-flux"), folder / "log"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    with log.open("w") as sink:
        command = [sys.executable, "-m", "slipstream", "serve", str(model), *FLAGS, "--port", "0"]
        process = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
    try:
        deadline = time.monotonic() + 150
        while not (found := re.search(r"serves tiny-flux at (http://[\d.:]+)", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)
        yield found[1], process.pid
    finally:
        process.kill()
        process.wait()


def resident(pid: int) -> int:
    """Bytes that a process and those that it started hold."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(resident(int(child)) for child in children)


def png(width: int, height: int, *, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(file, kind)
    return file.getvalue()


def with_chunk(name: bytes, data: bytes) -> bytes:
    """A picture with another chunk after its header."""
    good = png(16, 16)
    return good[:33] + chunk(name, data) + good[33:]


def grey_of_16_bits(side: int) -> bytes:
    """The largest picture that is taken, of 16 bits a pixel."""
    header = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    rows = zlib.compress(bytes((2 * side + 1) * side), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


HOSTILE: list[tuple[str, dict[str, Any], str]] = [
    (PATH, {"json": P | {"size": "9x8"}}, "multiples of 4"),
    (PATH, {"json": P | {"size": "10000x10000"}}, "at most"),
    (PATH, {"json": P | {"steps": 0}}, "steps must be between"),
    (PATH, {"json": P | {"guidance": -1}}, "guidance must be between"),
    (PATH, {"content": b'{"prompt": "x", "guidance": NaN}'}, "not valid JSON"),
    (PATH, {"json": P | {"n": 1000}}, "n must be between"),
    (PATH, {"json": P | {"seed": 2**64}}, "seed"),
    (PATH, {"json": P | {"output_format": "tiff"}}, "output_format"),
    (PATH, {"json": {"prompt": "x" * 1_000_000}}, "prompt has 1000000 characters"),
    (PATH, {"json": {"prompt": ["a", "b"]}}, "prompt"),
    (PATH, {"json": {"prompt": {"a": 1}}}, "prompt"),
    (PATH, {"content": b""}, "empty"),
    (EDITS, {"json": P}, "image is required"),
    (EDITS, {"data": P | {"guidance": "nan"}, "files": {"image": png(16, 16)}}, "guidance must be"),
    (EDITS, {"data": P, "files": {"image": b""}}, "no readable PNG"),
    (EDITS, {"data": P, "files": {"image": png(16, 16)[:60]}}, "no readable PNG"),
    (EDITS, {"data": P, "files": {"image": ("a.png", b"<html>" * 99, "image/png")}}, "no readable PNG"),
    (EDITS, {"data": P, "files": {"image": bomb(30_000, 30_000)}}, "33,554,432"),
    (EDITS, {"data": P, "files": {"image": with_chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(200 << 20), 9))}}, "PNG"),
    (EDITS, {"data": P, "files": {"image": with_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(200 << 20), 9))}}, "PNG"),
    (EDITS, {"data": P, "files": {"image": png(16, 16), "mask": png(8, 16)}}, "must be of one size"),
]


def test_hostile_requests_are_refused_and_cost_no_memory(server: tuple[str, int]) -> None:
    """Each is a 400 that says what to do; then the server makes pictures as before."""
    url, pid = server
    with httpx.Client(base_url=url, timeout=60) as http:
        first = http.post(PATH, json=P | {"seed": 1, "steps": 2})
        assert first.status_code == 200, first.text
        assert http.post(EDITS, data=P | {"steps": 2}, files={"image": png(64, 64)}).status_code == 200
        before, wrong, most = resident(pid), [], 0
        for path, sent, words in HOSTILE:
            reply = http.post(path, **sent)
            most = max(most, resident(pid))
            if reply.status_code != 400 or words not in reply.json()["error"]["message"]:
                wrong.append((words, reply.status_code, reply.text[:300]))
        assert wrong == []
        # Taken, with what a picture of this size needs; several at once wait for one another.
        large = http.post(EDITS, data=P | {"steps": 2, "size": "8x8"}, files={"image": grey_of_16_bits(5792)})
        assert large.status_code == 200, large.text
        assert max(most, resident(pid)) - before < GROWTH
        again = http.post(PATH, json=P | {"seed": 1, "steps": 2})
        assert again.json()["data"] == first.json()["data"]


def test_pictures_with_progress_and_previews(server: tuple[str, int]) -> None:
    url, _ = server
    asked = P | {"stream": True, "progress": True, "partial_images": 2, "steps": 6, "size": "16x12", "n": 2}
    with httpx.Client(base_url=url, timeout=60) as http:
        [model] = http.get("/v1/models").json()["data"]
        assert model["task"] == "image" and model["image"]["multiple"] == 4
        reply = http.post(PATH, json=asked)
    kinds = re.findall(r"^event: image_generation\.(\w+)$", reply.text, re.M)
    assert kinds.count("completed") == 2 and kinds.count("partial_image") == 4
    assert 2 <= kinds.count("progress") <= 12  # steps that were done meanwhile come as one
    pictures = re.findall(r'"b64_json":"([^"]+)"', reply.text)
    with Image.open(io.BytesIO(base64.b64decode(pictures[-1]))) as image:
        assert (image.format, image.size) == ("PNG", (16, 12))
