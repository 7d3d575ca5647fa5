"""Tests for your own model and data set: give the few facts, get the tests.

    class TestMine(unittest.TestCase, ModelTestsMixin):
        def make_model(self, num_classes):
            return Mine(num_classes)

Both unittest and pytest run them. A mixin stands after TestCase and does not derive from it, so
that it is not run by itself. The tests are the checks of `python main.py check`, one each.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from config import DefaultConfig
from data import ImageDataset, Loader
from utils.diagnostics import Check, Doubt, NotChecked, data, learning, model

LEARNING_RATES = (1e-3, 1e-2, 1e-1, 1e-4)  # one of them suits a small model, another a deep one


class ModelTestsMixin:
    """Whether a model is wired right and able to learn."""

    num_classes = 2
    image_shape = (3, 64, 64)

    def make_model(self, num_classes: int) -> nn.Module:
        """Return a new model, with new weights."""
        raise NotImplementedError

    def case(self, images: Tensor | None = None) -> model.ModelCase:
        generator = torch.Generator().manual_seed(0)
        if images is None:
            images = torch.randn(8, *self.image_shape, generator=generator)
        return model.ModelCase(
            make_model=self.make_model,
            images=images,
            labels=torch.arange(8) % self.num_classes,
            classes=[f"class {number}" for number in range(self.num_classes)],
            options=DefaultConfig(lr=1e-3),
            weights_loaded=True,  # frozen weights are of a file that the tests do not have
        )

    def test_learns_eight_pictures(self):
        """Pictures whose classes have different colours: any model can tell them apart."""
        generator = torch.Generator().manual_seed(0)
        colours = torch.rand(self.num_classes, 3, 1, 1, generator=generator).sort(dim=0).values
        noise = torch.randn(8, *self.image_shape, generator=generator)
        case = self.case(4 * colours[torch.arange(8) % self.num_classes] - 2 + 0.3 * noise)
        assert any(learning.overfit(case, lr)[0] for lr in LEARNING_RATES)


class DataTestsMixin:
    """Whether a data set gives what it promises, with any number of workers."""

    image_size = 32
    num_samples: int | None = None  # of train and val together

    def make_dataset(self, mode: str) -> ImageDataset:
        """Return the split "train" or "val"."""
        raise NotImplementedError

    def case(self) -> data.DataCase:
        splits = [
            data.Split(
                mode,
                self.make_dataset(mode),
                lambda part, workers: Loader(part, 8, workers, seed=1),
            )
            for mode in ("train", "val")
        ]
        return data.DataCase(splits[0], splits[1], open_test=lambda: None)

    def test_splits_are_disjoint_and_complete(self):
        splits = [self.make_dataset(mode) for mode in ("train", "val")]
        assert self.num_samples in (None, sum(map(len, splits)))
        if hasattr(splits[0], "path"):
            paths = [split.path(index) for split in splits for index in range(len(split))]
            assert len(set(paths)) == len(paths)


def as_test(check: Check) -> Callable[[Any], None]:
    """Return a test that fails on ✗, not on !, and is skipped on –."""

    def test(self: Any) -> None:
        try:
            check(self.case())
        except Doubt:
            pass
        except NotChecked as reason:
            self.skipTest(str(reason))

    test.__doc__ = check.__doc__.splitlines()[0]
    return test


for mixin, checks in ((ModelTestsMixin, model.CHECKS), (DataTestsMixin, data.CHECKS)):
    for check in checks:
        setattr(mixin, f"test_{check.__name__}", as_test(check))
