"""--augment and --oversample: what they do to batches, and that a run repeats to the bit."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import main
from data import Loader, Pictures
from data.sampler import EpochSampler
from data.transforms import PICTURE_AUGMENTATIONS, batch_mixer, train_transforms
from tests.drawings import draw
from tests.helpers import PROJECT, SMALL
from utils import checkpoint
from utils.meters import TrainMeters
from utils.options import AUGMENTATIONS, UsageError
from utils.recipe import ClassificationLoss, balanced_weights
from utils.run import Run
from utils.signals import Stopped

# Rare classes.

LABELS = [0] * 60 + [1] * 6 + [2] * 31  # 97


def numbers(sampler: EpochSampler, epoch: int = 0) -> list[int]:
    sampler.epoch = epoch
    return [number for batch in sampler for _, number in batch]


def test_an_epoch_shows_each_class_equally_often_and_is_as_long_as_before():
    sampler = EpochSampler(97, 10, seed=0, shuffle=True, labels=LABELS)
    seen = numbers(sampler)
    assert len(seen) == 97 == len({*seen})  # a number says which time it is
    counts = torch.bincount(torch.tensor([LABELS[number % 97] for number in seen]))
    assert sorted(counts.tolist()) == [32, 32, 33]
    rare = [number for number in seen if LABELS[number % 97] == 1]
    times = torch.bincount(torch.tensor([number % 97 for number in rare]))[60:66]
    assert times.min() >= 5 and times.max() <= 6  # in rounds, not by chance
    assert max(rare) // 97 == times.max() - 1
    assert all(number < 97 for number in seen if LABELS[number % 97] == 0)


def test_the_order_of_rare_classes_is_a_function_of_seed_and_epoch():
    first = EpochSampler(97, 10, seed=0, shuffle=True, labels=LABELS)
    again = EpochSampler(97, 10, seed=0, shuffle=True, labels=LABELS)
    assert numbers(first, 3) == numbers(again, 3) != numbers(first, 4)
    whole = [*first]
    first.first_step = 4
    assert [*first] == whole[4:]


@pytest.fixture(scope="module")
def rare(tmp_path_factory):
    """Draw 30 firs and 6 oaks."""
    root = tmp_path_factory.mktemp("rare")
    for kind, count in (("fir", 30), ("oak", 6)):
        (root / kind).mkdir()
        for number in range(count):
            draw(kind, number).save(root / kind / f"{number}.jpg")
    return root


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_repeated_picture_is_cropped_anew_each_time(rare, num_workers):
    dataset = Pictures(rare, image_size=32, val_share=0)
    epochs = []
    for workers in (0, num_workers):
        with Loader(dataset, 9, workers, shuffle=True, oversample=True) as loader:
            epochs.append([*loader.epoch(1)])
    labels = torch.concat([labels for *_, labels in epochs[0]])
    images = torch.concat([images for _, images, _ in epochs[0]])
    assert torch.bincount(labels).tolist() == [18, 18]
    assert len({image.numpy().tobytes() for image in images[labels == 1]}) == 18  # of 6 pictures
    assert torch.equal(images, torch.concat([images for _, images, _ in epochs[1]]))


def test_the_log_counts_what_is_repeated(rare, tmp_path):
    options = {"train_data_root": rare, "checkpoint_root": tmp_path, "oversample": True}
    run = main.train(**SMALL, **options, max_epoch=1)
    words = "train: an epoch shows 12 pictures of each class, those of oak 3.1 times each"
    assert words in (run / "log.txt").read_text()
    with pytest.raises(UsageError, match="--oversample and --balanced do the same"):
        main.train(**SMALL, **options, balanced=True)


# Pictures.


@pytest.mark.parametrize("name", PICTURE_AUGMENTATIONS)
def test_each_augmentation_changes_pictures_and_keeps_their_form(name):
    picture = torch.from_numpy(np.array(draw("fir", 3))).permute(2, 0, 1)
    plain, augmented = train_transforms(64, 0.5), train_transforms(64, 0.5, name)
    changed = 0
    for seed in range(20):
        torch.manual_seed(seed)
        before = plain(picture)
        torch.manual_seed(seed)
        after = augmented(picture)
        assert after.dtype == torch.uint8 and after.shape == (3, 64, 64)
        changed += not torch.equal(before, after)
    assert changed >= 5


def test_the_names_on_the_command_line_are_those_that_exist():
    assert {*AUGMENTATIONS} == {*PICTURE_AUGMENTATIONS, "mixup", "cutmix"}
    words = [sys.executable, "main.py", "train", "--augment=mixup,blur"]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 2 and "--augment takes some of trivialaugment, " in done.stderr


# Batches.


@pytest.mark.parametrize("names", ["mixup", "cutmix", "mixup,cutmix"])
def test_mixed_labels_are_the_shares_of_the_pictures(names):
    images = torch.stack([torch.full((3, 16, 16), float(number)) for number in range(6)])
    labels = torch.arange(6)
    mixer = batch_mixer(names, num_classes=6)
    for seed in range(10):
        torch.manual_seed(seed)
        mixed, shares = mixer(images, labels)
        assert shares.shape == (6, 6) and torch.allclose(shares.sum(dim=1), torch.ones(6))
        assert torch.allclose(mixed.mean(dim=(1, 2, 3)), shares @ labels.float(), atol=1e-4)
    assert batch_mixer("randaugment", 6) is batch_mixer(None, 6) is None


def test_the_mixing_is_a_function_of_seed_epoch_and_step(pictures):
    def epoch(number: int, seed: int = 0, first_step: int = 0) -> list:
        dataset = Pictures(pictures / "train", image_size=32)
        mix = batch_mixer("mixup,cutmix", 2)
        return [*Loader(dataset, 8, 0, seed=seed, shuffle=True, mix=mix).epoch(number, first_step)]

    def same(one: list, other: list) -> bool:
        pairs = zip(one, other, strict=True)
        return all(all(map(torch.equal, a[1:], b[1:])) for a, b in pairs)

    first = epoch(0)
    assert same(first, epoch(0)) and same(first[3:], epoch(0, first_step=3))
    assert not same(first, epoch(1)) and not same(first, epoch(0, seed=1))
    assert all(labels.shape == (len(images), 2) for _, images, labels in first)


def test_losses_of_mixed_labels_are_weighted_means_of_those_of_the_labels():
    torch.manual_seed(0)
    logits, one, two = (
        torch.randn(5, 3),
        torch.tensor([0, 1, 2, 0, 1]),
        torch.tensor([1, 1, 0, 2, 0]),
    )
    shares = 0.3 * F.one_hot(one, 3) + 0.7 * F.one_hot(two, 3)
    weight = balanced_weights([10, 20, 5])
    for loss in (ClassificationLoss(), ClassificationLoss(label_smoothing=0.1)):
        expected = 0.3 * loss(logits, one) + 0.7 * loss(logits, two)
        assert torch.allclose(loss(logits, shares), expected, atol=1e-6)
    hard = F.one_hot(one, 3).float()  # the same labels in the other form
    for loss in (ClassificationLoss(weight), ClassificationLoss(weight, 0.1, 2.0)):
        assert torch.allclose(loss(logits, hard), loss(logits, one), atol=1e-6)


def test_meters_count_a_mixed_picture_for_its_larger_share():
    meters = TrainMeters(2)
    logits, shares = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.8, 0.2], [0.6, 0.4]])
    losses = ClassificationLoss()(logits, shares)
    meters.add(logits, shares, losses)
    assert meters.confusion.value().tolist() == [[1, 1], [0, 0]]
    assert meters.row()["train_loss"] == pytest.approx(losses.mean().item(), abs=1e-6)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_augmented_run_goes_on_to_the_same_bits(rare, tmp_path, monkeypatch, num_workers):
    options = {**SMALL, "train_data_root": rare, "batch_size": 6, "num_workers": num_workers}
    options |= {"augment": "trivialaugment,erasing,mixup,cutmix", "oversample": True}
    whole = main.train(**options, checkpoint_root=tmp_path / "whole", max_epoch=2)
    true_step, steps = Run.step_done, []

    def stopping(self, epoch: int, step: int, history: list, **numbers: object) -> None:
        true_step(self, epoch, step, history, **numbers)
        steps.append((epoch, step))
        if len(steps) == 6:  # in the second epoch
            raise Stopped(15)

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(Run, "step_done", stopping)
        main.train(**options, checkpoint_root=tmp_path / "half", max_epoch=2)
    (half,) = (tmp_path / "half").iterdir()
    assert steps[-1] == (1, 2)
    main.train(resume=str(half))
    one, other = (checkpoint.read(run / "last.pth")["model"] for run in (whole, half))
    assert all(torch.equal(one[name], other[name]) for name in one)
