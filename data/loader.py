"""Batches of a data set: in an order that can be repeated, in spite of broken files."""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

from utils import ALL_CORES, signals
from utils.device import all_cores
from utils.failures import one_line
from utils.seed import seed_of, seeded

from .cache import free_memory
from .image_dataset import UnreadableImage
from .sampler import EpochSampler
from .transforms import Normalize


class SampleError(RuntimeError):
    """An error in the code of a data set: one line with error, file, line and sample."""

    def __init__(self, text: str) -> None:  # a whole traceback, if it comes from a worker
        super().__init__(text.rpartition("SampleError: ")[2].strip())
        if "\n" in text:
            self.add_note(text)


class Loader:
    """Batches of a data set: normalised images (N, 3, H, W) and labels (N,), on `device`.

    The order is a function of (seed, epoch) and the augmentation of (seed, epoch, index), whatever
    `num_workers` is; None is one process per core, at most 8. keep: if not shuffled, take later
    epochs from memory, if they fit in 25 % of free memory.
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
            num_workers = min(8, core_count())
        self.dataset = dataset
        self.keep = keep and not shuffle
        self.kept: list[tuple[Tensor, Tensor] | None] = []
        self.device = torch.device(device)
        self.guarded = Guarded(dataset, seed)
        self.sampler = EpochSampler(len(dataset), batch_size, seed, shuffle)
        self.normalize = Normalize(dataset.mean, dataset.std, self.device)
        self.reported: set[int] = set()  # unreadable samples that new_failures has named
        self.batches = DataLoader(
            self.guarded,
            batch_sampler=self.sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            collate_fn=collate,
            worker_init_fn=partial(start_worker, self.device.type),
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(seed_of(seed, "workers")),
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(
        self, epoch: int = 0, first_step: int = 0, title: str = ""
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (step, images, labels) of an epoch; a title shows a progress bar.

        Batches without a readable image are skipped; UnreadableImage is raised if all are.
        """
        self.sampler.epoch, self.sampler.first_step = epoch, first_step
        hidden = None if title else True  # None: hidden unless there is a terminal
        bar_options = {"total": len(self), "initial": first_step, "leave": False, "disable": hidden}
        bar = tqdm(self.raw_batches(first_step), title, **bar_options)
        for step, batch in enumerate(bar, start=first_step):
            if batch is not None:
                images, labels = (part.to(self.device, non_blocking=True) for part in batch)
                # Labels are copied, for they may lie in memory that is shared with a worker.
                yield step, self.normalize(images), labels.clone()
        if len(self) and self.guarded.unreadable.all():
            raise UnreadableImage(f"not one picture could be read: {self.guarded.failure(0)}")

    def raw_batches(self, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor] | None]:
        """Yield the sampler's batches before normalisation; None: no image is readable."""
        if self.kept:
            yield from self.kept[first_step:]
            return
        self.guarded.unreadable.zero_()
        kept, keep = [], self.keep and first_step == 0
        with all_cores():
            batches = iter(self.batches)  # starts the workers
        for batch in batches:
            if keep and batch:
                limit = free_memory(torch.device("cpu")) / 4
                keep = batch[0].nbytes * (len(self) - len(kept)) < limit
            if keep:
                kept.append(tuple(copy_from_shared(part) for part in batch) if batch else None)
            yield batch
        if keep:
            self.kept = kept
            self.__exit__()  # the workers are no longer needed

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: Any) -> None:
        """End the workers, which would live on while a debugger holds a frame of the loop."""
        iterator = getattr(self.batches, "_iterator", None)
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
            self.batches._iterator = None  # a later epoch starts new ones

    def readable(self) -> list[int]:
        """Return the indices of the samples that the last epoch could read."""
        return (~self.guarded.unreadable).nonzero().flatten().tolist()

    def new_failures(self) -> list[str]:
        """Return a line for each sample that has become unreadable since the last call."""
        new = set(self.guarded.unreadable.nonzero().flatten().tolist()) - self.reported
        self.reported |= new
        return [self.guarded.failure(index) for index in sorted(new)]


