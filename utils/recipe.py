"""The loss, the optimizer and the learning rate: one function for each, to be replaced at will."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from utils.muon import Muon


def build_criterion(opt: Any, dataset: Any) -> nn.Module:
    """Return the loss of the options: logits (N, K) and labels (N,) to losses (N,).

    dataset: of the training split. If it is multi-label, labels are (N, K).
    """
    if dataset.multi_label:
        counts = torch.tensor(dataset.class_counts).clamp(min=1)
        weight = (len(dataset) - counts) / counts if opt.balanced else None
        return MultiLabelLoss(weight, opt.label_smoothing, opt.focal_gamma)
    weight = balanced_weights(dataset.class_counts) if opt.balanced else None
    return ClassificationLoss(weight, opt.label_smoothing, opt.focal_gamma)


def build_optimizer(opt: Any, model: nn.Module) -> Optimizer:
    """Return Muon or AdamW, with decay of matrices and filters but not of biases and norms.

    A group may have a "lr_factor": `set_lr` multiplies the learning rate by it. Frozen weights are
    in as well, so that they learn once they are unfrozen; without a gradient they do not change.
    """
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": opt.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if opt.optimizer == "muon":
        optimizer = Muon(groups, lr=opt.lr, betas=(0.9, 0.99))
    else:
        optimizer = torch.optim.AdamW(groups, lr=opt.lr, betas=(0.9, 0.99), fused=True)
    optimizer.register_load_state_dict_pre_hook(keep_own_settings)
    return optimizer


def learning_rate(opt: Any, progress: float, history: Sequence[Mapping[str, float]]) -> float:
    """Return the learning rate at `progress` (0 … 1) of a run whose epochs so far are `history`.

    Both schedules rise linearly to opt.lr. Then "one_cycle" falls as a cosine to 0 (Smith and
    Topin, 2018, arXiv:1708.07120); "plateau" is multiplied by opt.lr_decay after each epoch whose
    val loss was not lower than that of the epoch before. A function of the place in the run, not a
    scheduler object, so that a resumed run needs no state for it.
    """
    peak = opt.lr
    if opt.schedule == "plateau":
        losses = [row["val_loss"] for row in history]
        peak *= opt.lr_decay ** sum(b >= a for a, b in itertools.pairwise(losses))
    if progress < opt.warmup:
        return peak * (0.04 + 0.96 * progress / opt.warmup)
    if opt.schedule == "plateau":
        return peak
    return peak * (0.5 + 0.5 * math.cos(math.pi * (progress - opt.warmup) / (1 - opt.warmup)))


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every group, times the group's "lr_factor" if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def keep_own_settings(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Before loading a state: keep the current settings, except for the rate that the log shows."""
    pairs = zip(optimizer.param_groups, state["param_groups"], strict=True)
    groups = [own | {"params": saved["params"], "lr": saved["lr"]} for own, saved in pairs]
    return state | {"param_groups": groups}


class ClassificationLoss(nn.Module):
    """Cross-entropy or focal loss (Lin et al., 2017, arXiv:1708.02002), one value a picture.

    logits (N, K) and labels (N,) to losses (N,). The caller takes the mean, since only the caller
    knows the whole batch. Labels may also be (N, K), the shares of the classes in a mixed picture.
    weight (K,): the loss of a picture is multiplied by that of its class.
    """

    def __init__(
        self, weight: Tensor | None = None, label_smoothing: float = 0.0, gamma: float = 0.0
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.label_smoothing, self.gamma = label_smoothing, gamma

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits.float()  # a logarithm in bfloat16 has two digits
        losses = F.cross_entropy(
            logits, labels, reduction="none", label_smoothing=self.label_smoothing
        )
        if self.weight is not None:
            losses = losses * (self.weight[labels] if labels.ndim == 1 else labels @ self.weight)
        if self.gamma:
            shares = labels if labels.ndim == 2 else F.one_hot(labels, logits.shape[1])  # (N, K)
            p_true = (logits.softmax(dim=1) * shares).sum(dim=1)  # (N,)
            # The clamp: at p_true = 1 the slope of a power below 1 is infinite.
            losses = losses * (1 - p_true).clamp(min=1e-6) ** self.gamma
        return losses


class MultiLabelLoss(ClassificationLoss):
    """Binary cross-entropy or focal loss, the mean over the classes: one value a picture.

    logits and labels (N, K) to losses (N,). weight (K,): of pictures that show the class.
    """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits.float()
        targets = labels * (1 - self.label_smoothing) + self.label_smoothing / 2
        losses = F.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=self.weight, reduction="none"
        )  # (N, K)
        if self.gamma:
            p_true = torch.where(labels > 0.5, logits, -logits).sigmoid()
            losses = losses * (1 - p_true).clamp(min=1e-6) ** self.gamma
        return losses.mean(dim=1)


def balanced_weights(class_counts: Sequence[int]) -> Tensor:
    """Return a weight for each class (K,), 1 / its count, scaled to a mean of 1 over pictures."""
    counts = torch.tensor(class_counts, dtype=torch.float32)
    return counts.sum() / (len(counts) * counts.clamp(min=1))
