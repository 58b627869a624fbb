"""/v1/images through a socket, with the openai client."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from msgspec.structs import replace
from PIL import Image

from slipstream.errors import CheckpointError

from .conftest import Live, Start
from .image_client import INFO, ImageMemory, colour_of, picture_of

PATH = "/v1/images/generations"
EDITS = "/v1/images/edits"


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def unpacked(text: str | None) -> np.ndarray:
    assert text is not None
    return pixels(base64.b64decode(text))


def png(array: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.fixture
def live(start: Start) -> Live:
    return start(images=ImageMemory())


def made(live: Live) -> ImageMemory:
    assert live.images is not None
    return live.images


def test_images_in_each_format(live: Live) -> None:
    client = live.openai()
    for kind in ("png", "jpeg", "webp"):
        reply = client.images.generate(
            model="toy-images", prompt="a red apple", n=2, output_format=kind, extra_body={"seed": 5}
        )
        assert (reply.output_format, reply.size, reply.background) == (kind, "64x48", "opaque")
        assert reply.data is not None and len(reply.data) == 2
        for i, image in enumerate(reply.data):
            request = made(live).requests[-2 + i]
            assert image.model_extra == {"seed": 5 + i}
            assert Image.open(io.BytesIO(base64.b64decode(image.b64_json or ""))).format == kind.upper()
            found = unpacked(image.b64_json).astype(int)
            assert found.shape == (48, 64, 3)
            assert np.abs(found - picture_of(request)).max() <= (0 if kind == "png" else 4)


def test_what_reaches_the_engine(live: Live) -> None:
    live.post(PATH, json={"prompt": "x"})
    given = {"size": "96x32", "seed": 9, "steps": 7, "guidance": 2, "sampler": "euler"}
    given |= {"negative_prompt": "blur", "true_cfg_scale": 1.5}
    assert live.post(PATH, json={"prompt": "x"} | given).status_code == 200
    plain, full = made(live).requests
    assert (plain.width, plain.height, plain.steps, plain.guidance, plain.sampler) == (64, 48, None, None, None)
    assert (plain.negative_prompt, plain.true_guidance, plain.previews) == (None, None, 0)
    assert 0 <= plain.seed < 2**63
    assert (full.width, full.height, full.steps, full.guidance, full.sampler) == (96, 32, 7, 2.0, "euler")
    assert (full.negative_prompt, full.true_guidance, full.seed) == ("blur", 1.5, 9)


def test_the_other_names_of_fields(live: Live) -> None:
    body = {"prompt": "x", "num_inference_steps": 3, "guidance_scale": 1.5, "seed": 1}
    assert live.post(PATH, json=body).status_code == 200
    assert live.post(PATH, json=body | {"steps": 3, "guidance": 1.5}).status_code == 200
    assert [(r.steps, r.guidance) for r in made(live).requests] == [(3, 1.5)] * 2


def test_a_seed_of_n_is_the_seed_of_one(live: Live) -> None:
    both = live.post(PATH, json={"prompt": "x", "n": 2, "seed": 2**63 - 1}).json()["data"]
    assert [one["seed"] for one in both] == [2**63 - 1, 0]
    [alone] = live.post(PATH, json={"prompt": "x", "seed": 0}).json()["data"]
    assert alone["b64_json"] == both[1]["b64_json"]
    [drawn] = live.post(PATH, json={"prompt": "x"}).json()["data"]
    [again] = live.post(PATH, json={"prompt": "x", "seed": drawn["seed"]}).json()["data"]
    assert again == drawn


def test_a_stream_has_openais_events(live: Live) -> None:
    events = list(live.openai().images.generate(prompt="x", stream=True, partial_images=2, extra_body={"seed": 3}))
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    last = events[-1]
    assert (last.size, last.output_format, last.quality) == ("64x48", "png", "auto")
    [request] = made(live).requests
    assert request.previews == 2
    np.testing.assert_array_equal(unpacked(last.b64_json), picture_of(request))
    np.testing.assert_array_equal(unpacked(events[0].b64_json), picture_of(request)[::8, ::8])


def test_the_stream_on_the_wire(live: Live) -> None:
    body = {"prompt": "x", "stream": True, "progress": True, "n": 2, "steps": 3}
    text = live.post(PATH, json=body).text
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    assert blocks.pop() == ["data: [DONE]"]
    events = [(name.removeprefix("event: "), httpx.Response(200, content=data[6:]).json()) for name, data in blocks]
    assert all(name == event["type"] for name, event in events)
    for index in (0, 1):
        own = [event for _, event in events if event["index"] == index]
        assert own[-1]["type"] == "image_generation.completed"
        told = [event["step"] for event in own if event["type"] == "image_generation.progress"]
        assert told == sorted(set(told)) and told[-1] == 3 and own[-1]["steps"] == 3


def test_a_url_names_a_file_for_a_while(start: Start) -> None:
    live = start(images=ImageMemory(), config={"image_files_bytes": 700})
    data = live.openai().images.generate(prompt="x", n=1, response_format="url", extra_body={"seed": 1}).data
    assert data is not None and data[0].b64_json is None and data[0].url is not None
    url = data[0].url
    assert url.startswith(live.url + "/files/") and len(url.rpartition("/")[2]) == 32 + len(".png")
    reply = httpx.get(url)
    assert reply.headers["content-type"] == "image/png"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "immutable" in reply.headers["cache-control"]
    np.testing.assert_array_equal(pixels(reply.content), picture_of(made(live).requests[0]))
    assert live.front.images is not None
    folder = live.front.images.files._folder
    assert folder is not None and folder.stat().st_mode & 0o077 == 0
    for seed in range(2, 12):  # newer ones push it out
        live.post(PATH, json={"prompt": "x", "response_format": "url", "seed": seed})
    gone = httpx.get(url)
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "file_not_found")
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 700
    for name in ("x.png", "..%2f..%2fetc%2fpasswd", "a" * 32 + ".png", "a" * 32 + ".svg"):
        assert live.get(f"/files/{name}").status_code == 404
    live.stop()
    assert not folder.exists()


def test_files_expire() -> None:
    from slipstream.server.image_files import ImageFiles

    now = 0.0
    files = ImageFiles(100, 10, clock=lambda: now)
    first = files.save(b"x" * 40, "png")
    now = 5
    second = files.save(b"y" * 40, "png")
    assert first != second and files.find(first) is not None
    now = 10
    assert files.find(first) is None and files.find(second) is not None
    too_large = files.save(b"z" * 101, "png")
    assert files.find(second) is None and files.find(too_large) is None
    files.close()


def test_an_edit(live: Live) -> None:
    upload = noise(64, 48)
    reply = live.openai().images.edit(
        image=("a.png", png(upload)), prompt="in oil", n=2, extra_body={"seed": 4, "strength": 0.5, "steps": 8}
    )
    assert reply.data is not None and [image.model_extra for image in reply.data] == [{"seed": 4}, {"seed": 5}]
    first = made(live).requests[0]
    assert (first.width, first.height, first.strength, first.steps, first.mask) == (64, 48, 0.5, 8, None)
    assert first.image is not None
    np.testing.assert_array_equal(first.image.array, upload)


@pytest.mark.parametrize("transparent", [True, False])
def test_a_mask_says_what_may_change(live: Live, transparent: bool) -> None:
    upload = noise(64, 48)
    hole = np.zeros((48, 64), bool)
    hole[:24, :32] = True
    if transparent:
        mask = np.dstack([upload, np.where(hole, 0, 255).astype(np.uint8)])
    else:
        mask = np.where(hole, 255, 0).astype(np.uint8)
    reply = live.openai().images.edit(image=png(upload), mask=png(mask), prompt="a hat", extra_body={"seed": 1})
    [request] = made(live).requests
    assert request.strength == 1.0 and request.mask is not None
    np.testing.assert_array_equal(request.mask.array[..., 0] == 255, hole)
    assert reply.data is not None
    found = unpacked(reply.data[0].b64_json)
    np.testing.assert_array_equal(found[~hole], upload[~hole])
    assert (found[hole] == colour_of(request)).all()


def test_an_upload_with_holes_is_its_own_mask(live: Live) -> None:
    upload = np.dstack([noise(64, 48), np.full((48, 64, 1), 255, np.uint8)])
    assert live.openai().images.edit(image=png(upload), prompt="x") and made(live).requests[0].mask is None
    upload[:, :32, 3] = 0
    live.openai().images.edit(image=png(upload), prompt="x")
    mask = made(live).requests[1].mask
    assert mask is not None and (mask.array[:, :32] == 255).all() and not mask.array[:, 32:].any()


def test_an_upload_of_another_size_is_cut_and_scaled(live: Live) -> None:
    wide = np.zeros((100, 400, 3), np.uint8)
    wide[:, 150:250] = 200  # the square in the middle
    live.openai().images.edit(image=png(wide), prompt="x", size="32x32")
    request = made(live).requests[0]
    assert request.image is not None and (request.image.array > 180).all()
    # On its own it keeps its shape, with no more pixels than the model's own size.
    live.openai().images.edit(image=png(wide), prompt="x", size="auto")
    assert (made(live).requests[1].width, made(live).requests[1].height) == (112, 32)


def test_uploads_of_many_kinds(live: Live) -> None:
    picture = noise(64, 48)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    grey = (np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 20).astype(np.uint16)
    palette = io.BytesIO()
    Image.fromarray(picture).quantize(8).save(palette, "PNG")
    for data in (
        png(picture, "JPEG"),
        png(picture, "WEBP", lossless=True),
        png(picture, "JPEG", exif=exif),
        png(grey),
        palette.getvalue(),
        png(picture[..., 0]),
    ):
        assert live.openai().images.edit(image=data, prompt="x").data
    requests = made(live).requests
    sizes = [(r.width, r.height) for r in requests]
    assert sizes == [(64, 48), (64, 48), (48, 64), (64, 48), (64, 48), (64, 48)]
    sixteen = requests[3].image
    assert sixteen is not None
    np.testing.assert_array_equal(sixteen.array[..., 0], grey >> 8)


def test_an_edit_as_json(live: Live) -> None:
    """The same request to the engine as from a form: base64 as such, data URLs, and OpenAI's references."""
    picture, mask = png(noise(64, 48)), png(np.full((48, 64), 255, np.uint8))
    files = {"image": picture, "mask": mask}
    assert live.post(EDITS, files=files, data={"prompt": "x", "seed": 1, "strength": 0.5}).status_code == 200
    image, holes = (base64.b64encode(data).decode() for data in (picture, mask))
    url = "data:image/png;base64,"
    for sent in (
        {"image": image, "mask": holes},
        {"image": url + image, "mask": url + holes},
        {"image": [url + image], "mask": {"image_url": url + holes}},
        {"images": [{"image_url": url + image}], "mask": {"image_url": holes}},
    ):
        reply = live.post(EDITS, json={"prompt": "x", "seed": 1, "strength": 0.5, **sent})
        assert reply.status_code == 200, reply.text
    first, *others = (replace(one, id="", arrival=0.0) for one in made(live).requests)
    assert len(others) == 4 and all(other == first for other in others)


