"""The mixins of tests/templates.py, on every model of models/ and every data set of data/."""

import inspect
import unittest
from types import SimpleNamespace

import numpy as np
import pytest

import data
import models
from data import Pictures
from tests.drawings import draw_set
from tests.templates import DataTestsMixin, ModelTestsMixin
from utils.options import imported_names


class EveryModel(ModelTestsMixin):
    def make_model(self, num_classes):
        return models.new(SimpleNamespace(model=self.name, dropout=0.1), num_classes)


# A model gets these tests by its import line in models/__init__.py.
for name in imported_names("models"):
    globals()[f"Test{name}"] = type(f"Test{name}", (unittest.TestCase, EveryModel), {"name": name})


class EveryDataset(DataTestsMixin):
    """On pictures that are drawn for the classes of the data set."""

    num_samples = 60

    @pytest.fixture(autouse=True)
    def _drawn(self, tmp_path_factory):
        self.root = tmp_path_factory.getbasetemp() / f"drawn for {self.name}"
        if not self.root.exists():
            draw_set(self.root, count=60, kinds=getattr(data, self.name).classes, flat=True)

    def make_dataset(self, mode):
        dataset_class = getattr(data, self.name)
        return dataset_class(self.root / "train", mode=mode, image_size=self.image_size)


# A data set that only names its classes gets these tests by its import line in data/__init__.py.
for name in imported_names("data"):
    found = getattr(data, name)
    if inspect.isclass(found) and issubclass(found, Pictures) and found.classes:
        facts = {"name": name}
        globals()[f"Test{name}"] = type(f"Test{name}", (unittest.TestCase, EveryDataset), facts)


class Careless(Pictures):
    """Pictures with one fault at a time."""

    def __init__(self, root, mode, fault):
        # val pictures augmented, train pictures not
        wrong_mode = {"train": "val", "val": "train"}[mode] if fault == "augments val" else mode
        super().__init__(root, mode=wrong_mode, image_size=32)
        if fault == "leaks":
            everything = Pictures(root, mode="train", image_size=32, val_share=0)
            self.names, self.labels = everything.names, everything.labels
        elif fault == "one class":
            self.labels = np.zeros_like(self.labels)
        elif fault == "raw":
            self.mean, self.std = (0, 0, 0), (1, 1, 1)
        elif fault == "drops one" and mode == "val":
            self.names, self.labels = self.names[1:], self.labels[1:]
        self.fault, self.count = fault, 0

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        self.count += 1  # a worker has a count of its own
        if self.fault == "counts":
            image = image.roll(self.count, dims=1)
        return {
            "grey": (image[:1], label),
            "floats": (image / 255, label),
            "label from 1": (image, label + 1),
        }.get(self.fault, (image, label))


@pytest.mark.parametrize(
    ("fault", "caught_by"),
    [
        ("augments val", "test_only_train_is_augmented"),
        ("leaks", "test_splits_are_disjoint_and_complete"),
        ("drops one", "test_splits_are_disjoint_and_complete"),
        ("one class", "test_classes_are_balanced"),
        ("raw", "test_images_are_normalised"),
        ("counts", "test_workers_agree"),
        ("grey", "test_samples_fit_the_loader"),
        ("floats", "test_samples_fit_the_loader"),
        ("label from 1", "test_labels_are_in_range"),
        ("", None),
    ],
)
def test_the_mixin_catches(fault, caught_by, pictures):
    facts = {
        "num_samples": 60,
        "make_dataset": lambda self, mode: Careless(pictures / "train", mode, fault),
    }
    case = type("Case", (unittest.TestCase, DataTestsMixin), facts)
    result = unittest.TestResult()
    if caught_by:
        unittest.TestSuite([case(caught_by)]).run(result)
        assert result.failures and not result.errors
    else:
        unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
        assert result.wasSuccessful() and result.testsRun == 16
