"""Find the first layer of a step whose numbers are NaN or infinite."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

START_STEPS = 20  # how many steps --checks=start guards


def guard_is_on(checks: str, steps: int) -> bool:
    """Return whether --checks asks to guard the next step; `steps` were done in this process."""
    return checks == "always" or (checks == "start" and steps < START_STEPS)


class NotFinite(FloatingPointError):
    """Weights, outputs, the loss or gradients contain NaN or infinity."""


@torch.enable_grad()
def first_not_finite(
    model: nn.Module,
    parts: Iterable[tuple[Tensor, Tensor]],
    criterion: Callable[[Tensor, Tensor], Tensor],
    autocast: torch.autocast,
) -> str:
    """Name the first weight, output, loss or gradient of a step that is not finite.

    parts: the images (n, 3, H, W) and labels (n,) of the step. The step is repeated on a copy.
    """
    if bad := not_finite(model.named_parameters()):
        return f"{bad[0]} is not finite"
    model, bad_outputs = copy.deepcopy(model), []  # a copy is not compiled

    def note_output(name: str) -> Callable:
        def hook(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                bad_outputs.append(name)

        return hook

    for name, layer in model.named_modules():
        layer.register_forward_hook(note_output(name or type(model).__name__))
    for images, labels in parts:
        if not images.isfinite().all():
            return "a picture is not finite"
        model.zero_grad()
        with autocast:
            losses = criterion(model(images), labels)  # (n,)
        if bad_outputs:
            return f"the output of {bad_outputs[0]} is not finite"
        if not losses.isfinite().all():
            return "the loss is not finite"
        losses.mean().backward()
        gradients = ((name, weight.grad) for name, weight in model.named_parameters())
        if bad := not_finite(gradients):
            return f"the gradient of {bad[-1]} is not finite"  # backward begins at the last layer
    return "the norm of the gradient is not finite"


def not_finite(tensors: Iterable[tuple[str, Tensor | None]]) -> list[str]:
    """List the names of the tensors that hold a NaN or an infinity."""
    return [name for name, x in tensors if x is not None and not x.isfinite().all()]
