"""One training step and one evaluation pass. All they need comes as arguments."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from utils import distributed
from utils.debug import pause_if_asked
from utils.device import Precision
from utils.guard import NotFinite, first_not_finite
from utils.synchronize import average_gradients

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
    guard: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Update the weights once; return logits (N, K), losses (N,) and the norm of the gradient.

    All of them are from before the update, the norm from before it is clipped.

    accumulate: the number of parts in which the batch goes through the model, to save memory; their
    gradients add up to the gradient of the whole batch (not exactly with BatchNorm, which then
    normalises each part by itself). guard: raise NotFinite, which names the layer, instead of
    making an update that is not finite (float16 needs no guard: its scaler skips such an update).
    """
    optimizer.zero_grad()
    parts, results = split_batch(images, labels, accumulate), []
    for part, part_labels in parts:
        with amp.autocast:
            part_logits = model(part)  # (n, K)
            part_losses = criterion(part_logits, part_labels)  # (n,)
        loss = part_losses.sum() / len(labels)  # this part's share of the mean over the batch
        amp.scaler.scale(loss).backward()
        results.append((part_logits.detach(), part_losses.detach()))
    average_gradients(model, len(labels))  # over the ranks of torchrun, if there are several
    amp.scaler.unscale_(optimizer)  # for float16: clipping needs the true gradients
    max_norm = clip_norm or math.inf  # inf: measure the norm, change nothing
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    if guard and not amp.scaler.is_enabled() and not norm.isfinite():
        where = first_not_finite(model, parts, criterion, amp.autocast)
        raise NotFinite(f"{where}; the update was not made")
    amp.step(optimizer)  # calls optimizer.step()
    logits, losses = (torch.concat(tensors) for tensors in zip(*results, strict=True))
    return logits, losses, norm


def split_batch(images: Tensor, labels: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """Split a batch into `count` equal parts; into fewer, if a part would be a single picture.

    BatchNorm cannot train on a single value a channel.
    """
    count = max(1, min(count, len(labels) // 2))
    return list(zip(images.tensor_split(count), labels.tensor_split(count), strict=True))


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Batches,
    amp: Precision,
    mirror: bool = False,
    debug_file: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the logits (M, K) and the labels (M,) of all pictures, on the CPU, in their order.

    mirror: the logits are the mean over a picture and its mirror image.
    """
    was_training = model.training
    model.eval()
    results = []
    for _, images, labels in batches:
        if not len(images):  # other ranks have the last pictures
            continue
        with amp.autocast:
            logits = model(images)  # (N, K)
            if mirror:
                logits = (logits + model(images.flip(3))) / 2
        results.append((logits.float(), labels))
        pause_if_asked(debug_file)
    model.train(was_training)
    own = [torch.concat(tensors).cpu() for tensors in zip(*results, strict=True)]
    results = [part for part in distributed.from_all(own) if part]  # in the order of the split
    if not results:
        raise ValueError("there is no picture to evaluate")
    logits, labels = (torch.concat(tensors) for tensors in zip(*results, strict=True))
    return logits, labels
