"""Hostile and mistaken image requests: a 4xx that names the field, and no more memory than the limits say."""

from __future__ import annotations

import base64
import io
import resource
import struct
import zlib
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from PIL import Image

from slipstream.api.image_engine import LoraUse
from slipstream.api.images import ImageEditRequest, ImageGenerationRequest

from .conftest import Live, Start
from .image_client import INFO, ImageMemory
from .test_images import EDITS, PATH, noise, png

P = {"prompt": "x"}

BAD_BODIES: list[tuple[dict[str, Any], str | None, str | None]] = [
    ({}, "prompt", "missing_field"),
    ({"prompt": 5}, "prompt", "invalid_type"),
    ({"prompt": "x" * 32_001}, "prompt", None),
    (P | {"n": 0}, "n", None),
    (P | {"n": 11}, "n", None),
    (P | {"size": "65x48"}, "size", "invalid_size"),
    (P | {"size": "64x47"}, "size", "invalid_size"),
    (P | {"size": "0x0"}, "size", "invalid_size"),
    (P | {"size": "10000x10000"}, "size", "invalid_size"),
    (P | {"size": "999999x999999"}, "size", "invalid_size"),
    (P | {"size": "9999999999x1"}, "size", None),
    (P | {"size": "large"}, "size", None),
    (P | {"size": "-64x48"}, "size", None),
    (P | {"steps": 0}, "steps", None),
    (P | {"steps": -1}, "steps", None),
    (P | {"steps": 51}, "steps", None),
    (P | {"steps": 1.5}, "steps", "invalid_type"),
    (P | {"steps": 2, "num_inference_steps": 3}, "steps", "invalid_combination"),
    (P | {"guidance": -1}, "guidance", None),
    (P | {"guidance": 1e9}, "guidance", None),
    (P | {"guidance": 1, "guidance_scale": 2}, "guidance", "invalid_combination"),
    (P | {"true_cfg_scale": 0.5}, "true_cfg_scale", None),
    (P | {"negative_prompt": "blur"}, "negative_prompt", "invalid_combination"),
    (P | {"seed": -1}, "seed", None),
    (P | {"seed": 2**63}, "seed", None),
    (P | {"sampler": "magic"}, "sampler", "unknown_sampler"),
    (P | {"output_format": "gif"}, "output_format", "invalid_type"),
    (P | {"output_compression": 101, "output_format": "jpeg"}, "output_compression", None),
    (P | {"output_compression": 50}, "output_compression", "invalid_combination"),
    (P | {"response_format": "file"}, "response_format", "invalid_type"),
    (P | {"partial_images": 2}, "partial_images", "invalid_combination"),
    (P | {"partial_images": 4, "stream": True}, "partial_images", None),
    (P | {"progress": True}, "progress", "invalid_combination"),
    (P | {"background": "transparent"}, "background", "unsupported_field"),
    (P | {"quality": "hd"}, "quality", "unsupported_field"),
    (P | {"style": "vivid"}, "style", "unsupported_field"),
    (P | {"strength": 0.5}, "strength", "unknown_field"),
    (P | {"temperature": 1}, "temperature", "unknown_field"),
]


