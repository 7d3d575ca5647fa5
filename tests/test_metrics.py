"""Metrics against numbers worked out by hand."""

import json
import math
import re

import pytest
import torch

from utils import metrics
from utils.metrics import (
    METRICS,
    as_text,
    calibration_bins,
    is_best,
    measure,
    summarize,
    wilson_interval,
    worst_mistakes,
)

# P(oak) of six images, and their labels.
P_OAK = torch.tensor([0.95, 0.17, 0.62, 0.36, 0.81, 0.73])
LABELS = torch.tensor([1, 0, 0, 1, 1, 0])  # right, right, wrong, wrong, right, wrong
LOGITS = torch.stack([1 - P_OAK, P_OAK], dim=1).log()


def one_hot(*predicted: int, num_classes: int = 3) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predicted), num_classes).float()


@pytest.fixture
def share_of_oaks(monkeypatch: pytest.MonkeyPatch) -> str:
    """Add a metric as a user would, in one line: 4 of the 6 images are predicted as oaks."""
    share = (lambda logits, labels: logits.argmax(dim=1).float().mean(), max)
    monkeypatch.setitem(METRICS, "share_of_oaks", share)
    return "share_of_oaks"


# All metrics.


def test_a_summary_has_the_numbers_worked_out_by_hand():
    summary = summarize(LOGITS, LABELS)
    assert summary["count"] == 6
    assert summary["accuracy"] == 0.5
    assert summary["accuracy_interval"] == pytest.approx((0.187612, 0.812388), abs=1e-6)
    # -(ln .95 + ln .83 + ln .38 + ln .36 + ln .81 + ln .27) / 6
    assert summary["loss"] == pytest.approx(0.624485, abs=1e-6)
    # (1 |.95 - 1| + 2 |.82 - 1| + 1 |.73 - 0| + 2 |.63 - 0|) / 6
    assert summary["calibration_error"] == pytest.approx(0.4, abs=1e-6)
    assert summary["confusion"] == [[1, 2], [1, 2]]
    assert summary["per_class"] == {
        "precision": pytest.approx([1 / 2, 2 / 4]),
        "recall": pytest.approx([1 / 3, 2 / 3]),
        "f1": pytest.approx([2 / 5, 4 / 7]),
    }
    assert summary["f1"] == pytest.approx((2 / 5 + 4 / 7) / 2)
    assert summary["calibration_bins"] == calibration_bins(LOGITS, LABELS)


def test_what_is_measured_each_epoch_is_what_the_summary_says():
    values, summary = measure(LOGITS, LABELS, prefix="val_"), summarize(LOGITS, LABELS)
    names = ["loss", "accuracy", "f1", "average_precision", "auc", "brier", "calibration_error"]
    assert list(values) == [f"val_{name}" for name in names]
    assert values == {f"val_{name}": summary[name] for name in METRICS}
    assert all(type(value) is float for value in values.values())


def test_a_summary_is_plain_and_the_same_for_shifted_and_bfloat16_logits():
    summary = summarize(LOGITS, LABELS)
    assert json.loads(json.dumps(summary))["confusion"] == [[1, 2], [1, 2]]
    shifted = summarize(LOGITS + 3.0, LABELS)
    assert shifted["loss"] == pytest.approx(summary["loss"], abs=1e-6)
    rough = summarize(LOGITS.bfloat16(), LABELS)
    assert rough["confusion"] == summary["confusion"]
    assert rough["loss"] == pytest.approx(summary["loss"], rel=0.01)


def test_a_class_that_is_never_predicted_or_never_there_scores_zero():
    summary = summarize(one_hot(0, 0, 0), torch.tensor([0, 0, 1]))
    assert summary["per_class"]["precision"] == pytest.approx([2 / 3, 0, 0])
    assert summary["per_class"]["recall"] == pytest.approx([1, 0, 0])
    assert summary["per_class"]["f1"] == pytest.approx([0.8, 0, 0])
    assert summary["f1"] == pytest.approx(0.8 / 3)


