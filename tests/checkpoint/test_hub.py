"""The Hugging Face Hub, replaced at huggingface_hub's border: a small repository in memory and a real cache layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.numpy import save

from slipstream.checkpoint import cached_models, hub, open_checkpoint, resolve
from slipstream.checkpoint.hub import HubName, choose, parse
from slipstream.errors import CheckpointError, ModelNotFound

SHA = "0123456789abcdef0123456789abcdef01234567"
TENSORS = save({"a": np.zeros(2, np.float32)})
FILES = {
    "model.safetensors": TENSORS,
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "README.md": b"#",
}


@dataclass
class FakeHub:
    """What huggingface.co and the cache hold: files of one repository, the folder downloads go to, what was asked."""

    cache: Path
    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    error: Exception | None = None
    break_at: str | None = None
    asked: list[str] = field(default_factory=list)
    revisions: list[str | None] = field(default_factory=list)

    @property
    def snapshot(self) -> Path:
        return self.cache / "models--org--name" / "snapshots" / SHA

    def put(self, *names: str) -> None:
        """Lay files out as huggingface_hub's cache does: blobs, and a snapshot of links to them."""
        root = self.snapshot.parent.parent
        for name in names:
            blob, link = root / "blobs" / name.replace("/", "-"), self.snapshot / name
            blob.parent.mkdir(parents=True, exist_ok=True)
            link.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(self.files[name])
            if not link.exists():
                link.symlink_to(blob)
        (root / "refs").mkdir(parents=True, exist_ok=True)
        (root / "refs" / "main").write_text(SHA)

    def model_info(self, repo: str, *, revision: str | None = None, files_metadata: bool = False) -> Any:
        assert files_metadata
        self.revisions.append(revision)
        if self.error is not None:
            raise self.error
        siblings = [SimpleNamespace(rfilename=name, size=len(data)) for name, data in self.files.items()]
        return SimpleNamespace(sha=SHA, siblings=siblings)

    def download(self, repo: str, filename: str, *, revision: str, tqdm_class: Callable[..., Any]) -> str:
        assert (repo, revision) == ("org/name", SHA)
        if filename == self.break_at:
            raise ConnectionError("the line went dead")
        self.asked.append(filename)
        with tqdm_class(total=len(self.files[filename]), initial=0, unit="B", name="x", desc=filename) as bar:
            bar.update(len(self.files[filename]))
        self.put(filename)
        return str(self.snapshot / filename)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    found = FakeHub(tmp_path / "hub")
    found.cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(found.cache))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: found)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", found.download)
    monkeypatch.chdir(tmp_path)
    return found


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/name", HubName("org/name")),
        ("hf:org/na.me-1_x", HubName("org/na.me-1_x")),
        ("hf:gpt2", HubName("gpt2")),
        ("org/name@main", HubName("org/name", "main")),
        ("org/name@refs/pr/3:Q4_K_M", HubName("org/name", "refs/pr/3", "Q4_K_M")),
        ("org/name:sub/x.gguf", HubName("org/name", None, "sub/x.gguf")),
        ("gpt2", None),
        ("a/b/c", None),
        ("org/na me", None),
        ("", None),
        ("hf:", None),
    ],
)
def test_names(text: str, name: HubName | None) -> None:
    assert parse(text) == name


def test_a_safetensors_repository_is_fetched_without_pickle(fake: FakeHub) -> None:
    pickles = ("pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "weights.pkl", "training_args.bin")
    others = ("tf_model.h5", "onnx/model.onnx", "sub/model.safetensors", "consolidated.safetensors", "code.py")
    templates = ("chat_template.jinja", "additional_chat_templates/rag.jinja", "evil/additional_chat_templates/x.jinja")
    extra = (*pickles, *others, *templates, "x.gguf", "tokenizer.model", "merges.txt", "pytorch_model.bin.index.json")
    fake.files |= dict.fromkeys(extra, b"T")
    assert resolve("org/name") == fake.snapshot
    assert sorted(fake.asked) == [
        "additional_chat_templates/rag.jinja",
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
    ]
    checkpoint = open_checkpoint(fake.snapshot)
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer.chat_templates == {"default": "T", "rag": "T"}


def test_progress_counts_the_bytes_of_all_files(fake: FakeHub) -> None:
    calls: list[tuple[str, int, int | None]] = []
    resolve("hf:org/name@v1", progress=lambda stage, done, total: calls.append((stage, done, total)))
    total = sum(len(data) for name, data in FILES.items() if name != "README.md")
    assert calls[-1] == ("download org/name", total, total)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    assert fake.revisions == ["v1"]


def test_only_pickle_is_refused(fake: FakeHub) -> None:
    fake.files = {"pytorch_model.bin": b"\x80\x04.", "config.json": b"{}"}
    with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model\.bin\)"):
        resolve("org/name")
    fake.files = {"README.md": b""}
    with pytest.raises(CheckpointError, match="it has neither"):
        resolve("org/name")
    assert fake.asked == []


