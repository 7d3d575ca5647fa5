"""Meters against numbers worked out by hand; torchnet's traps."""

import math

import numpy as np
import pytest
import torch

from utils.meters import AverageMeter, ConfusionMeter

# Mean and standard deviation.


def test_the_mean_is_over_pictures_not_over_batches():
    meter = AverageMeter()
    meter.add(torch.full((128,), 1.0))
    meter.add(torch.full((4,), 5.0))
    assert meter.value()[0] == pytest.approx((128 * 1 + 4 * 5) / 132)


def test_the_standard_deviation_is_over_pictures():
    meter = AverageMeter()
    meter.add(torch.tensor([1.0, 1.0, 1.0]))
    meter.add(torch.tensor([5.0]))
    assert meter.value() == pytest.approx((2.0, 2.0))


def test_reading_a_mean_changes_nothing_and_more_can_be_added():
    meter = AverageMeter()
    meter.add(torch.tensor([2.0, 4.0]))
    assert meter.value() == meter.value() == pytest.approx((3.0, math.sqrt(2)))
    meter.add(torch.tensor([9.0]))
    assert meter.value()[0] == pytest.approx(5.0)
    meter.add(torch.tensor([100.0]))
    meter.reset()
    assert math.isnan(meter.value()[0])
    meter.add(torch.tensor([7.0, 7.0]))
    assert meter.value() == pytest.approx((7.0, 0.0))


def test_a_mean_takes_bfloat16_and_keeps_no_graph():
    meter = AverageMeter()
    meter.add(torch.ones(2, dtype=torch.bfloat16))
    meter.add(torch.tensor([4.0], requires_grad=True) * 1)
    assert not any(values.requires_grad for values in meter.pending)
    assert meter.value()[0] == pytest.approx(2.0)


# Confusion.


def scores(*predicted: int, num_classes: int = 3) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predicted), num_classes).float()


def test_rows_are_the_truth_and_columns_what_it_was_taken_for():
    meter = ConfusionMeter(3)
    meter.add(scores(0, 1, 1, 2), torch.tensor([0, 0, 0, 1]))
    meter.add(scores(2), torch.tensor([2]))  # a last batch of one
    assert meter.value().tolist() == [[1, 2, 0], [0, 0, 1], [0, 0, 1]]
    assert meter.accuracy() == pytest.approx(2 / 5)
    meter.reset()
    assert meter.value().tolist() == [[0] * 3] * 3
    assert math.isnan(meter.accuracy())


def test_counts_are_a_copy_and_reading_them_changes_nothing():
    meter = ConfusionMeter(2)
    meter.add(scores(0, 1, num_classes=2), torch.tensor([0, 1]))
    first = meter.value()
    meter.add(scores(1, num_classes=2), torch.tensor([1]))
    assert first.tolist() == [[1, 0], [0, 1]]
    second = meter.value()
    second[:] = 99
    assert meter.value().tolist() == [[1, 0], [0, 2]]
    assert np.issubdtype(first.dtype, np.integer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_logits_of_any_float_type_are_counted(dtype):
    meter = ConfusionMeter(3)
    meter.add((scores(2, 0) - 0.5).to(dtype).requires_grad_(), torch.tensor([2, 1]))
    assert meter.value().tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_refused(value):
    meter = ConfusionMeter(3)
    logits = scores(0, 1)
    logits[1, 0] = value
    meter.add(logits, torch.tensor([0, 1]))
    with pytest.raises(FloatingPointError, match="not finite"):
        meter.value()


@pytest.mark.parametrize("label", [-1, 3, 100])
def test_labels_out_of_range_are_refused_and_not_counted(label):
    meter = ConfusionMeter(3)
    meter.add(scores(0, 1), torch.tensor([0, label]))
    with pytest.raises(ValueError, match="0 … 2"):
        meter.value()
    assert meter.value().sum() == 0
