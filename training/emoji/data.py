"""Noto's emoji and their names as a small text-to-image set: pictures u8[n, 64, 64, 3] on white, a caption each.

The pictures are those of the npm package @iconify-json/noto (Apache-2.0, Google), drawn by resvg. Variants that differ
in skin tone only are left out: their names say the same and most of their pixels are the same.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import resvg_py
from PIL import Image
from tqdm import tqdm

VERSION = "1.2.9"
URL = f"https://registry.npmjs.org/@iconify-json/noto/-/noto-{VERSION}.tgz"
SHA256 = "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"
SIZE = 64
PEOPLE = "People & Body"


@dataclass(frozen=True)
class Emoji:
    """`pictures` u8[n, SIZE, SIZE, 3]; `captions`, n; `weights` f64[n], how often each is shown (they sum to 1)."""

    pictures: np.ndarray
    captions: list[str]
    weights: np.ndarray


def load(folder: Path) -> Emoji:
    """The set, from `folder` if it is there. Raises RuntimeError where what npm sends is not what was trained on."""
    kept = folder / f"noto-{VERSION}-{SIZE}.npz"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _make(kept)
    with np.load(kept) as stored:
        return Emoji(stored["pictures"], stored["captions"].tolist(), stored["weights"])


def _make(kept: Path) -> None:
    archive = httpx.get(URL, timeout=60, follow_redirects=True).raise_for_status().content
    if (found := hashlib.sha256(archive).hexdigest()) != SHA256:
        raise RuntimeError(f"{URL} has the SHA-256 {found}, not {SHA256}: another release?")
    with tarfile.open(fileobj=io.BytesIO(archive)) as package:
        icons, metadata = (json.load(package.extractfile(f"package/{name}.json")) for name in ("icons", "metadata"))
    people = set(metadata["categories"][PEOPLE])
    names = [name for name in icons["icons"] if "skin-tone" not in name]
    pictures, weights = [], []
    for name in tqdm(names, desc="drawing", unit="emoji"):
        pictures.append(_draw(icons["icons"][name]["body"], icons["width"], icons["height"]))
        # A third of the set are people at work, who differ by a hat: half as often, so that the rest gets its share.
        weights.append(0.5 if name in people else 1.0)
    captions = [name.replace("-", " ") for name in names]
    np.savez_compressed(kept, pictures=np.stack(pictures), captions=captions, weights=np.array(weights) / sum(weights))


def _draw(body: str, width: int, height: int) -> np.ndarray:
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {spaces} viewBox="0 0 {width} {height}">{body}</svg>'
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


def phrase(caption: str, chance: random.Random) -> str:
    """A way in which somebody might ask for the caption: as it is, with an article, as an emoji of it."""
    article = "an" if caption[0] in "aeiou" else "a"
    ways = (
        caption,
        caption,
        f"{article} {caption}",
        f"{article} {caption} emoji",
        f"an emoji of {article} {caption}",
        f"{caption} emoji",
    )
    return re.sub(r"\s+", " ", chance.choice(ways))
