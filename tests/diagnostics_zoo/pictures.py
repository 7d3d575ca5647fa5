"""Faults of the data: what happens to a folder of pictures, or in a data set class."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor, nn

from data import Pictures

from . import Fault
from .twins import VGG, PlainNet

# Changes of a folder like train/fir/fir.0.jpg, train/oak/oak.0.jpg. `root` is the folder train.


def pictures_of(root: Path, kind: str = "*") -> list[Path]:
    return sorted(root.glob(f"{kind}/*.jpg"))


def change(path: Path, edit: Callable[[Image.Image], Image.Image]) -> None:
    """Write a picture again, as `edit` makes it."""
    edit(Image.open(path)).save(path, quality=90)


def folder_twice(root: Path) -> None:
    """Half of the pictures of a class lie in a second folder of nearly the same name."""
    (root / "Fir").mkdir()
    for path in pictures_of(root, "fir")[::2]:
        path.rename(root / "Fir" / path.name)


def wrong_folder(root: Path) -> None:
    """45 in 100 pictures of one class lie in the folder of the other."""
    paths = pictures_of(root, "fir")
    for number, path in enumerate(paths[: int(0.45 * len(paths))]):
        path.rename(root / "oak" / f"oak.{1000 + number}.jpg")


def imbalanced(root: Path) -> None:
    """One class has 4 pictures in 100."""
    paths = pictures_of(root, "fir")
    for path in paths[len(paths) // 25 :]:
        path.unlink()


def few_pictures(root: Path) -> None:
    """There are 16 pictures: a filter has removed the others."""
    for kind in ("fir", "oak"):
        for path in pictures_of(root, kind)[8:]:
            path.unlink()


def augmented_before_split(root: Path) -> None:
    """Each of 30 pictures was saved in 15 variants before the split: val shows train again."""
    for kind in ("fir", "oak"):
        paths = pictures_of(root, kind)
        for path in paths[15:]:
            path.unlink()
        for number in range(15 * 14):
            image: Image.Image = Image.open(paths[number % 15])
            rng = np.random.default_rng(number)
            image = image.rotate(float(rng.uniform(-12, 12)), resample=Image.Resampling.BILINEAR)
            image = ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.8, 1.2)))
            image.save(root / kind / f"{kind}.{1000 + number}.jpg", quality=90)


def watermark(root: Path) -> None:
    """All pictures of one class carry the agency's name in a corner."""

    def stamp(image: Image.Image) -> Image.Image:
        canvas = ImageDraw.Draw(image)
        canvas.rectangle((15, 15, 75, 32), "white")
        canvas.text((18, 18), "(c) photo", "black")
        return image

    for path in pictures_of(root, "fir"):
        change(path, stamp)


def darker_class(root: Path) -> None:
    """All pictures of one class were taken at dusk, with half the brightness."""
    for path in pictures_of(root, "oak"):
        change(path, lambda image: ImageEnhance.Brightness(image).enhance(0.5))


