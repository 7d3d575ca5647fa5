"""The page report.html: a run's curves, numbers and pictures, all in one file without a script."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils import chart, metrics

Example = tuple[np.ndarray, str]  # a picture, uint8 (H, W, 3), and words on it


@dataclass
class Page:
    """What a report shows."""

    title: str
    state: str  # how far the run is, and which weights the numbers belong to
    options: Mapping[str, Any]
    defaults: Mapping[str, Any]  # options that differ from them are marked
    history: Sequence[Mapping[str, float]]  # a row an epoch
    summary: Mapping[str, Any]  # of `metrics.summarize`
    classes: Sequence[str]
    class_counts: Mapping[str, Sequence[int]]  # by split
    mistakes: Sequence[Example] = ()
    least_sure: Sequence[Example] = ()  # right answers
    looks: Sequence[Example] = ()  # of `gradcam`
    machine: Mapping[str, str] | None = None  # what does not depend on the options


def render(page: Page) -> str:
    """Return the page as HTML; it needs no network and no other file."""
    epochs = [row["epoch"] for row in page.history]
    curves = {
        name: chart.line_chart(
            f"{name} by epoch",
            {line: list(zip(epochs, values, strict=True)) for line, values in lines.items()},
            "epoch",
        )
        for name, lines in charts(page.history).items()
    }
    return template("report.html").render(
        vars(page)
        | {
            "scores": metrics.describe(page.summary),
            "curves": curves,
            "class_table": metrics.class_table(
                page.summary, page.classes, matrix=len(page.classes) <= 50
            ),
            "calibration": calibration_chart(page.summary["calibration_bins"]),
            "mistakes": [(image_url(pixels), words) for pixels, words in page.mistakes],
            "least_sure": [(image_url(pixels), words) for pixels, words in page.least_sure],
            "looks": [(image_url(pixels), words) for pixels, words in page.looks],
        }
    )


@cache
def template(name: str, folder: Path | None = None) -> Any:
    """Return a template of this folder, or of `folder`, that escapes what it is given."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # here: it loads slowly

    folders = [Path(__file__).parent, folder or Path(__file__).parent]
    return Environment(
        loader=FileSystemLoader(folders), autoescape=True, undefined=StrictUndefined
    ).get_template(name)


def charts(history: Sequence[Mapping[str, float]]) -> dict[str, dict[str, list[float]]]:
    """Return {name: {split: values}}; train_<name> and val_<name> share the chart of that name.

    Every key of any row is there, NaN where a row lacks it; charts with a val curve come first.
    train_objective is left out if it equals train_loss, which is always plain cross-entropy.
    """
    found: dict[str, dict[str, list[float]]] = {}
    same = all(objective_is_loss(row) for row in history if "train_objective" in row)
    for key in dict.fromkeys(key for row in history for key in row):
        if key == "epoch" or (key == "train_objective" and same):
            continue
        split, _, name = key.partition("_")
        if split not in ("train", "val"):
            split, name = "", key
        values = [row.get(key, math.nan) for row in history]
        found.setdefault(name.replace("_", " "), {})[split] = values
    return dict(sorted(found.items(), key=lambda chart: "val" not in chart[1]))


def objective_is_loss(row: Mapping[str, float]) -> bool:
    """Tell whether training minimised the plain loss, so that one of the two says all."""
    loss = row.get("train_loss", math.nan)
    return math.isclose(row.get("train_objective", math.nan), loss, rel_tol=1e-3)


def calibration_chart(bins: Sequence[tuple[int, float, float]]) -> str:
    """Draw accuracy by confidence; larger dots stand for more pictures."""
    points = [(confidence, accuracy) for _, confidence, accuracy in bins]
    lines = {"this model": points, "calibrated": [(0.0, 0.0), (1.0, 1.0)]}
    most = max(count for count, _, _ in bins)
    return chart.line_chart(
        "accuracy by confidence",
        lines,
        "confidence",
        x_limits=(0.0, 1.0),
        y_limits=(0.0, 1.0),
        sizes={"this model": [count / most for count, _, _ in bins]},
    )


def image_url(pixels: np.ndarray | Image.Image, kind: str = "jpeg") -> str:
    """Return a picture, uint8 (H, W, 3), as an address that contains it."""
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
