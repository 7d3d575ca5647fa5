"""Metrics of a classifier: pure functions of logits (M, K) and labels (M,).

Labels are (M, K), of 0 and 1, if a picture may show several classes. Then each class of each
picture is a decision between yes and no, and these are counted like pictures.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def decisions(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return multi-label logits and labels (M, K) as (M * K, 2) and (M * K,); others as they are.

    The logits of a yes-or-no decision are 0 for no and the logit of the class for yes.
    """
    if labels.ndim == 1:
        return logits, labels
    yes = logits.flatten()
    return torch.stack([torch.zeros_like(yes), yes], dim=1), labels.flatten().long()


def loss(logits: Tensor, labels: Tensor) -> float:
    """Return the mean cross-entropy (log-loss), without label smoothing or class weights."""
    return F.cross_entropy(*decisions(logits, labels)).item()


def accuracy(logits: Tensor, labels: Tensor) -> float:
    logits, labels = decisions(logits, labels)
    return (logits.argmax(dim=1) == labels).sum().item() / len(labels)


def f1(logits: Tensor, labels: Tensor) -> float:
    """Return the macro F1: the mean over all classes, so a rare class counts like a common one."""
    return class_scores(logits, labels)["f1"].mean().item()


def average_precision(logits: Tensor, labels: Tensor) -> float:
    """Return the mean over the classes of the area under precision by recall (mAP).

    As in scikit-learn: pictures with the same probability have the same rank. Classes without a
    picture do not count.
    """
    areas = []
    for score, shown in scores_by_class(logits, labels):
        if shown.any():
            order = score.argsort(descending=True)
            hits = shown[order].double().cumsum(dim=0)
            last = torch.diff(score[order], append=score.new_full((1,), -math.inf)) != 0
            hits, ranks = hits[last], last.nonzero().flatten() + 1
            new_hits = torch.diff(hits, prepend=hits.new_zeros(1))
            areas.append((new_hits * hits / ranks).sum().item() / hits[-1].item())
    return mean(areas)


def auc(logits: Tensor, labels: Tensor) -> float:
    """Return the mean over the classes of the area under the ROC curve.

    It is the chance that a picture of the class gets a higher probability for it than another
    picture does; a tie counts as one half. NaN if all pictures show the same.
    """
    areas = []
    for score, shown in scores_by_class(logits, labels):
        positives = int(shown.sum())
        if 0 < positives < len(shown):
            _, place, counts = score.unique(return_inverse=True, return_counts=True)
            ranks = (counts.cumsum(dim=0) - (counts - 1) / 2)[place]  # from 1; ties share a rank
            wins = ranks[shown.bool()].double().sum().item() - positives * (positives + 1) / 2
            areas.append(wins / positives / (len(shown) - positives))
    return mean(areas)


