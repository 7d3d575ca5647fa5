"""Run by torchrun: compare --sync-bn with BatchNorm over the whole batch, in float64."""

import copy
import sys
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from data.sampler import part_of
from utils import distributed, synchronize


def compare(momentum: float | None) -> float:
    """Return the largest difference of outputs, gradients and statistics over two steps."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5, momentum=momentum)
    nn.init.normal_(norm.weight)
    whole = nn.Sequential(norm).double()
    part = copy.deepcopy(whole)
    options: Any = SimpleNamespace(sync_bn=True, batch_size=7, accumulate=1)
    synchronize.batch_norm(part, options, print)
    rows = list(part_of(range(7)))  # of different sizes
    pairs = []
    for _ in range(2):
        images, weights = 3 * torch.randn(7, 5, 3, 4).double() + 100, torch.randn(7, 5, 3, 4)
        results = []
        for model, chosen in ((whole, [*range(7)]), (part, rows)):
            own = images[chosen].requires_grad_()
            output = model(own)
            inputs = [own, *model.parameters()]
            gradients = torch.autograd.grad((output * weights[chosen]).sum(), inputs)
            results.append([output, *gradients])
        (output, gradient, *sums), (own_output, own_gradient, *own_sums) = results
        pairs += [(output[rows], own_output), (gradient[rows], own_gradient)]
        pairs += zip(sums, map(distributed.sum_of_all, own_sums), strict=True)
    pairs += zip(whole.buffers(), part.buffers(), strict=True)
    return max((one - other).abs().max().item() for one, other in pairs)


if __name__ == "__main__":
    distributed.start(use_gpu=False)
    found = [compare(momentum) for momentum in (0.1, None)]
    print(found)
    sys.exit(not max(found) < 1e-9)