GGUFS = ["name-Q4_K.gguf", "name-Q4_K_M.gguf", "name.Q8_0.gguf", "sub/name-f16.gguf"]


@pytest.mark.parametrize(
    ("pick", "file"),
    [
        ("Q4_K", "name-Q4_K.gguf"),
        ("q4_k_m", "name-Q4_K_M.gguf"),
        ("Q8_0", "name.Q8_0.gguf"),
        ("F16", "sub/name-f16.gguf"),
        ("sub/name-f16.gguf", "sub/name-f16.gguf"),
        ("name-Q4_K.gguf", "name-Q4_K.gguf"),
    ],
)
def test_a_gguf_is_chosen_by_quantization_or_name(fake: FakeHub, pick: str, file: str) -> None:
    fake.files |= dict.fromkeys(GGUFS, b"GGUF")
    assert resolve(f"org/name:{pick}") == fake.snapshot / file
    assert fake.asked == [file]


def test_gguf_alone(fake: FakeHub) -> None:
    fake.files = {"one.gguf": b"GGUF", "README.md": b"", "../../evil.gguf": b"GGUF"}
    assert resolve("org/name") == fake.snapshot / "one.gguf"
    with pytest.raises(CheckpointError, match="has no GGUF files"):
        choose(HubName("org/name", pick="Q4_0"), ["model.safetensors"])


@pytest.mark.parametrize("pick", [None, "Q5_0", "Q4"])
def test_several_ggufs_and_no_choice_lists_them(pick: str | None) -> None:
    with pytest.raises(CheckpointError) as caught:
        choose(HubName("org/name", pick=pick), GGUFS)
    for file in GGUFS:
        assert f"  org/name:{file}" in str(caught.value).splitlines()


def response(status: int) -> Any:
    """What huggingface_hub's errors carry, whichever HTTP library is below."""
    request = SimpleNamespace(method="GET", url="https://huggingface.co/api/models/org/name")
    return SimpleNamespace(status_code=status, headers={}, request=request, url=request.url, text="", json=dict)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (GatedRepoError, "accept its terms at https://huggingface.co/org/name and set HF_TOKEN"),
        (RepositoryNotFoundError, "has no model org/name, or it is private"),
        (RevisionNotFoundError, "no revision 'v9'"),
    ],
)
def test_refusals_say_what_to_do(fake: FakeHub, kind: type[Exception], message: str) -> None:
    fake.error = kind("no", response=response(404))  # type: ignore[call-arg]
    with pytest.raises(ModelNotFound) as caught:
        resolve("org/name@v9")
    assert message in str(caught.value)


def test_without_a_network_the_cache_serves(fake: FakeHub) -> None:
    fake.put("model.safetensors", "config.json")
    fake.error = ConnectionError("no route to host")
    assert resolve("org/name") == fake.snapshot
    assert resolve("org/name", offline=True) == fake.snapshot
    assert len(fake.revisions) == 1


def test_without_a_network_and_a_cache_everything_tried_is_listed(fake: FakeHub) -> None:
    fake.error = ConnectionError("no route to host\nsecond line")
    with pytest.raises(ModelNotFound) as caught:
        resolve("org/name")
    lines = str(caught.value).splitlines()
    assert lines[0] == "The model 'org/name' was not found. Tried:"
    assert "'org/name' does not exist in" in lines[1]
    assert "a built-in model: those are smollm2-135m, gemma3-270m" in lines[2]
    assert "ConnectionError: no route to host), and org/name is not in its cache" in lines[3]
    assert len(lines) == 4
    with pytest.raises(ModelNotFound, match=r"nothing is downloaded \(offline\)"):
        resolve("org/name", offline=True)