def test_one_image_can_be_measured():
    summary = summarize(LOGITS[:1], LABELS[:1])
    assert summary["accuracy"] == 1.0
    assert summary["calibration_error"] == pytest.approx(0.05)


@pytest.mark.parametrize("function", [measure, summarize])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(function, value):
    logits = LOGITS.clone()
    logits[3, 1] = value
    with pytest.raises(FloatingPointError, match="not finite"):
        function(logits, LABELS)


def test_an_added_metric_is_measured_summarized_printed_and_compared(share_of_oaks):
    assert measure(LOGITS, LABELS, "val_")["val_share_of_oaks"] == pytest.approx(4 / 6)
    summary = summarize(LOGITS, LABELS)
    assert type(summary["share_of_oaks"]) is float
    assert re.search(r"^share of oaks +0\.6667$", as_text(summary, ("fir", "oak")), re.MULTILINE)
    assert is_best(share_of_oaks, [{"val_share_of_oaks": 0.5}, {"val_share_of_oaks": 0.6}])


# The best epoch.


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [
        ("accuracy", [0.5], True),
        ("accuracy", [0.5, 0.9, 0.8], False),
        ("accuracy", [0.5, 0.8, 0.9], True),
        ("accuracy", [0.9, 0.8, 0.9], True),  # a tie
        ("loss", [0.5, 0.4], True),
        ("loss", [0.4, 0.5], False),
        ("calibration_error", [0.2, 0.1, 0.1], True),
        ("f1", [None, None, 0.2], True),  # the rows of an older run lack the key
        ("f1", [0.3, None, 0.2], False),
        ("f1", [0.3, None], False),
        ("f1", [None], False),
        ("f1", [math.nan, 0.2], True),
        ("f1", [0.2, math.nan], False),
        ("f1", [math.nan], False),
    ],
)
def test_the_best_row_is_the_last_one_that_none_surpasses(name, values, best):
    rows = [{"epoch": 1} | ({} if x is None else {f"val_{name}": x}) for x in values]
    assert is_best(name, rows) is best


# Parts of the summary.


@pytest.mark.parametrize(
    ("correct", "count", "interval"),
    [
        (3, 5, (0.230720, 0.882382)),
        (10, 10, (0.722460, 1.0)),
        (0, 10, (0.0, 0.277540)),
        (950, 1000, (0.934682, 0.961872)),
    ],
)
def test_wilsons_interval(correct, count, interval):
    assert wilson_interval(correct, count) == pytest.approx(interval, abs=2e-5)


def test_wilsons_interval_stays_within_0_and_1_and_prints_no_negative_zero():
    for count in range(1, 500):
        assert f"{wilson_interval(0, count)[0]:.2%}" == "0.00%"
        assert wilson_interval(count, count)[1] <= 1.0


def test_bins_of_confidence_hold_every_image_once_even_the_most_confident():
    assert calibration_bins(LOGITS, LABELS) == [
        (2, pytest.approx(0.63), 0.0),
        (1, pytest.approx(0.73), 0.0),
        (2, pytest.approx(0.82), 1.0),
        (1, pytest.approx(0.95), 1.0),
    ]
    assert calibration_bins(torch.tensor([[0.0, 99.0]]), torch.tensor([1])) == [(1, 1.0, 1.0)]


def test_the_worst_mistakes_come_in_order_of_confidence():
    expected = [(5, 1, 0.73), (3, 0, 0.64), (2, 1, 0.62)]
    for count in (2, 3, 10):
        found = worst_mistakes(LOGITS, LABELS, count)
        assert [row[:2] for row in found] == [row[:2] for row in expected[:count]]
        assert [row[2] for row in found] == pytest.approx([row[2] for row in expected[:count]])
    assert worst_mistakes(LOGITS[:2], LABELS[:2], 5) == []


# Ranks and squared distances.


