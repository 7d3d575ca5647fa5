"""torchnet's meters, made safe to use. This is the one file that imports torchnet.

Tensors are kept as they come, on their device, and read only in `value()`: a step never waits.
"""

import sys
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.metrics import decisions

# torchnet imports its logger as well, which needs visdom and is not used here: an empty one does.
sys.modules.setdefault("torchnet.logger", ModuleType("torchnet.logger"))

from torchnet import meter  # noqa: E402


class AverageMeter:
    """Mean and standard deviation over pictures; a batch counts by its size."""

    def __init__(self) -> None:
        self.meter = meter.AverageValueMeter()
        self.pending: list[Tensor] = []

    def reset(self) -> None:
        self.meter.reset()
        self.pending.clear()

    def state_dict(self) -> dict[str, float]:
        self.value()  # reads what is pending
        return {name: float(value) for name, value in vars(self.meter).items()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        vars(self.meter).update(state)

    def add(self, values: Tensor) -> None:
        """Take one value a picture: (N,)."""
        self.pending.append(values.detach())

    def value(self) -> tuple[float, float]:
        """Return (mean, standard deviation) of all pictures since `reset`; nan without any."""
        for value in torch.concat(self.pending).tolist() if self.pending else []:
            self.meter.add(value)  # one by one: torchnet's add(mean, n) takes the mean for a sum
        self.pending.clear()
        mean, std = self.meter.value()
        return float(mean), float(std)


class ConfusionMeter:
    """How often pictures of each class (row) were taken for each class (column)."""

    def __init__(self, num_classes: int) -> None:
        self.meter = meter.ConfusionMeter(num_classes)
        self.pending: list[tuple[Tensor, Tensor]] = []

    def reset(self) -> None:
        self.meter.reset()
        self.pending.clear()

    def state_dict(self) -> dict[str, list]:
        return {"counts": self.value().tolist()}

    def load_state_dict(self, state: dict[str, list]) -> None:
        self.meter.conf[:] = state["counts"]

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take logits (N, K) of any float type and labels (N,); N may be 1."""
        bad = ~logits.isfinite().all(dim=1)
        self.pending.append((logits.argmax(dim=1).masked_fill(bad, -1), labels))

    def value(self) -> np.ndarray:
        """Return a copy of the counts (K, K).

        Raises FloatingPointError for logits that are not finite, ValueError for unknown labels.
        """
        if self.pending:
            pending = zip(*self.pending, strict=True)
            answers, labels = (torch.concat(tensors).cpu() for tensors in pending)
            self.pending.clear()
            if (answers < 0).any():
                raise FloatingPointError("the logits are not finite: training diverged; lower --lr")
            if not ((labels >= 0) & (labels < self.meter.k)).all():
                raise ValueError(f"labels are not all within 0 … {self.meter.k - 1}")
            self.meter.add(answers, labels)
        return self.meter.value().copy()  # torchnet returns the array that it goes on counting in

    def accuracy(self) -> float:
        """Return the share of right answers, nan without any."""
        counts = self.value()
        return float(counts.trace() / counts.sum()) if counts.sum() else float("nan")


class TrainMeters:
    """What an epoch of training is measured by: objective, loss and confusion matrix.

    The objective is what training minimises: the loss with the smoothing, weights and focus of the
    options. The loss is plain cross-entropy, as for the val split, so that the two compare.
    """

    def __init__(self, num_classes: int, multi_label: bool = False) -> None:
        self.objective, self.loss = AverageMeter(), AverageMeter()
        self.confusion = ConfusionMeter(2 if multi_label else num_classes)
        self.multi_label = multi_label
        self.parts: dict[str, AverageMeter | ConfusionMeter] = {
            "objective": self.objective,
            "loss": self.loss,
            "confusion": self.confusion,
        }

    def add(self, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Take the logits (N, K), labels (N,) and losses (N,) of a step.

        Labels are (N, K) if the data are multi-label, or if pictures are mixed: these count for the
        class with the largest share.
        """
        self.objective.add(losses)
        if self.multi_label:
            logits, labels = decisions(logits, labels)
        self.loss.add(F.cross_entropy(logits.float(), labels, reduction="none"))
        self.confusion.add(logits, labels if labels.ndim == 1 else labels.argmax(dim=1))

    def row(self) -> dict[str, float]:
        """Return the numbers of the epoch so far, for metrics.csv."""
        return {
            "train_objective": self.objective.value()[0],
            "train_loss": self.loss.value()[0],
            "train_accuracy": self.confusion.accuracy(),
        }

    def reset(self) -> None:
        for part in self.parts.values():
            part.reset()

    def state_dict(self) -> dict[str, dict]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