def test_an_unfinished_download_is_not_served_from_the_cache(fake: FakeHub) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    fake.files = {
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-00001-of-00002.safetensors": TENSORS,
        "model-00002-of-00002.safetensors": save({"b": np.zeros(2, np.float32)}),
        "config.json": b"{}",
    }
    fake.break_at = "model-00002-of-00002.safetensors"
    with pytest.raises(ModelNotFound, match=r"broke off .*the line went dead.*run it again"):
        resolve("org/name")
    fake.put("model.safetensors.index.json", "config.json")
    fake.error = ConnectionError("offline")
    with pytest.raises(ModelNotFound, match="not in its cache"):
        resolve("org/name")
    fake.error = fake.break_at = None
    assert set(open_checkpoint(resolve("org/name")).source.names()) == {"a", "b"}


def test_an_error_in_our_own_code_is_not_taken_for_the_network(fake: FakeHub) -> None:
    fake.error = KeyError("bug")
    with pytest.raises(KeyError):
        resolve("org/name")


def test_cached_models_lists_what_the_hub_cache_holds(fake: FakeHub) -> None:
    assert [model for model in cached_models() if "/" in model.name] == []
    fake.files |= {"x-Q4_0.gguf": b"GGUF" * 10}
    fake.put("model.safetensors", "config.json", "x-Q4_0.gguf")
    found = {model.name: model for model in cached_models() if "/" in model.name}
    assert set(found) == {"org/name", "org/name:x-Q4_0.gguf"}
    assert (found["org/name"].format, found["org/name"].path) == ("safetensors", fake.snapshot)
    gguf = found["org/name:x-Q4_0.gguf"]
    assert (gguf.format, gguf.size, gguf.path) == ("GGUF", 40, fake.snapshot / "x-Q4_0.gguf")
    for name, model in found.items():
        assert resolve(name, offline=True) == model.path


def test_no_hub_cache_at_all_lists_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    assert hub.cached_repos() == []


IMAGE_MODEL = {
    "model_index.json": {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]},
    "transformer/config.json": {},
    "tokenizer/vocab.json": {},
    "tokenizer/merges.txt": {},
    "scheduler/scheduler_config.json": {},
}
PLAIN, HALF = (f"transformer/diffusion_pytorch_model{dot}.safetensors" for dot in ("", ".fp16"))


def test_an_image_model(fake: FakeHub) -> None:
    """Its index, and of the parts that pipelines ask for one set of weights; a variant where it is asked for."""
    fake.files = {name: json.dumps(content).encode() for name, content in IMAGE_MODEL.items()}
    others = ("flux1-dev.safetensors", "vae_decoder/model.onnx", "vae_1_0/model.safetensors", "README.md",
              "transformer/diffusion_pytorch_model.bin", "safety_checker/model.safetensors")  # fmt: skip
    fake.files |= dict.fromkeys((PLAIN, HALF, *others), TENSORS)
    assert resolve("org/name") == fake.snapshot
    assert sorted(fake.asked) == sorted([*IMAGE_MODEL, PLAIN])
    fake.error = ConnectionError("no route to host")
    assert resolve("org/name") == fake.snapshot
    assert choose(HubName("org/name", pick="fp16"), fake.files)[0] == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "transformer/config.json",
        HALF,
    ]
    with pytest.raises(
        CheckpointError, match="org/name/transformer has no weights of the variant bf16; it has fp16 and"
    ):
        choose(HubName("org/name", pick="bf16"), fake.files)


def test_an_image_model_in_shards() -> None:
    stem = "transformer/diffusion_pytorch_model"
    half = [f"{stem}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)] + [f"{stem}.safetensors.index.fp16.json"]
    plain = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)] + [f"{stem}.safetensors.index.json"]
    files = [*IMAGE_MODEL, *half, *plain]
    assert set(choose(HubName("org/name"), files)[0]) == {*IMAGE_MODEL, *plain}
    assert set(choose(HubName("org/name", pick="fp16"), files)[0]) == {*IMAGE_MODEL, *half}


def test_an_unfinished_image_model(fake: FakeHub) -> None:
    fake.files = {name: json.dumps(content).encode() for name, content in IMAGE_MODEL.items()}
    fake.put(*fake.files)
    fake.files[PLAIN] = TENSORS
    fake.put("tokenizer/vocab.json")
    fake.error = ConnectionError("no route to host")
    with pytest.raises(ModelNotFound, match="not in its cache"):
        resolve("org/name")
