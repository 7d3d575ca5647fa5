"""The page of a run: every number, curve and picture, and nothing from outside."""

import base64
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from utils import chart, metrics
from utils.report import Page, charts, render

P_OAK = torch.tensor([0.95, 0.17, 0.62, 0.36, 0.81, 0.73])
LABELS = torch.tensor([1, 0, 0, 1, 1, 0])
LOGITS = torch.stack([1 - P_OAK, P_OAK], dim=1).log()
HISTORY = [
    {"epoch": 1, "lr": 0.01, "train_loss": 0.7, "train_accuracy": 0.4, "val_loss": 0.8}
    | {"val_accuracy": 0.5},
    {"epoch": 2, "lr": 0.0, "train_loss": 0.5, "train_accuracy": 0.8, "val_loss": 0.6}
    | {"val_accuracy": 0.6, "val_f1": 0.55},
]


def gray(level: int) -> np.ndarray:
    return np.full((8, 12, 3), level, dtype=np.uint8)


def page_of(
    classes=("fir", "oak"), options=None, history=HISTORY, title="Net on Set", **more
) -> str:
    parts = {
        "title": title,
        "state": "Epoch 2 of 2.",
        "options": options or {"lr": 0.01, "pretrained": None},
        "defaults": {"lr": 0.002, "pretrained": None},
        "history": history,
        "summary": metrics.summarize(LOGITS, LABELS),
        "classes": classes,
        "class_counts": {"train": [7] * len(classes), "val": [3] * len(classes)},
        "mistakes": [(gray(200), "true: fir\ngiven: oak\n73.0%"), (gray(120), "the other")],
    }
    return render(Page(**parts | more))


