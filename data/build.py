"""Open the data set that the options ask for, and make its batches."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

import data
from utils.checkpoint import CheckpointError
from utils.options import UsageError, find_class

from .image_dataset import ImageDataset
from .loader import Loader, ResidentLoader


def open_split(opt: Any, mode: str) -> ImageDataset:
    """Return the data set of the options in mode "train", "val" or "test"."""
    dataset_class = find_class(data, opt.dataset)
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
        compare(dataset, opt, mode, log=log, saved=saved)
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
