"""What one evaluation pass says about a model; pure functions of logits and labels."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def summarize(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Measure logits (M, K) against labels (M,): plain numbers and lists.

    accuracy_interval is Wilson's 95 % interval; calibration_error the expected one over ten bins
    of confidence (Guo et al., 2017, arXiv:1706.04599); precision, recall and f1 go by class.
    """
    if not logits.isfinite().all():
        raise FloatingPointError("the logits are not finite: training diverged; lower --lr")
    logits, classes = logits.float(), logits.shape[1]
    pairs = labels * classes + logits.argmax(dim=1)  # (M,): one number a (true, predicted)
    confusion = torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).numpy()
    right = confusion.diagonal()
    precision = right / confusion.sum(axis=0).clip(min=1)
    recall = right / confusion.sum(axis=1).clip(min=1)
    return {
        "count": len(labels),
        "accuracy": float(right.sum() / len(labels)),
        "accuracy_interval": wilson_interval(int(right.sum()), len(labels)),
        "log_loss": F.cross_entropy(logits, labels).item(),
        "calibration_error": calibration_error(logits, labels),
        "calibration_bins": calibration_bins(logits, labels),
        "confusion": confusion.tolist(),
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "f1": (2 * precision * recall / np.maximum(precision + recall, 1e-12)).tolist(),
    }


def wilson_interval(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927), good for few pictures and shares near 1 too."""
    share = right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    return middle - half, middle + half


def calibration_bins(logits: Tensor, labels: Tensor, bins: int = 10) -> list[tuple]:
    """Group pictures by confidence: (pictures, mean confidence, accuracy) of each bin in use."""
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    which = (confidence * bins).long().clamp(max=bins - 1)
    rows = []
    for chosen in (which == number for number in range(bins)):
        if chosen.any():
            accuracy = (predicted == labels)[chosen].float().mean().item()
            rows.append((int(chosen.sum()), confidence[chosen].mean().item(), accuracy))
    return rows


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """How far confidence and accuracy lie apart, on average over pictures."""
    rows = calibration_bins(logits, labels)
    return sum(n * abs(confidence - accuracy) for n, confidence, accuracy in rows) / len(labels)


def worst_mistakes(logits: Tensor, labels: Tensor, count: int = 12) -> list[tuple[int, int, float]]:
    """List (position, predicted class, probability) of the surest wrong answers, surest first."""
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    surest = torch.where(predicted == labels, -1.0, confidence).argsort(
        descending=True, stable=True
    )
    wrong = [i for i in surest.tolist()[:count] if predicted[i] != labels[i]]
    return [(i, int(predicted[i]), float(confidence[i])) for i in wrong]


def as_text(summary: dict[str, Any], classes: tuple[str, ...]) -> str:
    """Lay out a summary for a terminal."""
    low, high = summary["accuracy_interval"]
    lines = [
        f"accuracy           {summary['accuracy']:.2%} of {summary['count']:,} pictures"
        f" (95 % interval {low:.2%} … {high:.2%})",
        f"log-loss           {summary['log_loss']:.4f}",
        f"calibration error  {summary['calibration_error']:.4f}",
        "",
        f"{'true, taken for':<18}"
        + "".join(f"{name:>9}" for name in classes)
        + f"{'precision':>12}{'recall':>9}{'F1':>9}",
    ]
    for k, name in enumerate(classes):
        scores = (
            f"{summary['precision'][k]:>12.4f}{summary['recall'][k]:>9.4f}{summary['f1'][k]:>9.4f}"
        )
        lines.append(f"{name:<18}" + "".join(f"{n:>9}" for n in summary["confusion"][k]) + scores)
    return "\n".join(lines)
