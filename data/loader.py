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

from .cache import free_memory
from .sampler import EpochSampler
from .transforms import Normalize


class Loader:
    """Batches of a data set: normalised images (N, 3, H, W) and labels (N,), on `device`.

    Order is a function of (seed, epoch) and augmentation of (seed, epoch, index), so nothing
    depends on `num_workers`; None is one process a core, at most 8. A sample whose reading raises
    OSError is left out, and `new_failures` tells of it. keep: without shuffling each epoch is the
    same, so later ones take the first one's batches from memory, if a quarter of what is free
    holds them.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        num_workers: int | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        shuffle: bool = False,
        keep: bool = False,
    ) -> None:
        if num_workers is None:
            num_workers = min(8, cores())
        self.keep = keep and not shuffle
        self.kept: list[tuple[Tensor, Tensor] | None] = []
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
        self.sampler.epoch, self.sampler.start = epoch, first_step * self.batches.batch_size
        hidden = None if title else True  # None: hidden unless there is a terminal
        total = {"total": len(self), "initial": first_step, "leave": False, "disable": hidden}
        bar = tqdm(self.raw_batches(first_step), title, **total)
        for step, batch in enumerate(bar, start=first_step):
            if batch is not None:
                images, labels = (part.to(self.device, non_blocking=True) for part in batch)
                yield step, self.normalize(images), labels.clone()  # the batch's may be shared

    def raw_batches(self, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor] | None]:
        """The batches of the sampler's epoch as the transforms leave them; None: all unreadable."""
        if self.kept:
            yield from self.kept[first_step:]
            return
        self.guarded.unreadable.zero_()
        kept, keep = [], self.keep and first_step == 0
        for batch in self.batches:
            if keep and batch:
                room = free_memory(torch.device("cpu")) / 4
                keep = batch[0].nbytes * (len(self) - len(kept)) < room
            if keep:
                kept.append(batch and tuple(map(private, batch)))
            yield batch
        if keep:
            self.kept = kept
            self.__exit__()  # the processes are not needed any more

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


class ResidentLoader(Loader):
    """A Loader whose pictures stay on the device and are augmented there, batch by batch.

    The data set's `whole()` reads them, once, and its `augment(images, seed)` crops and flips.
    Raises MemoryError where they find no room.
    """

    def __init__(
        self, dataset: Dataset, *parts: Any, shuffle: bool = False, **options: Any
    ) -> None:
        super().__init__(dataset.whole(), *parts, **options)
        # self.batches keeps the sampler it has, which reads in order.
        self.sampler = EpochSampler(len(dataset), self.guarded.seed, shuffle)
        self.keep = False  # what Loader may do in memory, this one does on the device
        self.augment = dataset.augment if shuffle else None
        if shuffle and not self.augment:
            name = type(dataset).__name__
            raise ValueError(f"{name} crops and flips no batches: train without --on-device")
        self.images: Tensor | None = None  # uint8 (M, 3, H, W) of the M that can be read

    def __enter__(self) -> "Loader":
        self.read_all()
        return self

    def raw_batches(self, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor] | None]:
        if self.images is None:
            self.read_all()
        size, readable = self.batches.batch_size, ~self.guarded.unreadable
        place = readable.cumsum(dim=0) - 1  # of a picture among those that can be read
        keys = torch.tensor([index for _, index in self.sampler], dtype=torch.int64)
        for step, indices in enumerate(keys.split(size), start=first_step):
            rows = place[indices[readable[indices]]].to(self.device)
            if not len(rows):
                yield None
                continue
            images = self.images[rows]
            if self.augment:
                key = self.sampler.seed, "augment", self.sampler.epoch, step
                images = self.augment(images, seed_of(*key))
            yield images, self.labels[rows]

    def read_all(self) -> None:
        total, done, labels = len(self.guarded), 0, []
        for batch in super().raw_batches():
            if batch is None:
                continue
            images = batch[0]
            if self.images is None:
                need, free = total * images[0].nbytes, free_memory(self.device)
                if need > 0.7 * free:  # the model needs the rest
                    raise MemoryError(
                        f"{total:,} pictures need {need / 1e9:.1f} GB and {self.device} has "
                        f"{free / 1e9:.1f} GB free: train without --on-device, or on smaller ones"
                    )
                room = {"dtype": images.dtype, "device": self.device}
                self.images = torch.empty(total, *images.shape[1:], **room)
            self.images[done : done + len(images)] = images
            done += len(images)
            labels.append(private(batch[1]))
        if labels:
            self.images, self.labels = self.images[:done], torch.cat(labels).to(self.device)
        self.__exit__()


def private(part: Tensor) -> Tensor:
    """Take a tensor out of memory shared with a worker, which costs an open file while it lives."""
    return part.clone() if part.is_shared() else part


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
    readable = [(part[0].permute(1, 2, 0), part[1]) for part in samples if part is not None]
    if not readable:
        return None
    images, labels = default_collate(readable)  # (N, H, W, 3), as pictures lie in memory
    return images.permute(0, 3, 1, 2), labels
