"""report.html of a run: one file with its curves, its numbers and its worst mistakes inside."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import to_pil_image

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: right }
th { font-weight: 600 } tr + tr { border-top: 1px solid #ddd } td:first-child { text-align: left }
figure { display: inline-block; margin: .5rem; font-size: .85rem } figcaption { max-width: 12rem }
img { max-width: 100% } figure img { width: 12rem; image-rendering: auto }
"""


def write_report(
    path: Path,
    title: str,
    options: dict[str, Any],
    history: list[dict[str, float]],
    summary: dict[str, Any],
    mistakes: list[tuple[int, int, float]],
    samples: Dataset,
    classes: Sequence[str],
) -> None:
    """Write the page. summary and mistakes are what utils/metrics.py says of the val split;
    the positions in `mistakes` are those of `samples`, a data set of (image, label)."""
    low, high = summary["accuracy_interval"]
    page = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>",
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>",
        f"<p><b>{summary['accuracy']:.2%}</b> of {summary['count']:,} val pictures right "
        f"(95 % interval {low:.2%} … {high:.2%}), log-loss {summary['log_loss']:.4f}, "
        f"calibration error {summary['calibration_error']:.4f}.</p>",
        f"<h2>Training</h2><img alt='curves of loss and accuracy' src='{curves(history)}'>",
        "<h2>Confusion</h2>",
        table(
            ["true, taken for", *classes, "precision", "recall", "F1"],
            [
                [name, *summary["confusion"][k], *scores]
                for k, name in enumerate(classes)
                for scores in [[f"{summary[s][k]:.4f}" for s in ("precision", "recall", "f1")]]
            ],
        ),
        "<h2>Calibration</h2>",
        f"<img alt='accuracy by confidence' src='{calibration(summary['calibration_bins'])}'>",
        "<h2>Surest mistakes</h2>",
        *gallery(mistakes, samples, classes),
        "<h2>Options</h2>",
        table(["option", "value"], [[name, value] for name, value in options.items()]),
    ]
    path.write_text("\n".join(page) + "\n", encoding="utf-8")


def table(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{html.escape(str(cell))}</th>" for cell in header)]
    lines += [
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows
    ]
    return "\n".join(lines) + "</table>"


def curves(history: list[dict[str, float]]) -> str:
    """Draw loss and accuracy of both splits by epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.5), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split in ("train", "val"):
            axes.plot(epochs, [row[f"{split}_{what}"] for row in history], marker=".", label=split)
        axes.set(xlabel="epoch", title=what)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return data_url(figure.savefig, "png")


def calibration(bins: list[tuple[int, float, float]]) -> str:
    """Draw how often answers of each confidence are right; on the diagonal they mean it.

    The area of a point goes with its pictures.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 3.5), layout="constrained")
    axes = figure.subplots()
    counts, confidence, accuracy = zip(*bins, strict=True)
    areas = [20 + 300 * count / sum(counts) for count in counts]
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    axes.scatter(confidence, accuracy, areas)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.05), ylim=(-0.05, 1.05))
    axes.grid(alpha=0.3)
    return data_url(figure.savefig, "png")


def gallery(
    mistakes: list[tuple[int, int, float]], samples: Dataset, classes: Sequence[str]
) -> list[str]:
    """Show pictures that were taken for something else, with how sure the model was."""
    figures = []
    for position, predicted, probability in mistakes:
        image, label = samples[position]
        url = data_url(to_pil_image(image).save, "jpeg")
        words = html.escape(f"{classes[label]}, taken for {classes[predicted]}")
        figures.append(
            f"<figure><img alt='{words}' src='{url}'>"
            f"<figcaption>{words} with {probability:.1%}</figcaption></figure>"
        )
    return figures or ["<p>None.</p>"]


def data_url(save: Any, kind: str) -> str:
    """Let `save(file, format=kind)` write a picture, and put it into an address."""
    file = io.BytesIO()
    save(file, format=kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
