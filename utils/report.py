"""The page report.html: a run's curves, numbers and worst mistakes, all in one file."""

import base64
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from utils import metrics


def render(
    title: str,
    options: dict[str, Any],
    history: list[dict[str, float]],
    summary: dict[str, Any],
    mistakes: list[tuple[int, int, float]],
    samples: Dataset,
    classes: Sequence[str],
) -> str:
    """Return the page as HTML; it needs no network and no other file.

    summary, mistakes: what `metrics.summarize` and `metrics.worst_mistakes` return; the positions
    in `mistakes` are those of `samples`, a data set of (uint8 image, label).
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # here: it loads slowly

    gallery = []
    for position, predicted, probability in mistakes:
        try:
            image, label = samples[position]
        except OSError:  # it could be read before
            continue
        shown = np.flatnonzero(label) if np.ndim(label) else [int(label)]
        truth = " and ".join(classes[k] for k in shown) or "none of the classes"
        words = f"{truth}, predicted as {classes[predicted]} with {probability:.1%}"
        pixels = image.permute(1, 2, 0).squeeze(2).numpy()  # (H, W) if grey
        gallery.append((data_url(Image.fromarray(pixels).convert("RGB").save, "jpeg"), words))
    epochs = [row["epoch"] for row in history]
    folder = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=folder, autoescape=True, undefined=StrictUndefined)
    return pages.get_template("report.html").render(
        title=title,
        scores=metrics.describe(summary),
        curves={name: draw_curves(epochs, curves) for name, curves in charts(history).items()},
        class_table=metrics.class_table(summary, classes, matrix=len(classes) <= 50),
        calibration=draw_calibration(summary["calibration_bins"]),
        mistakes=gallery,
        options=options,
    )


def charts(history: list[dict[str, float]]) -> dict[str, dict[str, list[float]]]:
    """Return {name: {split: values}}; train_<name> and val_<name> share the chart of that name.

    Every key of any row is there, NaN where a row lacks it; charts with a val curve come first.
    train_objective is left out if it equals train_loss, which is always plain cross-entropy.
    """
    found: dict[str, dict[str, list[float]]] = {}
    same = all(
        math.isclose(row["train_objective"], row.get("train_loss", math.nan), rel_tol=1e-3)
        for row in history
        if "train_objective" in row
    )
    for key in dict.fromkeys(key for row in history for key in row):
        if key == "epoch" or (key == "train_objective" and same):
            continue
        split, _, name = key.partition("_")
        if split not in ("train", "val"):
            split, name = "", key
        values = [row.get(key, math.nan) for row in history]
        found.setdefault(name.replace("_", " "), {})[split] = values
    return dict(sorted(found.items(), key=lambda chart: "val" not in chart[1]))


def draw_curves(epochs: list[int], curves: dict[str, list[float]]) -> str:
    """Draw the values of each split by epoch."""
    from matplotlib.figure import Figure  # here: it loads slowly

    figure = Figure(figsize=(5, 3), dpi=150, layout="constrained")
    axes = figure.subplots()
    for split, values in curves.items():
        color = {"train": "tab:blue", "val": "tab:orange"}.get(split, "tab:gray")
        axes.plot(epochs, values, marker=".", label=split, color=color)
    axes.set(xlabel="epoch", xlim=(epochs[0] - 0.5, epochs[-1] + 0.5))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    if any(curves):  # a split has a name
        axes.legend()
    return data_url(figure.savefig, "png")


def draw_calibration(bins: list[tuple[int, float, float]]) -> str:
    """Draw the accuracy of the predictions by confidence; larger points stand for more pictures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), dpi=150, layout="constrained")
    axes = figure.subplots()
    counts, confidence, accuracy = zip(*bins, strict=True)
    areas = [20 + 300 * count / sum(counts) for count in counts]
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    axes.scatter(confidence, accuracy, areas)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.05), ylim=(-0.05, 1.05))
    axes.grid(alpha=0.3)
    return data_url(figure.savefig, "png")


def data_url(save: Callable, kind: str) -> str:
    """Return the image that `save(file, format=kind)` writes, as an address that contains it."""
    file = io.BytesIO()
    save(file, format=kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