def problem(reply: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


@pytest.fixture
def live(start: Start) -> Live:
    return start(images=ImageMemory())


def engine(live: Live) -> ImageMemory:
    assert live.images is not None
    return live.images


def test_bad_bodies(live: Live) -> None:
    wrong = []
    for body, param, code in BAD_BODIES:
        reply = live.post(PATH, json=body)
        error = problem(reply)
        if (reply.status_code, error["param"], error["code"]) != (400, param, code):
            wrong.append((str(body)[:100], reply.status_code, error))
    assert wrong == []
    assert engine(live).requests == []


def test_a_size_says_what_is_possible(live: Live) -> None:
    assert "64x48 is near" in problem(live.post(PATH, json=P | {"size": "65x49"}))["message"]
    message = problem(live.post(PATH, json=P | {"size": "10000x10000"}))["message"]
    assert "100,000,000 pixels" in message and "65,536" in message


def test_fields_that_ask_for_nothing(live: Live) -> None:
    nothing = dict.fromkeys(set(ImageGenerationRequest.__struct_fields__) - {"prompt"})
    assert live.post(PATH, json=nothing | P).status_code == 200
    neutral = {"background": "auto", "quality": "standard", "moderation": "low", "user": "me", "size": "auto"}
    assert live.post(PATH, json=neutral | P).status_code == 200


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that says it decodes to width x height RGBA."""
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    rows = zlib.compress(bytes(20 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def webp_header(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x00" * 4 + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_corrupt_uploads(live: Live) -> None:
    good = png(noise(64, 48))
    jpeg = png(noise(64, 48), "JPEG")
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    gif = io.BytesIO()
    Image.fromarray(noise(64, 48)[..., 0]).save(gif, "GIF")
    text_bomb = good[:33] + chunk(b"zTXt", b"k\x00\x00" + zlib.compress(bytes(80 << 20), 9)) + good[33:]
    for data in (
        b"",
        b"not an image",
        good[: len(good) // 2],
        good[:20],
        bytes(flipped),
        jpeg[: len(jpeg) // 2],
        gif.getvalue(),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        webp_header(16384, 16384),
        text_bomb,
    ):
        error = problem(reply := live.post(EDITS, files={"image": data}, data=P))
        found = (reply.status_code, error["param"], error["code"])
        assert found in ((400, "image", "invalid_image"), (400, "image", "image_too_large")), (data[:20], error)
    mask = live.post(EDITS, files={"image": good, "mask": good[:50]}, data=P)
    assert problem(mask)["param"] == "mask"


def test_bombs_cost_no_memory(live: Live) -> None:
    live.post(EDITS, files={"image": png(noise(64, 48))}, data=P)  # Pillow is loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in (bomb(10_000, 10_000), bomb(60_000, 60_000), bomb(2**31 - 1, 2**31 - 1)):
        error = problem(reply := live.post(EDITS, files={"image": data}, data=P))
        assert (reply.status_code, error["code"]) == (400, "image_too_large")
        assert "33,554,432" in error["message"]
    # This one is cut off after its header, which is where Pillow says so.
    assert live.post(EDITS, files={"image": webp_header(16000, 10000)}, data=P).status_code == 400
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 << 10, f"{grown} KiB"


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_several_images_are_refused_with_the_reason(live: Live) -> None:
    """OpenAI's client sends a list as `image[]`: no model here takes more than one."""
    with pytest.raises(openai.BadRequestError, match="3 were sent, and toy-images edits one image"):
        live.openai().images.edit(image=[png(noise(64, 48))] * 3, prompt="x")
    assert live.openai().images.edit(image=[png(noise(64, 48))], prompt="x").data


def test_bad_forms(live: Live) -> None:
    good = png(noise(64, 48))
    boundary = {"content-type": "multipart/form-data; boundary=b"}
    files: list[tuple[dict[str, Any], str | None, str]] = [
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, None, "invalid_form"),
        ({"json": P}, "image", "missing_field"),
        ({"json": P | {"image": "not base64!"}}, "image", "invalid_image"),
        ({"json": P | {"image": "data:image/png,x"}}, "image", "invalid_image"),
        ({"json": P | {"image": "https://example.org/a.png"}}, "image", "unsupported_url"),
        ({"json": P | {"image": text_of(b"no picture")}}, "image", "invalid_image"),
        ({"json": P | {"image": 5}}, "image", "invalid_type"),
        ({"json": P | {"images": [{"file_id": "f"}]}}, "images[0].file_id", "unknown_field"),
        ({"json": P | {"image": [text_of(good)] * 2}}, "image", "too_many_images"),
        ({"json": P | {"image": text_of(good), "mask": text_of(png(noise(32, 48)))}}, "mask", "invalid_mask"),
        ({"files": [("image", good), ("mask", good), ("mask", good)], "data": P}, "mask", "too_many_masks"),
        ({"content": b"--b\r\n", "headers": {"content-type": "multipart/form-data"}}, None, "invalid_form"),
        ({"content": b"--x\r\nnonsense", "headers": boundary}, None, "invalid_form"),
        ({"content": b"--b\r\n\r\nx\r\n--b--\r\n", "headers": boundary}, None, "invalid_form"),
        ({"files": {"picture": good}, "data": P}, "picture", "unknown_field"),
        ({"files": {"mask": good}, "data": P}, "image", "missing_field"),
        ({"files": {"image": good}}, "prompt", "missing_field"),
        ({"files": [("image[]", good)] * 2, "data": P}, "image", "too_many_images"),
        ({"files": [("image", good)], "data": P | {"image": text_of(good)}}, "image", "invalid_form"),
        ({"files": {"image": good}, "data": P | {"n": "many"}}, "n", "invalid_type"),
        ({"files": {"image": good}, "data": P | {"input_fidelity": "high"}}, "input_fidelity", "unsupported_field"),
        ({"files": {"image": good}, "data": P | {"wat": "1"}}, "wat", "unknown_field"),
        ({"files": {"image": good, "mask": png(noise(32, 48))}, "data": P}, "mask", "invalid_mask"),
        ({"files": {f"image{i}": good for i in range(18)}, "data": P}, None, "invalid_form"),
        ({"files": {"image": good}, "data": P | {f"f{i}": "1" for i in range(99)}}, None, "invalid_form"),
    ]
    wrong = []
    for sent, param, code in files:
        reply = live.post(EDITS, **sent)
        error = problem(reply)
        if (reply.status_code, error["param"], error["code"]) != (400, param, code):
            wrong.append((str(sent)[-80:], reply.status_code, error))
    assert wrong == []
    for strength in ("0", "-1", "1.5", "nan", "inf"):
        error = problem(live.post(EDITS, files={"image": good}, data=P | {"strength": strength}))
        assert error["param"] == "strength", strength
    assert engine(live).requests == []