def scores_by_class(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each class a score of all pictures, which grows with its probability, and labels.

    Both are (M,); a label is 1 if the picture shows the class, else 0.
    """
    if labels.ndim == 2:
        return zip(logits.T, labels.T, strict=True)
    # The logarithm, in float64: probabilities close to 1 would be rounded to 1, and tie.
    shown = F.one_hot(labels, logits.shape[1])
    return zip(logits.double().log_softmax(dim=1).T, shown.T, strict=True)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def brier(logits: Tensor, labels: Tensor) -> float:
    """Return the mean squared distance of the probabilities from 0 and 1 (Brier, 1950).

    Of two classes it is that of one of them, as in scikit-learn; of more, the sum over them.
    """
    logits, labels = decisions(logits, labels)
    shares = F.one_hot(labels, logits.shape[1])
    distance = (logits.softmax(dim=1) - shares).square().sum(dim=1).mean().item()
    return distance / 2 if logits.shape[1] == 2 else distance


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Return the mean distance between confidence and accuracy, over ten bins of confidence.

    The expected calibration error of Guo et al., 2017 (arXiv:1706.04599).
    """
    bins = calibration_bins(logits, labels)
    return sum(n * abs(confidence - share) for n, confidence, share in bins) / labels.numel()


# name: (function, which of two values is better). A new metric is one line here: the epoch's line,
# metrics.csv, the curves, the report and `val` show it.
METRICS: dict[str, tuple[Callable[[Tensor, Tensor], float], Callable]] = {
    "loss": (loss, min),
    "accuracy": (accuracy, max),
    "f1": (f1, max),
    "average_precision": (average_precision, max),
    "auc": (auc, max),
    "brier": (brier, min),
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
    count = labels.numel()
    correct = round(values["accuracy"] * count)
    one_label = labels.ndim == 1
    return {
        "count": len(labels),
        **values,
        "accuracy_interval": wilson_interval(correct, count),
        "confusion": confusion_matrix(logits, labels).tolist() if one_label else None,
        "per_class": {k: score.tolist() for k, score in class_scores(logits, labels).items()},
        "calibration_bins": calibration_bins(logits, labels),
    }


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Return counts (K, K): a row per true class, a column per predicted class."""
    classes = logits.shape[1]
    pairs = labels * classes + logits.argmax(dim=1)  # (M,): one number per (true, predicted)
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def class_scores(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return precision, recall and F1 of each class, (K,) each; 0 where nothing can be divided."""
    if labels.ndim == 2:
        answers, shown = logits > 0, labels > 0.5
        correct, true = (answers & shown).sum(dim=0).double(), shown.sum(dim=0)
        predicted = answers.sum(dim=0)
    else:
        confusion = confusion_matrix(logits, labels)
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


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the number to divide the logits by so that the loss is lowest (Guo et al., 2017).

    It is within 0.01 … 100. The slope of the loss grows with 1 / temperature, so that bisection
    finds where it is 0.
    """
    logits, labels = decisions(logits.double(), labels)
    true_logits = logits.gather(1, labels[:, None]).squeeze(1)
    low, high = math.log(0.01), math.log(100)
    for _ in range(50):
        middle = (low + high) / 2
        probabilities = (logits * math.exp(middle)).softmax(dim=1)
        slope = ((probabilities * logits).sum(dim=1) - true_logits).mean().item()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def calibration_bins(logits: Tensor, labels: Tensor, bins: int = 10) -> list[tuple]:
    """Return (pictures, mean confidence, accuracy) of each bin of confidence that has pictures."""
    logits, labels = decisions(logits, labels)
    confidence, predicted = logits.float().softmax(dim=1).max(dim=1)
    bin_of = (confidence * bins).long().clamp(max=bins - 1)
    rows = []
    for chosen in (bin_of == number for number in range(bins)):
        if chosen.any():
            share = (predicted == labels)[chosen].float().mean().item()
            rows.append((int(chosen.sum()), confidence[chosen].mean().item(), share))
    return rows


def worst_mistakes(logits: Tensor, labels: Tensor, count: int = 12) -> list[tuple[int, int, float]]:
    """Return (position, predicted class, probability) of the most confident mistakes, in order.

    Of multi-label data, the mistakes are classes that a picture does not show.
    """
    if labels.ndim == 2:
        confidence, predicted = logits.float().sigmoid().masked_fill(labels > 0.5, 0).max(dim=1)
        labels = torch.where(confidence > 0.5, -1, predicted)  # -1: it is a mistake
    else:
        confidence, predicted = logits.float().softmax(dim=1).max(dim=1)
    wrong = torch.where(predicted == labels, -1.0, confidence)
    positions = wrong.argsort(descending=True, stable=True)[:count].tolist()
    return [(i, int(predicted[i]), float(confidence[i])) for i in positions if wrong[i] >= 0]


def least_sure_right(
    logits: Tensor, labels: Tensor, count: int = 12
) -> list[tuple[int, int, float]]:
    """Return (position, class, probability) of the least confident right answers, in order.

    Of multi-label data, all classes of such a picture are right, and it shows at least one: the
    least sure of those that it shows is named.
    """
    if labels.ndim == 2:
        yes = logits.float().sigmoid()
        right = ((yes > 0.5) == (labels > 0.5)).all(dim=1) & (yes > 0.5).any(dim=1)
        confidence, given = yes.masked_fill(yes <= 0.5, 1.0).min(dim=1)
    else:
        confidence, given = logits.float().softmax(dim=1).max(dim=1)
        right = given == labels
    positions = torch.where(right, confidence, 2.0).argsort(stable=True)[:count].tolist()
    return [(i, int(given[i]), float(confidence[i])) for i in positions if right[i]]


def describe(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return each metric of a summary as {name: text}."""
    texts = {name.replace("_", " "): f"{summary[name]:.4f}" for name in METRICS}
    share, (low, high) = summary["accuracy"], summary["accuracy_interval"]
    interval = f"(95 % interval {low:.2%} … {high:.2%})"
    count = f"{summary['count']:,} pictures"
    what = count if summary["confusion"] else f"all answers on {count}"
    return texts | {"accuracy": f"{share:.2%} of {what} {interval}"}


def class_table(
    summary: Mapping[str, Any], classes: Sequence[str], matrix: bool
) -> list[list[Any]]:
    """Return a heading and a row per true class: its scores and how its pictures were classified.

    matrix: a column of counts per predicted class; without it, the three most frequent mistakes.
    Multi-label data have neither.
    """
    short = [x if len(x) <= 16 else f"{x[:8]}…{x[-7:]}" for x in classes]  # starts may be alike
    heading = ["true class", "precision", "recall", "F1"]
    scores = zip(*summary["per_class"].values(), strict=True)
    cells = [[name, *(f"{x:.4f}" for x in row)] for name, row in zip(classes, scores, strict=True)]
    if not summary["confusion"]:
        return [heading, *cells]
    rows = [heading + ([f"as {name}" for name in short] if matrix else ["most often mistaken for"])]
    for k, counts in enumerate(summary["confusion"]):
        mistakes = sorted((-n, j) for j, n in enumerate(counts) if n and j != k)[:3]
        words = ", ".join(f"{short[j]} {-n}" for n, j in mistakes)
        rows.append(cells[k] + (counts if matrix else [words]))
    return rows


def as_text(summary: Mapping[str, Any], classes: Sequence[str], width: int = 120) -> str:
    """Return a summary for a terminal: the metrics, then a table of the classes.

    The table is a confusion matrix if its lines have at most `width` characters.
    """
    classes = [name if len(name) <= 40 else f"{name[:20]}…{name[-19:]}" for name in classes]
    texts = describe(summary)
    lines = [f"{name:<{max(map(len, texts))}}  {text}" for name, text in texts.items()]
    table = aligned(class_table(summary, classes, matrix=True), left=(0,))
    if max(map(len, table)) > width:
        table = aligned(class_table(summary, classes, matrix=False), left=(0, 4))
    return "\n".join([*lines, "", *table])


def result_rows(dataset: Any, indices: Tensor, logits: Tensor) -> list[dict[str, Any]]:
    """Return the rows of result.csv: the id and the probabilities of each sample of a data set.

    indices (M,): the samples that the logits (M, K) belong to. One that could not be read has
    the same probability for each class.
    """
    classes = dataset.classes
    columns = [f"class {name}" if name == "id" else name for name in classes]
    every = torch.full((len(dataset.ids), len(classes)), 1 / len(classes))
    if dataset.multi_label:
        every[indices] = logits.sigmoid()
    else:
        every[indices] = logits.softmax(dim=1)
        if len(classes) == 2:
            columns, every = ["label"], every[:, 1:]
    rows = zip(dataset.ids, every.tolist(), strict=True)
    return [{"id": number} | dict(zip(columns, row, strict=True)) for number, row in rows]


def aligned(rows: list[list[Any]], left: tuple[int, ...]) -> list[str]:
    """Return the rows as lines with columns; those numbered in `left` are words, others numbers."""
    columns = []
    for number, column in enumerate(zip(*rows, strict=True)):
        width, side = max(len(str(cell)) for cell in column), "<" if number in left else ">"
        columns.append([f"{cell:{side}{width}}" for cell in column])
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
