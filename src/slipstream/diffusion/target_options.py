"""What pictures an image model is compiled for. Plain: the command line reads it without loading JAX."""

from __future__ import annotations

from dataclasses import dataclass

from slipstream.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """Settings of `slipstream compile` for models of images.

    Parameters
    ----------
    width
        Of pictures, in pixels. None: as the model was trained.
    height
        Of pictures, in pixels. None: as the model was trained.
    batch
        Pictures that share a step. With classifier-free guidance each takes two passes of the model.
    text_tokens
        Tokens of a prompt that Flux's T5 reads. None: as the model was trained.
    """

    width: int | None = None
    height: int | None = None
    batch: int = 1
    text_tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no picture. Raises ConfigError."""
        for name in ("width", "height", "batch", "text_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