class Reader(HTMLParser):
    """Collects the cells of every row, the images and every other tag's attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.images: dict[str, list[str]] = {}
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.dots: dict[tuple[str, str], list[tuple[float, float]]] = {}  # chart, line: points
        self.cell, self.chart = False, ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        self.cell = tag in ("td", "th") or (tag == "span" and self.cell)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "svg":
            self.chart = dict(attrs)["aria-label"]
        elif tag == "circle":
            dot = dict(attrs)
            points = self.dots.setdefault((self.chart, dot["data-line"]), [])
            points.append((float(dot["data-x"]), float(dot["data-y"])))
        elif tag == "img":
            self.images.setdefault(dict(attrs)["alt"], []).append(dict(attrs)["src"])
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        self.cell = False

    def handle_data(self, text: str) -> None:
        if self.cell:
            self.rows[-1][-1] += text.strip()


def decode(url: str) -> Image.Image:
    kind, code = re.fullmatch(r"data:image/(png|jpeg);base64,([\w+/=]+)", url).groups()
    image = Image.open(io.BytesIO(base64.b64decode(code, validate=True)))
    assert image.format.lower() == kind
    return image


def test_the_page_has_every_number():
    rows = Reader(page_of()).rows
    assert ["accuracy", "50.00% of 6 pictures (95 % interval 18.76% … 81.24%)"] in rows
    assert ["loss", "0.6245"] in rows and ["calibration error", "0.4000"] in rows
    start = rows.index(["true class", "precision", "recall", "F1", "as fir", "as oak"])
    assert rows[start + 1 : start + 3] == [
        ["fir", "0.5000", "0.3333", "0.4000", "1", "2"],
        ["oak", "0.5000", "0.6667", "0.5714", "1", "2"],
    ]
    assert rows[start + 3 :] == [
        ["class", "train", "val", ""],
        *([name, "7", "3", ""] for name in ("fir", "oak")),
        ["lr", "0.01(default 0.002)"],
        ["pretrained", "None"],
    ]


def test_the_pictures_are_shown_with_their_words():
    reader = Reader(page_of(least_sure=[(gray(40), "right")], looks=[(gray(90), "look")]))
    assert list(reader.images) == ["true: fir\ngiven: oak\n73.0%", "the other", "right", "look"]
    for (url,), level in zip(reader.images.values(), (200, 120, 40, 90), strict=True):
        image = decode(url)
        assert (image.size, image.mode) == ((12, 8), "RGB")
        assert image.getpixel((6, 4)) == pytest.approx((level,) * 3, abs=3)


def test_a_page_without_mistakes_says_so():
    assert page_of(mistakes=[]).count("<p>None.</p>") == 2  # and no right answer that is unsure
    assert page_of().count("<p>None.</p>") == 1
    assert "Where the model looks" not in page_of()


def test_what_the_user_supplied_is_escaped():
    evil = "<script>alert('1')</script>"
    quoted = '"><img src=x onerror=alert(1)>'
    page = page_of(
        classes=(evil, quoted),
        options={evil: quoted, "path": evil},
        title=evil,
        mistakes=[(gray(1), evil)],
    )
    reader = Reader(page)
    assert "<script" not in page and page.count("<img src=x") == 0
    assert reader.tags.isdisjoint({"script", "link", "iframe", "a"})
    assert "onerror" not in reader.attributes
    assert [evil, quoted] in reader.rows and ["path", evil] in reader.rows
    # The class's two rows and the option's.
    assert [row[0] for row in reader.rows].count(evil) == 3
    assert evil in reader.images


def test_the_page_needs_nothing_from_outside():
    page = page_of()
    reader = Reader(page)
    assert not re.search(r"https?:|url\(|@import", page)
    assert {"href", "onclick", "srcset"}.isdisjoint(reader.attributes)
    assert "default-src 'none'" in page
    for urls in reader.images.values():
        for url in urls:
            decode(url)


# The curves.


def test_curves_of_both_splits_share_a_chart_and_every_key_has_one():
    found = charts(HISTORY)
    assert list(found) == ["loss", "accuracy", "f1", "lr"]  # lr is of no split: last
    assert found["loss"] == {"train": [0.7, 0.5], "val": [0.8, 0.6]}
    assert found["accuracy"] == {"train": [0.4, 0.8], "val": [0.5, 0.6]}
    assert found["lr"] == {"": [0.01, 0.0]}
    assert math.isnan(found["f1"]["val"][0]) and found["f1"]["val"][1] == 0.55
    dots = Reader(page_of()).dots
    for name, lines in found.items():
        for line, numbers in lines.items():
            points = [(epoch, y) for epoch, y in enumerate(numbers, 1) if y == y]
            assert dots[f"{name} by epoch", line] == points


def test_the_training_objective_is_apart_from_the_losses_and_shown_only_if_it_differs():
    plain = [row | {"train_objective": row["train_loss"] + 1e-7} for row in HISTORY]
    assert "objective" not in charts(plain)
    smoothed = [row | {"train_objective": row["train_loss"] + 0.2} for row in HISTORY]
    found = charts(smoothed)
    assert found["objective"] == {"train": pytest.approx([0.9, 0.7])}
    assert found["loss"] == {"train": [0.7, 0.5], "val": [0.8, 0.6]}
    # a run that older code began: its first rows lack the key
    assert "objective" not in charts([HISTORY[0], plain[1]])
    assert math.isnan(charts([HISTORY[0], smoothed[1]])["objective"]["train"][0])


def test_an_added_metric_is_on_the_page_and_has_a_curve(monkeypatch):
    monkeypatch.setitem(metrics.METRICS, "share_of_oaks", (lambda x, y: x.argmax(1).sum() / 6, max))
    row = {"epoch": 3, **metrics.measure(LOGITS, LABELS, "val_")}
    reader = Reader(page_of(history=[*HISTORY, row]))
    assert ["share of oaks", "0.6667"] in reader.rows
    assert len(reader.dots["share of oaks by epoch", "val"]) == 1


def test_one_epoch_is_enough():
    assert Reader(page_of(history=HISTORY[:1])).dots["loss by epoch", "val"] == [(1, 0.8)]


def test_a_long_run_and_numbers_that_are_not_finite_can_be_drawn():
    history = [{"epoch": n, "val_loss": math.inf if n == 5 else 1 / n} for n in range(1, 301)]
    page = page_of(history=history)
    assert ("loss by epoch", "val") not in Reader(page).dots  # a line without dots
    points = re.search(
        r'aria-label="loss by epoch".*?<polyline class="c1" points="(.*?)"', page, re.S
    )
    assert len(points[1].split()) == 299
    history = [{"epoch": n, "val_loss": math.nan} for n in (1, 2)]
    assert ("loss by epoch", "val") not in Reader(page_of(history=history)).dots
    equal = [{"epoch": n, "val_loss": 0.0} for n in (1, 2)]
    assert len(Reader(page_of(history=equal)).dots["loss by epoch", "val"]) == 2


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.12, 0.71, [0, 0.2, 0.4, 0.6, 0.8]),
        (-3e-5, 2e-5, [-3e-5, -2e-5, -1e-5, 0, 1e-5, 2e-5]),
        (7.0, 7.0, [6, 8]),
        (0.0, 0.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    ],
)
def test_the_ticks_of_an_axis_are_round_numbers_around_all_values(low, high, expected):
    found = chart.ticks(low, high)
    assert found[0] <= low and found[-1] >= high
    if low != high:
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(("num_classes", "columns"), [(37, 4 + 37), (51, 5)])
def test_many_classes_give_a_matrix_or_a_list_of_mistakes(num_classes, columns):
    classes = [f"a class with a long name {number:02}" for number in range(num_classes)]
    labels = torch.arange(num_classes)
    logits = torch.eye(num_classes).roll(1, dims=1)  # each class is taken for the next
    summary = metrics.summarize(logits, labels)
    counts = {"train": range(num_classes), "val": range(num_classes)}
    page = page_of(classes, summary=summary, class_counts=counts)
    rows = [row for row in Reader(page).rows if len(row) > 4]
    table = [row for row in rows if row[0] in ("true class", *classes)]
    assert len(table) == 1 + num_classes and {len(row) for row in table} == {columns}
    # A row is "class, precision, recall, F1" and then the counts or the mistakes.
    assert table[1][5 if columns > 5 else 4] == ("1" if columns > 5 else "a class …name 01 1")
