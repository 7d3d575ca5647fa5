"""Batches of a data set: in an order that can be repeated, in spite of broken files."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from utils import ALL_CORES, distributed, own_cores, signals
from utils.device import use_cores
from utils.failures import one_line
from utils.notebook import bar_options
from utils.seed import seed_of, seeded
from utils.stopwatch import Stopwatch
from utils.synchronize import gather

from .image_dataset import ImageDataset
from .read_image import UnreadableImage
from .sampler import EpochSampler
from .transforms import MiddleSquare, Normalize, RandomCropAndFlip

OUR_TRANSFORMS = (RandomCropAndFlip, MiddleSquare)
Batch = tuple[Tensor, list[int]]  # images (N, 3, H, W) and labels, of multi-label data (K,) each


class SampleError(RuntimeError):
    """An error in the code of a data set: one line with error, file, line and sample.

    DataLoader raises an error of a worker process again, with a whole traceback as its text.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.rpartition("SampleError: ")[2].strip())
        if "\n" in text:
            self.add_note(text)


class Loader:
    """Batches of a data set: normalised images (N, 3, H, W) and labels (N,), on `device`.

    The order is a function of (seed, epoch) and the augmentation of (seed, epoch, index), whatever
    `num_workers` is; None is one process per core, at most 8. On a CPU, the worker processes end
    as soon as all pictures are in memory: cropping alone is faster without them.

    oversample: show each class equally often. mix: what a batch goes through on the device, with a
    state that depends on (seed, epoch, step). bad_share: if more pictures than this share cannot be
    read, UnreadableImage ends the epoch. limit_batches: the largest number of batches of an epoch.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        num_workers: int | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        shuffle: bool = False,
        oversample: bool = False,
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        bad_share: float = 1.0,
        limit_batches: int | None = None,
    ) -> None:
        if num_workers is None:
            num_workers = max(1, min(8, core_count() // distributed.LOCAL_WORLD_SIZE))
        self.dataset = dataset
        self.device = torch.device(device)
        self.samples = Samples(dataset, seed)
        labels = dataset.labels if oversample else None
        # Mixing takes each picture together with the one before it in the batch.
        with_neighbour = mix is not None
        self.sampler = EpochSampler(
            len(dataset), batch_size, seed, shuffle, labels, limit_batches, with_neighbour
        )
        self.mix = mix
        # In a small data set, a single bad picture may be more than the share.
        self.most_unreadable = max(1, bad_share * len(dataset)) if bad_share else 0
        self.normalize = Normalize(dataset.mean, dataset.std, self.device)
        self.stopwatch = Stopwatch()
        self.bar: tqdm = tqdm(disable=True)  # of the epoch under way
        self.bar_words: dict[str, str] = {}  # at its end
        self.reported: set[int] = set()  # unreadable samples that new_failures has named
        self.batches = DataLoader(
            self.samples,
            batch_sampler=self.sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            collate_fn=unchanged,
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

        Batches without a readable image are skipped. Raises UnreadableImage if more than bad_share
        of the pictures, or all of them, cannot be read. Labels are (N, K) if batches are mixed.
        """
        self.sampler.epoch, self.sampler.first_step = epoch, first_step
        self.bar = tqdm(
            self.stopwatch.timed(self.raw_batches()),
            title,
            total=len(self),
            initial=first_step,
            unit=" pictures",
            unit_scale=self.sampler.batch_size,
            postfix=self.bar_words,
            leave=False,
            **(bar_options() if title and distributed.RANK == 0 else {"disable": True}),
        )
        for step, batch in enumerate(self.bar, start=first_step):
            self._limit_failures()
            self.is_divided = self.sampler.is_divided(step)
            if batch is not None:
                images, labels = batch
                images = self.normalize(images.to(self.device, non_blocking=True))
                labels = torch.from_numpy(np.asarray(labels)).to(self.device)
                if self.mix:
                    with seeded(self.sampler.seed, "mix", epoch, step):
                        images, labels = self.mix(images, labels)
                    if self.is_divided:  # without the neighbour
                        images, labels = images[1:], labels[1:]
                self.stopwatch.images += len(labels) * (
                    distributed.WORLD_SIZE if self.is_divided else 1
                )
                yield step, images, labels
            elif self.is_divided:
                yield step, *self._no_pictures()
        self._note_failures_of_all()
        if len(self) and self.samples.unreadable.all():
            raise UnreadableImage(f"not one picture could be read: {self.samples.failure(0)}")

    def gather(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the rows that the ranks of torchrun have computed from their parts of a batch."""
        return gather(*tensors) if self.is_divided else tensors

    def _no_pictures(self) -> tuple[Tensor, Tensor]:
        """Return the empty part of a batch, with which this rank keeps step with the others."""
        if self.sampler.shuffle:
            first = self.samples.failure(int(self.samples.unreadable.nonzero()[0]))
            raise UnreadableImage(
                f"rank {distributed.RANK} can read no picture of a batch: {first}"
            )
        return torch.empty(0), torch.empty(0)

    def _note_failures_of_all(self) -> None:
        unreadable = self.samples.unreadable
        unreadable.copy_(distributed.sum_of_all(unreadable.int(), distributed.untimed) > 0)
        self._limit_failures()

    def _limit_failures(self) -> None:
        unreadable = self.samples.unreadable
        count = np.count_nonzero(unreadable.numpy())  # each step: torch's own sum takes longer
        if count > self.most_unreadable and count < len(unreadable):
            first = self.samples.failure(int(unreadable.nonzero()[0]))
            counts = f"{count:,} of {len(unreadable):,} pictures cannot be read"
            raise UnreadableImage(f"{counts}: {first}; `prepare --source=…` sorts such files out")

    def show_in_bar(self, words: dict[str, str]) -> None:
        """Show some words at the end of the progress bar, from now on."""
        self.bar_words = words
        self.bar.set_postfix(words, refresh=False)

    def raw_batches(self) -> Iterator[Batch | None]:
        """Yield the sampler's batches before normalisation; None: no image is readable."""
        workers_help = self.device.type != "cpu" or not self.samples.are_in_memory()
        self.samples.unreadable.zero_()
        if workers_help:
            cores = own_cores()
            use_cores(ALL_CORES)
            batches = iter(self.batches)  # starts the workers, which inherit the cores
            use_cores(cores)
            yield from batches
        else:
            self.stop_workers()
            yield from map(self.samples.__getitems__, self.sampler)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()  # a notebook keeps the frames of an error, and with them an open bar
        self.stop_workers()

    def stop_workers(self) -> None:
        """End the workers, which would live on while a debugger holds a frame of the loop."""
        iterator: Any = getattr(self.batches, "_iterator", None)
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
            self.batches._iterator = None  # a later epoch starts new ones

    def readable(self) -> list[int]:
        """Return the indices of the samples that the last epoch in order could read."""
        unreadable = self.samples.unreadable.numpy()
        return [int(index) for index in self.sampler.in_order() if not unreadable[index]]

    def new_failures(self) -> list[str]:
        """Return a line for each sample that has become unreadable since the last call."""
        new = set(self.samples.unreadable.nonzero().flatten().tolist()) - self.reported
        self.reported |= new
        return [self.samples.failure(index) for index in sorted(new)]


def start_worker(device_type: str, number: int) -> None:
    """Follow the main process; on a CPU, let it go first."""
    signals.follow_main_process()
    if device_type == "cpu" and hasattr(os, "nice"):
        os.nice(19)


def core_count() -> int:
    """Return the number of cores that this process may use."""
    return len(ALL_CORES) or os.cpu_count() or 1


class Samples(Dataset):
    """Whole batches by their keys (epoch, index); unreadable samples are left out and noted."""

    def __init__(self, dataset: ImageDataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        # In memory that the workers and the main process share.
        self.unreadable = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()
        self.epoch = -1
        self.numbers: np.ndarray = np.empty(0)  # random numbers of an epoch's samples
        self.transforms = numbered_transforms(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: list[tuple[int, int]]) -> Batch | None:
        """Return the images, channels last, and the labels of the samples that can be read.

        DataLoader calls this with all keys of a batch.
        """
        images, labels = [], []
        for epoch, number in keys:
            index = number % len(self)  # a picture that is repeated has a higher number
            try:
                image, label = self.sample(epoch, number)
            except Exception as error:
                names_a_file = isinstance(error, OSError) and error.filename
                if not (names_a_file or isinstance(error, UnreadableImage)):
                    raise SampleError(f"{one_line(error)}, sample {index}") from error
                self.unreadable[index] = True
                continue
            images.append(image.permute(1, 2, 0))  # (H, W, 3), as pictures lie in memory
            labels.append(label)
        if not images:
            return None
        if len(shapes := {tuple(image.shape) for image in images}) > 1:
            raise SampleError(f"the images of a batch differ in their (H, W, C): {sorted(shapes)}")
        return torch.stack(images).permute(0, 3, 1, 2), labels

    def sample(self, epoch: int, number: int) -> tuple[Tensor, Any]:
        """Return (image, label) of a sample, augmented by (seed, epoch, number).

        number: the index of the sample, plus len(self) for each time that it is repeated. In mode
        "test" the index takes the place of the label, for an id may be a text.
        """
        is_test = getattr(self.dataset, "ids", None) is not None
        repeats, index = divmod(number, len(self))
        if not self.transforms:
            with seeded(self.seed, "augment", epoch, number):
                image, label = self.dataset[index]
            return image, index if is_test else label
        if epoch != self.epoch:
            generator = np.random.default_rng(seed_of(self.seed, "augment", epoch))
            shape = len(self), self.transforms.count
            self.epoch, self.numbers = epoch, generator.random(shape, dtype=np.float32)
        picture = self.dataset.picture(index)
        # A repeated picture takes the random numbers of the pictures behind it.
        image = self.transforms(picture, self.numbers[(index + repeats) % len(self)].tolist())
        return image, index if is_test else self.dataset.label(index)

    def are_in_memory(self) -> bool:
        """Tell whether all pictures that can be read are in memory, and only need our crops."""
        kept = getattr(self.dataset, "kept", None)
        if not self.transforms or not kept or kept.on_disk:
            return False
        return bool((kept.stored() | self.unreadable).all())

    def failure(self, index: int) -> str:
        """Return why a sample cannot be read."""
        try:
            self.dataset[index]
        except OSError as error:
            return str(error)
        return f"sample {index} could not be read for a while"


def numbered_transforms(dataset: ImageDataset) -> RandomCropAndFlip | MiddleSquare | None:
    """Return the transforms of a data set if they are this project's own, else None.

    These can be given their random numbers. For any other code, three generators are seeded before
    each sample, which takes 30 microseconds.
    """
    transforms = getattr(dataset, "transforms", None)
    reads_as_usual = type(dataset).__getitem__ is ImageDataset.__getitem__
    return transforms if reads_as_usual and type(transforms) in OUR_TRANSFORMS else None


def unchanged(batch: Any) -> Any:
    """Return what Samples made, which is a batch already."""
    return batch
