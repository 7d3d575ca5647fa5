"""One training step and one evaluation pass, with all they need as arguments."""

import ctypes
import itertools
import math
import os
from collections.abc import Callable, Iterable
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from utils.debug import pause_if_asked

Batches = Iterable[tuple[int, Tensor, Tensor]]  # step, images (N, 3, H, W), labels (N,)


def train_step(
    model: nn.Module,
    images: Tensor,  # (N, 3, H, W)
    labels: Tensor,  # (N,)
    criterion: Callable[[Tensor, Tensor], Tensor],
    optimizer: Optimizer,
    amp: "Precision",
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
        amp.scaler.scale(losses.sum() / len(labels)).backward()
        parts.append((logits.detach(), losses.detach()))
    amp.scaler.unscale_(optimizer)  # before clipping: the norm is that of the true gradient
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    amp.scaler.step(optimizer)
    amp.scaler.update()
    logits, losses = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    return logits, losses


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Batches,
    amp: "Precision",
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
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=True)


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


class Precision:
    """In which numbers the model computes: one path for all of them.

    "auto" is bfloat16 where the device computes it natively, else float32. `autocast` wraps the
    forward pass; `scaler` keeps the small gradients of float16 and lets all others through.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name == "auto":
            name = "bf16" if has_native_bf16(device) else "fp32"
        dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self.name = name
        self.autocast = torch.autocast(device.type, dtype, enabled=dtype is not None)
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")


def has_native_bf16(device: torch.device) -> bool:
    """Ask the processor or the GPU; emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    can = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device.type == "cpu" and bool(can.get("amx_bf16") or can.get("avx512_bf16"))


def pick_device(use_gpu: bool, deterministic: bool = False) -> torch.device:
    """The accelerator (CUDA, Apple, Intel) if there is one and it is wanted, else the CPU.

    deterministic: the same bits each time on a GPU as well; a CPU gives them anyway.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(deterministic)
    tune_cpu()
    found = use_gpu and torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


def tune_cpu() -> None:
    """Spare a CPU two things that can cost half its speed; the weights stay the same.

    Memory of a step goes back to the system and comes again, page by page and zeroed, at the next
    one, unless the allocator is told to keep it (mallopt(3); elsewhere than on glibc nothing is
    done). Numbers below 1e-38, of which there are many once a batch is learnt, take the processor a
    hundred times as long as 0, for which they are taken.
    """
    torch.set_flush_denormal(True)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large pages for large tensors
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for a large tensor
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: bytes kept free for the next step
