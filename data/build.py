"""Open the data set that the options ask for, and make its batches."""

import inspect
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

import data
from config import DefaultConfig
from utils import distributed
from utils.checkpoint import CheckpointError
from utils.options import UsageError, find_class, flag
from utils.seed import seed_of

from .cache import PictureFile, free_memory
from .image_dataset import ImageDataset
from .loader import Loader
from .transforms import batch_mixer


def open_split(opt: DefaultConfig, mode: str) -> ImageDataset:
    """Return the data set of the options in mode "train", "val" or "test"."""
    dataset_class = find_class(data, opt.dataset)
    root = opt.test_data_root if mode == "test" else opt.train_data_root
    # A class gets the options that its __init__ has as parameters.
    wanted = inspect.signature(dataset_class).parameters
    options = {name: value for name, value in vars(opt).items() if name in wanted}
    for name in ("layout", "val_share", "fold", "augment"):
        default = getattr(type(opt), name, None)
        if name not in wanted and getattr(opt, name, default) != default:
            raise UsageError(f"{opt.dataset} has no parameter `{name}`: leave out {flag(name)}")
    return dataset_class(root, mode=mode, **options)


def build_loader(
    opt: DefaultConfig,
    mode: str,
    device: torch.device,
    log: Callable[[str], Any] = print,
    saved: Mapping[str, Any] | None = None,
    cache: str = "none",
) -> Loader:
    """Return the loader of a split, whose `dataset` is the data set.

    saved: a checkpoint, with which the data set is compared and whose normalisation it takes over.
    cache: where decoded pictures are kept, as in config.py.
    """
    dataset = open_split(opt, mode)
    log(f"{mode}: {dataset.describe()}")
    if len({*distributed.from_all(dataset.fingerprint)}) > 1:
        raise UsageError(f"{mode}: the machines of torchrun have different pictures")
    if saved and mode == "test":
        dataset.classes = saved["classes"]  # pictures without labels do not tell them
    if saved:
        compare(dataset, opt, mode, log=log, saved=saved)
        dataset.mean = saved.get("mean", dataset.mean)
        dataset.std = saved.get("std", dataset.std)
    if cache != "none":
        if distributed.LOCAL_RANK == 0:
            log(f"{mode}: {keep_pictures(dataset, cache, Path(opt.cache_root))}")
        share_pictures(dataset)
    options: dict[str, Any] = {"seed": opt.seed, "limit_batches": opt.limit_batches}
    if mode == "test":  # an answer is expected for each picture
        return Loader(dataset, opt.batch_size, opt.num_workers, device, **options)
    options |= {"bad_share": 0.01 if opt.on_bad_image == "skip" else 0.0}
    if mode == "train":
        options |= {"shuffle": True, "mix": batch_mixer(opt.augment, dataset.num_classes)}
        options |= {"oversample": opt.oversample}
        if dataset.multi_label and (opt.oversample or options["mix"]):
            raise UsageError("--oversample, mixup and cutmix need one label for each picture")
        if opt.oversample:
            log(oversampling_in_words(dataset))
            if opt.balanced:
                raise UsageError("--oversample and --balanced do the same: leave out one of them")
    return Loader(dataset, opt.batch_size, opt.num_workers, device, **options)


def oversampling_in_words(dataset: ImageDataset) -> str:
    counts = dataset.class_counts
    share, rarest = len(dataset) / len(counts), int(np.argmin(counts))
    times = f"those of {dataset.classes[rarest]} {share / max(1, counts[rarest]):.1f} times each"
    return f"train: an epoch shows {share:,.0f} pictures of each class, {times}"


def keep_pictures(dataset: ImageDataset, where: str, folder: Path) -> str:
    """Let a data set keep its decoded pictures, where they fit; return what is done, in words.

    where: "ram", if half of the free memory holds them; "auto", if a quarter does; "disk", a file
    in `folder`, for later runs too. Raises UsageError if the data set has no pictures to keep.
    """
    name = type(dataset).__name__
    if where == "disk" and not hasattr(os, "pwrite"):
        raise UsageError("Windows has no --cache=disk: take ram or none")
    for needed in ["read", "path"] if where == "disk" else ["read"]:
        if not hasattr(dataset, needed) and where != "auto":
            raise UsageError(f"{name} has no `{needed}`: leave out --cache={where}")
    if not hasattr(dataset, "read"):
        return f"pictures are decoded in each epoch, for {name} has no `read`"
    if where == "disk":
        ends = (str(dataset.path(index).resolve()) for index in (0, len(dataset) - 1))
        source = seed_of(*ends)
        path = folder / f"{name}-{dataset.mode}-{len(dataset)}-{dataset.side}-{source:x}.pictures"
        dataset.kept = PictureFile(len(dataset), dataset.side, path)
        return f"decoded pictures are kept in {path}"
    sizes = []
    for index in range(0, len(dataset), math.ceil(len(dataset) / 32)):  # 32 of them, evenly spread
        with suppress(Exception):  # is reported when it is its turn
            sizes.append(dataset.picture(index).nbytes)
    need = int(np.mean(sizes or [0]) * len(dataset))
    free, share = free_memory(), 4 if where == "auto" else 2
    memory = f"about {need / 1e6:,.0f} MB of {free / 1e6:,.0f} MB of free memory"
    if need > free / share:
        return f"pictures are decoded in each epoch: to keep them would take {memory}"
    try:
        dataset.kept = PictureFile(len(dataset), dataset.side)
    except (OSError, RuntimeError) as error:  # the user may have limited the size of files
        return f"pictures are decoded in each epoch: no memory to keep them ({error})"
    return f"decoded pictures stay in memory, {memory}"


def share_pictures(dataset: ImageDataset) -> None:
    """Let the ranks of a machine keep decoded pictures in one file, their first one's."""
    kept = getattr(dataset, "kept", None)
    files = distributed.from_all(kept if kept and kept.path else None)
    if distributed.LOCAL_RANK:
        dataset.kept = files[distributed.RANK - distributed.LOCAL_RANK]


def compare(
    dataset: ImageDataset,
    opt: DefaultConfig,
    mode: str,
    log: Callable[[str], Any],
    saved: Mapping[str, Any],
) -> None:
    """Compare a data set with that of a checkpoint.

    Raises CheckpointError for other classes and, in mode "train", for other pictures.
    """
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
            f"{opt.train_data_root} has other pictures than the run was started with, "
            "or another split; --allow-changes takes them"
        )
