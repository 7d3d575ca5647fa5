"""Meters and metrics against numbers worked out by hand; torchnet's traps."""

import json
import math

import numpy as np
import pytest
import torch

from utils.meters import AverageMeter, ConfusionMeter
from utils.metrics import as_text as text_of
from utils.metrics import calibration_bins, summarize, wilson_interval, worst_mistakes

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


# Metrics: P(dog) of six pictures, and what they are.

P_DOG = torch.tensor([0.95, 0.17, 0.62, 0.36, 0.81, 0.73])
LABELS = torch.tensor([1, 0, 0, 1, 1, 0])  # right, right, wrong, wrong, right, wrong
LOGITS = torch.stack([1 - P_DOG, P_DOG], dim=1).log()


def test_a_summary_has_the_numbers_worked_out_by_hand():
    summary = summarize(LOGITS, LABELS)
    assert summary["count"] == 6
    assert summary["accuracy"] == pytest.approx(0.5)
    assert summary["accuracy_interval"] == pytest.approx((0.187612, 0.812388), abs=1e-6)
    # -(ln .95 + ln .83 + ln .38 + ln .36 + ln .81 + ln .27) / 6
    assert summary["log_loss"] == pytest.approx(0.624485, abs=1e-6)
    # (1 |.95 - 1| + 2 |.82 - 1| + 1 |.73 - 0| + 2 |.63 - 0|) / 6
    assert summary["calibration_error"] == pytest.approx(0.4, abs=1e-6)
    assert summary["confusion"] == [[1, 2], [1, 2]]
    assert summary["precision"] == pytest.approx([1 / 2, 2 / 4])
    assert summary["recall"] == pytest.approx([1 / 3, 2 / 3])
    assert summary["f1"] == pytest.approx([2 / 5, 4 / 7])


def test_a_summary_is_plain_and_the_same_for_shifted_and_bfloat16_logits():
    summary = summarize(LOGITS, LABELS)
    assert json.loads(json.dumps(summary))["confusion"] == [[1, 2], [1, 2]]
    shifted = summarize(LOGITS + 3.0, LABELS)
    assert shifted["log_loss"] == pytest.approx(summary["log_loss"], abs=1e-6)
    rough = summarize(LOGITS.bfloat16(), LABELS)
    assert rough["confusion"] == summary["confusion"]
    assert rough["log_loss"] == pytest.approx(summary["log_loss"], rel=0.01)


def test_a_class_that_is_never_taken_or_never_there_scores_zero():
    summary = summarize(scores(0, 0, 0), torch.tensor([0, 0, 1]))
    assert summary["precision"] == pytest.approx([2 / 3, 0, 0])
    assert summary["recall"] == pytest.approx([1, 0, 0])
    assert summary["f1"] == pytest.approx([0.8, 0, 0])


def test_one_picture_can_be_measured():
    summary = summarize(LOGITS[:1], LABELS[:1])
    assert summary["accuracy"] == 1.0
    assert summary["calibration_error"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("right", "count", "interval"),
    [
        (3, 5, (0.230720, 0.882382)),
        (10, 10, (0.722460, 1.0)),
        (0, 10, (0.0, 0.277540)),
        (950, 1000, (0.934682, 0.961872)),
    ],
)
def test_wilsons_interval(right, count, interval):
    assert wilson_interval(right, count) == pytest.approx(interval, abs=2e-5)


def test_bins_of_confidence_hold_every_picture_once_even_the_surest():
    assert calibration_bins(LOGITS, LABELS) == [
        (2, pytest.approx(0.63), 0.0),
        (1, pytest.approx(0.73), 0.0),
        (2, pytest.approx(0.82), 1.0),
        (1, pytest.approx(0.95), 1.0),
    ]
    assert calibration_bins(torch.tensor([[0.0, 99.0]]), torch.tensor([1])) == [(1, 1.0, 1.0)]


def test_the_worst_mistakes_come_surest_first():
    expected = [(5, 1, 0.73), (3, 0, 0.64), (2, 1, 0.62)]
    for count in (2, 3, 10):
        found = worst_mistakes(LOGITS, LABELS, count)
        assert [row[:2] for row in found] == [row[:2] for row in expected[:count]]
        assert [row[2] for row in found] == pytest.approx([row[2] for row in expected[:count]])
    assert worst_mistakes(LOGITS[:2], LABELS[:2], 5) == []


def test_a_summary_as_text_names_every_class_and_number():
    lines = text_of(summarize(LOGITS, LABELS), ("cat", "dog")).splitlines()
    assert "50.00% of 6 pictures (95 % interval 18.76% … 81.24%)" in lines[0]
    assert lines[1].split() == ["log-loss", "0.6245"]
    assert lines[2].split() == ["calibration", "error", "0.4000"]
    assert lines[-2].split() == ["cat", "1", "2", "0.5000", "0.3333", "0.4000"]
    assert lines[-1].split() == ["dog", "1", "2", "0.5000", "0.6667", "0.5714"]
