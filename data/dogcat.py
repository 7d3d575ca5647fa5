"""Dogs vs. Cats: which files there are, what each shows, and which split it belongs to."""

import hashlib
import os
import re
from pathlib import Path
from typing import Literal
from unicodedata import normalize

import numpy as np
from torch import Tensor

from .image_dataset import ImageDataset, fingerprint
from .read_image import printable, read_image
from .transforms import Transform

SUFFIXES = "jpe?g|png|bmp|webp"
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}
Row = tuple[int, int, str]  # label (0 in mode "test"), number and name of a file


class DogCat(ImageDataset):
    """Kaggle's flat folder: `cat.0.jpg` … `dog.12499.jpg` to learn from, `1.jpg` … to classify.

    mode: "train" and "val" are the two parts of one folder, 7 : 3 within each class by a hash of
    the file's name, so that every machine splits alike; "test" takes a folder without labels.
    A sample is (uint8 image (3, image_size, image_size), label); in mode "test", (image, id).
    Raises FileNotFoundError if the folder has no picture for this mode.
    """

    classes = ("cat", "dog")

    def __init__(
        self,
        root: str | Path,
        transforms: Transform | None = None,
        mode: Literal["train", "val", "test"] = "train",
        image_size: int = 224,
        crop_scale: float = 0.5,
        val_share: float = 0.3,
    ) -> None:
        super().__init__(mode, image_size, crop_scale, transforms)
        self.root = Path(root)
        self.rejected: dict[str, str] = {}  # file name: why the file is left out
        rows = found = self._find()
        self.fingerprint = fingerprint(self.root, [name for *_, name in found])  # of both splits
        if mode != "test":
            labels = range(self.num_classes)
            rows = [row for label in labels for row in split(found, label, mode, val_share)]
        if not rows:
            raise FileNotFoundError(
                f"{printable(self.root)} has no picture named like {self.example} for {mode}; "
                f"it has {f'only {len(found)}' if found else self._other_files()}"
            )
        # Arrays, not lists: a million Python objects would be copied into every worker.
        self.names = np.array([os.fsencode(name) for *_, name in rows])
        if mode == "test":
            self.ids = np.array([number for _, number, _ in rows], dtype=np.int64)
        else:
            self.labels = np.array([label for label, *_ in rows], dtype=np.int64)

    def read(self, index: int) -> Tensor:
        return read_image(self.path(index), side=self.side)

    def path(self, index: int) -> Path:
        return self.root / os.fsdecode(self.names[index])

    @property
    def example(self) -> str:
        """How a file of this split is named."""
        names = [""] if self.mode == "test" else [f"{folded(name)}." for name in self.classes]
        return " or ".join(f"{name}12.jpg" for name in names)

    def describe(self) -> str:
        """Return what there is and, once for train and val, what is left out and why."""
        text = f"{super().describe()} in {printable(self.root)}"
        if self.rejected and self.mode != "val":
            names = [f"{name} ({reason})" for name, reason in self.rejected.items()]
            more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
            text += f"\nleft out: {', '.join(names[:10])}{more}"
        return text

    def _find(self) -> list[Row]:
        """List the pictures in the folder; note in `rejected` what is left out and why."""
        labels = {folded(name): label for label, name in enumerate(self.classes)}
        names = "()" if self.mode == "test" else rf"({'|'.join(map(re.escape, labels))})\."
        pattern = re.compile(rf"{names}(\d{{1,18}})\.({SUFFIXES})", re.A)
        found: list[Row] = []
        numbers: set[int] = set()  # of mode "test", where a number is an id
        for entry in sorted(os.scandir(self.root), key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name.lower() in SYSTEM_FILES:
                continue
            match = pattern.fullmatch(folded(entry.name))
            if not match:
                self.rejected[printable(entry.name)] = "its name is not like " + self.example
            # A link to itself makes entry.is_file() raise.
            elif not (entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path)):
                self.rejected[printable(entry.name)] = "it is not a file"
            elif int(match[2]) in numbers:
                self.rejected[printable(entry.name)] = "another picture has the same number"
            else:
                found.append((labels.get(match[1], 0), int(match[2]), entry.name))
                if self.mode == "test":
                    numbers.add(int(match[2]))
        return sorted(found)

    def _other_files(self) -> str:
        folders = [printable(p.name) for p in sorted(self.root.iterdir()) if p.is_dir()][:3]
        inside = f", among them the folders {', '.join(folders)}" if folders else ""
        return f"{len(self.rejected)} other files{inside}" if self.rejected else "nothing in it"


def folded(name: str) -> str:
    """Return a name as names are compared: without case, each letter in its shortest encoding."""
    return normalize("NFC", normalize("NFC", name).casefold())


def split(found: list[Row], label: int, mode: str, val_share: float) -> list[Row]:
    """Return the part of a class that belongs to `mode`: the lowest hashes of the name are val."""
    of_class = [row for row in found if row[0] == label]
    by_hash = sorted(of_class, key=lambda row: hashlib.md5(os.fsencode(row[2])).digest())
    cut = round(val_share * len(by_hash))
    return sorted(by_hash[:cut] if mode == "val" else by_hash[cut:])