def test_a_stream_of_edits(live: Live) -> None:
    events = list(live.openai().images.edit(image=png(noise(64, 48)), prompt="x", stream=True, partial_images=1))
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


def test_two_models_and_what_each_does(live: Live) -> None:
    first, second = live.get("/v1/models").json()["data"]
    assert (first["id"], first["task"], second["id"], second["task"]) == ("toy", "generate", "toy-images", "image")
    assert "max_model_len" not in second and "image" not in first
    assert second["image"]["size"] == "64x48" and second["image"]["samplers"] == ["flow", "euler"]
    assert live.get("/v1/models/toy-images").json() == second
    wrong = live.post(PATH, json={"prompt": "x", "model": "toy"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "wrong_task")
    chat = {"messages": [{"role": "user", "content": "hi"}], "model": "toy-images"}
    assert live.post("/v1/chat/completions", json=chat).json()["error"]["code"] == "wrong_task"
    unknown = live.post(PATH, json={"prompt": "x", "model": "dall-e"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert "'toy' and 'toy-images'" in unknown.json()["error"]["message"]
    assert live.openai().chat.completions.create(model="toy", messages=chat["messages"]).choices


def test_images_alone(start: Start) -> None:
    live = start(images=ImageMemory(), text=False, config={"served_image_model_name": "painter"})
    [model] = live.get("/v1/models").json()["data"]
    assert (model["id"], model["root"], model["task"]) == ("painter", "toy-images", "image")
    assert live.post(PATH, json={"prompt": "x", "model": "painter"}).status_code == 200
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/embeddings", {"input": "x"}),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [1]}),
    ):
        reply = live.post(path, json=body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "wrong_task"), path
    for path in ("/health", "/ready", "/metrics", "/", "/docs", "/openapi.json"):
        assert live.get(path).status_code == 200, path


def test_no_images_here(start: Start) -> None:
    live = start()
    for path in (PATH, EDITS):
        error = live.post(path, json={"prompt": "x"}).json()["error"]
        assert error["code"] == "wrong_task" and "--image-model" in error["message"]
    assert live.get("/files/" + "a" * 32 + ".png").status_code == 400


def test_an_engine_that_cannot_start_is_told(start: Start) -> None:
    live = start(images=ImageMemory(start_error=CheckpointError("no such weights")), wait=False)
    assert live.post(PATH, json={"prompt": "x"}).json()["error"]["code"] == "starting"
    assert not live.front.started


def test_what_the_engine_says_no_to(live: Live) -> None:
    refused = live.post(PATH, json={"prompt": "refused"})
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, "this cannot be drawn")
    broken = live.post(PATH, json={"prompt": "broken"})
    assert (broken.status_code, broken.json()["error"]["code"]) == (500, "engine_error")
    with pytest.raises(openai.APIError, match="the engine is broken"):
        gate = asyncio.Event()
        gate.set()
        list(live.openai().images.generate(prompt="broken", stream=True, partial_images=1))


def test_a_client_that_leaves_frees_its_slots(start: Start) -> None:
    images = ImageMemory(gate=asyncio.Event())
    live = start(images=images)
    for stream in (False, True):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(live.url + PATH, json={"prompt": "x", "n": 3, "stream": stream}, timeout=0.3)
        live.until(lambda: "running" not in images.ends.values())
    assert set(images.ends.values()) == {"closed"} and len(images.ends) == 6
    assert live.front.images is not None
    live.until(lambda: live.front.images.admission.in_flight == 0)  # type: ignore[union-attr]


def test_a_full_queue(start: Start) -> None:
    gate = asyncio.Event()
    live = start(images=ImageMemory(gate=gate), config={"max_image_queue": 2})
    replies: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: replies.append(live.post(PATH, json={"prompt": "x", "n": 2})))
    thread.start()
    live.until(lambda: live.front.images.admission.in_flight == 2)  # type: ignore[union-attr]
    for path, sent in ((PATH, {"json": {"prompt": "x"}}), (EDITS, {"files": {"image": png(noise(64, 48))}})):
        full = live.post(path, **sent)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        assert int(full.headers["retry-after"]) >= 1
    assert live.post(PATH, json={"prompt": "x", "n": 3}).json()["error"]["code"] == "too_many_choices"
    assert live.post("/v1/completions", json={"prompt": "p"}).status_code == 200, "texts have a queue of their own"
    live.call(gate.set)
    thread.join(20)
    assert replies[0].status_code == 200


