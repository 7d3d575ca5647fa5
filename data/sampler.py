"""The order of the samples: a function of (seed, epoch) alone."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from utils.seed import seed_of


class EpochSampler(Sampler):
    """Yield batches of keys (epoch, index): shuffled by (seed, epoch), or in order.

    The epoch is part of the key because workers live longer than an epoch, and augment by the key.
    If shuffled, a single sample left over joins the batch before: BatchNorm1d cannot train on one.
    """

    def __init__(self, size: int, batch_size: int, seed: int, shuffle: bool) -> None:
        self.size, self.batch_size, self.seed, self.shuffle = size, batch_size, seed, shuffle
        self.epoch, self.first_step = 0, 0  # first_step: of the next iteration over the epoch

    def __len__(self) -> int:
        full, left = divmod(self.size, self.batch_size)
        return full + (left > 0) - (left == 1 and self.shuffle and full > 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = range(self.size)
        if self.shuffle:
            generator = torch.Generator().manual_seed(seed_of(self.seed, "order", self.epoch))
            order = torch.randperm(self.size, generator=generator).numpy()  # a tensor is slower
        for step in range(self.first_step, len(self)):
            end = (step + 1) * self.batch_size if step + 1 < len(self) else self.size
            yield [(self.epoch, int(index)) for index in order[step * self.batch_size : end]]
