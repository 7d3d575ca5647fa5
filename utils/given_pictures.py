"""The pictures that `predict PATH …` names: files, folders, patterns, and paths on stdin."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from data import ImageDataset, UnreadableImage, read_image
from data.listing import files_below
from data.read_image import printable
from utils.trained import Task


def expand(words: Iterable[str]) -> Iterator[str]:
    """Yield the path of each picture, in the order of the words; "-" stands for stdin.

    What is not there, and a folder without a picture, stays in its place: to read it will fail.
    """
    for word in words:
        if word == "-":
            yield from expand(os.fsdecode(line) for line in sys.stdin.buffer.read().splitlines())
        elif os.path.isdir(word):
            yield from pictures_in(word)
        elif os.path.exists(word):  # a name may have a * in it
            yield word
        elif found := sorted(glob.glob(word, recursive=True)):
            # A pattern with ** finds the files of a folder, too.
            yield from dict.fromkeys(path for match in found for path in expand([match]))
        elif word:
            yield word


def pictures_in(folder: str) -> list[str]:
    """Return the pictures of a folder and of the folders in it, or else the folder itself."""
    try:
        return [os.path.join(folder, path) for path in files_below(Path(folder), {}, "")] or [
            folder
        ]
    except OSError:  # a folder may be closed to us
        return [folder]


class GivenPictures(ImageDataset):
    """Pictures by their paths, for a trained model. A sample is (image, path)."""

    def __init__(self, paths: Iterable[str], image_size: int, task: Task) -> None:
        super().__init__("test", image_size)
        self.classes, self.mean, self.std = task.classes, task.mean, task.std
        self.multi_label = task.multi_label
        # An array, not a list: a million Python objects would be copied into every worker.
        self.ids: np.ndarray = np.array([os.fsencode(path) for path in paths])

    def given_path(self, index: int) -> str:
        return os.fsdecode(self.ids[index])

    def read(self, index: int) -> Tensor:
        path = self.given_path(index)
        if os.path.isfile(path):
            return read_image(path, side=self.side)
        what = "it is no file" if os.path.exists(path) else "it does not exist"
        what = "there is no picture in it" if os.path.isdir(path) else what
        raise UnreadableImage(f"{printable(path)} is left out: {what}")

    def failure(self, index: int) -> str:
        """Return why a picture cannot be read."""
        try:
            self.read(index)
        except UnreadableImage as error:
            return str(error).removeprefix(f"{printable(self.given_path(index))} is left out: ")
        return "it could not be read for a while"
