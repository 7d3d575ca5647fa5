"""The checks find planted faults, each by the check that is for it, and none in what is sound."""

import json
import shutil
import subprocess
import sys
import unittest
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F
from utils.diagnostics.watch import Watch

import main
from data import DogCat, Loader
from data.synthetic import draw
from models.basic_module import BasicModule
from tests.templates import ModelTestsMixin
from utils import diagnostics, engine
from utils.diagnostics import data as check_data
from utils.diagnostics import learning as check_learning
from utils.diagnostics import model as check_model


class Sound(BasicModule):
    """A small model without a fault; each one below has exactly one."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride=4)
        self.norm = nn.BatchNorm2d(16)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(16, num_classes)

    def features(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images)).relu().amax(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.dropout(self.features(images)))


class OneLogitTooMany(Sound):
    def forward(self, images):
        return F.pad(super().forward(images), (0, 1), value=-9.0)


class SqueezesTheBatch(Sound):
    def forward(self, images):
        return super().forward(images).squeeze()


class IgnoresTheClassCount(Sound):
    def __init__(self, num_classes):
        super().__init__(2)


class ReturnsATuple(Sound):
    def forward(self, images):
        return super().forward(images), None


class HasLayersInAList(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.more = [nn.Linear(16, 16)]

    def features(self, images):
        return self.more[0](super().features(images))


class HasAWeightInADict(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.scales = {"first": torch.ones(16, requires_grad=True)}

    def features(self, images):
        return super().features(images) * self.scales["first"]


class UsesAGlobalLayer(Sound):
    layer = staticmethod(nn.Linear(16, 16).forward)

    def features(self, images):
        return type(self).layer(super().features(images))


class HasAPlainConstant(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.scale = torch.tensor(2.0)


class SkipsALayer(Sound):
    def features(self, images):
        return self.conv(images).relu().amax(dim=(2, 3))


class HasAnIdleLayer(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.idle = nn.Linear(2, 2)


class SkipsDropout(Sound):
    def forward(self, images):
        return self.fc(self.features(images))


class Detaches(Sound):
    def features(self, images):
        return super().features(images).detach()


class GoesThroughNumpy(Sound):
    def features(self, images):
        return torch.from_numpy(super().features(images).detach().numpy())


class HasNoGradInTheMiddle(Sound):
    def features(self, images):
        with torch.no_grad():
            return super().features(images)


class TakesData(Sound):
    def features(self, images):
        return super().features(images).data


class Rounds(Sound):
    def features(self, images):
        return super().features(images).round()


class IsALine(Sound):
    def features(self, images):
        return self.norm(self.conv(images)).mean(dim=(2, 3))


class DropsLogits(Sound):
    def forward(self, images):
        return F.dropout(super().forward(images), 0.3, self.training)


class HasAConstantLayer(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.deep = nn.Linear(16, 16)
        nn.init.constant_(self.deep.weight, 0.1)

    def features(self, images):
        return self.deep(super().features(images)).relu()


class KeepsItsFirstStatistics(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.norm = nn.BatchNorm2d(16, momentum=0.0)

    def features(self, images):
        return super().features(20 * images + 30)


class IsFrozen(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.requires_grad_(False)


class HasLargeWeights(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        nn.init.normal_(self.fc.weight, std=100)


class EndsInSoftmax(Sound):
    def forward(self, images):
        return super().forward(images).softmax(dim=1)


class EndsInSigmoid(Sound):
    def forward(self, images):
        return super().forward(images).sigmoid()


class EndsInRelu(Sound):
    def forward(self, images):
        return super().forward(images).relu()


class EndsInLogSoftmax(Sound):
    def forward(self, images):
        return super().forward(images).log_softmax(dim=1)


class EndsInTanh(Sound):
    def forward(self, images):
        return super().forward(images).tanh()


class EndsInSoftplus(Sound):
    def forward(self, images):
        return F.softplus(super().forward(images))


class CentresOverTheBatch(Sound):
    def forward(self, images):
        logits = super().forward(images)
        return logits - 0.5 * logits.mean(dim=0) if len(logits) > 1 else logits


class MixesTheLastTwo(Sound):
    def forward(self, images):
        logits = super().forward(images)
        return torch.cat([logits[:-1], logits[-2:].mean(dim=0, keepdim=True)])


class ReshapesWrongly(Sound):
    def features(self, images):
        features = super().features(images)
        return features.T.reshape(len(images), 16)  # a picture's row has numbers of all pictures


class TakesSoftmaxOverTheBatch(Sound):
    def features(self, images):
        return super().features(images).softmax(dim=0)


class LooksAtACorner(Sound):
    def features(self, images):
        return super().features(images[:, :, :24, :24])


class LooksAtRed(Sound):
    def features(self, images):
        return super().features(images[:, :1].expand(-1, 3, -1, -1))


class AlwaysSaysTheSame(Sound):
    def features(self, images):
        return torch.ones(len(images), 16)


class CountsInEval(Sound):
    def forward(self, images):
        self.norm.train()
        return super().forward(images)


class FreezesItsNormInForward(Sound):
    def forward(self, images):
        self.norm.eval()
        return super().forward(images)


class ForgetsDropoutsMode(Sound):
    def forward(self, images):
        return F.dropout(super().forward(images), 0.2)


class DropsNothing(Sound):
    def train(self, mode=True):
        super().train(mode)
        self.dropout.eval()
        return self


class SavesHalf(Sound):
    def save(self, path):
        torch.save({n: v for n, v in self.state_dict().items() if "norm" not in n}, path)

    def load(self, path):
        self.load_state_dict(torch.load(path), strict=False)


class KeepsSomethingToItself(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.gain = float(torch.rand(()))

    def forward(self, images):
        return super().forward(images) * self.gain


class Explodes(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.deep = nn.Sequential(*(nn.Linear(16, 16) for _ in range(8)))
        for layer in self.deep:
            nn.init.normal_(layer.weight, std=3)

    def features(self, images):
        return F.normalize(self.deep(super().features(images)), dim=1)


class Vanishes(Explodes):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        for layer in self.deep:
            nn.init.normal_(layer.weight, std=0.03)
            nn.init.zeros_(layer.bias)


class IsDead(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        nn.init.constant_(self.norm.bias[:15], -100)

    def features(self, images):
        return super().features(images)


class StartsFromZeros(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class StartsFromAConstant(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        nn.init.constant_(self.conv.weight, 0.1)
        nn.init.constant_(self.conv.bias, 0.1)
        nn.init.constant_(self.fc.weight, 0.1)


class TakesLogOfZero(Sound):
    def features(self, images):
        return super().features(images) + 0.01 * images.abs().mean(dim=(1, 2, 3))[:, None].log()


class DividesByTheDeviation(Sound):
    def features(self, images):
        return super().features(images / images.std(dim=(1, 2, 3), keepdim=True))


FAULTS = {
    "one_logit_a_class": [
        *(OneLogitTooMany, SqueezesTheBatch, IgnoresTheClassCount, ReturnsATuple),
    ],
    "all_is_registered": [
        *(HasLayersInAList, HasAWeightInADict, UsesAGlobalLayer, HasAPlainConstant),
    ],
    "gradient_reaches_every_weight": [
        *(SkipsALayer, HasAnIdleLayer, SkipsDropout, Detaches, GoesThroughNumpy),
        *(HasNoGradInTheMiddle, TakesData, Rounds, IsFrozen),
    ],
    "first_loss": [HasLargeWeights],
    "logits_not_probabilities": [
        *(EndsInSoftmax, EndsInSigmoid, EndsInRelu, EndsInLogSoftmax, EndsInTanh, EndsInSoftplus),
    ],
    "no_picture_sees_another": [
        *(CentresOverTheBatch, MixesTheLastTwo, ReshapesWrongly, TakesSoftmaxOverTheBatch),
    ],
    "it_can_bend": [IsALine],
    "the_whole_picture_counts": [LooksAtACorner, LooksAtRed, AlwaysSaysTheSame],
    "eval_leaves_the_model_alone": [CountsInEval, FreezesItsNormInForward],
    "dropout_works_in_training_alone": [ForgetsDropoutsMode, DropsNothing, DropsLogits],
    "comes_back_from_its_file": [SavesHalf, KeepsSomethingToItself],
    "activations_keep_their_size": [Explodes, Vanishes],
    "few_units_are_dead": [IsDead],
    "units_differ": [StartsFromZeros, StartsFromAConstant, HasAConstantLayer],
    "any_picture_is_finite": [TakesLogOfZero, DividesByTheDeviation],
}
PAIRS = [(model, check) for check, models in FAULTS.items() for model in models]


def model_case(model: type[nn.Module]) -> check_model.Case:
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return check_model.Case(model, images, torch.arange(8) % 2, 2)


def alarms(checks: list, case: object) -> dict[str, diagnostics.Finding]:
    """Run checks; return those that are not ✓, by the name of their function."""
    found = {check.__name__: next(diagnostics.run([check], case)) for check in checks}
    return {name: finding for name, finding in found.items() if finding.mark != "✓"}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("model", "check"), PAIRS, ids=[model.__name__ for model, _ in PAIRS])
def test_a_planted_fault_of_a_model_is_found(model, check):
    assert check in alarms(check_model.CHECKS, model_case(model))


class StartsWithAHeadOfZeros(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)


class HasAttention(BasicModule):
    def __init__(self, num_classes):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.norm = nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, num_classes)

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        y = self.norm(x)
        return self.head((x + self.attention(y, y, y)[0]).mean(dim=1))


class HasGroupNorm(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.norm = nn.GroupNorm(4, 16)


class StartsABranchFromZero(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.branch = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16))
        nn.init.zeros_(self.branch[1].weight)

    def features(self, images):
        x = self.norm(self.conv(images)).relu()
        return (x + self.branch(x)).amax(dim=(2, 3))


class HasAFrozenBackbone(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.conv.requires_grad_(False)
        self.norm.requires_grad_(False)
        self.deep = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
        nn.init.kaiming_normal_(self.deep[0].weight)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def features(self, images):
        return self.deep(super().features(images))


class ScalesItsLayers(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.layer_scale = nn.Parameter(torch.full((16, 1, 1), 0.5))
        self.logit_scale = nn.Parameter(torch.full((1, 1, 1, 1), 10.0))

    def features(self, images):
        scale = self.layer_scale * (0.1 * self.logit_scale[0])
        return (scale * self.norm(self.conv(images))).relu().amax(dim=(2, 3))


class FollowsSlowly(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.norm = nn.BatchNorm2d(16, momentum=0.01)


SOUND = [Sound, StartsWithAHeadOfZeros, HasAttention, HasGroupNorm, ScalesItsLayers, FollowsSlowly]
SOUND += [StartsABranchFromZero, HasAFrozenBackbone]


@pytest.mark.parametrize("model", SOUND)
def test_a_sound_model_raises_no_alarm(model):
    assert alarms(check_model.CHECKS, model_case(model)) == {}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Detaches, "cut by detach at test_diagnostics.py:"),
        (TakesData, "cut by data at test_diagnostics.py:"),
        (HasNoGradInTheMiddle, "cut by conv2d at test_diagnostics.py:"),
        (HasAnIdleLayer, "none at idle.weight, idle.bias; never called: idle"),
        (SkipsDropout, "forward never calls dropout"),
    ],
)
def test_the_place_of_a_lost_gradient_is_told(model, words):
    found = alarms([check_model.gradient_reaches_every_weight], model_case(model))
    assert words in found["gradient_reaches_every_weight"].seen


def test_the_mixin_fails_where_the_check_does_and_nowhere_else():
    for model, expected in ((Sound, set()), (IgnoresTheClassCount, {"test_one_logit_a_class"})):
        facts = {"make_model": lambda self, k, model=model: model(k), "overfit_lr": 0.05}
        case = type("Case", (unittest.TestCase, ModelTestsMixin), facts)
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
        assert result.testsRun == len(check_model.CHECKS) + 1
        assert {test._testMethodName for test, _ in result.failures + result.errors} == expected


# The data.


def data_case(root: Path, kind: type[DogCat] = DogCat, test: Path | None = None):
    splits = [kind(root, mode=mode, image_size=32) for mode in ("train", "val")]

    def tests() -> DogCat | None:
        return kind(test, mode="test", image_size=32) if test else None

    return check_data.Case(*splits, tests, lambda part, workers: Loader(part, 8, workers))


@pytest.fixture
def root(pictures, tmp_path) -> Path:
    return shutil.copytree(pictures / "train", tmp_path / "train")


def copies(root):
    for number in range(20):  # under another name, so that many come into the other split
        shutil.copy(root / f"cat.{number}.jpg", root / f"cat.{500 + number}.jpg")


def re_encoded(root):
    for number in range(20):
        Image.open(root / f"cat.{number}.jpg").save(root / f"cat.{500 + number}.png")


def mirrored(root):
    for number in range(20):
        picture = ImageOps.mirror(Image.open(root / f"cat.{number}.jpg"))
        picture.save(root / f"cat.{500 + number}.png")


def marked(root):
    for path in root.glob("dog.*"):
        picture = Image.open(path)
        side = picture.width // 8
        picture.paste("white", (side, side, 2 * side, 2 * side))
        picture.save(path)


def contradictory(root):
    shutil.copy(root / "cat.3.jpg", root / "dog.777.jpg")


def imbalanced(root):
    for number in range(28):
        (root / f"cat.{number}.jpg").unlink()


def of_one_class(root):
    for path in root.glob("cat.*"):
        path.unlink()


def broken(root):
    for number in range(8):
        (root / f"cat.{number}.jpg").write_bytes(b"no picture")


def of_two_sizes(root):
    for path in root.glob("cat.*"):
        Image.open(path).resize((400, 400)).save(path)


def of_two_lights(root):
    for path in root.glob("cat.*"):
        ImageEnhance.Brightness(Image.open(path)).enhance(0.3).save(path)


def of_two_types(root):
    for path in root.glob("cat.*"):
        Image.open(path).save(path, "PNG")


def tiny(root):
    for path in root.iterdir():
        Image.open(path).resize((12, 12)).save(path)


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (copies, "splits_share_no_picture"),
        (copies, "few_pictures_are_twice_there"),
        (re_encoded, "splits_share_no_picture"),
        (mirrored, "splits_share_no_picture"),
        (marked, "no_shortcut"),
        (contradictory, "few_pictures_are_twice_there"),
        (imbalanced, "classes_are_balanced"),
        (of_one_class, "classes_are_balanced"),
        (broken, "pictures_can_be_read"),
        (of_two_sizes, "no_shortcut"),
        (of_two_lights, "no_shortcut"),
        (of_two_types, "no_shortcut"),
        (tiny, "pictures_are_large_enough"),
    ],
)
def test_a_planted_fault_of_the_files_is_found(plant, check, root):
    plant(root)
    assert check in alarms(check_data.CHECKS, data_case(root))


class AugmentsVal(DogCat):
    def __init__(self, root, mode="train", **more):
        super().__init__(root, mode={"val": "train"}.get(mode, mode), **more)


class IsNotNormalised(DogCat):
    mean, std = (0, 0, 0), (1, 1, 1)


class IsScaledTwice(DogCat):
    mean, std = (124, 116, 104), (58, 57, 57)


class GuessesLabels(DogCat):
    def __getitem__(self, index):
        return super().__getitem__(index)[0], int(np.random.default_rng().integers(2))


class TakesTheNextLabel(DogCat):
    def __getitem__(self, index):
        return super().__getitem__(index)[0], int(self.labels[(index + 1) % len(self)])


class CountsFromOne(DogCat):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, label + 1


class SortsLabelsAlone(DogCat):
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.labels = self.labels[::-1].copy()


class HasItsOwnGenerator(DogCat):
    generator = np.random.default_rng(0)

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image.roll(int(self.generator.integers(9)), dims=2), label


class AugmentsNothing(DogCat):
    def __init__(self, root, mode="train", **more):
        super().__init__(root, mode=mode, **more)
        self.transforms = DogCat(root, mode="val", **more).transforms


class SwapsColoursInVal(DogCat):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image.flip(0) if self.mode == "val" else image, label


class ReadsTheNextFile(DogCat):
    def __getitem__(self, index):
        return super().__getitem__((index + 1) % len(self))[0], int(self.labels[index])


class ViewsInsteadOfPermuting(DogCat):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image.permute(1, 2, 0).reshape(image.shape), label


class IsDarkInVal(DogCat):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image // 2 if self.mode == "val" else image, label


class CountsHalf(DogCat):
    def __len__(self):
        return super().__len__() // 2


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (SwapsColoursInVal, "samples_show_their_files"),
        (ReadsTheNextFile, "samples_show_their_files"),
        (ViewsInsteadOfPermuting, "samples_show_their_files"),
        (IsDarkInVal, "values_lie_around_zero"),
        (CountsHalf, "labels_are_in_range"),
        (AugmentsVal, "only_train_is_augmented"),
        (AugmentsNothing, "only_train_is_augmented"),
        (IsNotNormalised, "values_lie_around_zero"),
        (IsScaledTwice, "values_lie_around_zero"),
        (GuessesLabels, "labels_stay_with_their_pictures"),
        (TakesTheNextLabel, "labels_stay_with_their_pictures"),
        (SortsLabelsAlone, "labels_stay_with_their_pictures"),
        (CountsFromOne, "labels_are_in_range"),
        (HasItsOwnGenerator, "workers_agree"),
    ],
)
def test_a_planted_fault_of_a_data_set_is_found(kind, check, pictures):
    assert check in alarms(check_data.CHECKS, data_case(pictures / "train", kind))


def test_a_hole_in_the_test_folder_is_found(pictures, tmp_path):
    folder = shutil.copytree(pictures / "test1", tmp_path / "test1")
    whole = data_case(pictures / "train", test=folder)
    assert alarms([check_data.test_ids_are_complete], whole) == {}
    (folder / "3.jpg").unlink()
    holed = data_case(pictures / "train", test=folder)
    found = alarms([check_data.test_ids_are_complete], holed)
    assert "without 3" in found["test_ids_are_complete"].seen


def test_a_rare_class_is_not_told_by_chance(tmp_path):
    for number in range(100):
        draw("cat", number).save(tmp_path / f"cat.{number}.jpg")
        if number < 5:
            draw("dog", number).save(tmp_path / f"dog.{number}.jpg")
    assert alarms([check_data.no_shortcut], data_case(tmp_path)) == {}


def test_a_data_set_in_class_folders_is_copied_as_it_is(tmp_path):
    paths = [tmp_path / kind / f"{number}.jpg" for kind in ("ant", "bee") for number in range(12)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(path))
    labels = [0] * 12 + [1] * 12
    split = SimpleNamespace(labels=labels, num_classes=2, class_counts=[12, 12])
    case = check_data.Case(split, split, lambda: None, Loader)
    case.files = {"train": paths}
    assert case.copy(tmp_path / "copy")
    for path in paths:
        assert (tmp_path / "copy" / path.relative_to(tmp_path)).read_text() == str(path)


def test_sound_data_raises_no_alarm(tmp_path):
    for number in range(60):
        for kind in ("cat", "dog"):
            draw(kind, number).save(tmp_path / f"{kind}.{number}.jpg")
    assert alarms(check_data.CHECKS, data_case(tmp_path)) == {}


# Training.


def learning_case(model=Sound, lr=0.02, criterion=None) -> check_learning.Case:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 3, 32, 32, generator=generator)
    parts = (criterion or engine.ClassificationLoss(), check_model.FP32, lr, 1.0)
    labels = torch.arange(32) % 2
    return check_learning.Case(lambda: model(2), images, labels, ["cat", "dog"], *parts)


class Ascends(engine.ClassificationLoss):
    def forward(self, logits, labels):
        return -super().forward(logits, labels)


class IsConstant(engine.ClassificationLoss):
    def forward(self, logits, labels):
        return super().forward(0 * logits, labels)


class Shuffles(engine.ClassificationLoss):
    def forward(self, logits, labels):
        return super().forward(logits, labels[torch.randperm(len(labels))])


@pytest.mark.parametrize(
    ("facts", "check", "words"),
    [
        ({"criterion": Ascends()}, "a_step_lowers_the_loss", ""),
        ({"criterion": IsConstant()}, "a_step_lowers_the_loss", ""),
        ({"criterion": Shuffles()}, "learns_a_batch_by_heart", "no more at others"),
        ({"lr": 30.0}, "learns_a_batch_by_heart", "at lr 30, which is too high"),
        ({"lr": 1e-6}, "learns_a_batch_by_heart", "at lr 1e-06, which is too low"),
        ({"lr": 1e-7}, "updates_have_a_sensible_size", ""),
        ({"model": AlwaysSaysTheSame}, "learns_a_batch_by_heart", ""),
        ({"lr": 30.0}, "learns_a_hundred_pictures", ""),
        (
            {"model": KeepsItsFirstStatistics},
            "learns_a_hundred_pictures",
            "right in training mode, ",
        ),
    ],
)
def test_a_planted_fault_of_loss_or_rate_is_found(facts, check, words, monkeypatch):
    monkeypatch.setattr(check_learning, "SECONDS", 5.0)
    found = alarms([getattr(check_learning, check)], learning_case(**facts))
    assert words in found[check].seen


@pytest.mark.parametrize("model", [Sound, FollowsSlowly])
def test_sound_training_raises_no_alarm(model):
    assert alarms(check_learning.CHECKS, learning_case(model)) == {}


def test_few_pictures_are_no_fault_of_the_training():
    case = learning_case()
    for count in (13, 5, 2):
        case.images, case.labels = case.images[:count], case.labels[:count]
        assert alarms([check_learning.learns_a_hundred_pictures], case) == {}


# What somebody may do to the code: an edit of a copy of the project, and what its check says.
EDITS = [
    (
        "main.py",
        "            model.train()\n",
        "            model.eval()\n",
        "The command train does its steps in order",
    ),
    ("main.py", "engine.train_step(", "(lambda m, i, l, *_: (m(i), m(i)[:, 0]))(", "in order"),
    ("utils/engine.py", "    optimizer.zero_grad()\n", "", "starts from a gradient of zero"),
    ("utils/engine.py", "losses.sum() / len(labels)", "losses.mean()", "in parts moves"),
    ("utils/engine.py", "    model.eval()\n", "", "The command train does"),
    ("utils/engine.py", "model.train(was_training)", "pass", "evaluate measures the model"),
    ("utils/engine.py", "scaler.scale(loss)", "scaler.scale(-loss)", "lowers the loss"),
    ("utils/engine.py", "p for p in trainable if p.ndim > 1", "p for p in []", "Steps move"),
    ("main.py", 'shuffle=mode == "train"', "shuffle=False", "in order"),
    ("main.py", 'build_data(opt, "val", ', 'build_data(opt, "train", ', "in order"),
    ("main.py", "lr = opt.lr * decay", "lr = 9 * opt.lr * decay", "in order"),
    ("data/sampler.py", '"order", self.epoch', '"order", 0', "in order"),
    ("data/dataset.py", 'augmented = mode == "train"', "augmented = True", "val is not"),
    ("data/dataset.py", "by_hash[cut:]", "by_hash", "No picture is in train and val"),
]


@pytest.mark.parametrize(("file", "old", "new", "name"), EDITS, ids=[e[3] for e in EDITS])
def test_a_fault_in_the_code_is_found_by_the_command(file, old, new, name, pictures, tmp_path):
    copy = tmp_path / "project"
    skip = shutil.ignore_patterns(".*", "checkpoints", "tests", "__pycache__")
    shutil.copytree(Path(main.__file__).parent, copy, ignore=skip)
    text = (copy / file).read_text()
    assert text.count(old) == 1
    (copy / file).write_text(text.replace(old, new))
    command = [sys.executable, "main.py", "check", "--json", "--image-size=64"]
    command += [f"--train-data-root={pictures / 'train'}", f"--checkpoint-root={tmp_path}"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    wrong = [finding["name"] for finding in json.loads(done.stdout) if finding["mark"] == "✗"]
    assert any(name in words for words in wrong), wrong
    assert all(finding["why"] and finding["do"] for finding in json.loads(done.stdout))


def test_the_command_finds_nothing_wrong_with_the_project(pictures, tmp_path, capsys):
    main.check(
        train_data_root=pictures / "train",
        test_data_root=pictures / "test1",
        checkpoint_root=tmp_path,
        image_size=64,
    )
    out = capsys.readouterr().out
    assert "✗" not in out.replace("0 ✗", "")
    assert (tmp_path / "gradients.png").stat().st_size > 10_000
    rows = (tmp_path / "gradients.csv").read_text().splitlines()
    assert rows[0] == "name,mean,max,update,reached"
    assert len(rows) == 1 + 26  # a row a weight
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["gradients.csv", "gradients.png"]  # no run is left behind


# While a training goes on.

NO_KEEPER = SimpleNamespace(path=Path("nothing.pth"), wait=lambda: None)


def run_of(pictures: Path, root: Path, **options) -> Path:
    options = {"image_size": 64, "batch_size": 8, "num_workers": 0, "visdom_port": 1} | options
    return main.train(train_data_root=pictures / "train", checkpoint_root=root, **options)


def poison(step: int, change) -> object:
    """Do `change(model, images)` before a forward pass in training, the step's-th of them."""

    def hook(model, args):
        if isinstance(model, main.models.SqueezeNet) and model.training:
            count.append(1)
            if len(count) == step:
                change(model, args[0])

    count = []
    return nn.modules.module.register_module_forward_pre_hook(hook)


