"""Models from the Hugging Face Hub: which files of a repository are fetched, and where they lie in its cache.

huggingface_hub does the transfer: resumable, with the token from its usual variables. Pickled weights are never
fetched.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from slipstream.checkpoint import image_files
from slipstream.checkpoint.opening import PICKLES
from slipstream.checkpoint.progress import Progress
from slipstream.errors import CheckpointError, ModelNotFound

_NAME = re.compile(
    r"(?P<hf>hf:)?(?P<repo>(?:[\w.-]+/)?[\w.-]+)(?:@(?P<revision>[^:\s]+))?(?::(?P<pick>[^:\s]+))?", re.ASCII
)
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_BESIDE = (".json", ".txt", ".model", ".jinja")
_INDEX = "model.safetensors.index.json"
_DEEPER = re.compile(r"additional_chat_templates/[\w.-]+\.jinja|\d+_\w+/(config\.json|model\.safetensors)")
"""Templates, and the modules that sentence-transformers puts behind a model."""


@dataclass(frozen=True)
class HubName:
    """`[hf:]org/name[@revision][:pick]`; `pick` chooses among GGUF files, by quantization or file name.

    Of an image model in diffusers' layout it is the variant of its weights.
    """

    repo: str
    revision: str | None = None
    pick: str | None = None


def parse(model: str) -> HubName | None:
    """The name's parts, or None if it cannot be a repository's. Without `hf:` it must have an organisation."""
    match = _NAME.fullmatch(model)
    if match is None or not (match["hf"] or "/" in match["repo"]):
        return None
    return HubName(match["repo"], match["revision"], match["pick"])


def choose(name: HubName, files: Collection[str]) -> tuple[list[str], str | None]:
    """The files of a repository to fetch, and the GGUF among them (None: safetensors).

    safetensors are preferred; a `pick` asks for a GGUF, or of an image model for a variant. Raises CheckpointError
    where there is nothing to load or several GGUF files and no choice among them.
    """
    if image_files.INDEX_NAME in files:
        return image_files.choose_files(files, name.pick, name.repo), None
    gguf = sorted(file for file in files if file.lower().endswith(".gguf") and ".." not in PurePosixPath(file).parts)
    top = sorted(file for file in files if "/" not in file)
    weights = [file for file in top if _WEIGHTS.fullmatch(file)]
    beside = [file for file in top if file.endswith(_BESIDE) and (not file.endswith(".index.json") or file == _INDEX)]
    beside += sorted(file for file in files if _DEEPER.fullmatch(file))
    if weights and name.pick is None:
        return weights + beside, None
    if gguf:
        return [one := _pick(name, gguf)], one
    if name.pick is not None:
        raise CheckpointError(f"{name.repo} has no GGUF files, so there is nothing for {name.pick!r} to choose from")
    pickles = [file for file in top if file.endswith(PICKLES)]
    hint = f"only pickled weights ({pickles[0]}), and reading those would run the code inside" if pickles else "neither"
    raise CheckpointError(f"{name.repo} must have safetensors or GGUF files to be served; it has {hint}")


def _pick(name: HubName, gguf: list[str]) -> str:
    wanted = (name.pick or "").lower()
    exact = [file for file in gguf if file.lower() == wanted]
    # "Q4_K" must not match inside "Q4_K_M": a quantization ends at a separator.
    loose = [file for file in gguf if re.search(rf"(^|[-._/]){re.escape(wanted)}([-.]|$)", file.lower())]
    found = exact or (loose if wanted else gguf)
    if len(found) == 1:
        return found[0]
    which = f"{len(found)} GGUF files match {name.pick!r}" if wanted else f"{name.repo} has {len(gguf)} GGUF files"
    listing = "\n".join(f"  {name.repo}:{file}" for file in gguf)
    raise CheckpointError(f"{which}: choose one by its name or its quantization:\n{listing}")


def fetch(name: HubName, progress: Progress) -> Path:
    """Download what is missing and return the folder, or the GGUF file. Without a network the cache is used alone.

    Raises ModelNotFound (no such repository, no access, or no network and not cached) and CheckpointError (see
    `choose`).
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = hub.HfApi().model_info(name.repo, revision=name.revision, files_metadata=True)
    except GatedRepoError as error:
        raise ModelNotFound(
            f"{name.repo} is gated: accept its terms at https://huggingface.co/{name.repo} and set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(f"{name.repo} has no revision {name.revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"https://huggingface.co has no model {name.repo}, or it is private and HF_TOKEN does not open it"
        ) from error
    except Exception as error:
        if not _is_transfer_error(error):
            raise
        found = cached(name)
        if found is not None:
            return found
        raise ModelNotFound(
            f"huggingface.co cannot be reached ({_short(error)}), and {name.repo} is not in its cache"
        ) from error
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    files, gguf = choose(name, sizes.keys())
    stage, total, done = f"download {name.repo}", sum(sizes[file] for file in files), 0
    path = Path()
    for file in files:
        bar = _bar(progress, stage, done, total)
        try:
            path = Path(hub.hf_hub_download(name.repo, file, revision=info.sha, tqdm_class=bar))
        except Exception as error:
            if not _is_transfer_error(error):
                raise
            raise ModelNotFound(
                f"the download of {file} of {name.repo} broke off ({_short(error)}): run it again to go on with it"
            ) from error
        done += sizes[file]
        progress(stage, done, total)
    if gguf is not None:
        return path
    return path.parents[len(PurePosixPath(files[-1]).parts) - 1]


def cached(name: HubName) -> Path | None:
    """The folder or GGUF file in the Hub's cache, whole; None if it, or a file that it needs, is not there.

    Raises CheckpointError where several GGUF files are cached and none is chosen.
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(hub.snapshot_download(name.repo, revision=name.revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    if not any(file.endswith((".safetensors", ".gguf")) for file in files):
        return None
    chosen, gguf = choose(name, files)
    if gguf is not None:
        return folder / gguf
    return folder if _is_whole(folder, set(chosen)) else None


def _is_whole(folder: Path, files: set[str]) -> bool:
    """Whether every shard that the index names is there: an interrupted download leaves some out."""
    from slipstream.checkpoint.image_folder import open_image_folder
    from slipstream.checkpoint.safetensors_source import shards_of

    if image_files.INDEX_NAME in files:
        try:
            open_image_folder(folder)
        except CheckpointError:
            return False
        return True
    if _INDEX not in files:
        return "model.safetensors" in files and "config.json" in files
    return set(shards_of(folder / _INDEX).values()) <= files and "config.json" in files


def _is_transfer_error(error: Exception) -> bool:
    """Whether the network, the server or the disk failed, and not this code."""
    from huggingface_hub.errors import HfHubHTTPError

    # The HTTP library below huggingface_hub has changed between its versions; its errors are known by their module.
    library = type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3"))
    return library or isinstance(error, HfHubHTTPError | OSError | RuntimeError)


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _bar(progress: Progress, stage: str, before: int, total: int) -> type:
    """A class that huggingface_hub takes for tqdm's: it passes the bytes of one file on."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        """Shows nothing itself."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*arguments, **(options | {"disable": True}))
            self._seen = int(options.get("initial") or 0)

        def update(self, n: float | None = 1) -> bool | None:
            self._seen += int(n or 0)
            progress(stage, min(before + self._seen, total), total)
            return None

    return Bar


@dataclass(frozen=True)
class CachedRepo:
    """A repository in the Hub's cache: `path` is what `fetch` would return without a network."""

    repo: str
    path: Path
    size: int


def cached_repos() -> list[CachedRepo]:
    """All models in the Hub's cache that hold safetensors or GGUF files."""
    import huggingface_hub as hub
    from huggingface_hub import constants
    from huggingface_hub.errors import CacheNotFound

    try:
        found = hub.scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return []
    repos: list[CachedRepo] = []
    for repo in sorted(found.repos, key=lambda repo: repo.repo_id):
        if repo.repo_type != "model":
            continue
        for revision in repo.revisions:
            sizes: Mapping[Path, int] = {file.file_path: file.size_on_disk for file in revision.files}
            name = repo.repo_id if "main" in revision.refs else f"{repo.repo_id}@{revision.commit_hash}"
            if any(_WEIGHTS.fullmatch(file.name) for file in sizes):
                repos.append(CachedRepo(name, revision.snapshot_path, revision.size_on_disk))
            repos += [
                CachedRepo(f"{name}:{file.relative_to(revision.snapshot_path).as_posix()}", file, size)
                for file, size in sorted(sizes.items())
                if file.suffix.lower() == ".gguf"
            ]
    return repos
