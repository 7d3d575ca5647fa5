"""Make one training of what the ranks compute: gradients, logits, BatchNorm's statistics."""

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from utils import distributed
from utils.checkpoint import plain_copy
from utils.options import UsageError

if TYPE_CHECKING:
    from config import DefaultConfig

FEW = 16  # pictures; from fewer, the statistics of a batch are mostly chance


def copy_from_first(model: nn.Module) -> None:
    """Give the models of all ranks the weights and buffers of the first rank's."""
    if distributed.WORLD_SIZE > 1:
        state = distributed.from_first(lambda: plain_copy(model.state_dict()))
        model.load_state_dict(state)


@torch.no_grad()
def average_gradients(model: nn.Module, count: int) -> None:
    """Make each gradient its mean over the pictures of all ranks; `count` are those of this rank.

    The statistics of BatchNorm become their mean as well, in the same sum over the ranks. Since it
    comes after the backward pass, no rank has to compute in the way of the others: one may need
    more parts (--accumulate), another may skip a layer at random.
    """
    if distributed.WORLD_SIZE == 1:
        return
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    used = torch.tensor([weight.grad is not None for weight in weights])
    for weight in weights:
        weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    norms = [norm for norm in model.modules() if isinstance(norm, _NormBase) and norm.training]
    statistics = [x for norm in norms for x in norm.buffers() if x.is_floating_point()]
    tensors = [weight.grad for weight in weights if weight.grad is not None] + statistics
    numbers = [torch.view_as_real(x) if x.is_complex() else x for x in tensors]
    used_and_one = torch.tensor([*used, 1.0]).to(weights[0].device)
    flat = torch.concat([*(x.flatten().float() for x in numbers), used_and_one]).mul_(count)
    distributed.sum_of_all(flat)
    flat /= flat[-1].clone()  # the number of pictures of all ranks
    *means, shares = flat.split([*(x.numel() for x in numbers), len(used_and_one)])
    for x, mean in zip(numbers, means, strict=True):
        x.copy_(mean.view(x.shape))
    if not used.all():  # a weight that no rank has used keeps no gradient
        for weight, share in zip(weights, shares.tolist(), strict=False):
            weight.grad = weight.grad if share else None


def gather(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors (n, …) with the rows of all ranks, in the order of the ranks: (N, …)."""
    if distributed.WORLD_SIZE == 1:
        return tensors
    sizes = distributed.integers_from_all(len(tensors[0]))
    start, end = sum(sizes[: distributed.RANK]), sum(sizes[: distributed.RANK + 1])
    # float64 holds any label and any logit exactly.
    parts = [x.reshape(len(x), prod(x.shape[1:])).double() for x in tensors]
    rows = parts[0].new_zeros(sum(sizes), sum(part.shape[1] for part in parts))
    rows[start:end] = torch.concat(parts, dim=1)
    distributed.sum_of_all(rows)  # the others have zeros in these rows
    columns = zip(rows.split([part.shape[1] for part in parts], dim=1), tensors, strict=True)
    return tuple(x.reshape(-1, *like.shape[1:]).to(like.dtype) for x, like in columns)


class SumOfAll(torch.autograd.Function):
    """Add up tensors of all ranks. The backward pass does so with their gradients."""

    @staticmethod
    def forward(_ctx: Any, numbers: Tensor) -> Tensor:
        return distributed.sum_of_all(numbers.clone())

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return distributed.sum_of_all(gradient.clone())


class SyncBatchNorm(nn.SyncBatchNorm):
    """BatchNorm over the pictures of all ranks: that of torch on GPUs, and the same on a CPU."""

    process_group = None  # all ranks

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (n, C, …): its channels get mean 0 and variance 1 over all ranks."""
        if images.is_cuda or not self.training:
            return super().forward(images)
        dtype = torch.promote_types(images.dtype, torch.float32)
        x = images.to(dtype).transpose(0, 1).flatten(1)  # (C, numbers)
        count = SumOfAll.apply(x.new_tensor([x.shape[1]]))
        mean = SumOfAll.apply(x.sum(dim=1)) / count  # (C,)
        x = x - mean[:, None]
        variance = SumOfAll.apply(x.square().sum(dim=1)) / count
        self.update_statistics(mean.detach(), variance.detach() * count / (count - 1))
        x = x * (variance + self.eps).rsqrt()[:, None]
        if self.affine:
            x = x * self.weight[:, None] + self.bias[:, None]
        first = images.transpose(0, 1)
        return x.view(first.shape).transpose(0, 1).to(images)

    def update_statistics(self, mean: Tensor, variance: Tensor) -> None:
        pairs = (self.running_mean, mean), (self.running_var, variance)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
            count = int(self.num_batches_tracked)
            for running, new in pairs:  # without a momentum, their plain mean over all steps
                share = 1 / count if self.momentum is None else self.momentum
                running.lerp_(new.to(running), share)  # type: ignore[union-attr]


def batch_norm(model: nn.Module, opt: "DefaultConfig", log: Callable[[str], Any]) -> None:
    """Let BatchNorm see the pictures of all ranks if --sync-bn is given; else log what it sees."""
    norms = [norm for norm in model.modules() if isinstance(norm, _BatchNorm)]
    share = opt.batch_size // distributed.WORLD_SIZE
    if distributed.WORLD_SIZE == 1 or not norms:
        return
    if not opt.sync_bn:
        if share < FEW:
            seen = f"BatchNorm sees {share} pictures on each rank"
            log(f"{seen}; with --sync-bn all {opt.batch_size}")
        return
    if opt.accumulate > 1:  # the ranks may have different numbers of parts
        raise UsageError("--sync-bn needs the whole batch at once: leave out --accumulate")
    for norm in norms:
        norm.__class__ = SyncBatchNorm  # so that weights and names stay as they are