def test_auc_counts_pairs_in_order_and_half_of_the_ties():
    logits = torch.tensor([[0.0, 2.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    labels = torch.tensor([1, 1, 0, 0])  # 3.5 of 4 pairs
    assert metrics.auc(logits, labels) == 3.5 / 4
    shown = torch.tensor([[0, 1], [0, 1], [1, 0], [1, 0]])  # by logit: a tie of all, and 3.5 of 4
    assert metrics.auc(logits, shown) == (0.5 + 3.5 / 4) / 2
    assert math.isnan(metrics.auc(logits, torch.ones(4, dtype=torch.long)))  # no pair


def test_pictures_are_ranked_by_probability_not_by_logit():
    logits = torch.tensor([[9.0, 9.0], [0.0, 3.0], [50.0, 0.0], [60.0, 0.0]])
    labels = torch.tensor([0, 1, 0, 0])
    assert metrics.auc(logits, labels) == metrics.average_precision(logits, labels) == 1.0


def test_the_brier_score_of_three_classes_is_a_sum_over_them():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    distance = (0.5 - 0) ** 2 + (0.3 - 1) ** 2 + 0.2**2
    assert metrics.brier(logits, torch.tensor([1])) == pytest.approx(distance)


# The text.


def test_a_summary_as_text_names_every_metric_class_and_number():
    text = as_text(summarize(LOGITS, LABELS), ("fir", "oak"))
    assert text.splitlines() == [
        "loss               0.6245",
        "accuracy           50.00% of 6 pictures (95 % interval 18.76% … 81.24%)",
        "f1                 0.4857",
        "average precision  0.8361",
        "auc                0.7778",  # 7 of 9 pairs of an oak and a fir are in order
        "brier              0.2324",  # (.05² + .17² + .62² + .64² + .19² + .73²) / 6
        "calibration error  0.4000",
        "",
        "true class  precision  recall      F1  as fir  as oak",
        "fir            0.5000  0.3333  0.4000       1       2",
        "oak            0.5000  0.6667  0.5714       1       2",
    ]


def test_the_columns_of_long_class_names_line_up():
    names = ("Abyssinian", "american_pit_bull_terrier", "pug")
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    text = as_text(summarize(one_hot(0, 1, 1, 1, 2, 1), labels), names)
    assert text.splitlines()[8:] == [
        "true class                 precision  recall      F1"
        "  as Abyssinian  as american…terrier  as pug",
        "Abyssinian                    1.0000  0.5000  0.6667"
        "              1                    1       0",
        "american_pit_bull_terrier     0.5000  1.0000  0.6667"
        "              0                    2       0",
        "pug                           1.0000  0.5000  0.6667"
        "              0                    1       1",
    ]


def test_many_long_class_names_give_a_table_that_lists_the_most_frequent_mistakes():
    names = [f"{number:02}" + "n" * 36 + f"{number:02}" for number in range(37)]
    # Every class: 5 images right, 3 taken for the next class, 2 for the one after, 1, 1 for more.
    steps = torch.tensor([0] * 5 + [1] * 3 + [2] * 2 + [3, 4])
    labels = torch.arange(37).repeat_interleave(len(steps))
    predicted = (labels + steps.repeat(37)) % 37
    lines = as_text(summarize(one_hot(*predicted, num_classes=37), labels), names).splitlines()[8:]
    heading, *rows = lines
    assert [row[:40] for row in rows] == names
    ends = [heading.index(word) + len(word) for word in ("precision", "recall", "F1")]
    for row in rows:
        numbers = [match.end() for match in re.finditer(r" 0\.4167", row)]
        assert numbers == ends  # 5 of 12 in each column, under its heading
    start = heading.index("most often mistaken for")
    assert rows[0][start:] == "01nnnnnn…nnnnn01 3, 02nnnnnn…nnnnn02 2, 03nnnnnn…nnnnn03 1"
    assert all(row[start - 2 : start] == "  " != row[start] for row in rows)


def test_a_class_without_mistakes_has_an_empty_list_of_them():
    summary = summarize(one_hot(0, 1, 2), torch.tensor([0, 1, 2]))
    rows = metrics.class_table(summary, "abc", matrix=False)
    assert [row[-1] for row in rows] == ["most often mistaken for", "", "", ""]
