"""Batches on the device: the same with any number of workers, and in spite of broken files."""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

from utils import signals
from utils.seed import seed_of, seeded

from .sampler import EpochSampler
from .transforms import Normalize


class Loader:
    """Batches of a data set: normalised images (N, 3, H, W) and labels (N,), on `device`.

    Order is a function of (seed, epoch) and augmentation of (seed, epoch, index), so nothing
    depends on `num_workers`; None is one process a core, at most 8. A sample whose reading raises
    OSError is left out, and `new_failures` tells of it.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        num_workers: int | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        shuffle: bool = False,
    ) -> None:
        if num_workers is None:
            num_workers = min(8, cores())
        self.device = torch.device(device)
        self.guarded = Guarded(dataset, seed)
        self.sampler = EpochSampler(len(dataset), seed, shuffle)
        self.normalize = Normalize(dataset.mean, dataset.std, self.device)
        self.reported: set[int] = set()
        self.batches = DataLoader(
            self.guarded,
            batch_size,
            sampler=self.sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            collate_fn=collate,
            worker_init_fn=partial(start_worker, self.device.type),
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(seed_of(seed, "workers")),
        )

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(
        self, epoch: int = 0, first_step: int = 0, title: str = ""
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Go through the data set, by (step, images, labels); a bar with a title shows it.

        A step none of whose pictures could be read does not come.
        """
        self.guarded.unreadable.zero_()
        self.sampler.epoch, self.sampler.start = epoch, first_step * self.batches.batch_size
        hidden = None if title else True  # None: hidden unless there is a terminal
        bar = tqdm(self.batches, title, initial=first_step, leave=False, disable=hidden)
        for step, batch in enumerate(bar, start=first_step):
            if batch is not None:
                images, labels = (part.to(self.device, non_blocking=True) for part in batch)
                yield step, self.normalize(images), labels

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: Any) -> None:
        """End the processes, which a debugger that holds on to a frame would keep for ever."""
        iterator = getattr(self.batches, "_iterator", None)
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
            self.batches._iterator = None  # a later epoch starts new ones

    def readable(self) -> list[int]:
        """List the samples that could be read in the epoch before, in the order of val and test."""
        return (~self.guarded.unreadable).nonzero().flatten().tolist()

    def new_failures(self) -> list[str]:
        """Say why, for each sample that has turned out unreadable since the last call."""
        new = set(self.guarded.unreadable.nonzero().flatten().tolist()) - self.reported
        self.reported |= new
        return [self.guarded.failure(index) for index in sorted(new)]


def start_worker(device_type: str, number: int) -> None:
    """Leave signals to the main process and, where it computes on the same cores, those too."""
    signals.ignore()
    if device_type == "cpu" and hasattr(os, "nice"):
        os.nice(19)


def cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Guarded(Dataset):
    """A view of a data set by (epoch, index): random by that key alone, None where it fails."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.unreadable = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | None:
        epoch, index = key
        try:
            with seeded(self.seed, "augment", epoch, index):
                return self.dataset[index]
        except OSError:
            self.unreadable[index] = True  # shared memory: a worker writes it, the loop reads it
            return None

    def failure(self, index: int) -> str:
        try:
            self.dataset[index]
        except OSError as error:
            return str(error)
        return f"sample {index} could not be read for a while"


def collate(samples: list[tuple[Tensor, int] | None]) -> tuple[Tensor, Tensor] | None:
    """Stack the samples that could be read, channels last; None if there is not one."""
    readable = [sample for sample in samples if sample is not None]
    if not readable:
        return None
    images, labels = default_collate(readable)
    return images.contiguous(memory_format=torch.channels_last), labels
