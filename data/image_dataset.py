"""A base for data sets."""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from utils.seed import seed_of

from .cache import PictureFile
from .read_image import DECODER, shrink
from .transforms import Transform, eval_transforms, train_transforms


class ImageDataset(Dataset):
    """What a data set needs besides `classes`, `labels` and `read`: see data/__init__.py."""

    # A class of one's own gives these; `path` is optional.
    classes: Sequence[str]
    labels: Sequence[Any] | np.ndarray  # not in mode "test"
    ids: Sequence[Any] | np.ndarray | None = None  # in mode "test"
    read: Callable[[int], Tensor]
    path: Callable[[int], Path]

    mean: Sequence[float] = (0.485, 0.456, 0.406)  # ImageNet's, of values in 0 … 1
    std: Sequence[float] = (0.229, 0.224, 0.225)
    fingerprint = ""
    multi_label = False
    kept: PictureFile | None = None  # pictures that are decoded already

    def __init__(
        self,
        mode: Literal["train", "val", "test"] = "train",
        image_size: int = 224,
        crop_scale: float = 0.5,
        augment: str | None = None,
        transforms: Transform | None = None,
    ) -> None:
        self.mode = mode
        # A crop of half a picture's area then still has image_size pixels a side.
        self.side = round(2**0.5 * image_size)
        augmented = mode == "train"
        if transforms is None and augmented:
            transforms = train_transforms(image_size, crop_scale, augment)
        elif transforms is None:
            transforms = eval_transforms(image_size)
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.labels if self.ids is None else self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """Return (image, label) of a sample; in mode "test" (image, id)."""
        image = self.transforms(self.picture(index).clone())
        if self.ids is None:
            return image, self.label(index)
        return image, np.asarray(self.ids[index]).item()

    def label(self, index: int) -> int | np.ndarray:
        return int(self.labels[index])

    def picture(self, index: int) -> Tensor:
        """Return a picture before the transforms, reduced if it is much larger than `side`.

        It may lie in memory that all processes share: change a copy.
        """
        stamp = self.stamp(index) if self.kept and self.kept.on_disk else 0
        picture = self.kept.read(index, stamp) if self.kept else None
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
        return seed_of(str(path.resolve()), *facts, self.side, DECODER)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def class_counts(self) -> list[int]:
        labels = np.asarray(self.labels, dtype=np.int64)
        return np.bincount(labels, minlength=self.num_classes).tolist()

    def describe(self) -> str:
        """Return how many pictures there are, in all and of each class."""
        if self.ids is not None:
            return f"{len(self):,} pictures"
        counts = self.class_counts
        parts = [f"{count:,} {name}" for count, name in zip(counts, self.classes, strict=True)]
        if len(counts) > 12:
            parts = [f"{len(counts)} classes of {min(counts):,} to {max(counts):,}"]
        return f"{len(self):,} pictures ({', '.join(parts)})"


class MultiLabelDataset(ImageDataset):
    """A base for data sets whose pictures show several classes at once, or none of them.

    labels: (M, K), 1 where picture m shows class k, else 0.
    """

    multi_label = True

    def label(self, index: int) -> np.ndarray:
        return np.asarray(self.labels[index], dtype=np.float32)

    @property
    def class_counts(self) -> list[int]:
        return np.asarray(self.labels).sum(axis=0).astype(int).tolist()


def fingerprint(folder: Path, names: Sequence[str], facts: Iterable[str] = ()) -> str:
    """Return a hash of all file names, of what is known of each, and of some contents.

    These are the size and the first 256 KiB of 64 files.
    """
    digest = hashlib.sha256(b"\0".join(map(os.fsencode, names)))
    for fact in facts:
        digest.update(b"\0" + fact.encode())
    for name in names[:: math.ceil(len(names) / 64) or 1]:
        with suppress(OSError), open(folder / name, "rb") as file:
            digest.update(b"%d:" % os.fstat(file.fileno()).st_size + file.read(1 << 18))
    return digest.hexdigest()
