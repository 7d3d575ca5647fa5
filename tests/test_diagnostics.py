"""The checks find planted faults, each by the check that is for it, and none in what is sound."""

import json
import shutil
import subprocess
import sys
import unittest
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

import main
from config import DefaultConfig
from data import ImageDataset, Loader, Pictures
from models.basic_module import BasicModule
from tests.drawings import DrawnTrees, draw
from tests.helpers import PROJECT, SMALL
from tests.templates import ModelTestsMixin
from utils import diagnostics
from utils.commands.check import few_samples_of
from utils.diagnostics import data as check_data
from utils.diagnostics import learning as check_learning
from utils.diagnostics import model as check_model
from utils.recipe import ClassificationLoss


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
        return super().features(20 * images + 300)


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
        return torch.concat([logits[:-1], logits[-2:].mean(dim=0, keepdim=True)])


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
    def state_dict(self, *args, **options):
        state = super().state_dict(*args, **options)
        return {name: value for name, value in state.items() if "norm" not in name}

    def load_state_dict(self, state, **options):
        return super().load_state_dict(state, strict=False)


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


class PrefersAClass(Sound):
    """Class 1 has no picture in the table from which its prior comes."""

    def forward(self, images):
        return super().forward(images) + torch.tensor([1.0, 1e-12]).log()


class CastsToIntegers(Sound):
    def features(self, images):
        return super().features(images.clamp(0, 15).long().float())


class LooksBesideThePicture(Sound):
    """Only the middle of the second filter lies within the picture."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.far = nn.Conv2d(16, 16, 3, padding=16, dilation=16)

    def features(self, images):
        return self.far(self.norm(self.conv(images)).relu()).relu().amax(dim=(2, 3))


class IsADeepLine(nn.Sequential):
    def __init__(self, num_classes):
        layers = nn.Conv2d(3, 8, 3, 2), nn.LeakyReLU(1.0), nn.Conv2d(8, 8, 3, 2), nn.LeakyReLU(1.0)
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


FAULTS: dict[str, list] = {
    "one_logit_per_class": [
        *(OneLogitTooMany, SqueezesTheBatch, IgnoresTheClassCount, ReturnsATuple),
    ],
    "all_is_registered": [
        *(HasLayersInAList, HasAWeightInADict, UsesAGlobalLayer, HasAPlainConstant),
    ],
    "gradient_reaches_every_weight": [
        *(SkipsALayer, HasAnIdleLayer, SkipsDropout, Detaches, GoesThroughNumpy),
        *(HasNoGradInTheMiddle, TakesData, Rounds, IsFrozen),
    ],
    "first_loss": [HasLargeWeights, PrefersAClass],
    "outputs_are_logits": [
        *(EndsInSoftmax, EndsInSigmoid, EndsInRelu, EndsInLogSoftmax, EndsInTanh, EndsInSoftplus),
        DropsLogits,
    ],
    "pictures_are_independent": [
        *(CentresOverTheBatch, MixesTheLastTwo, ReshapesWrongly, TakesSoftmaxOverTheBatch),
    ],
    "the_model_is_nonlinear": [IsALine, IsADeepLine],
    "the_whole_picture_counts": [LooksAtACorner, LooksAtRed, AlwaysSaysTheSame],
    "evaluation_changes_nothing": [CountsInEval, FreezesItsNormInForward],
    "eval_mode_is_deterministic": [ForgetsDropoutsMode, DropsNothing],
    "saved_model_predicts_the_same": [SavesHalf, KeepsSomethingToItself],
    "nothing_is_lost_on_the_way": [Explodes, Vanishes, CastsToIntegers],
    "operations_suit_each_other": [LooksBesideThePicture],
    "few_units_are_dead": [IsDead],
    "units_differ": [StartsFromZeros, StartsFromAConstant, HasAConstantLayer],
    "uniform_pictures_are_finite": [TakesLogOfZero, DividesByTheDeviation],
}
PAIRS = [(model, check) for check, models in FAULTS.items() for model in models]


def model_case(model, count: int = 8, side: int = 64, **facts) -> check_model.ModelCase:
    images = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    facts = {"options": DefaultConfig(lr=1e-3), "weights_loaded": True, **facts}
    labels = torch.arange(count) % 2
    return check_model.ModelCase(model, images, labels, ["fir", "oak"], **facts)


def alarms(checks: list, case: object, marks: str = "!✗–") -> dict[str, diagnostics.Finding]:
    """Run checks; return those that are not ✓, by the name of their function."""
    found = {check.__name__: diagnostics.run_check(check, case) for check in checks}
    return {name: finding for name, finding in found.items() if finding.mark in marks}


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


class ComputesItsWeight(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.conv = nn.utils.weight_norm(self.conv)


class HasAHeadForTrainingAlone(Sound):
    """Its result is for a loss of its own: the logits do not depend on it."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.other = nn.Linear(16, 3)
        self.other.requires_grad_(False)

    def features(self, images):
        features = super().features(images)
        if self.training:
            self.other(features)
        return features


