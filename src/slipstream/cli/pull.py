"""`slipstream pull`: fetch a model, so that a later start needs no network."""

from __future__ import annotations

from slipstream.cli.progress import StageBars


def pull(model: str, /) -> None:
    """Fetch a model into the cache and print where it is.

    Parameters
    ----------
    model
        A built-in name, org/name or hf:org/name[@revision][:file] on Hugging Face, or a local folder or GGUF file.
    """
    from slipstream.checkpoint import resolve

    with StageBars() as bars:
        path = resolve(model, progress=bars)
    print(path)