@torch.no_grad()
def spoil_a_weight(model, images):
    model.features[6].squeeze.weight[0, 0] = float("nan")


def spoil_a_picture(model, images):
    images[0, 0, 0, 0] = float("inf")


@torch.no_grad()
def blow_up_a_weight(model, images):
    model.features[6].expand3x3.weight.fill_(1e38)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (spoil_a_weight, "features.6.squeeze.weight is not finite"),
        (spoil_a_picture, "a picture is not finite"),
        (blow_up_a_weight, "the output of features.6.expand3x3 is not finite"),
    ],
)
def test_a_step_that_is_not_finite_is_not_made_and_its_layer_is_named(
    change, words, pictures, tmp_path
):
    hook = poison(8, change)  # in the second epoch
    try:
        with pytest.raises(FloatingPointError, match=words) as error:
            run_of(pictures, tmp_path, checks="always", max_epoch=2)
    finally:
        hook.remove()
    (run,) = tmp_path.iterdir()
    assert f"--resume={run}" in str(error.value)
    for tensor in torch.load(run / "last.pth", weights_only=True)["model"].values():
        assert tensor.isfinite().all()


def test_without_checks_the_same_run_goes_wrong_unseen(pictures, tmp_path):
    hook = poison(2, spoil_a_picture)
    try:
        with pytest.raises(FloatingPointError, match="training diverged"):  # found by val alone
            run_of(pictures, tmp_path, checks="off", max_epoch=1)
    finally:
        hook.remove()


