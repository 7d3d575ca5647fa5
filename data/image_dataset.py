"""A base for data sets, and how a picture file is read."""

import hashlib
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from utils.seed import seed_of

from .cache import PictureFile
from .transforms import Transform, eval_transforms, resize, train_transforms

FORMATS = ["JPEG", "PNG", "BMP", "WEBP", "GIF"]  # by content: photos often carry a wrong suffix
MAX_PIXELS = 100_000_000  # larger pictures are taken for decompression bombs
DECODER = zlib.crc32(Path(__file__).read_bytes())  # an edit of this file changes pixels


class UnreadableImage(OSError):
    """A picture that cannot be read: one line with its name and the reason."""


class ImageDataset(Dataset):
    """What a data set needs besides `classes`, `labels` and `read`: see data/__init__.py."""

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of values in 0 … 1
    ids: Sequence[int] | None = None  # in mode "test"
    fingerprint = ""
    kept: PictureFile | None = None  # pictures that are decoded already

    def __init__(
        self,
        mode: Literal["train", "val", "test"] = "train",
        image_size: int = 224,
        crop_scale: float = 0.5,
        transforms: Transform | None = None,
    ) -> None:
        self.mode = mode
        # A crop of half a picture's area then still has image_size pixels a side.
        self.side = round(2**0.5 * image_size)
        augmented = mode == "train"
        self.transforms = transforms or (
            train_transforms(image_size, crop_scale) if augmented else eval_transforms(image_size)
        )

    def __len__(self) -> int:
        return len(self.labels if self.ids is None else self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return (image, label) of a sample; in mode "test" (image, id)."""
        return self.transforms(self.picture(index).clone()), self.number(index)

    def number(self, index: int) -> int:
        """Return the label of a sample, in mode "test" its id."""
        return int((self.labels if self.ids is None else self.ids)[index])

    def picture(self, index: int) -> Tensor:
        """Return a picture before the transforms, reduced if it is much larger than `side`.

        It may lie in memory that all processes share: change a copy.
        """
        stamp = self.stamp(index) if self.kept and self.kept.on_disk else 0
        picture = self.kept and self.kept.read(index, stamp)
        if picture is None:
            picture = shrink(self.read(index), self.side)
            if self.kept:
                self.kept.write(index, picture, stamp)
        return picture

    def stamp(self, index: int) -> int:
        """Return a number that changes with the file of a sample and with how it is decoded."""
        path = self.path(index)
        status = path.stat()
        facts = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
        return seed_of(str(path.resolve()), *facts, self.side, PIL.__version__, DECODER)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def class_counts(self) -> list[int]:
        labels = np.asarray(self.labels, dtype=np.int64)
        return np.bincount(labels, minlength=self.num_classes).tolist()

    def describe(self) -> str:
        """Return how many pictures there are, in all and of each class."""
        counts = zip(self.class_counts, self.classes, strict=True) if self.ids is None else ()
        parts = ", ".join(f"{count:,} {name}" for count, name in counts)
        return f"{len(self):,} pictures" + f" ({parts})" * bool(parts)


def shrink(picture: Tensor, side: int) -> Tensor:
    """Reduce a picture (3, H, W) to `side` pixels of the shorter side, if it has 1.5 times that."""
    _, height, width = picture.shape
    factor = side / min(height, width)
    if factor > 2 / 3:
        return picture
    return resize(picture, max(side, round(factor * height)), max(side, round(factor * width)))


def fingerprint(folder: Path, names: Sequence[str]) -> str:
    """Return a hash of all file names, and of size and content of 64 files spread over them."""
    digest = hashlib.sha256(b"\0".join(map(os.fsencode, names)))
    for name in names[:: -(-len(names) // 64) or 1]:
        with suppress(OSError), open(folder / name, "rb") as file:
            digest.update(b"%d:" % os.fstat(file.fileno()).st_size + file.read(1 << 18))
    return digest.hexdigest()


def printable(path: str | Path) -> str:
    r"""Return a path as text in which bytes that are not UTF-8 are written as \xe9."""
    return os.fsencode(path).decode(errors="backslashreplace")


def read_image(path: str | Path, side: int | None = None) -> Tensor:
    """Return any picture as upright RGB: uint8 (3, H, W).

    Raises UnreadableImage for a file that is cut off, no picture, or a decompression bomb.

    side: pixels that are enough for the shorter side. A JPEG is decoded at 1/2, 1/4 or 1/8 of its
    size if that leaves enough, which for a camera's picture is ten times as fast.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            if side:
                image.draft(None, (side, side))
            ImageOps.exif_transpose(image, in_place=True)
            pixels = np.array(to_rgb(image))
            return torch.from_numpy(pixels).permute(2, 0, 1)
    except Exception as error:  # decoders of damaged files raise exceptions of any type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"{printable(path)} is left out: {reason}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert palette, CMYK, grey, 16-bit and transparent pictures, the last ones onto white."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip to white
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image.load()  # before its file is closed
    return image if image.mode == "RGB" else image.convert("RGB")
