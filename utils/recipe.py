"""The loss, the optimizer and the learning rate: one function for each, to be replaced at will."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from utils.muon import Muon

if TYPE_CHECKING:
    from config import DefaultConfig

History = Sequence[Mapping[str, float]]  # a row an epoch


def build_criterion(opt: "DefaultConfig", dataset: Any) -> nn.Module:
    """Return the loss of the options: logits (N, K) and labels (N,) to losses (N,).

    dataset: of the training split. If it is multi-label, labels are (N, K).
    """
    if dataset.multi_label:
        counts = torch.tensor(dataset.class_counts).clamp(min=1)
        weight = (len(dataset) - counts) / counts if opt.balanced else None
        return MultiLabelLoss(weight, opt.label_smoothing, opt.focal_gamma)
    weight = balanced_weights(dataset.class_counts) if opt.balanced else None
    return ClassificationLoss(weight, opt.label_smoothing, opt.focal_gamma)


def build_optimizer(
    opt: "DefaultConfig", model: nn.Module, body: Sequence[nn.Parameter] = ()
) -> Optimizer:
    """Return Muon or AdamW, with decay of matrices and filters but not of biases and norms.

    body: the weights that learn at --backbone-lr times the rate of the others. A group may have a
    "lr_factor": `set_lr` multiplies the learning rate by it. Frozen weights are in as well, so that
    they learn once they are unfrozen; without a gradient they do not change.
    """
    slow = {id(weight) for weight in body} if opt.backbone_lr < 1 else set()
    rest = [weight for weight in model.parameters() if id(weight) not in slow]
    groups = decay_groups(rest, opt.weight_decay)
    if slow:
        groups += [g | {"lr_factor": opt.backbone_lr} for g in decay_groups(body, opt.weight_decay)]
    if opt.optimizer == "muon":
        optimizer: Optimizer = Muon(groups, lr=opt.lr, betas=(0.9, 0.99))
    else:
        optimizer = torch.optim.AdamW(groups, lr=opt.lr, betas=(0.9, 0.99), fused=True)
    optimizer.register_load_state_dict_pre_hook(keep_own_settings)
    return optimizer


def decay_groups(weights: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    matrices = [weight for weight in weights if weight.ndim > 1]
    vectors = [weight for weight in weights if weight.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def freeze(model: nn.Module, body: Sequence[nn.Parameter], frozen: bool) -> None:
    """Let the weights of the body learn, or not; layers that do not learn are set to eval mode.

    Their BatchNorm then uses, and keeps, the statistics that came with the weights.
    """
    for weight in body:
        weight.requires_grad_(not frozen)
    for layer in model.modules() if frozen else ():
        weights = list(layer.parameters(recurse=False))
        if weights and not any(weight.requires_grad for weight in weights):
            layer.eval()


def learning_rate(opt: "DefaultConfig", progress: float, history: History) -> float:
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


def end_early(opt: "DefaultConfig", history: History, seconds: float) -> str:
    """Return why the run ends before --max-epoch, or "" if it goes on.

    seconds: how long the run has taken for the epochs of `history`.
    """
    losses = [row["val_loss"] for row in history]
    if opt.stop_after and losses and len(losses) - 1 - losses.index(min(losses)) >= opt.stop_after:
        return f"{opt.stop_after} epochs without a lower val loss (--stop-after)"
    if opt.max_minutes and losses and seconds * (1 + 1 / len(losses)) > 60 * opt.max_minutes:
        return f"another would probably not end within {opt.max_minutes:g} minutes (--max-minutes)"
    return ""


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

    weight: Tensor | None

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