def test_a_gradient_that_is_not_finite_is_told_from_an_output():
    model = TakesRootOfZero(2).train()
    optimizer = engine.build_optimizer(model, 0.01, 0.0)
    images, labels = torch.zeros(4, 3, 16, 16), torch.arange(4) % 2
    before = [p.detach().clone() for p in model.parameters()]
    parts = (engine.ClassificationLoss(), optimizer, check_model.FP32)
    with (
        Watch("always", model, optimizer, check_model.FP32.autocast, print, NO_KEEPER),
        pytest.raises(FloatingPointError, match=r"the gradient of \S+ is not finite"),
    ):
        engine.train_step(model, images, labels, *parts)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


class TakesRootOfZero(Sound):
    def features(self, images):
        return (
            super().features(images) + self.conv.weight.sum() * 0 + (0 * self.fc.weight[0]).sqrt()
        )


def test_the_first_steps_are_looked_at_and_then_no_hook_is_left():
    model, seen = HasAnIdleLayer(2).train(), []
    optimizer = engine.build_optimizer(model, 0.01, 0.0)
    case = model_case(Sound)
    Watch("start", model, optimizer, check_model.FP32.autocast, seen.append, NO_KEEPER)
    for step in range(25):
        assert bool(model._forward_pre_hooks) == (step <= 20)
        assert bool(optimizer._optimizer_step_pre_hooks) == (step <= 20)
        criterion = engine.ClassificationLoss()
        engine.train_step(model, case.images, case.labels, criterion, optimizer, check_model.FP32)
    assert seen == ["no gradient reaches idle.weight, idle.bias: python main.py check says why"]


def test_checks_do_not_change_a_bit(pictures, tmp_path):
    runs = [
        run_of(pictures, tmp_path / mode, checks=mode, max_epoch=1) for mode in ("off", "always")
    ]
    one, other = (torch.load(run / "last.pth", weights_only=True)["model"] for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)