def test_a_drain_waits_for_images(start: Start) -> None:
    gate = asyncio.Event()
    live = start(images=ImageMemory(gate=gate))
    replies: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: replies.append(live.post(PATH, json={"prompt": "x"})))
    thread.start()
    live.until(lambda: live.front.images.admission.in_flight == 1)  # type: ignore[union-attr]
    assert live.call(lambda: live.front.drain(0.05)) is False
    assert live.post(PATH, json={"prompt": "x"}).json()["error"]["code"] == "draining"
    live.call(gate.set)
    assert live.call(lambda: live.front.drain(20)) is True
    thread.join(20)
    assert replies[0].status_code == 200


def test_keys(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPSTREAM_API_KEY", "sk-right")
    live = start(images=ImageMemory())
    for path in (PATH, EDITS):
        assert live.post(path, json={"prompt": "x"}).status_code == 401
    data = live.openai(api_key="sk-right").images.generate(prompt="x", response_format="url").data
    assert data is not None and httpx.get(data[0].url or "").status_code == 200, "its name is the key of a file"


def test_metrics(start: Start) -> None:
    images = ImageMemory(stats=replace(ImageMemory().stats, running=3, steps=7, padded_slots=2, step_seconds=[0.03]))
    live = start(images=images)
    live.post(PATH, json={"prompt": "x", "n": 2, "steps": 5})
    live.post(PATH, json={"prompt": "broken"})
    text = live.get("/metrics").text
    label = '{engine="0",model_name="toy-images"}'
    for line in (
        f"vllm:num_requests_running{label} 3.0",
        f"slipstream:steps_total{label} 7.0",
        f"slipstream:padding_slots_total{label} 2.0",
        f"slipstream:denoise_step_seconds_count{label} 1.0",
        f"vllm_omni:image_count_total{label} 2.0",
        f"vllm_omni:image_pixels_sum{label} {2 * 64 * 48:.1f}",
        f"vllm_omni:num_inference_steps_sum{label} 14.0",
        f"vllm:e2e_request_latency_seconds_count{label} 3.0",
        f"vllm:request_queue_time_seconds_sum{label} 0.5",
        'vllm:request_success_total{engine="0",finished_reason="stop",model_name="toy-images"} 2.0',
        'vllm:request_success_total{engine="0",finished_reason="error",model_name="toy-images"} 1.0',
        'vllm:num_requests_running{engine="0",model_name="toy"} 0.0',
    ):
        assert line in text, line


def test_a_model_that_edits_nothing(start: Start) -> None:
    live = start(images=ImageMemory(info=replace(INFO, edits=False)))
    assert live.post(EDITS, files={"image": png(noise(64, 48))}).json()["error"]["code"] == "wrong_task"
    live = start(images=ImageMemory(info=replace(INFO, masks=False)))
    files = {"image": png(noise(64, 48)), "mask": png(noise(64, 48))}
    assert live.post(EDITS, files=files, data={"prompt": "x"}).json()["error"]["param"] == "mask"


def test_one_name_for_two_models(start: Start) -> None:
    live = start(images=ImageMemory(), config={"served_image_model_name": "toy"}, wait=False)
    assert live.post(PATH, json={"prompt": "x"}).status_code == 503
    assert not live.front.started