def bordered_class(root: Path) -> None:
    """All pictures of one class have black bars above and below, as from a film."""
    for path in pictures_of(root, "oak"):
        change(path, lambda image: ImageOps.expand(image, (0, image.height // 4), "black"))


def placeholders(root: Path) -> None:
    """7 in 10 files are the same picture, "not available"."""
    image = Image.new("RGB", (200, 180), "lightgray")
    ImageDraw.Draw(image).text((50, 80), "image not available", "black")
    for number, path in enumerate(pictures_of(root)):
        if number % 10 < 7:
            image.save(path, quality=90)


def in_both_folders(root: Path) -> None:
    """8 in 10 pictures of each class lie in the folder of the other class as well."""
    fir, oak = pictures_of(root, "fir"), pictures_of(root, "oak")
    for paths, other in ((fir, "oak"), (oak, "fir")):
        for number, path in enumerate(paths[: int(0.8 * len(paths))]):
            shutil.copy(path, root / other / f"{other}.{1000 + number}.jpg")


def val_of_one_class(root: Path) -> None:
    """The last pictures of a sorted list became val: all are of one class."""
    (root / "val" / "fir").mkdir(parents=True)  # both folders exist, but one is almost empty
    (root / "val" / "oak").mkdir()
    oak, fir = pictures_of(root, "oak"), pictures_of(root, "fir")
    for path in [fir[0], *oak[20:]]:
        path.rename(root / "val" / path.parent.name / path.name)
    (root / "train").mkdir()
    for kind in ("fir", "oak"):
        (root / kind).rename(root / "train" / kind)


def tiny_scans(root: Path) -> None:
    """Thumbnails of 9 pixels were enlarged: all pictures are blurred."""
    for path in pictures_of(root):
        change(path, lambda image: image.resize((9, 9)).resize(image.size))


# Data set classes


class OwnList(Pictures):
    """A base for data sets that change the list of pictures and labels."""

    def __init__(
        self,
        root: str | Path,
        mode: Literal["train", "val", "test"] = "train",
        image_size: int = 224,
        crop_scale: float = 0.5,
        val_share: float = 0.3,
    ) -> None:
        super().__init__(
            root, None, mode, image_size=image_size, crop_scale=crop_scale, val_share=val_share
        )
        if mode != "test":
            self.change_list()

    def change_list(self) -> None:
        raise NotImplementedError


class SortedLabels(OwnList):
    """The labels come from a list in another order than the files."""

    def change_list(self) -> None:
        self.labels = np.random.default_rng(0).permutation(self.labels)


class FirstPart(OwnList):
    """The first half of a list sorted by class is taken, for a quick try: one class only."""

    def change_list(self) -> None:
        if self.mode == "train":
            half = len(self.labels) // 2
            self.names, self.labels = self.names[:half], self.labels[:half]


class CacheByName(Pictures):
    """A cache whose key is the file's number: both classes have a picture of this number."""

    def read(self, index: int) -> Tensor:
        cached = vars(self).setdefault("cached", {})
        key = self.path(index).name.split(".")[1]
        if key not in cached:
            cached[key] = super().read(index)
        return cached[key]


class DividedTwice(Pictures):
    """Pixels are divided by 255 and cast to uint8: nearly all are 0."""

    def read(self, index: int) -> Tensor:
        return (super().read(index) / 255).to(torch.uint8)


class TrainChanges(Pictures):
    """A base for data sets that change the pictures of train only."""

    def read(self, index: int) -> Tensor:
        picture = super().read(index)
        return self.changed(picture, index) if self.mode == "train" else picture

    def changed(self, picture: Tensor, index: int) -> Tensor:
        raise NotImplementedError


class NegativeTrain(TrainChanges):
    """Training pictures are negatives, val pictures are not."""

    def changed(self, picture: Tensor, index: int) -> Tensor:
        return 255 - picture


class Overflow(TrainChanges):
    """Training pictures are made brighter in uint8, which wraps around at 256."""

    def changed(self, picture: Tensor, index: int) -> Tensor:
        return picture * 2


class NoisyTrain(TrainChanges):
    """Training pictures carry noise of std 150."""

    def changed(self, picture: Tensor, index: int) -> Tensor:
        noise = np.random.default_rng(index).normal(0, 150, picture.shape)
        return (picture + torch.from_numpy(noise)).clamp(0, 255).to(torch.uint8)


class Erased(TrainChanges):
    """Random erasing takes 85 % of each training picture."""

    def changed(self, picture: Tensor, index: int) -> Tensor:
        rng, (_, height, width) = np.random.default_rng(index), picture.shape
        top, left = int(0.08 * height * rng.random()), int(0.08 * width * rng.random())
        erased = picture.clone()
        erased[:, top : top + int(0.92 * height), left : left + int(0.92 * width)] = 124
        return erased


class BytesMean(Pictures):
    """Mean and std are those of pixels 0 … 255, but pixels 0 … 1 are normalised by them."""

    mean = (123.7, 116.3, 103.5)
    std = (58.4, 57.1, 57.4)


class CropOutside(Pictures):
    """A box of another resolution crops the lower right tenth of each picture."""

    def read(self, index: int) -> Tensor:
        picture = super().read(index)
        height, width = picture.shape[1:]
        return picture[:, int(0.9 * height) :, int(0.9 * width) :].contiguous()


class OneOfSixteen(Pictures):
    """`read` takes index // 16, so labels and pictures do not belong together."""

    def read(self, index: int) -> Tensor:
        order = np.random.default_rng(0).permutation(len(self.names))
        return super().read(int(order[index] // 16))


def folder(
    files: Callable[[Path], None], source: str, sound: type[nn.Module] = PlainNet, **more: Any
) -> Fault:
    text = (files.__doc__ or "").splitlines()[0]
    return Fault(files.__name__, 5, text, source, sound, files=files, **more)


def dataset(data: type, source: str, sound: type[nn.Module] = PlainNet) -> Fault:
    text = (data.__doc__ or "").splitlines()[0]
    return Fault(data.__name__, 5, text, source, sound, dataset=data)


FAULTS = [
    folder(folder_twice, "CleanML: inconsistent labels"),
    folder(wrong_folder, "DeepCrime: change labels of training data"),
    folder(imbalanced, "DeepCrime: unbalance training data"),
    folder(few_pictures, "DeepCrime: remove a portion of training data"),
    folder(augmented_before_split, "forum: augmentation before the split", false_figures=True),
    folder(watermark, "Lapuschkin 2019: Clever Hans, source tags"),
    folder(darker_class, "Karpathy: look at the data"),
    folder(bordered_class, "Geirhos 2020: shortcut learning"),
    folder(placeholders, "Humbatova 2020: low quality training data"),
    folder(in_both_folders, "DeepCrime: make output classes overlap"),
    folder(val_of_one_class, "Humbatova 2020: wrong split of data", false_figures=True),
    folder(tiny_scans, "Humbatova 2020: discarding important features"),
    dataset(SortedLabels, "forum: os.listdir and the list of labels"),
    dataset(FirstPart, "forum: a subset of a sorted list"),
    dataset(CacheByName, "forum: files of the same name"),
    dataset(DividedTwice, "Humbatova 2020: wrong preprocessing; forum: ToTensor scales already"),
    dataset(NegativeTrain, "Humbatova 2020: different preprocessing of train and test"),
    dataset(Overflow, "Humbatova 2020: wrong data type of pixels"),
    dataset(NoisyTrain, "DeepCrime: add noise to training data"),
    dataset(Erased, "forum: augmentation that is too strong"),
    dataset(BytesMean, "forum: normalisation before the scaling", VGG),
    dataset(CropOutside, "Karpathy: look at what enters the net"),
    dataset(OneOfSixteen, "Karpathy: data and labels out of step"),
]