class HasComplexWeights(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.factors = nn.Parameter(torch.randn(16, 9, dtype=torch.cfloat) * 0.1 + 1)

    def features(self, images):
        features = super().features(images)
        return torch.fft.irfft(torch.fft.rfft(features) * self.factors.mean(dim=0), n=16)


class SeesFewShades(Sound):
    """16 shades of each colour are enough."""

    def features(self, images):
        return super().features((4 * images).clamp(-8, 7).long().float() / 4)


class EndsInAProductOfItsOwn(Sound):
    """Its last layer is no module."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.fc = nn.LayerNorm(16)
        self.weight = nn.Parameter(0.3 * torch.randn(num_classes, 16))

    def forward(self, images):
        return F.linear(super().forward(images), self.weight)


class SplitsUnevenly(Sound):
    def features(self, images):
        gate, features = self.norm(self.conv(images)).split([1, 15], dim=1)
        x = gate.sigmoid() * features
        return F.pad(x, (0, 0, 0, 0, 0, 1)).relu().amax(dim=(2, 3))


SOUND: list = [
    SplitsUnevenly,
    ComputesItsWeight,
    HasAHeadForTrainingAlone,
    HasComplexWeights,
    SeesFewShades,
]
SOUND += [Sound, StartsWithAHeadOfZeros, HasAttention, HasGroupNorm, ScalesItsLayers, FollowsSlowly]
SOUND += [StartsABranchFromZero, HasAFrozenBackbone]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the old weight_norm
@pytest.mark.parametrize("model", SOUND)
def test_a_sound_model_raises_no_alarm(model):
    assert alarms(check_model.CHECKS, model_case(model)) == {}


def test_a_last_layer_that_is_no_module_is_not_judged_by_the_one_before():
    found = alarms(check_model.CHECKS, model_case(EndsInAProductOfItsOwn))
    assert [finding.mark for finding in found.values()] == ["–"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Detaches, "cut by detach in test_diagnostics.py:"),
        (TakesData, "cut by data in test_diagnostics.py:"),
        (HasNoGradInTheMiddle, "cut by conv2d in test_diagnostics.py:"),
        (HasAnIdleLayer, "none at idle.weight, idle.bias; never called: idle"),
        (SkipsDropout, "forward never calls dropout"),
    ],
)
def test_the_place_of_a_lost_gradient_is_told(model, words):
    found = alarms([check_model.gradient_reaches_every_weight], model_case(model))
    assert words in found["gradient_reaches_every_weight"].seen


class IsALayerStack(nn.Sequential):
    """Its class is that of its parts, too."""

    def __init__(self, num_classes):
        head = nn.Sequential(nn.Flatten(), nn.Linear(16, num_classes))
        super().__init__(nn.Conv2d(3, 16, 3, 4), nn.ReLU(), nn.AdaptiveMaxPool2d(1), head)


class HasAScaleAtTheTop(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, images):
        return self.scale * super().forward(images)


class ScalesThenSoftmax(HasAScaleAtTheTop):
    def forward(self, images):
        return super().forward(images).softmax(dim=1)


class HasAClassToken(HasAttention):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.token = nn.Parameter(torch.randn(1, 1, 32))

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.concat([self.token.expand(len(x), -1, -1), x], dim=1)
        y = self.norm(x)
        return self.head((x + self.attention(y, y, y)[0])[:, 0])


class HasAClassTokenAndSoftmax(HasAClassToken):
    def forward(self, images):
        return super().forward(images).softmax(dim=1)


class EndsInAnLSTM(nn.Module):
    """Its last layer returns a tuple."""

    def __init__(self, num_classes):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.lstm = nn.LSTM(32, num_classes, batch_first=True)

    def forward(self, images):
        sequence = self.patches(images).flatten(2).transpose(1, 2)
        return 8 * self.lstm(sequence)[0].mean(dim=1)


class HasNothingButParameters(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(3 * 16, num_classes))

    def forward(self, images):
        pooled = F.adaptive_max_pool2d(images, 4).flatten(1)
        return (pooled @ self.weight).softmax(dim=1)


@pytest.mark.parametrize("model", [ScalesThenSoftmax, HasAClassTokenAndSoftmax])
def test_a_softmax_behind_a_parameter_of_the_whole_model_is_found(model):
    found = alarms([check_model.outputs_are_logits], model_case(model))
    assert "there is a softmax" in found["outputs_are_logits"].seen
    assert alarms([check_model.outputs_are_logits], model_case(model.__bases__[0])) == {}


def test_a_softmax_is_found_without_any_layer():
    found = alarms(check_model.CHECKS, model_case(HasNothingButParameters))
    assert "there is a softmax" in found["outputs_are_logits"].seen
    # What has no layer to look at is not checked; it is neither right nor wrong.
    not_checked = {name for name, finding in found.items() if finding.mark == "–"}
    assert not_checked == set()


@pytest.mark.parametrize("model", [EndsInAnLSTM, IsALayerStack, HasAClassToken])
def test_an_unusual_model_is_not_wrong(model):
    assert alarms(check_model.CHECKS, model_case(model), "✗") == {}


class FreezesItsBody(Sound):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.conv.requires_grad_(False)


def test_a_body_frozen_at_random_values_is_wrong_unless_weights_are_loaded():
    checks = [check_model.every_weight_moves]
    found = alarms(checks, model_case(FreezesItsBody, weights_loaded=False))
    assert found["every_weight_moves"].mark == "✗"
    assert "conv.bias, conv.weight is frozen at random" in found["every_weight_moves"].seen
    assert alarms(checks, model_case(FreezesItsBody, weights_loaded=True)) == {}


TORCHVISION = ["mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "mnasnet0_5"]


@pytest.mark.parametrize("name", TORCHVISION)
def test_models_with_many_batch_norms_are_not_wrong(name, pictures):
    """In eval mode, deep new networks give almost the same for all pictures."""
    data = data_case(pictures / "train", side=64)
    images, labels = data.train.batch
    model = getattr(torchvision.models, name)
    case = check_model.ModelCase(
        make_model=lambda num_classes: model(num_classes=num_classes),
        images=images,
        labels=labels,
        classes=["fir", "oak"],
        options=DefaultConfig(),
    )
    slow = [check_learning.overfits_a_hundred_pictures]
    checks = [check for check in check_model.CHECKS + check_learning.CHECKS if check not in slow]
    assert alarms(checks, case, "✗") == {}


def test_the_mixin_fails_where_the_check_does_and_nowhere_else():
    learns = "test_learns_eight_pictures"
    for model, expected in (
        (Sound, set()),
        (IgnoresTheClassCount, {"test_one_logit_per_class"}),
        (AlwaysSaysTheSame, {learns, "test_gradient_reaches_every_weight"}),
    ):
        facts = {"make_model": lambda self, num_classes, model=model: model(num_classes)}
        case = type("Case", (unittest.TestCase, ModelTestsMixin), facts)
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
        assert result.testsRun == len(check_model.CHECKS) + 1
        failed = {test._testMethodName for test, _ in result.failures + result.errors}
        assert failed >= expected and (failed == expected or learns in expected)


class Tiny(BasicModule):
    """So small that it learns slowly."""

    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(16, num_classes))

    def forward(self, images):
        return self.head(self.body(images))


@pytest.mark.parametrize("num_classes", [2, 5])
def test_the_mixin_passes_a_tiny_model(num_classes):
    facts = {"make_model": lambda self, count: Tiny(count), "num_classes": num_classes}
    case = type("Case", (unittest.TestCase, ModelTestsMixin), facts)
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert result.testsRun == len(check_model.CHECKS) + 1 and result.wasSuccessful()


# The data.


def data_case(root: Path, dataset: Callable = DrawnTrees, test: Path | None = None, side=32):
    def open_test() -> ImageDataset | None:
        return dataset(test, mode="test", image_size=side) if test else None

    splits = [
        check_data.Split(
            mode,
            dataset(root, mode=mode, image_size=side),
            lambda part, workers: Loader(part, 8, workers),
        )
        for mode in ("train", "val")
    ]
    return check_data.DataCase(splits[0], splits[1], open_test)


NOT_CHECKED = {"test_folder_is_complete"}  # if there is no test folder


@pytest.fixture
def root(pictures, tmp_path) -> Path:
    """Copy the pictures into one folder."""
    root = tmp_path / "train"
    root.mkdir()
    for path in (pictures / "train").rglob("*.jpg"):
        shutil.copy(path, root)
    return root


def copies(root):
    for number in range(20):  # under another name, so that many come into the other split
        shutil.copy(root / f"fir.{number}.jpg", root / f"fir.{500 + number}.jpg")


def re_encoded(root):
    for number in range(20):
        Image.open(root / f"fir.{number}.jpg").save(root / f"fir.{500 + number}.png")


def mirrored(root):
    for number in range(20):
        picture = ImageOps.mirror(Image.open(root / f"fir.{number}.jpg"))
        picture.save(root / f"fir.{500 + number}.png")


def marked(root):
    for path in root.glob("oak.*"):
        picture = Image.open(path)
        side = picture.width // 8
        picture.paste("white", (side, side, 2 * side, 2 * side))
        picture.save(path)


def contradictory(root):
    shutil.copy(root / "fir.3.jpg", root / "oak.777.jpg")


def imbalanced(root):
    for number in range(28):
        (root / f"fir.{number}.jpg").unlink()


def of_one_class(root):
    for path in root.glob("fir.*"):
        path.unlink()


def broken(root):
    for number in range(8):
        (root / f"fir.{number}.jpg").write_bytes(b"no picture")


def of_two_sizes(root):
    for path in root.glob("fir.*"):
        Image.open(path).resize((400, 400)).save(path)


def of_two_lights(root):
    for path in root.glob("fir.*"):
        ImageEnhance.Brightness(Image.open(path)).enhance(0.3).save(path)


def of_two_types(root):
    for path in root.glob("fir.*"):
        Image.open(path).save(path, "PNG")


def tiny(root):
    for path in root.iterdir():
        Image.open(path).resize((12, 12)).save(path)


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (copies, "splits_share_no_picture"),
        (copies, "no_file_is_a_copy"),
        (re_encoded, "splits_share_no_picture"),
        (mirrored, "splits_share_no_picture"),
        (marked, "no_shortcut"),
        (contradictory, "no_file_is_a_copy"),
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


class AugmentsVal(Pictures):
    def __init__(self, root, mode="train", **more):
        super().__init__(root, mode={"val": "train"}.get(mode, mode), **more)


class IsNotNormalised(Pictures):
    mean, std = (0, 0, 0), (1, 1, 1)


class IsScaledTwice(Pictures):
    mean, std = (124, 116, 104), (58, 57, 57)


class GuessesLabels(Pictures):
    def __getitem__(self, index):
        return super().__getitem__(index)[0], int(np.random.default_rng().integers(2))


class TakesTheNextLabel(Pictures):
    def __getitem__(self, index):
        return super().__getitem__(index)[0], int(self.labels[(index + 1) % len(self)])


class CountsFromOne(Pictures):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, label + 1


class SortsLabelsAlone(Pictures):
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.labels = self.labels[::-1].copy()


class HasItsOwnGenerator(Pictures):
    generator = np.random.default_rng(0)

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image.roll(int(self.generator.integers(9)), dims=2), label


class AugmentsNothing(Pictures):
    def __init__(self, root, mode="train", **more):
        super().__init__(root, mode=mode, **more)
        self.transforms = Pictures(root, mode="val", **more).transforms


class SwapsColoursInVal(Pictures):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image.flip(0) if self.mode == "val" else image, label


class ReadsTheNextFile(Pictures):
    def __getitem__(self, index):
        return super().__getitem__((index + 1) % len(self))[0], int(self.labels[index])


class ViewsInsteadOfPermuting(Pictures):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image.permute(1, 2, 0).reshape(image.shape), label


class IsDarkInVal(Pictures):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image // 2 if self.mode == "val" else image, label


class CountsHalf(Pictures):
    def __len__(self):
        return super().__len__() // 2


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (SwapsColoursInVal, "samples_show_their_files"),
        (ReadsTheNextFile, "samples_show_their_files"),
        (ViewsInsteadOfPermuting, "samples_show_their_files"),
        (IsDarkInVal, "images_are_normalised"),
        (CountsHalf, "labels_are_in_range"),
        (AugmentsVal, "only_train_is_augmented"),
        (AugmentsNothing, "only_train_is_augmented"),
        (IsNotNormalised, "images_are_normalised"),
        (IsScaledTwice, "images_are_normalised"),
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
    assert alarms([check_data.test_folder_is_complete], whole) == {}
    (folder / "3.jpg").unlink()
    holed = data_case(pictures / "train", test=folder)
    found = alarms([check_data.test_folder_is_complete], holed)
    assert "without 3" in found["test_folder_is_complete"].seen


def test_a_rare_class_is_not_told_by_chance(tmp_path):
    for number in range(100):
        draw("fir", number).save(tmp_path / f"fir.{number}.jpg")
        if number < 5:
            draw("oak", number).save(tmp_path / f"oak.{number}.jpg")
    assert alarms([check_data.no_shortcut], data_case(tmp_path)) == {}


def test_sound_data_raises_no_alarm(tmp_path):
    for number in range(90):
        for kind in ("fir", "oak"):
            draw(kind, number).save(tmp_path / f"{kind}.{number}.jpg")
    assert alarms(check_data.CHECKS, data_case(tmp_path)).keys() == NOT_CHECKED


class IsMinimal(ImageDataset):
    """A data set with what the project asks for, and no files."""

    classes = ("dark", "bright")

    def __init__(self, root, mode="train", image_size=32, crop_scale=0.5):
        self.side, self.mode = image_size, mode
        self.labels = [index % 2 for index in range(40 if mode == "train" else 20)]

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index + 1000 * (self.mode == "val"))
        low = 60 + 60 * self.labels[index]
        shape = (3, self.side, self.side)
        image = torch.randint(low, low + 130, shape, generator=generator, dtype=torch.uint8)
        shift = int(torch.randint(9, ())) if self.mode == "train" else 0
        return image.roll(shift, dims=1), self.labels[index]


def test_what_a_data_set_does_not_tell_is_not_checked(pictures):
    found = alarms(check_data.CHECKS, data_case(pictures, IsMinimal, test=pictures))
    assert {finding.mark for finding in found.values()} == {"–"}
    assert found.keys() == NOT_CHECKED | {
        *("samples_show_their_files", "pictures_are_large_enough", "splits_share_no_picture"),
        *("no_file_is_a_copy", "no_shortcut", "labels_mean_the_same_in_val"),
    }
    assert "no method `path`" in found["no_shortcut"].seen


class SharesItsSamples(IsMinimal):
    """Train is not augmented, and has the pictures of val."""

    def __init__(self, root, mode, **more):
        super().__init__(root, "val", **more)


def test_equal_samples_in_both_splits_are_found_without_files(pictures):
    found = alarms([check_data.splits_share_no_picture], data_case(pictures, SharesItsSamples))
    assert found["splits_share_no_picture"].mark == "✗"


def test_few_samples_are_a_data_set_of_their_own(pictures):
    few = few_samples_of(Pictures, size=8)
    few = few(pictures / "train", mode="train", image_size=32)
    assert len(few) == 8 and sorted(few.labels.tolist()) == [0] * 4 + [1] * 4
    assert [few[index][1] for index in range(8)] == few.labels.tolist()
    assert few.classes == ["fir", "oak"] and few.mean == Pictures.mean


# Training.


def learning_case(model=Sound, lr=0.02, optimizer="muon", **facts) -> check_model.ModelCase:
    options = DefaultConfig(lr=lr, optimizer=optimizer)
    return model_case(model, count=32, side=32, options=options, **facts)


class Ascends(ClassificationLoss):
    def forward(self, logits, labels):
        return -super().forward(logits, labels)


class IsConstant(ClassificationLoss):
    def forward(self, logits, labels):
        return super().forward(0 * logits, labels)


class Shuffles(ClassificationLoss):
    def forward(self, logits, labels):
        return super().forward(logits, labels[torch.randperm(len(labels))])


@pytest.mark.parametrize(
    ("facts", "check", "words"),
    [
        ({"criterion": Ascends()}, "the_loss_favours_the_right_class", ""),
        ({"criterion": IsConstant()}, "the_loss_favours_the_right_class", ""),
        ({"criterion": Shuffles()}, "overfits_eight_pictures", "no better at other rates"),
        (  # with such steps, Muon learns eight pictures by heart
            {"lr": 30.0, "optimizer": "adamw"},
            "overfits_eight_pictures",
            "at lr 30, which is too high",
        ),
        ({"lr": 1e-6}, "overfits_eight_pictures", "at lr 1e-06, which is too low"),
        ({"lr": 1e-7}, "updates_have_a_sensible_size", ""),
        ({"model": AlwaysSaysTheSame}, "overfits_eight_pictures", ""),
        ({"lr": 30.0}, "overfits_a_hundred_pictures", ""),
        (
            {"model": KeepsItsFirstStatistics},
            "overfits_a_hundred_pictures",
            "right in training mode, ",
        ),
    ],
)
def test_a_planted_fault_of_loss_or_rate_is_found(facts, check, words):
    found = alarms([getattr(check_learning, check)], learning_case(**facts))
    assert words in found[check].seen


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("model", [Sound, FollowsSlowly])
def test_sound_training_raises_no_alarm(model, optimizer):
    found = alarms(check_learning.CHECKS, learning_case(model, optimizer=optimizer))
    # The command and the number of pictures are not handed in here.
    assert found.keys() == {"train_command_is_in_order", "the_run_has_enough_steps"}
    assert found["train_command_is_in_order"].mark == "–"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the old weight_norm
@pytest.mark.parametrize("model", [ComputesItsWeight, HasComplexWeights])
def test_weights_that_are_computed_or_complex_are_trained_without_alarm(model):
    found = alarms(check_learning.CHECKS, learning_case(model), "!✗")
    assert found.keys() == set()


@pytest.mark.parametrize(
    ("options", "mark"),
    [
        ({}, "✓"),
        ({"limit_batches": 1}, "✗"),
        ({"limit_batches": 10}, "✓"),
        ({"freeze": 10}, "✗"),
        ({"freeze": 9}, "✓"),
        ({"max_epoch": 9}, "!"),
    ],
)
def test_options_that_leave_too_few_steps_are_found(options, mark):
    options = {"max_epoch": 10, "batch_size": 10, **options}
    case = replace(learning_case(), train_size=100, weights_loaded=False)
    case.options = DefaultConfig(**options)
    assert diagnostics.run_check(check_learning.the_run_has_enough_steps, case).mark == mark


@pytest.mark.parametrize(("momentum", "mark"), [(0.001, "✗"), (0.01, "✓"), (None, "✓")])
def test_a_norm_that_is_too_slow_for_the_run_is_found(momentum, mark):
    def make_model(num_classes):
        model = Sound(num_classes)
        model.norm.momentum = momentum
        return model

    case = replace(learning_case(make_model), train_size=100, weights_loaded=False)
    case.options = DefaultConfig(max_epoch=10, batch_size=10)
    assert diagnostics.run_check(check_learning.the_run_has_enough_steps, case).mark == mark
    case.weights_loaded = True
    assert diagnostics.run_check(check_learning.the_run_has_enough_steps, case).mark == "✓"


def test_few_pictures_are_no_fault_of_the_training():
    case = learning_case()
    for count in (13, 5, 2):
        case = replace(case, images=case.images[:count], labels=case.labels[:count])
        assert alarms([check_learning.overfits_a_hundred_pictures], case) == {}


def test_a_verdict_does_not_depend_on_the_clock(monkeypatch):
    case, checks = learning_case(), [check_learning.overfits_a_hundred_pictures]
    expected = diagnostics.run_check(checks[0], case)
    now = iter(range(0, 10**9, 10_000))
    monkeypatch.setattr("time.monotonic", lambda: next(now))  # a very slow machine
    assert diagnostics.run_check(checks[0], case) == expected


# What somebody may do to the code: an edit of a copy of the project, and what its check says.
TITLE = "The command train does its steps in order"
EDITS = [
    ("main.py", "            model.train()\n", "            model.eval()\n", TITLE),
    ("main.py", "engine.train_step, ", "lambda m, i, l, **_: (m(i), m(i)[:, 0]), ", "in order"),
    ("utils/engine.py", "    optimizer.zero_grad()\n", "", "follows the gradient"),
    ("utils/engine.py", "losses.sum() / len(labels)", "losses.mean()", "follows the gradient"),
    ("utils/engine.py", "    model.eval()\n", "", "The command train does"),
    ("utils/engine.py", "model.train(was_training)", "pass", "evaluate returns the logits"),
    ("utils/engine.py", "scaler.scale(loss)", "scaler.scale(-loss)", "follows the gradient"),
    ("utils/recipe.py", "in weights if weight.ndim > 1", "in []", "Steps change"),
    ("data/build.py", '"shuffle": True', '"shuffle": False', "in order"),
    ("main.py", '(opt, "val", device, **', '(opt, "train", device, **', "in order"),
    ("utils/recipe.py", "peak = opt.lr\n", "peak = 9 * opt.lr\n", "in order"),
    ("data/sampler.py", '"order", self.epoch', '"order", 0', "in order"),
    ("data/image_dataset.py", 'augmented = mode == "train"', "augmented = True", "val is not"),
    ("data/pictures.py", "if split == mode]", "]", "Train, val and test share no picture"),
]


@pytest.mark.parametrize(("file", "old", "new", "name"), EDITS, ids=[e[3] for e in EDITS])
def test_a_fault_in_the_code_is_found_by_the_command(file, old, new, name, pictures, tmp_path):
    copy = tmp_path / "project"
    skip = shutil.ignore_patterns(".*", "checkpoints", "tests", "__pycache__")
    shutil.copytree(PROJECT, copy, ignore=skip)
    text = (copy / file).read_text()
    assert text.count(old) == 1
    (copy / file).write_text(text.replace(old, new))
    command = [sys.executable, "main.py", "check", "--json", "--image-size=64"]
    command += ["--dataset=Pictures"]
    command += [f"--train-data-root={pictures / 'train'}", f"--checkpoint-root={tmp_path}"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    wrong = [finding["name"] for finding in json.loads(done.stdout) if finding["mark"] == "✗"]
    assert any(name in words for words in wrong), wrong
    assert all(finding["why"] and finding["do"] for finding in json.loads(done.stdout))


def test_the_command_finds_nothing_wrong_with_the_project(pictures, tmp_path, capsys):
    findings = main.check(
        dataset="Pictures",
        train_data_root=pictures / "train",
        test_data_root=pictures / "test1",
        checkpoint_root=tmp_path,
        image_size=64,
    )
    others = [finding for finding in findings if finding.mark in "✗–"]
    assert [finding.seen for finding in others] == ["there are too few files"]
    assert findings.exit_code == 0
    out = capsys.readouterr().out
    assert " 0 ✗, 1 – (not checked) in " in out
    assert (tmp_path / "gradients.png").stat().st_size > 10_000
    rows = (tmp_path / "gradients.csv").read_text().splitlines()
    assert rows[0] == "name,mean,max,update"
    assert len(rows) == 1 + 26  # a row a weight
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["gradients.csv", "gradients.png"]  # no run is left behind


@pytest.mark.parametrize(
    "options",
    [
        {"model": "torchvision/shufflenet_v2_x0_5", "dropout": 0.0},
        {"freeze": 3, "model": "torchvision/shufflenet_v2_x0_5", "max_epoch": 9},
        {"precision": "fp16"},
    ],
    ids=["torchvision", "freeze", "fp16"],
)
def test_the_rehearsal_finds_no_fault_in_sound_options(options, pictures, tmp_path):
    roots = {"train_data_root": pictures / "train", "test_data_root": pictures / "test1"}
    more = {"dataset": "Pictures", "image_size": 64, "checkpoint_root": tmp_path}
    marks = {finding.name: finding for finding in main.check(**roots, **more, **options)}
    assert marks["The command train does its steps in order"].mark == "✓"
    assert marks["A step follows the gradient of the mean loss"].mark == "✓"


class MinimalSoftmax(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 4)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.head(self.conv(images).relu().mean(dim=(2, 3))).softmax(dim=1)


def test_a_notebook_gets_the_findings_when_something_is_wrong(pictures, tmp_path, capsys):
    options = {"train_data_root": pictures, "test_data_root": tmp_path / "none"}
    options |= {"model": MinimalSoftmax, "dataset": IsMinimal, "checkpoint_root": tmp_path}
    findings = main.check(**SMALL | options)
    assert findings.exit_code == 1
    marks = {finding.name: finding.mark for finding in findings}
    assert marks["Outputs are logits"] == "✗"
    assert marks[TITLE] == "✓"  # rehearsed, although the data set has no files to copy
    assert marks["The test folder is complete"] == "–"
    assert " 7 – (not checked) in " in capsys.readouterr().out


class Fails(IsMinimal):
    def __getitem__(self, index):
        raise KeyError("no such row")


def test_a_data_set_that_fails_ends_with_findings(pictures, tmp_path, capsys):
    options = {"train_data_root": pictures, "checkpoint_root": tmp_path, "json": True}
    findings = main.check(**SMALL | options | {"dataset": Fails})
    assert findings.exit_code == 1 and len(findings) == len(check_data.CHECKS)
    assert [row["mark"] for row in json.loads(capsys.readouterr().out)].count("✗") >= 5
