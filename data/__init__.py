"""The data sets that --dataset can name, and the loaders that make batches of them.

A new data set takes two places: a class in a file of this folder, and one import line below.
Pictures named like `rose.12.jpg` need `class Flowers(DogCat): classes = ("rose", "tulip")`.
Any other data set is a class like this:

    class Flowers(ImageDataset):
        classes = ("rose", "tulip")  # the names of the K classes

        def __init__(self, root, mode, image_size, crop_scale):
            self.labels = ...  # mode "train", "val": the class of each sample, 0 … K - 1
            self.ids = ...  # mode "test", which has no labels: a number for each sample

        def __getitem__(self, index):
            return image, label  # uint8 (3, image_size, image_size), int; in mode "test", the id

Augment in mode "train" alone, by random numbers of torch, random or numpy.random; a crop shows at
least the share crop_scale of a picture. For a picture that cannot be read, raise UnreadableImage,
as `read_image` does, or an OSError that names a file: it is left out. Other errors end the run.

ImageDataset makes `num_classes`, `class_counts`, `__len__` and `describe()` of these, and sets
`mean` and `std` (of values in 0 … 1) to ImageNet's and `fingerprint` to "". A class may set others:
a fingerprint is a text that changes with the files, the same for train and val. --resume compares.

Optional methods, all of which DogCat has:
- `path(index)` and `read(path)` return the file of a sample and its picture, uint8 (3, H, W).
  Without them, `check` looks at the samples, but not at the files.
- `keep(where, folder)` keeps decoded pictures in memory (where="ram") or in the folder ("disk").
  Without it, --cache=ram and --cache=disk are refused.
- `whole()` returns the data set without augmentation, `augment(images, seed)` augments a batch
  (N, 3, H, W). Without them, or if `augment` is None, --on-device is refused.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

# These imports name the package, because an import with a dot is a name for --dataset.
from data.image_dataset import ImageDataset, UnreadableImage, read_image
from data.loader import Loader, ResidentLoader
from utils.checkpoint import CheckpointError
from utils.options import UsageError, find_class

from .dogcat import DogCat


def open_split(opt: Any, mode: str) -> ImageDataset:
    """Return the data set of the options in mode "train", "val" or "test"."""
    dataset_class = find_class(sys.modules[__name__], opt.dataset)
    root = opt.test_data_root if mode == "test" else opt.train_data_root
    return dataset_class(root, mode=mode, image_size=opt.image_size, crop_scale=opt.crop_scale)


def build_loader(
    opt: Any,
    mode: str,
    device: torch.device,
    log: Callable[[str], Any] = print,
    saved: Mapping[str, Any] | None = None,
    keep: bool = False,
) -> Loader:
    """Return the loader of a split, whose `dataset` is the data set. keep: see Loader.

    saved: a checkpoint, with which the data set is compared and whose normalisation it takes over.
    """
    dataset, name, training = open_split(opt, mode), opt.dataset, mode == "train"
    if opt.on_device and not hasattr(dataset, "whole"):
        raise UsageError(f"{name} has no `whole`: leave out --on-device")
    if opt.on_device and training and not getattr(dataset, "augment", None):
        raise UsageError(f"{name} has no `augment` for its transforms: leave out --on-device")
    if opt.cache == "disk" or (opt.cache == "ram" and training and not opt.on_device):
        if not hasattr(dataset, "keep"):
            raise UsageError(f"{name} has no `keep`: leave out --cache={opt.cache}")
        dataset.keep(opt.cache, opt.cache_root)
    log(f"{mode}: {dataset.describe()}")
    if saved:
        compare(dataset, opt, mode, log, saved)
        dataset.mean, dataset.std = saved["mean"], saved["std"]
    loader_class = ResidentLoader if opt.on_device else Loader
    options = {"device": device, "seed": opt.seed, "shuffle": training, "keep": keep}
    return loader_class(dataset, opt.batch_size, opt.num_workers, **options)


def compare(
    dataset: ImageDataset, opt: Any, mode: str, log: Callable[[str], Any], saved: Mapping[str, Any]
) -> None:
    """Compare classes and files with those of a checkpoint; CheckpointError if they differ."""
    if list(saved["classes"]) != list(dataset.classes):
        source = "the run" if mode == "train" else opt.load_model_path
        classes = f"{saved['classes']}, {opt.dataset} has {list(dataset.classes)}"
        raise CheckpointError(f"{source} has the classes {classes}")
    if mode == "test" or saved["data"] == dataset.fingerprint:
        return
    if mode == "val":
        log("the pictures are not those of the training: some of val may have been trained on")
    elif not opt.allow_changes:
        raise CheckpointError(
            f"{opt.train_data_root} has other pictures than the run was started with; "
            "--allow-changes takes them"
        )
