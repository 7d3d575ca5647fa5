"""The page of a run: every number, curve and mistake, and nothing from outside."""

import base64
import io
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from utils import metrics
from utils.report import charts, render

P_DOG = torch.tensor([0.95, 0.17, 0.62, 0.36, 0.81, 0.73])
LABELS = torch.tensor([1, 0, 0, 1, 1, 0])
LOGITS = torch.stack([1 - P_DOG, P_DOG], dim=1).log()
HISTORY = [
    {"epoch": 1, "lr": 0.01, "train_loss": 0.7, "train_accuracy": 0.4, "val_loss": 0.8}
    | {"val_accuracy": 0.5},
    {"epoch": 2, "lr": 0.0, "train_loss": 0.5, "train_accuracy": 0.8, "val_loss": 0.6}
    | {"val_accuracy": 0.6, "val_f1": 0.55},
]


class Samples(torch.utils.data.Dataset):
    """Six images, each of one gray: 40 times its position."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((3, 8, 12), 40 * index, dtype=torch.uint8), int(LABELS[index])


def page_of(classes=("cat", "dog"), options=None, history=HISTORY, title="Net on Set") -> str:
    return render(
        title=title,
        options=options or {"lr": 0.01, "pretrained": None},
        history=history,
        summary=metrics.summarize(LOGITS, LABELS),
        mistakes=metrics.worst_mistakes(LOGITS, LABELS),
        samples=Samples(),
        classes=classes,
    )


class Reader(HTMLParser):
    """Collects the cells of every row, the images and every other tag's attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.images: dict[str, list[str]] = {}
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        self.cell = tag in ("td", "th")
        if tag == "tr":
            self.rows.append([])
        elif self.cell:
            self.rows[-1].append("")
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
    start = rows.index(["true class", "precision", "recall", "F1", "as cat", "as dog"])
    assert rows[start + 1 : start + 3] == [
        ["cat", "0.5000", "0.3333", "0.4000", "1", "2"],
        ["dog", "0.5000", "0.6667", "0.5714", "1", "2"],
    ]
    assert rows[start + 3 :] == [["lr", "0.01"], ["pretrained", "None"]]


def test_the_most_confident_mistakes_are_shown_in_order():
    reader = Reader(page_of())
    words = ["cat, predicted as dog with 73.0%", "dog, predicted as cat with 64.0%"]
    assert [name for name in reader.images if "predicted" in name][:2] == words
    for name, gray in zip(words, (200, 120), strict=True):  # positions 5 and 3
        image = decode(reader.images[name][0])
        assert image.size == (12, 8)
        assert image.getpixel((6, 4)) == pytest.approx((gray,) * 3, abs=3)


def test_a_page_without_mistakes_says_so():
    first = metrics.summarize(LOGITS[:2], LABELS[:2])
    assert "<p>None.</p>" in render("t", {}, HISTORY, first, [], Samples(), ("cat", "dog"))
    assert "<p>None.</p>" not in page_of()


def test_gray_and_transparent_images_are_shown_too():
    for channels in (1, 4):
        samples = [(torch.zeros(channels, 8, 8, dtype=torch.uint8), torch.tensor(1))]
        page = render(
            title="t",
            options={},
            history=HISTORY,
            summary=metrics.summarize(LOGITS, LABELS),
            mistakes=[(0, 0, 0.9)],
            samples=samples,
            classes=("cat", "dog"),
        )
        assert decode(Reader(page).images["dog, predicted as cat with 90.0%"][0]).mode == "RGB"


def test_what_the_user_supplied_is_escaped():
    evil = "<script>alert('1')</script>"
    quoted = '"><img src=x onerror=alert(1)>'
    page = page_of(classes=(evil, quoted), options={evil: quoted, "path": evil}, title=evil)
    reader = Reader(page)
    assert "<script" not in page and page.count("<img src=x") == 0
    assert reader.tags.isdisjoint({"script", "link", "iframe", "a"})
    assert "onerror" not in reader.attributes
    assert [evil, quoted] in reader.rows and ["path", evil] in reader.rows
    assert [row[0] for row in reader.rows].count(evil) == 2  # the class's row and the option's


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
    images = Reader(page_of()).images
    assert {f"{name} by epoch" for name in found} < set(images)
    assert decode(images["loss by epoch"][0]).size == (750, 450)


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
    monkeypatch.setitem(metrics.METRICS, "share_of_dogs", (lambda x, y: x.argmax(1).sum() / 6, max))
    row = {"epoch": 3, **metrics.measure(LOGITS, LABELS, "val_")}
    reader = Reader(page_of(history=[*HISTORY, row]))
    assert ["share of dogs", "0.6667"] in reader.rows
    assert "share of dogs by epoch" in reader.images


def test_one_epoch_is_enough(recwarn):
    assert "loss by epoch" in Reader(page_of(history=HISTORY[:1])).images
    assert not [warning for warning in recwarn if "matplotlib" in warning.filename]


@pytest.mark.parametrize(("num_classes", "columns"), [(37, 4 + 37), (51, 5)])
def test_many_classes_give_a_matrix_or_a_list_of_mistakes(num_classes, columns):
    classes = [f"a class with a long name {number:02}" for number in range(num_classes)]
    labels = torch.arange(num_classes)
    logits = torch.eye(num_classes).roll(1, dims=1)  # each class is taken for the next
    summary = metrics.summarize(logits, labels)
    rows = Reader(render("t", {}, HISTORY, summary, [], Samples(), classes)).rows
    table = [row for row in rows if row[0] in ("true class", *classes)]
    assert len(table) == 1 + num_classes and {len(row) for row in table} == {columns}
    # A row is "class, precision, recall, F1" and then the counts or the mistakes.
    assert table[1][5 if columns > 5 else 4] == ("1" if columns > 5 else "a class …name 01 1")