class ResidentLoader(Loader):
    """A Loader that keeps all pictures on the device and augments them there, batch by batch.

    Raises MemoryError if the pictures do not fit.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, *parts: Any, shuffle: bool = False, **options: Any
    ) -> None:
        super().__init__(dataset.whole(), batch_size, *parts, **options)
        self.dataset, self.keep = dataset, False
        # self.batches, which reads all pictures once, keeps the sampler that does not shuffle.
        self.sampler = EpochSampler(len(dataset), batch_size, self.guarded.seed, shuffle)
        self.images: Tensor | None = None  # uint8 (M, 3, H, W) of the M readable pictures

    def __enter__(self) -> "Loader":
        self.read_all()
        return self

    def raw_batches(self, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor] | None]:
        if self.images is None:
            self.read_all()
        readable = ~self.guarded.unreadable
        rows_of = readable.cumsum(dim=0) - 1  # row in self.images of each readable sample
        for step, keys in enumerate(self.sampler, start=first_step):
            indices = torch.tensor([index for _, index in keys], dtype=torch.int64)
            indices = indices[readable[indices]]  # of the samples that could be read
            rows = rows_of[indices].to(self.device)
            if not len(rows):
                yield None
                continue
            images = self.images[rows]
            if self.sampler.shuffle:
                key = self.sampler.seed, "augment", self.sampler.epoch, step
                images = self.dataset.augment(images, seed_of(*key))
            yield images, self.labels[rows]

    def read_all(self) -> None:
        """Read all pictures into `images` and `labels`, on the device."""
        total, done, all_labels = len(self.guarded), 0, []
        for images, labels in filter(None, super().raw_batches()):  # those that can be read
            if self.images is None:
                need, free = total * images[0].nbytes, free_memory(self.device)
                if need > 0.7 * free:  # the model needs the rest
                    raise MemoryError(
                        f"{total:,} pictures need {need / 1e9:.1f} GB and {self.device} has "
                        f"{free / 1e9:.1f} GB free: train without --on-device, or on smaller ones"
                    )
                shape = (total, *images.shape[1:])
                self.images = torch.empty(shape, dtype=images.dtype, device=self.device)
            self.images[done : done + len(images)] = images
            done += len(images)
            all_labels.append(copy_from_shared(labels))
        if all_labels:
            self.images, self.labels = self.images[:done], torch.cat(all_labels).to(self.device)
        self.__exit__()


def copy_from_shared(part: Tensor) -> Tensor:
    """Copy a tensor out of memory shared with a worker, which keeps a file open while in use."""
    return part.clone() if part.is_shared() else part


def start_worker(device_type: str, number: int) -> None:
    """Ignore signals, which the main process handles; on a CPU, let the main process go first."""
    signals.ignore_signals()
    if device_type == "cpu" and hasattr(os, "nice"):
        os.nice(19)


def core_count() -> int:
    """Return the number of cores that this process may use."""
    return len(ALL_CORES) or os.cpu_count() or 1


class Guarded(Dataset):
    """Samples by (epoch, index), which seeds their augmentation; None for an unreadable one."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.unreadable = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | None:
        epoch, index = key
        try:
            with seeded(self.seed, "augment", epoch, index):
                image, label = self.dataset[index]
            return image.permute(1, 2, 0), label  # (H, W, 3), as pictures lie in memory
        except Exception as error:
            names_a_file = isinstance(error, OSError) and error.filename
            if not (names_a_file or isinstance(error, UnreadableImage)):
                raise SampleError(f"{one_line(error)}, sample {index}") from error
            self.unreadable[index] = True  # in memory shared by the workers and the main process
            return None

    def failure(self, index: int) -> str:
        """Return why a sample cannot be read."""
        try:
            self.dataset[index]
        except OSError as error:
            return str(error)
        return f"sample {index} could not be read for a while"


def collate(samples: list[tuple[Tensor, int] | None]) -> tuple[Tensor, Tensor] | None:
    """Stack the samples that could be read, channels last; None if there is none."""
    readable = [sample for sample in samples if sample is not None]
    if not readable:
        return None
    if len(shapes := {tuple(image.shape) for image, _ in readable}) > 1:
        raise SampleError(f"the images of a batch differ in their (H, W, C): {sorted(shapes)}")
    images, labels = default_collate(readable)  # (N, H, W, 3)
    return images.permute(0, 3, 1, 2), labels
