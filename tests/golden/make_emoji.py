"""Records tests/golden/emoji/emoji.npz: 56 of Noto's emoji, to tell what the embedded image model drew.

    cd training/emoji && python ../../tests/golden/make_emoji.py WORK     # WORK: where train.py put its data

Noto Emoji by Google, Apache License 2.0, drawn by `training/emoji/data.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from data import load

OUT = Path(__file__).parent / "emoji/emoji.npz"
NAMES = """
    red apple,green apple,smiling face,tomato,strawberry,cherries,tangerine,banana,pizza,dog face,cat face,
    soccer ball,basketball,red heart,blue heart,broken heart,star,full moon,sun,rose,tulip,deciduous tree,
    evergreen tree,house,automobile,bus,airplane,rocket,bicycle,key,umbrella,snowman,balloon,wrapped gift,
    hot beverage,birthday cake,doughnut,hamburger,fish,octopus,spouting whale,elephant,penguin,crying face,skull,
    ghost,alien,robot,pile of poo,clown face,globe showing americas,light bulb,candle,books,pencil,scissors
"""


def main() -> None:
    emoji = load(Path(sys.argv[1]))
    names = [" ".join(name.split()) for name in NAMES.split(",")]
    pictures = [emoji.pictures[emoji.captions.index(name)] for name in names]
    np.savez_compressed(OUT, names=names, pictures=np.stack(pictures))


if __name__ == "__main__":
    main()
