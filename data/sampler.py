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
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        labels: Sequence[int] | None = None,
    ) -> None:
        self.size, self.batch_size, self.seed, self.shuffle = size, batch_size, seed, shuffle
        self.labels = None if labels is None else torch.as_tensor(np.asarray(labels))
        self.epoch, self.first_step = 0, 0  # first_step: of the next iteration over the epoch

    def __len__(self) -> int:
        full, left = divmod(self.size, self.batch_size)
        return full + (left > 0) - (left == 1 and self.shuffle and full > 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = range(self.size)
        if self.shuffle:
            generator = torch.Generator().manual_seed(seed_of(self.seed, "order", self.epoch))
            order = torch.randperm(self.size, generator=generator)
            if self.labels is not None:
                order = self.each_class_equally(generator)[order]
            order = order.numpy()  # a tensor is slower
        for step in range(self.first_step, len(self)):
            end = (step + 1) * self.batch_size if step + 1 < len(self) else self.size
            yield [(self.epoch, int(index)) for index in order[step * self.batch_size : end]]

    def each_class_equally(self, generator: torch.Generator) -> Tensor:
        """Return `size` indices: of each class as many, in rounds over its samples, shuffled."""
        classes = self.labels.unique().tolist()
        found = []
        for number, label in enumerate(classes):
            indices = (self.labels == label).nonzero().flatten()
            wanted = (self.size + number) // len(classes)  # these add up to `size`
            rounds = math.ceil(wanted / len(indices))
            shuffled = [
                indices[torch.randperm(len(indices), generator=generator)] + self.size * repeat
                for repeat in range(rounds)
            ]
            found.append(torch.cat(shuffled)[:wanted])
        return torch.cat(found)