def test_a_body_that_is_too_large(start: Start) -> None:
    live = start(images=ImageMemory(), config={"max_upload_bytes": 100_000})
    large = np.random.default_rng(1).bytes(200_000)
    assert live.post(EDITS, files={"image": large}, data=P).status_code == 413

    def slowly() -> Any:
        yield b'--b\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(50):
            yield large[:4096]

    headers = {"content-type": "multipart/form-data; boundary=b"}
    reply = live.post(EDITS, content=slowly(), headers=headers)
    assert (reply.status_code, problem(reply)["code"]) == (413, "body_too_large")
    live.until(lambda: live.front.images.admission.in_flight == 0)  # type: ignore[union-attr]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
FIELDS = sorted(ImageEditRequest.__struct_fields__)


def test_nothing_that_a_client_sends_is_a_server_error(live: Live) -> None:
    client = httpx.Client(base_url=live.url, timeout=20)
    good = png(noise(64, 48))

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3), st.booleans())
    def attempt(body: dict[str, Any], prompted: bool) -> None:
        if any(isinstance(value, float) and value in (float("inf"), -float("inf")) for value in body.values()):
            return
        try:
            reply = client.post(PATH, json=body | (P if prompted else {}))
        except ValueError:
            return  # not JSON
        assert reply.status_code < 500, (body, reply.text)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.integers(0, len(good) - 1), st.binary(min_size=1, max_size=8), st.binary(max_size=40))
    def damaged(at: int, patch: bytes, raw: bytes) -> None:
        data = good[:at] + patch + good[at + len(patch) :]
        for image in (data, raw):
            reply = client.post(EDITS, files={"image": image}, data=P)
            assert reply.status_code in (200, 400), reply.text

    attempt()
    damaged()
    client.close()
    assert live.front.images is not None and live.front.images.admission.in_flight == 0
    assert "running" not in engine(live).ends.values()


def test_loras(start: Start) -> None:
    """A request names adapters of the server; another name is answered with those that there are."""
    live = start(images=ImageMemory(info=replace(INFO, loras=("ink", "face"))))
    uses = [{"name": "ink", "scale": 0.5}, {"name": "face"}]
    assert live.post(PATH, json=P | {"loras": uses}).status_code == 200
    form = {"files": {"image": png(noise(64, 48))}, "data": P | {"loras": '[{"name": "ink", "scale": 2}]'}}
    assert live.post(EDITS, **form).status_code == 200
    assert [one.loras for one in engine(live).requests] == [
        (LoraUse("ink", 0.5), LoraUse("face")),
        (LoraUse("ink", 2.0),),
    ]
    for loras, param in (
        ([{"name": "inc"}], "loras"),
        ([{"name": "ink"}, {"name": "ink"}], "loras"),
        ([{"name": "ink", "scale": 1e9}], "loras"),
        ([{"name": "ink", "scale": "much"}], "loras[0].scale"),
        ([{"name": "ink", "path": "/x"}], "loras[0].path"),
        ("ink", "loras"),
    ):
        error = problem(reply := live.post(PATH, json=P | {"loras": loras}))
        assert (reply.status_code, error["param"]) == (400, param), error
    assert "ink, face" in problem(live.post(PATH, json=P | {"loras": [{"name": "inc"}]}))["message"]
    assert "none was named" in problem(start(images=ImageMemory()).post(PATH, json=P | {"loras": uses}))["message"]
    wrong = {"files": {"image": png(noise(64, 48))}, "data": P | {"loras": "ink"}}
    assert problem(live.post(EDITS, **wrong))["param"] == "loras"
    assert live.get("/v1/models").json()["data"][-1]["image"]["loras"] == ["ink", "face"]
