"""In which order the pictures come: a function of (seed, epoch) alone."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from utils.seed import seed_of


class EpochSampler(Sampler):
    """Yield (epoch, index) for every sample once: shuffled by (seed, epoch), or in order.

    The epoch travels with the index, so that a worker, however long it lives, augments by it.
    """

    def __init__(self, size: int, seed: int, shuffle: bool) -> None:
        self.size, self.seed, self.shuffle = size, seed, shuffle
        self.epoch, self.start = 0, 0  # start: samples of the epoch to leave out at its beginning

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = range(self.size)
        if self.shuffle:
            generator = torch.Generator().manual_seed(seed_of(self.seed, "order", self.epoch))
            order = torch.randperm(self.size, generator=generator).numpy()  # a tensor unrolls
        yield from ((self.epoch, int(index)) for index in order[self.start :])
