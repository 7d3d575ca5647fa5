"""Metrics of a classifier: pure functions of logits (M, K) and labels (M,)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def loss(logits: Tensor, labels: Tensor) -> float:
    """Return the mean cross-entropy (log-loss), without label smoothing or class weights."""
    return F.cross_entropy(logits, labels).item()


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(dim=1) == labels).sum().item() / len(labels)


def f1(logits: Tensor, labels: Tensor) -> float:
    """Return the macro F1: the mean over all classes, so a rare class counts like a common one."""
    return class_scores(confusion_matrix(logits, labels))["f1"].mean().item()


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Return the mean distance between confidence and accuracy, over ten bins of confidence.

    The expected calibration error of Guo et al., 2017 (arXiv:1706.04599).
    """
    bins = calibration_bins(logits, labels)
    return sum(n * abs(confidence - share) for n, confidence, share in bins) / len(labels)


# name: (function, which of two values is better). A new metric is one line here: the epoch's line,
# metrics.csv, the curves, the report and `val` show it.
METRICS: dict[str, tuple[Callable[[Tensor, Tensor], float], Callable]] = {
    "loss": (loss, min),
    "accuracy": (accuracy, max),
    "f1": (f1, max),
    "calibration_error": (calibration_error, min),
}


def measure(logits: Tensor, labels: Tensor, prefix: str = "") -> dict[str, float]:
    """Return every metric as {prefix + name: value}."""
    if not logits.isfinite().all():
        raise FloatingPointError("the logits are not finite: training diverged; lower --lr")
    logits = logits.float()
    return {prefix + name: float(metric(logits, labels)) for name, (metric, _) in METRICS.items()}


def is_best(name: str, rows: Sequence[dict[str, float]]) -> bool:
    """Return whether no row has a better `val_<name>` than the last row; a tie counts as best.

    rows: the history, one dict per epoch. A row without that key, or with NaN, is never the best.
    """
    values = [row.get(f"val_{name}", math.nan) for row in rows]
    better = METRICS[name][1]
    return values[-1] == better((x for x in values if not math.isnan(x)), default=None)


def summarize(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return all that is known about one evaluation, as plain numbers and lists."""
    values = measure(logits, labels)  # first: it raises for logits that are not finite
    confusion = confusion_matrix(logits, labels)
    return {
        "count": len(labels),
        **values,
        "accuracy_interval": wilson_interval(int(confusion.trace()), len(labels)),
        "confusion": confusion.tolist(),
        "per_class": {name: score.tolist() for name, score in class_scores(confusion).items()},
        "calibration_bins": calibration_bins(logits, labels),
    }


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Return counts (K, K): a row per true class, a column per predicted class."""
    classes = logits.shape[1]
    pairs = labels * classes + logits.argmax(dim=1)  # (M,): one number per (true, predicted)
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def class_scores(confusion: Tensor) -> dict[str, Tensor]:
    """Return precision, recall and F1 of each class, (K,) each; 0 where nothing can be divided."""
    correct, true = confusion.diagonal().double(), confusion.sum(dim=1)
    predicted = confusion.sum(dim=0)
    return {
        "precision": correct / predicted.clamp(min=1),
        "recall": correct / true.clamp(min=1),
        "f1": 2 * correct / (predicted + true).clamp(min=1),
    }


def wilson_interval(correct: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson, 1927), right for few pictures too."""
    share, square = correct / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(square * share * (1 - share) + square * square / 4) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)  # rounding goes beyond 0 and 1


def calibration_bins(logits: Tensor, labels: Tensor, bins: int = 10) -> list[tuple]:
    """Return (pictures, mean confidence, accuracy) of each bin of confidence that has pictures."""
    confidence, predicted = logits.float().softmax(dim=1).max(dim=1)
    bin_of = (confidence * bins).long().clamp(max=bins - 1)
    rows = []
    for chosen in (bin_of == number for number in range(bins)):
        if chosen.any():
            share = (predicted == labels)[chosen].float().mean().item()
            rows.append((int(chosen.sum()), confidence[chosen].mean().item(), share))
    return rows


def worst_mistakes(logits: Tensor, labels: Tensor, count: int = 12) -> list[tuple[int, int, float]]:
    """Return (position, predicted class, probability) of the most confident mistakes, in order."""
    confidence, predicted = logits.float().softmax(dim=1).max(dim=1)
    wrong = torch.where(predicted == labels, -1.0, confidence)
    positions = wrong.argsort(descending=True, stable=True)[:count].tolist()
    return [(i, int(predicted[i]), float(confidence[i])) for i in positions if wrong[i] >= 0]


def describe(summary: dict[str, Any]) -> dict[str, str]:
    """Return each metric of a summary as {name: text}."""
    texts = {name.replace("_", " "): f"{summary[name]:.4f}" for name in METRICS}
    share, (low, high) = summary["accuracy"], summary["accuracy_interval"]
    interval = f"(95 % interval {low:.2%} … {high:.2%})"
    return texts | {"accuracy": f"{share:.2%} of {summary['count']:,} pictures {interval}"}


def class_table(summary: dict[str, Any], classes: Sequence[str], matrix: bool) -> list[list[Any]]:
    """Return a heading and a row per true class: its scores and how its pictures were classified.

    matrix: a column of counts per predicted class; without it, the three most frequent mistakes.
    """
    short = [x if len(x) <= 16 else f"{x[:8]}…{x[-7:]}" for x in classes]  # starts may be alike
    heading = ["true class", "precision", "recall", "F1"]
    rows = [heading + ([f"as {name}" for name in short] if matrix else ["most often mistaken for"])]
    for k, counts in enumerate(summary["confusion"]):
        mistakes = sorted((-n, j) for j, n in enumerate(counts) if n and j != k)[:3]
        words = ", ".join(f"{short[j]} {-n}" for n, j in mistakes)
        scores = [f"{values[k]:.4f}" for values in summary["per_class"].values()]
        rows.append([classes[k], *scores, *(counts if matrix else [words])])
    return rows


def as_text(summary: dict[str, Any], classes: Sequence[str], width: int = 120) -> str:
    """Return a summary for a terminal: the metrics, then a table of the classes.

    The table is a confusion matrix if its lines have at most `width` characters.
    """
    texts = describe(summary)
    lines = [f"{name:<{max(map(len, texts))}}  {text}" for name, text in texts.items()]
    table = aligned(class_table(summary, classes, matrix=True), left=(0,))
    if max(map(len, table)) > width:
        table = aligned(class_table(summary, classes, matrix=False), left=(0, 4))
    return "\n".join([*lines, "", *table])


def result_rows(
    ids: Sequence[Any], probabilities: Tensor, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the rows of result.csv: id and probabilities (M, K), of two classes the second one."""
    columns = [f"class {name}" if name == "id" else name for name in classes]
    if len(classes) == 2:
        columns, probabilities = ["label"], probabilities[:, 1:]
    rows = zip(ids, probabilities.tolist(), strict=True)
    return [{"id": number} | dict(zip(columns, row, strict=True)) for number, row in rows]


def aligned(rows: list[list[Any]], left: tuple[int, ...]) -> list[str]:
    """Return the rows as lines with columns; those numbered in `left` are words, others numbers."""
    columns = []
    for number, column in enumerate(zip(*rows, strict=True)):
        width, side = max(len(str(cell)) for cell in column), "<" if number in left else ">"
        columns.append([f"{cell:{side}{width}}" for cell in column])
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
