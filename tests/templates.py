"""Tests for your own model and data set: give the few facts, get the tests.

    class TestMine(unittest.TestCase, ModelTestsMixin):
        def make_model(self):
            return Mine(num_classes=2)

Both unittest and pytest run them. A mixin stands after TestCase and does not derive from it, so
that it is not run by itself.
"""

import copy
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from data import Loader
from data.transforms import Normalize
from utils import engine

CPU = torch.device("cpu")


class ModelTestsMixin:
    """Whether a model is wired right and able to learn."""

    num_classes = 2
    image_shape = (3, 64, 64)
    overfit_lr = 1e-3
    overfit_steps = 100

    def make_model(self) -> nn.Module:
        raise NotImplementedError

    def make_batch(self, size: int = 4) -> tuple[Tensor, Tensor]:
        """Return noise (N, 3, H, W) and labels (N,), the same each time."""
        images = torch.randn(size, *self.image_shape, generator=torch.Generator().manual_seed(0))
        return images, torch.arange(size) % self.num_classes

    def seeded_model(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.make_model()

    def test_gives_one_logit_a_class(self):
        model = self.seeded_model().eval()
        for size in (4, 1):
            with self.subTest(batch=size):
                assert model(self.make_batch(size)[0]).shape == (size, self.num_classes)

    @torch.no_grad()
    def test_computes_the_same_on_every_device(self):
        if not torch.accelerator.is_available():
            self.skipTest("there is no accelerator")
        model, (images, _) = self.seeded_model().eval(), self.make_batch()
        expected = model(images)
        tolerance = {"rtol": 0.01, "atol": 0.01 * expected.abs().max().item()}
        kind = torch.accelerator.current_accelerator().type
        for device in [torch.device(kind, i) for i in range(torch.accelerator.device_count())]:
            with self.subTest(device=device):
                moved = copy.deepcopy(model).to(device)  # to() moves in place
                torch.testing.assert_close(moved(images.to(device)).cpu(), expected, **tolerance)
                back = copy.deepcopy(moved).to(CPU)
                torch.testing.assert_close(back(images), expected)

    def test_no_picture_looks_at_another_one_of_its_batch(self):
        model, (images, _) = self.seeded_model().eval(), self.make_batch()
        images.requires_grad_()
        losses = model(images).square().sum(dim=1)  # (N,)
        for masked in range(len(images)):
            with self.subTest(masked=masked):
                loss = losses.sum() - losses[masked]
                (grad,) = torch.autograd.grad(loss, images, retain_graph=True)
                assert grad.isfinite().all()
                reached = grad.flatten(1).ne(0).any(dim=1).tolist()
                assert reached == [index != masked for index in range(len(images))]

    def test_one_step_updates_every_trainable_parameter(self):
        model, (images, labels) = self.seeded_model().train(), self.make_batch()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        F.cross_entropy(model(images), labels).backward()
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
        for name, parameter in model.named_parameters():
            with self.subTest(parameter=name):
                if parameter.requires_grad:
                    assert parameter.grad is not None, "the loss does not depend on it"
                    assert parameter.grad.any(), "its gradient is 0"
                changed = not torch.equal(parameter, before[name])
                assert changed == parameter.requires_grad

    def test_eval_leaves_weights_and_statistics_alone(self):
        model = self.seeded_model().eval()
        before = copy.deepcopy(model.state_dict())
        model(self.make_batch()[0])
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name

    @torch.no_grad()
    def test_dropout_works_in_training_alone(self):
        model, (images, _) = self.seeded_model().eval(), self.make_batch()
        assert torch.equal(model(images), model(images))
        if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p for m in model.modules()):
            model.train()
            assert not torch.equal(model(images), model(images))

    @torch.no_grad()
    def test_a_saved_model_gives_the_same_answers(self):
        model, other = self.seeded_model(0), self.seeded_model(1).eval()
        images, _ = self.make_batch()
        model.train()(images)  # BatchNorm's statistics are part of it
        model.eval()
        assert not torch.equal(other(images), model(images))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.pth"
            model.save(path)
            other.load(path)
        assert torch.equal(other(images), model(images))

    def test_learns_one_batch_by_heart(self):
        model, (images, labels) = self.seeded_model().train(), self.make_batch()
        criterion, precision = engine.ClassificationLoss(), engine.Precision("fp32", CPU)
        optimizer = engine.build_optimizer(model, self.overfit_lr, weight_decay=0.0)
        for _ in range(self.overfit_steps):
            _, losses = engine.train_step(model, images, labels, criterion, optimizer, precision)
            if losses.max() < 0.1:
                return
        assert losses.max() < 0.1


class DataTestsMixin:
    """Whether a data set gives what it promises, with any number of workers."""

    image_size = 32
    num_samples: int | None = None  # what train and val have to share out between them

    def make_dataset(self, mode: str) -> Dataset:
        raise NotImplementedError

    def load(self, mode: str, epoch: int = 0, num_workers: int = 0) -> tuple[Tensor, Tensor]:
        """Return the images (M, 3, S, S) and labels (M,) of one epoch as training gets them."""
        loader = Loader(self.make_dataset(mode), 8, num_workers, seed=1)
        _, images, labels = zip(*loader.epoch(epoch), strict=True)
        return torch.cat(images), torch.cat(labels)

    def test_a_sample_is_a_square_uint8_image_and_a_label_in_range(self):
        for mode in ("train", "val"):
            dataset = self.make_dataset(mode)
            for index in range(len(dataset)):
                with self.subTest(mode=mode, index=index):
                    image, label = dataset[index]
                    assert image.dtype == torch.uint8
                    assert image.shape == (3, self.image_size, self.image_size)
                    assert isinstance(label, int) and 0 <= label < dataset.num_classes

    def test_normalised_images_lie_around_zero(self):
        for mode in ("train", "val"):
            with self.subTest(mode=mode):
                dataset = self.make_dataset(mode)
                raw = torch.stack([dataset[index][0] for index in range(len(dataset))])
                images = Normalize(dataset.mean, dataset.std, raw.device)(raw)
                assert images.dtype == torch.float32
                assert images.min() < 0 < images.max()
                assert images.abs().max() < 10 and images.mean().abs() < 1.5

    def test_only_training_pictures_are_augmented(self):
        for mode in ("train", "val"):
            with self.subTest(mode=mode):
                (first, _), (second, _) = self.load(mode, epoch=0), self.load(mode, epoch=1)
                changed = (first != second).flatten(1).any(dim=1)
                assert changed.float().mean() > 0.9 if mode == "train" else not changed.any()

    def test_splits_are_disjoint_and_complete(self):
        train, val = ([*self.make_dataset(mode).names] for mode in ("train", "val"))
        assert len({*train, *val}) == len(train) + len(val)
        assert self.num_samples in (None, len(train) + len(val))

    def test_every_split_has_every_class(self):
        for mode in ("train", "val"):
            with self.subTest(mode=mode):
                dataset = self.make_dataset(mode)
                assert sorted({*map(int, dataset.labels)}) == [*range(dataset.num_classes)]
                assert dataset.num_classes == len(dataset.classes)

    def test_workers_change_nothing(self):
        for mode in ("train", "val"):
            images, labels = self.load(mode)
            for num_workers in (1, 2):
                with self.subTest(mode=mode, num_workers=num_workers):
                    theirs, their_labels = self.load(mode, num_workers=num_workers)
                    assert torch.equal(theirs, images)
                    assert torch.equal(their_labels, labels)
