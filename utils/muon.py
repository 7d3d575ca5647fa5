"""Muon: an optimizer that learns from fewer pictures than AdamW does."""

from collections.abc import Iterable
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

SCALE = 3.5  # of the steps of Jordan et al.: a good learning rate is then one for AdamW, too


class Muon(Optimizer):
    """Muon for weights of two or more dimensions, AdamW for the others (biases and norms).

    AdamW scales each number of a gradient by itself. Muon scales a weight matrix as a whole: it
    makes all singular values of the averaged gradient nearly equal, so that rare directions are
    learnt like common ones (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon). The
    filters of a convolution (out, in, h, w) count as a matrix (out, in * h * w).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        """momentum: of Muon's mean gradient; betas: of AdamW's two means."""
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    # The same methods without torch's decorator, which loads its compiler: 1.3 s at each start.
    add_param_group = unwrap(Optimizer.add_param_group)
    zero_grad = unwrap(Optimizer.zero_grad)
    state_dict = unwrap(Optimizer.state_dict)
    load_state_dict = unwrap(Optimizer.load_state_dict)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    rule = muon_update if weight.ndim > 1 else adam_update
                    update = rule(weight.grad, self.state[weight], group)
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(update, alpha=group["lr"])


def muon_update(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """Return the update of a matrix or of filters for a learning rate of 1, shaped like them."""
    if not state:
        state["momentum_buffer"] = torch.zeros_like(gradient)
    mean = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])  # running mean
    ahead = gradient.lerp(mean, group["momentum"])  # Nesterov's momentum
    update = orthogonalize(ahead.flatten(1))
    rows, columns = update.shape
    return update.mul_(SCALE * max(1, rows / columns) ** 0.5).view(gradient.shape)


def orthogonalize(matrix: Tensor, steps: int = 3) -> Tensor:
    """Return a matrix (M, N) with the same singular vectors and singular values close to 1.

    Each step of this Newton-Schulz iteration turns a singular value s into
    3.4445 s - 4.775 s^3 + 2.0315 s^5 (coefficients of Jordan et al.). After three steps, those that
    were at least 0.02 lie within 0.65 … 1.25, and smaller ones have grown forty-fold.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix  # the products below are then smaller
    x = x / (x.norm() + 1e-7)  # the sum of the squared singular values is now 1
    for _ in range(steps):
        square = x @ x.T
        factor = torch.addmm(square, square, square, beta=-4.775, alpha=2.0315)
        x = torch.addmm(x, factor, x, beta=3.4445)
    return x.T if is_tall else x


def adam_update(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """Return Adam's update of a vector for a learning rate of 1 (arXiv:1412.6980)."""
    if not state:
        state |= {"step": 0, "exp_avg": torch.zeros_like(gradient)}
        state["exp_avg_sq"] = torch.zeros_like(gradient)
    state["step"] += 1
    beta1, beta2 = group["betas"]
    mean = state["exp_avg"].lerp_(gradient, 1 - beta1) / (1 - beta1 ** state["step"])
    square = state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta2) / (1 - beta2 ** state["step"])
    return mean / square.sqrt_().add_(1e-8)
