"""The order of the samples: a function of (seed, epoch) alone."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from utils import distributed
from utils.seed import seed_of


class EpochSampler(Sampler):
    """Yield batches of keys (epoch, index): shuffled by (seed, epoch), or in order.

    The epoch is part of the key because workers live longer than an epoch, and augment by the key.
    If shuffled, a single sample left over joins the batch before: BatchNorm1d cannot train on one.
    labels: given, an epoch of the same length has as many samples of each class. A sample that is
    repeated has the index plus `size` the second time, plus 2 * `size` the third time.
    limit: the largest number of batches; in order, they are then of samples that are evenly spread.

    Each rank of torchrun gets a part of each batch; of a split in order, a part of the split, in as
    many batches as the others, of which the last may be empty. A shuffled batch with less than two
    samples for a rank goes to all ranks. with_neighbour: begin a part with the sample before it.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        labels: Sequence[int] | np.ndarray | None = None,
        limit: int | None = None,
        with_neighbour: bool = False,
    ) -> None:
        self.size, self.batch_size, self.seed, self.shuffle = size, batch_size, seed, shuffle
        self.with_neighbour = with_neighbour
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
            yield [(self.epoch, int(order[place])) for place in self.places(step)]

    def places(self, step: int) -> Sequence[int]:
        """Return the places in the order of an epoch whose samples this rank gets in a step."""
        if not self.shuffle:
            size = math.ceil(self.batch_size / distributed.WORLD_SIZE)
            return part_of(range(self.count))[step * size : (step + 1) * size]
        batch = self.batch(step)
        if not self.is_divided(step):
            return batch
        part = part_of(batch)
        if self.with_neighbour:
            before = part[0] - 1 if part[0] > batch[0] else batch[-1]
            part = [before, *part]
        return part

    def batch(self, step: int) -> range:
        """Return the places whose samples all ranks together get in a step, if shuffled."""
        end = (step + 1) * self.batch_size if step + 1 < len(self) else self.count
        return range(step * self.batch_size, end)

    def is_divided(self, step: int) -> bool:
        """Return whether each rank gets a part of the samples of a step, rather than all."""
        ranks = distributed.WORLD_SIZE
        return ranks > 1 and (not self.shuffle or len(self.batch(step)) >= 2 * ranks)

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


def part_of(items: Sequence) -> Sequence:
    """Return this rank's part of some items. The parts differ by one item at most."""
    start, end = (
        len(items) * rank // distributed.WORLD_SIZE
        for rank in (distributed.RANK, distributed.RANK + 1)
    )
    return items[start:end]
