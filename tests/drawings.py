"""Pictures for the tests: only a shape tells their classes apart. No command draws these.

Neither these nor the tests know the project's own data set, so that it can be replaced.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data import Pictures

KINDS = ("fir", "oak")


class DrawnTrees(Pictures):
    """The drawn pictures, for tests of files that are named like `fir.0.jpg`."""

    classes = KINDS


def draw(kind: str, seed: int, kinds: Sequence[str] = KINDS) -> Image.Image:
    """Return a picture of a bright star: 3 points for the first kind, 7 for the second, and so on.

    All stars have the same area. Colours, places and sizes are random, so that brightness, size
    or one spot of a picture do not tell its kind.
    """
    label = kinds.index(kind)
    rng = np.random.default_rng([label, seed])
    width, height = rng.integers(160, 221, size=2).tolist()
    colors = [tuple(color) for color in rng.integers(0, 140, size=(5, 3)).tolist()]
    image = Image.new("RGB", (width, height), colors[0])
    canvas = ImageDraw.Draw(image)
    canvas.rectangle((0, height * rng.uniform(0.3, 0.9), width, height), colors[1])
    for color in colors[2:]:
        x, y = rng.uniform(0, (width, height))
        canvas.rectangle((x, y, x + rng.uniform(20, 60), y + rng.uniform(20, 60)), color)
    angles = np.linspace(0, 2 * np.pi, 200)
    radii = rng.uniform(35, 50) * (1 + 0.45 * np.cos((3 + 4 * label) * angles))
    angles += rng.uniform(0, 2 * np.pi)
    outline = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    outline += rng.uniform(0.4, 0.6, size=2) * (width, height)
    canvas.polygon(outline.ravel().tolist(), tuple(rng.integers(140, 256, size=3).tolist()))
    noise = rng.normal(0, rng.uniform(2, 12), (height, width, 3))  # so file sizes do not tell
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def draw_set(
    root: str | Path,
    count: int = 60,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    flat: bool = False,
) -> None:
    """Write `count` training pictures, like train/fir/fir.0.jpg, and a tenth for test.

    flat: without a folder for each class, like train/fir.0.jpg.
    """
    root, first, rng = Path(root), 10_000 * seed, np.random.default_rng(seed)
    for part in ("train", "test1"):
        (root / part).mkdir(parents=True)
    for n in range(count):
        number, label = divmod(n, len(kinds))
        picture = draw(kinds[label], first + number, kinds)
        folder = root / "train" / ("" if flat else kinds[label])
        folder.mkdir(exist_ok=True)
        picture.save(folder / f"{kinds[label]}.{number}.jpg", quality=90)
    labels = rng.integers(len(kinds), size=count // 10).tolist()
    for n, label in enumerate(labels, start=1):
        picture = draw(kinds[label], first + 9_000 + n, kinds)
        picture.save(root / "test1" / f"{n}.jpg", quality=90)
    with open(root / "test1_labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("id", "label"), *enumerate(labels, start=1)])
