"""Pictures, graphs and maps of what a model does."""

import copy
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from torch import nn

import models
from config import DefaultConfig
from data.transforms import Normalize
from utils import figures, gradcam, graph, metrics

LONG = "a class name of as many as forty letters!"
EVIL = "<script>alert('松')</script>"


def test_a_batch_is_shown_in_the_colours_of_its_files():
    pixels = torch.randint(0, 256, (4, 3, 8, 6), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = Normalize(mean, std, torch.device("cpu"))(pixels)
    assert np.array_equal(
        figures.denormalize(images, mean, std), pixels.permute(0, 2, 3, 1).numpy()
    )


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (8, 8, 1), (9, 8, 2)])
def test_a_gallery_has_a_place_for_each_picture_and_its_words(count, columns, rows):
    pictures = [np.full((64, 64, 3), 10 * k + 5, dtype=np.uint8) for k in range(count)]
    captions = [f"{LONG}\n{EVIL}"] * (count - 1) + ["\udcff\n松"]
    sheet = np.asarray(figures.gallery(pictures, captions))
    height, width = sheet.shape[0] // rows, sheet.shape[1] // columns
    assert (sheet.shape[1], sheet.shape[2]) == (columns * (figures.CELL + 4), 3)
    for k in range(count):
        cell = sheet[k // 8 * height :][:height, k % 8 * width :][:, :width]
        assert (cell[2:126, 2:126] == 10 * k + 5).all()  # enlarged
        words = cell[figures.CELL :, : figures.CELL]
        assert words.min() < 128 and words.max() == 255
        assert (cell[:, figures.CELL + 1 :] == 255).all()  # no word reaches the next picture


@pytest.mark.parametrize("num_classes", [2, 37, 100])
def test_a_confusion_picture_has_a_cell_for_each_pair_of_classes(num_classes):
    counts = np.zeros((num_classes, num_classes), dtype=int)
    counts[0, 0], counts[0, 1], counts[1, 1] = 75, 25, 1234
    names = [f"{LONG} {k}" for k in range(num_classes)]
    sheet = np.asarray(figures.confusion_picture(counts.tolist(), names).convert("RGB")).astype(int)
    side = {2: 64, 37: 26, 100: 26}[num_classes]
    start = sheet.shape[0] - 8 - side * num_classes

    def corner(true: int, given: int) -> tuple[int, ...]:
        return tuple(sheet[start + side * true + 1, start + side * given + 1])

    assert corner(1, 1) == pytest.approx((31, 119, 180), abs=8)  # a palette is not exact
    assert corner(0, 0) == pytest.approx((87, 153, 199), abs=8)  # three quarters of the row
    assert corner(1, 0) == corner(num_classes - 1, 0) == pytest.approx((255, 255, 255), abs=5)
    cell = sheet[start : start + side - 1, start : start + side - 1]
    assert len(np.unique(cell.reshape(-1, 3), axis=0)) > 2  # the number is in it
    assert sheet[:start, :start].min() < 128  # words on the axes


def test_a_confusion_picture_of_many_classes_is_a_map():
    counts = np.zeros((250, 250), dtype=int)
    counts[3, 5] = 2
    picture = np.asarray(figures.confusion_picture(counts.tolist(), ["x"] * 250).convert("L"))
    assert picture.shape == (1000, 1000)
    assert picture[12:16, 20:24].max() == 0 and (picture == 0).sum() == 16


def test_the_confidence_of_right_and_wrong_answers_is_apart():
    logits = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    found = figures.confidences(logits, torch.tensor([0, 1, 1]))
    assert {name: len(values) for name, values in found.items()} == {
        "all": 3,
        "right": 2,
        "wrong": 1,
    }
    assert found["wrong"][0] == pytest.approx(1 / (1 + np.exp(-9.0)))
    assert sorted(found["right"]) == pytest.approx([0.5, 1 / (1 + np.exp(-9.0))])


def test_the_least_sure_right_answers_come_in_order():
    logits = torch.tensor([[0.0, 2.0], [0.0, 1.0], [3.0, 0.0], [5.0, 0.0]])
    labels = torch.tensor([1, 1, 1, 0])  # the third is a mistake
    found = metrics.least_sure_right(logits, labels, 2)
    assert [(position, given) for position, given, _ in found] == [(1, 1), (0, 1)]
    assert found[0][2] == pytest.approx(torch.tensor(1.0).sigmoid().item())
    assert len(metrics.least_sure_right(logits, labels)) == 3
    assert metrics.least_sure_right(logits, 1 - labels * 0 - logits.argmax(1)) == []


def test_the_least_sure_of_multi_label_data_have_all_classes_right():
    logits = torch.tensor([[4.0, -1.0], [3.0, 1.0], [4.0, 4.0], [-1.0, -1.0]])
    labels = torch.tensor([[1, 0], [1, 1], [1, 0], [0, 0]])  # the last shows no class
    found = metrics.least_sure_right(logits, labels)
    assert [(position, given) for position, given, _ in found] == [(1, 1), (0, 0)]
    for (_, _, probability), logit in zip(found, (1.0, 4.0), strict=True):
        assert probability == pytest.approx(torch.tensor(logit).sigmoid().item())


class Forked(nn.Module):
    """Two branches that are added, and a layer that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.unused = nn.Linear(1, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        both = self.first(images).relu() + self.second(images)
        return self.head(both.mean(dim=(2, 3)))


def test_the_graph_has_the_operations_of_each_layer_and_what_they_take():
    nodes = graph.nodes_of(Forked(), torch.zeros(2, 3, 8, 8))
    found = {(node.layer, node.name) for node in nodes}
    assert {("first", "conv2d"), ("second", "conv2d"), ("", "add"), ("", "mean")} < found
    assert ("head", "linear") in found and not [node for node in nodes if node.layer == "unused"]
    (add,) = [node for node in nodes if node.name == "add"]
    assert {nodes[number].name for number in add.inputs} == {"relu", "conv2d"}
    weights = {name: shape for node in nodes for name, shape in node.weights}
    assert weights["first.weight"] == (4, 3, 3, 3) and weights["head.bias"] == (2,)
    assert all(before < number for number, node in enumerate(nodes) for before in node.inputs)


@pytest.mark.parametrize("name", ["SqueezeNet", "ResNet34"])
def test_the_graph_of_a_model_can_be_drawn_and_is_one_of_tensorboard(name):
    model = models.new(DefaultConfig(model=name), 2)
    before = copy.deepcopy(model.state_dict())
    operations = graph.nodes_of(model, torch.rand(2, 3, 64, 64))
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())
    shown = {weight for o in operations for weight, _ in o.weights}
    assert shown == {key for key, _ in model.named_parameters()}
    drawing = ET.fromstring(graph.to_svg(operations))
    boxes = [x for x in drawing if x.tag.endswith("rect")]
    assert len(boxes) == len(operations)
    places = {(box.get("x"), box.get("y")) for box in boxes}
    assert len(places) == len(boxes)  # none hides another
    nodes = {node.name: node for node in graph.to_graph_def(operations).node}
    assert len(nodes) == len(operations) + len(shown)
    assert all(name in nodes for node in nodes.values() for name in node.input)


def test_grad_cam_is_red_where_the_class_is():
    class Corner(nn.Module):
        """Class 1 is the brightness of the first channel."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 1, 1, bias=False)
            nn.init.ones_(self.body.weight)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            bright = self.body(images).mean(dim=(1, 2, 3))
            return torch.stack([-bright, bright], dim=1)

    model, images = Corner(), torch.zeros(2, 3, 8, 8)
    images[0, :, :4, :4] = 1.0
    images[1, :, 4:, 4:] = 1.0
    maps = gradcam.grad_cam(model, images, [1, 1])
    assert maps.shape == (2, 8, 8) and maps.max() == 1
    assert maps[0, :4, :4].min() == 1 and maps[0, 4:].max() == 0
    assert maps[1, 4:, 4:].min() == 1 and maps[1, :4].max() == 0
    assert gradcam.grad_cam(model, images, [0, 0]).max() == 0  # nothing speaks for the other
    assert model.training and model.body.weight.grad is None
    red = np.asarray(gradcam.overlay(np.full((8, 8, 3), 100, dtype=np.uint8), maps[0])).astype(int)
    assert red[0, 0, 0] > red[0, 0, 2] and red[7, 7, 2] > red[7, 7, 0]


def test_a_model_without_a_layer_of_places_has_no_map():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2))
    assert gradcam.grad_cam(model, torch.rand(1, 3, 4, 4), [0]) is None
