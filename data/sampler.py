"""The order of the samples: a function of (seed, epoch) alone."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from utils.seed import seed_of


class EpochSampler(Sampler):
    """Yield batches of keys (epoch, index): shuffled by (seed, epoch), or in order.

    The epoch is part of the key because workers live longer than an epoch, and augment by the key.
    If shuffled, a single sample left over joins the batch before: BatchNorm1d cannot train on one.
    labels: given, an epoch of the same length has as many samples of each class. A sample that is
    repeated has the index plus `size` the second time, plus 2 * `size` the third time.
    limit: the largest number of batches; in order, they are then of samples that are evenly spread.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        labels: Sequence[int] | np.ndarray | None = None,
        limit: int | None = None,
    ) -> None:
        self.size, self.batch_size, self.seed, self.shuffle = size, batch_size, seed, shuffle
        self.labels = None if labels is None else torch.as_tensor(np.asarray(labels))
        full, left = divmod(size, batch_size)
        all_steps = full + (left > 0) - (left == 1 and shuffle and full > 0)
        self.steps = min(all_steps, limit or all_steps)
        self.count = size if self.steps == all_steps else self.steps * batch_size  # of the samples
        self.epoch, self.first_step = 0, 0  # first_step: of the next iteration over the epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self.in_order()
        if self.shuffle:
            generator = torch.Generator().manual_seed(seed_of(self.seed, "order", self.epoch))
            shuffled = torch.randperm(self.size, generator=generator)
            if self.labels is not None:
                shuffled = self.each_class_equally(self.labels, generator)[shuffled]
            order = shuffled.numpy()  # a tensor is slower
        for step in range(self.first_step, len(self)):
            end = (step + 1) * self.batch_size if step + 1 < len(self) else self.count
            yield [(self.epoch, int(index)) for index in order[step * self.batch_size : end]]

    def in_order(self) -> range | np.ndarray:
        """Return the indices of an epoch that is not shuffled."""
        if self.count == self.size:
            return range(self.size)
        return np.linspace(0, self.size - 1, self.count).round().astype(int)

    def each_class_equally(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return `size` indices: of each class as many, in rounds over its samples, shuffled."""
        classes = labels.unique().tolist()
        found = []
        for number, label in enumerate(classes):
            indices = (labels == label).nonzero().flatten()
            wanted = (self.size + number) // len(classes)  # these add up to `size`
            rounds = math.ceil(wanted / len(indices))
            shuffled = [
                indices[torch.randperm(len(indices), generator=generator)] + self.size * repeat
                for repeat in range(rounds)
            ]
            found.append(torch.concat(shuffled)[:wanted])
        return torch.concat(found)
