"""One training step and one evaluation pass, with all they need as arguments."""

import itertools
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from utils.debug import pause_if_asked
from utils.device import Precision

Batches = Iterable[tuple[int, Tensor, Tensor]]  # step, images (N, 3, H, W), labels (N,)


def train_step(
    model: nn.Module,
    images: Tensor,  # (N, 3, H, W)
    labels: Tensor,  # (N,)
    criterion: Callable[[Tensor, Tensor], Tensor],
    optimizer: Optimizer,
    amp: Precision,
    clip_norm: float | None = None,
    accumulate: int = 1,
) -> tuple[Tensor, Tensor]:
    """Update the weights once; return logits (N, K) and losses (N,), before the update.

    The batch goes through in `accumulate` parts whose gradients add up to those of the whole.
    """
    optimizer.zero_grad()
    parts = []
    for part, part_labels in zip(images.chunk(accumulate), labels.chunk(accumulate), strict=True):
        with amp.autocast:
            logits = model(part)  # (n, K)
            losses = criterion(logits, part_labels)  # (n,)
        loss = losses.sum() / len(labels)  # this part's share of the whole batch's mean
        amp.scaler.scale(loss).backward()
        parts.append((logits.detach(), losses.detach()))
    amp.scaler.unscale_(optimizer)  # before clipping: the norm is the true gradient's (fp16 alone)
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    amp.scaler.step(optimizer)  # optimizer.step(), unless fp16 overflowed
    amp.scaler.update()
    logits, losses = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    return logits, losses


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Batches,
    amp: Precision,
    mirror: bool = False,
    debug_file: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the logits (M, K) and labels (M,) of all pictures, on the CPU, in their order.

    mirror: the logits are the mean over a picture and its mirror image.
    """
    was_training = model.training
    model.eval()
    parts = []
    for _, images, labels in batches:
        with amp.autocast:
            logits = model(images)  # (N, K)
            if mirror:
                logits = (logits + model(images.flip(3))) / 2
        parts.append((logits.float(), labels))
        pause_if_asked(debug_file)
    model.train(was_training)
    if not parts:
        raise ValueError("not one picture could be read")
    logits, labels = (torch.cat(pieces).cpu() for pieces in zip(*parts, strict=True))
    return logits, labels


class ClassificationLoss(nn.Module):
    """Cross-entropy or focal loss (Lin et al., 2017, arXiv:1708.02002), one value a picture.

    logits (N, K), labels (N,) to (N,). Means are left to the caller, who knows the whole batch;
    `weight` (K,) multiplies a picture's loss by its class's weight.
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
            losses = losses * self.weight[labels]
        if self.gamma:
            p_true = logits.softmax(dim=1).gather(1, labels[:, None]).squeeze(1)  # (N,)
            losses = losses * (1 - p_true).clamp(min=1e-6) ** self.gamma  # slope at 0: infinite
        return losses


def balanced_weights(class_counts: list[int]) -> Tensor:
    """Weigh each class by 1 / its count, so that the weights of all pictures average 1: (K,)."""
    counts = torch.tensor(class_counts, dtype=torch.float32)
    return counts.sum() / (len(counts) * counts.clamp(min=1))


def build_optimizer(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """AdamW that decays matrices and filters, not biases and norms (which are vectors)."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=True)
    optimizer.register_load_state_dict_pre_hook(with_own_decay)
    return optimizer


def with_own_decay(optimizer: Optimizer, state: dict) -> dict:
    """Before loading: a checkpoint brings the moments, the options say how much to decay."""
    pairs = zip(state["param_groups"], optimizer.param_groups, strict=True)
    groups = [saved | {"weight_decay": own["weight_decay"]} for saved, own in pairs]
    return state | {"param_groups": groups}


def lr_share(schedule: str, progress: float, warmup: float) -> float:
    """Share of the peak learning rate at `progress` (0 … 1) of a run.

    Both schedules rise in a line at first; then "one_cycle" falls as a cosine to 0 (Smith and
    Topin, 2018, arXiv:1708.07120) and "plateau" stays where the loop has it.
    """
    if progress < warmup:
        return 0.04 + 0.96 * progress / warmup
    if schedule == "plateau":
        return 1.0
    return 0.5 + 0.5 * math.cos(math.pi * (progress - warmup) / (1 - warmup))


def stalls(val_losses: list[float]) -> int:
    """Count the epochs whose val loss was no lower than that of the epoch before."""
    return sum(now >= before for before, now in itertools.pairwise(val_losses))


def set_lr(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
