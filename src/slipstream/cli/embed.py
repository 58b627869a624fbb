"""`slipstream embed`: vectors of texts, a line of JSON each."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Annotated

from cyclopts import Parameter

from slipstream.cli.progress import StageBars
from slipstream.engine.config import EngineConfig
from slipstream.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """Settings of `slipstream embed`.

    Parameters
    ----------
    dimensions
        Cut the vectors to so many numbers, where the model was trained for that (Matryoshka).
    """

    dimensions: int | None = None


def embed(
    model: str,
    /,
    *texts: str,
    options: Annotated[EmbedOptions, Parameter(name="*")] = EmbedOptions(),
    engine: Annotated[EngineConfig, Parameter(name="*")] = EngineConfig(),
) -> None:
    """Print a vector of each text: a JSON list on a line of its own. Without texts, those of standard input's lines.

    Parameters
    ----------
    model
        A folder, or org/name on Hugging Face, as for serve; a language model needs --runner pooling.
    texts
        The texts.
    """
    import orjson

    from slipstream.llm import LLM

    given = list(texts) or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not given:
        raise ConfigError("no text: name one, or write some on standard input, a line each")
    with StageBars() as bars:
        llm = LLM(model, progress=bars, **asdict(engine))
    for output in llm.embed(given, dimensions=options.dimensions, use_tqdm=False):
        print(orjson.dumps(output.outputs.embedding).decode())
