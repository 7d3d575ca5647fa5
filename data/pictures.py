"""Pictures in files, laid out in any of the usual ways."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from .image_dataset import ImageDataset, fingerprint
from .listing import (
    LAYOUTS,
    ListError,
    flat_example,
    list_labelled,
    list_unlabelled,
    sorted_entries,
)
from .read_image import printable, read_image
from .split import splits_of
from .transforms import Transform


class Pictures(ImageDataset):
    """The pictures of a folder, or of a list: `classes`, labels and splits come from the data.

    root: a folder of one of these layouts, or a CSV file (--layout says which; "auto" looks)
        flat     rose.12.jpg, tulip.7.jpg …: a class derived from this one has to name `classes`
        folders  rose/any name.jpg, tulip/2025/any name.jpg …
        splits   train/… and val/…, each of them flat or with folders; val/ may be missing
        csv      columns path and label, if wanted also split (train, val or test)
    mode: "train" and "val" are two parts of it: as split.csv or the owner says, or else 7 : 3
    within each class by a hash of the path, so that every machine splits alike. "test" takes any
    pictures without labels: those of a folder and of the folders in it, or those of a list.
    A sample is (uint8 image (3, image_size, image_size), label); in mode "test", (image, id). An id
    is the file's name without suffix; if the files lie in several folders, with these.
    Raises FileNotFoundError if there is no picture for this mode.
    """

    classes: Sequence[str] = ()

    def __init__(
        self,
        root: str | Path,
        transforms: Transform | None = None,
        mode: Literal["train", "val", "test"] = "train",
        image_size: int = 224,
        crop_scale: float = 0.5,
        augment: str | None = None,
        layout: str = "auto",
        val_share: float = 0.3,
        fold: str | None = None,
    ) -> None:
        super().__init__(mode, image_size, crop_scale, augment, transforms)
        self.root = Path(root)
        self.folder = self.root.parent if self.root.is_file() else self.root
        self.layout, self.split_file = "", None
        if mode == "test":
            listing, ids = list_unlabelled(self.root)
            pictures = chosen = listing.pictures
        else:
            listing = list_labelled(self.root, layout, self.classes)
            self.layout, self.classes, pictures = listing.layout, listing.classes, listing.pictures
            verify = mode == "train"  # once is enough
            splits, self.split_file = splits_of(self.root, pictures, val_share, fold, verify)
            chosen = [p for p, split in zip(pictures, splits, strict=True) if split == mode]
        self.rejected = {printable(path): why for path, why in listing.left_out.items()}
        if not chosen:
            raise FileNotFoundError(self._nothing_found(len(pictures)))
        # Arrays, not lists: a million Python objects would be copied into every worker.
        self.names = np.array([os.fsencode(picture.path) for picture in chosen])
        if mode == "test":
            self.ids = np.array(ids)
            return
        if len(self.classes) < 2:
            raise ListError(f"{printable(root)} has one class only, {self.classes[0]}: give it two")
        label_of = {name: label for label, name in enumerate(self.classes)}
        self.labels = np.array([label_of[picture.label] for picture in chosen], dtype=np.int64)
        facts = (f"{p.label}/{split}" for p, split in zip(pictures, splits, strict=True))
        self.fingerprint = fingerprint(self.folder, [p.path for p in pictures], facts)

    def read(self, index: int) -> Tensor:
        return read_image(self.path(index), side=self.side)

    def path(self, index: int) -> Path:
        return self.folder / os.fsdecode(self.names[index])

    def describe(self) -> str:
        """Return what there is and, once for train and val, what is left out and why."""
        text = f"{super().describe()} in {printable(self.root)}"
        if self.layout:
            text += f", layout {self.layout} ({LAYOUTS[self.layout]})"
        if self.split_file:
            text += f", split by {printable(self.split_file)}"
        if self.rejected and self.mode != "val":
            names = [f"{name} ({reason})" for name, reason in self.rejected.items()]
            more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
            text += f"\nleft out: {', '.join(names[:10])}{more}"
        return text

    def _nothing_found(self, count: int) -> str:
        flat = self.layout == "flat" and self.classes
        wanted = f"named like {flat_example(self.classes)} " if flat else ""
        folders = [] if self.root.is_file() else sorted_entries(self.root)
        names = [printable(entry.name) for entry in folders if os.path.isdir(entry.path)][:3]
        inside = f", among them the folders {', '.join(names)}" if names else ""
        if count:
            found = f"only {count} for the other split"
        elif self.rejected:
            found = f"{len(self.rejected):,} other files{inside}"
        else:
            found = "nothing in it"
        advice = "; each class needs a folder of its own" if wanted and self.rejected else ""
        return (
            f"{printable(self.root)} has no picture {wanted}for {self.mode}; it has {found}{advice}"
        )
