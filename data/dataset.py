"""Dogs vs. Cats: which files there are, what each shows, and which split it belongs to."""

import copy
import hashlib
import os
import re
import zlib
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from .cache import DiskCache, RamCache, no_cache
from .transforms import Transform, crop_and_flip, eval_transforms, train_transforms

FORMATS = ["JPEG", "PNG", "BMP", "WEBP", "GIF"]  # by content: photos often carry a wrong suffix
MAX_PIXELS = 100_000_000  # larger pictures are taken for decompression bombs
SUFFIXES = "jpe?g|png|bmp|webp"
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}


class UnreadableImage(OSError):
    """A file that does not hold a whole picture: one line with its name and the reason."""


class DogCat(Dataset):
    """Kaggle's flat folder: `cat.0.jpg` … `dog.12499.jpg` to learn from, `1.jpg` … to classify.

    mode: "train" and "val" are the two parts of one folder, 7 : 3 within each class by a hash of
    the file's name, so that every machine splits alike; "test" takes a folder without labels.
    A sample is (uint8 image (3, image_size, image_size), label); in test mode the label is the id.
    Raises FileNotFoundError where the folder has no picture of the wanted kind.
    """

    classes = ("cat", "dog")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of values in 0 … 1

    def __init__(
        self,
        root: str | Path,
        transforms: Transform | None = None,
        mode: Literal["train", "val", "test"] = "train",
        image_size: int = 224,
        crop_scale: float = 0.5,
        val_share: float = 0.3,
    ) -> None:
        self.root, self.mode = Path(root), mode
        augmented = mode == "train"
        self.transforms = transforms or (
            train_transforms(image_size, crop_scale) if augmented else eval_transforms(image_size)
        )
        self.augment = None  # how ResidentLoader does for a batch what transforms do for a picture
        if augmented and not transforms:
            self.augment = partial(crop_and_flip, image_size, crop_scale)
        # A crop of half a picture's area then still has image_size pixels a side.
        self.side = round(2**0.5 * image_size)
        self.read = partial(read_image, side=self.side)
        self.cache = no_cache
        self.rejected: dict[str, str] = {}  # name: why it was left out
        self.kinds = [kind.lower() for kind in self.classes]  # as file names are compared
        names = "()" if mode == "test" else rf"({'|'.join(map(re.escape, self.kinds))})\."
        found = self._find(re.compile(rf"{names}(\d{{1,18}})\.({SUFFIXES})", re.I | re.A))
        self.fingerprint = hashlib.sha256(repr(found).encode()).hexdigest()  # of both splits
        seen = len(found)
        if mode != "test":
            labels = range(self.num_classes)
            found = [row for label in labels for row in split(found, label, mode, val_share)]
        # Arrays, not lists: a million Python objects would be copied into every worker.
        self.labels = np.array([row[1 if mode == "test" else 0] for row in found], dtype=np.int64)
        self.names = np.array([row[2].encode() for row in found])
        if not found:
            raise FileNotFoundError(
                f"{self.root} has no picture named like {self.example} for {mode}; "
                f"it has {f'only {seen}' if seen else self._seen()}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.cache(index, self.path(index), self.read)
        return self.transforms(image), int(self.labels[index])

    def path(self, index: int) -> Path:
        return self.root / self.names[index].decode()

    def keep(self, where: Literal["none", "ram", "disk"], folder: str | Path) -> None:
        """Keep decoded pictures in memory, or on the disk in `folder`, from now on."""
        if where == "ram":
            self.cache = RamCache(len(self), self.path, self.read)
        elif where == "disk":
            code = zlib.crc32(Path(__file__).read_bytes())  # of read_image: an edit may change it
            self.cache = DiskCache(Path(folder), f"Pillow {PIL.__version__}, {self.side}, {code}")

    def whole(self) -> "DogCat":
        """A view for ResidentLoader: samples that leave cropping and flipping to `augment`."""
        view = copy.copy(self)
        if self.augment:
            view.transforms = eval_transforms(self.side, share=1.0)
        return view

    @property
    def example(self) -> str:
        """How a file of this split is named."""
        names = "" if self.mode == "test" else [f"{kind}." for kind in self.kinds]
        return " or ".join(f"{name}12.jpg" for name in names or [""])

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def class_counts(self) -> list[int]:
        return np.bincount(self.labels, minlength=self.num_classes).tolist()

    def describe(self) -> str:
        """Say what there is and, once for train and val, what is left out and why."""
        counts = zip(self.class_counts, self.classes, strict=True) if self.mode != "test" else ()
        parts = ", ".join(f"{number:,} {name}" for number, name in counts)
        text = f"{self.mode}: {len(self):,} pictures" + f" ({parts})" * bool(parts)
        text += f" in {self.root}"
        if self.cache is not no_cache:
            text += f"; decoded ones are kept in {self.cache.words}"
        if self.rejected and self.mode != "val":
            names = [f"{name} ({reason})" for name, reason in self.rejected.items()]
            more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
            text += f"\nleft out: {', '.join(names[:10])}{more}"
        return text

    def _find(self, pattern: re.Pattern[str]) -> list[tuple[int, int, str]]:
        """List (label, or 0 in test mode, number, name); note what is left out and why."""
        found = []
        taken: set[int] = set()
        for entry in sorted(os.scandir(self.root), key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name.lower() in SYSTEM_FILES:
                continue
            match = pattern.fullmatch(entry.name)
            if not match:
                self.rejected[entry.name] = "its name is not like " + self.example
            elif not entry.is_file():
                self.rejected[entry.name] = "it is not a file"
            elif self.mode == "test" and int(match[2]) in taken:
                self.rejected[entry.name] = "another picture has the same number"
            else:
                label = self.kinds.index(match[1].lower()) if match[1] else 0
                found.append((label, int(match[2]), entry.name))
                if self.mode == "test":
                    taken.add(int(match[2]))
        return sorted(found)

    def _seen(self) -> str:
        kinds = Counter(Path(name).suffix or "/" for name in self.rejected)
        folders = [p.name for p in sorted(self.root.iterdir()) if p.is_dir()][:3]
        inside = f", among them the folders {', '.join(folders)}" if folders else ""
        return f"{kinds.total()} other files{inside}" if kinds else "nothing in it"


def split(
    found: list[tuple[int, int, str]], label: int, mode: str, val_share: float
) -> list[tuple[int, int, str]]:
    """Keep the part of one class that belongs to `mode`: the lowest hashes of the name are val."""
    of_class = [row for row in found if row[0] == label]
    by_hash = sorted(of_class, key=lambda row: hashlib.md5(row[2].encode()).digest())
    cut = round(val_share * len(by_hash))
    return sorted(by_hash[:cut] if mode == "val" else by_hash[cut:])


def read_image(path: str | Path, side: int | None = None) -> Tensor:
    """Read any picture as upright RGB: uint8 (3, H, W).

    Raises UnreadableImage if it is cut off, no picture, or a bomb.

    side: pixels that are enough for the shorter side. A JPEG is decoded at 1/2, 1/4 or 1/8 of its
    size while that leaves so many, which for a camera's picture is ten times as fast.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            if side:
                image.draft(None, (side, side))
            ImageOps.exif_transpose(image, in_place=True)
            return pil_to_tensor(to_rgb(image))
    except Exception as error:  # decoders of damaged files raise whatever they please
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"{path} is left out: {reason}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert palette, CMYK, grey, 16-bit and transparent pictures, the last ones onto white."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip to white
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image.load()  # before its file is closed
    return image if image.mode == "RGB" else image.convert("RGB")
