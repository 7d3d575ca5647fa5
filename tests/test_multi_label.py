"""Pictures that show several classes at once: trained, measured and shown."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import main
from data import MultiLabelDataset, read_image
from tests.helpers import SMALL
from utils import metrics
from utils.meters import TrainMeters
from utils.options import UsageError
from utils.recipe import MultiLabelLoss

COLORS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220)}


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Draw squares of none to three colours; `labels.csv` has a column of 0 and 1 per colour."""
    root, rng = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    rows = []
    for number in range(90):
        shown = rng.integers(0, 2, 3).tolist()
        noise = rng.integers(90, 140, (64, 64, 3)).astype(np.uint8)
        image = Image.fromarray(noise)
        for place, (is_shown, color) in enumerate(zip(shown, COLORS.values(), strict=True)):
            if is_shown:
                x, y = 20 * place + rng.integers(0, 4), rng.integers(0, 44)
                image.paste(color, (int(x), int(y), int(x) + 18, int(y) + 18))
        image.save(root / f"{number}.png")
        rows.append([f"{number}.png", *shown])
    with open(root / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", *COLORS], *rows])
    return root


class DrawnColors(MultiLabelDataset):
    """The list labels.csv has the columns path, red, green and blue, the last three of 0 and 1."""

    classes = ("red", "green", "blue")

    def __init__(self, root, mode, image_size, crop_scale):
        super().__init__(mode, image_size, crop_scale)
        self.root = Path(root)
        with open(self.root / "labels.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        if mode == "test":
            self.ids = [Path(row["path"]).stem for row in rows]
        else:  # a third of the pictures is val
            rows = [row for n, row in enumerate(rows) if (n % 3 == 0) == (mode == "val")]
            self.labels = [[int(row[name]) for name in self.classes] for row in rows]
        self.names = [row["path"] for row in rows]

    def read(self, index):
        return read_image(self.root / self.names[index], side=self.side)


@pytest.fixture(scope="module")
def run(squares, tmp_path_factory):
    """Train on squares."""
    options = {**SMALL, "dataset": DrawnColors, "train_data_root": squares, "lr": 5e-3}
    options |= {"checkpoint_root": tmp_path_factory.mktemp("runs"), "max_epoch": 4}
    return main.train(**options, best_metric="average_precision")


def test_a_data_set_is_trained_validated_and_tested(run, squares, tmp_path, capsys):
    with open(run / "metrics.csv", newline="") as file:
        rows = [{name: float(x) for name, x in row.items()} for row in csv.DictReader(file)]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] < 1
    assert rows[-1]["train_objective"] == pytest.approx(rows[-1]["train_loss"], rel=1e-3)
    names = [f"val_{name}" for name in ("loss", "accuracy", "f1", "average_precision")]
    assert all(0 <= rows[-1][name] <= 1.5 for name in names)
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "all answers on 30 pictures" in report and "most often mistaken for" not in report
    assert all(f"<th>{name}" in report for name in COLORS)
    capsys.readouterr()
    quiet = {name: SMALL[name] for name in ("use_gpu", "precision", "num_workers", "debug_file")}
    summary = main.val(load_model_path=run, **quiet)
    assert summary["average_precision"] == pytest.approx(
        max(r["val_average_precision"] for r in rows), abs=0.1
    )
    assert "all answers on 30 pictures" in capsys.readouterr().out
    result = main.test(
        load_model_path=run, test_data_root=squares, result_file=tmp_path / "r.csv", **quiet
    )
    with open(result, newline="") as file:
        answers = list(csv.DictReader(file))
    assert list(answers[0]) == ["id", *COLORS] and len(answers) == 90
    sums = [sum(float(row[name]) for name in COLORS) for row in answers]
    assert max(sums) - min(sums) > 0.05  # not shares of one answer


def test_the_loss_and_the_metrics_are_those_of_yes_or_no_decisions():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 3, generator=generator)
    labels = torch.randint(0, 2, (40, 3), generator=generator).float()
    expected = F.binary_cross_entropy_with_logits(logits, labels).item()
    assert MultiLabelLoss()(logits, labels).mean().item() == pytest.approx(expected, abs=1e-6)
    assert metrics.loss(logits, labels) == pytest.approx(expected, abs=1e-6)
    right = ((logits > 0) == (labels > 0.5)).float().mean().item()
    assert metrics.accuracy(logits, labels) == pytest.approx(right)
    meters = TrainMeters(3, multi_label=True)
    for part in range(0, 40, 16):
        few = slice(part, part + 16)
        meters.add(logits[few], labels[few], MultiLabelLoss()(logits[few], labels[few]))
    row = meters.row()
    assert row["train_loss"] == pytest.approx(expected, abs=1e-6)
    assert row["train_objective"] == pytest.approx(expected, abs=1e-6)
    assert row["train_accuracy"] == pytest.approx(right)


def test_focus_smoothing_and_weights_of_the_loss():
    logits, labels = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]])
    p = [1 / (1 + math.exp(-x)) for x in (2.0, -1.0)]
    plain = [-math.log(x) for x in p]
    assert MultiLabelLoss(gamma=2)(logits, labels).item() == pytest.approx(
        sum((1 - x) ** 2 * y for x, y in zip(p, plain, strict=True)) / 2, abs=1e-6
    )
    weighted = MultiLabelLoss(weight=torch.tensor([1.0, 3.0]))(logits, labels).item()
    assert weighted == pytest.approx((plain[0] + 3 * plain[1]) / 2, abs=1e-6)
    smooth = MultiLabelLoss(label_smoothing=0.2)(logits, labels).item()
    no = [-math.log(1 - x) for x in p]
    expected = sum(0.9 * y + 0.1 * n for y, n in zip(plain, no, strict=True)) / 2
    assert smooth == pytest.approx(expected, abs=1e-6)


def test_average_precision_by_hand():
    # Ranks of the true pictures: 1 and 3 of 4, so (1/1 + 2/3) / 2; the other class: 2 and 4.
    logits = torch.tensor([[4.0, -4.0], [3.0, -3.0], [2.0, -2.0], [1.0, -1.0]])
    labels = torch.tensor([0, 1, 0, 1])
    first, second = (1 + 2 / 3) / 2, (1 + 2 / 3) / 2
    assert metrics.average_precision(logits, labels) == pytest.approx((first + second) / 2)
    both = torch.tensor([[1, 0], [0, 1], [1, 0], [0, 1]])
    assert metrics.average_precision(logits, both) == pytest.approx((first + second) / 2)
    # Pictures with the same logit have the same rank: the share of true ones.
    assert metrics.average_precision(torch.zeros(4, 2), both) == pytest.approx(0.5)
    assert metrics.average_precision(logits, torch.zeros(4, dtype=torch.long)) == 1.0


def test_the_surest_wrong_classes_come_first():
    logits = torch.tensor([[3.0, -3.0], [-3.0, 2.0], [4.0, 4.0], [-1.0, -1.0]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    found = metrics.worst_mistakes(logits, labels)
    assert [(position, k) for position, k, _ in found] == [(2, 0), (1, 1)]


@pytest.mark.parametrize("option", [{"oversample": True}, {"augment": "mixup"}])
def test_what_needs_one_label_for_each_picture_is_refused(squares, tmp_path, option):
    with pytest.raises(UsageError, match=r"need one label for each|no parameter `augment`"):
        options = SMALL | {"dataset": DrawnColors, "train_data_root": squares} | option
        main.train(**options, checkpoint_root=tmp_path)
