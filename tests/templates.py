"""Tests for your own model and data set: give the few facts, get the tests.

    class TestMine(unittest.TestCase, ModelTestsMixin):
        def make_model(self, num_classes):
            return Mine(num_classes)

Both unittest and pytest run them. A mixin stands after TestCase and does not derive from it, so
that it is not run by itself. The tests are the checks of `python main.py check`, one each.
"""

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import nn
from torch.utils.data import Dataset

from data import Loader
from utils import engine
from utils.diagnostics import Check, Doubt, data, learning, model


class ModelTestsMixin:
    """Whether a model is wired right and able to learn."""

    num_classes = 2
    image_shape = (3, 64, 64)
    overfit_lr = 1e-3

    def make_model(self, num_classes: int) -> nn.Module:
        raise NotImplementedError

    def case(self) -> model.Case:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(8, *self.image_shape, generator=generator)
        labels = torch.arange(8) % self.num_classes
        return model.Case(self.make_model, images, labels, self.num_classes)

    def learning_case(self) -> learning.Case:
        case, names = self.case(), [f"class {k}" for k in range(self.num_classes)]
        criterion = engine.ClassificationLoss()
        parts = (case.images, case.labels, names, criterion, model.FP32, self.overfit_lr, 1.0)
        return learning.Case(lambda: self.make_model(self.num_classes), *parts)


class DataTestsMixin:
    """Whether a data set gives what it promises, with any number of workers."""

    image_size = 32
    num_samples: int | None = None  # what train and val have to share out between them

    def make_dataset(self, mode: str) -> Dataset:
        raise NotImplementedError

    def data_case(self) -> data.Case:
        splits = [self.make_dataset(mode) for mode in ("train", "val")]
        return data.Case(
            *splits, lambda: None, lambda part, workers: Loader(part, 8, workers, seed=1)
        )

    def test_splits_are_disjoint_and_complete(self):
        train, val = ([*self.make_dataset(mode).names] for mode in ("train", "val"))
        assert len({*train, *val}) == len(train) + len(val)
        assert self.num_samples in (None, len(train) + len(val))


def as_test(check: Check, case: str) -> Callable[[object], None]:
    """Make a test of a check; it fails on ✗, not on !."""

    def test(self: object) -> None:
        with suppress(Doubt):
            check(getattr(self, case)())

    test.__doc__ = check.__doc__.splitlines()[0]
    return test


for mixin, case, checks in (
    (ModelTestsMixin, "case", model.CHECKS),
    (ModelTestsMixin, "learning_case", [learning.learns_a_batch_by_heart]),
    (DataTestsMixin, "data_case", data.CHECKS),
):
    for check in checks:
        setattr(mixin, f"test_{check.__name__}", as_test(check, case))
