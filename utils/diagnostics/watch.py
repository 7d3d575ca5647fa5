"""Watches a training: a step that would spoil the weights is not made, and its layer is named."""

import copy
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from utils.checkpoint import Keeper

from . import bad_gradients, some

START = 20  # steps that --checks=start looks at


class NotFinite(FloatingPointError):
    """Weights, outputs, loss or gradients are NaN or infinite; the weights are as before."""


class Watch:
    """`with Watch(...):` looks at every gradient before it is used, in one wait for the device.

    mode (--checks): "start" takes its hooks off after START steps, "always" never, "off" sets none.
    A loss, an output or a weight that is not finite shows in the gradient as well.
    """

    def __init__(
        self,
        mode: str,
        model: nn.Module,
        optimizer: Optimizer,
        autocast: torch.autocast,
        log: Callable[[str], None],
        keeper: Keeper,
    ) -> None:
        self.model, self.autocast, self.log, self.keeper = model, autocast, log, keeper
        self.inputs: deque[Tensor] = deque(maxlen=64)  # of the step that is under way
        self.steps, self.last = 0, START if mode == "start" else None
        self.hooks = []
        if mode != "off":
            self.hooks = [
                model.register_forward_pre_hook(self.note),
                optimizer.register_step_pre_hook(self.look),
            ]

    def note(self, model: nn.Module, args: tuple) -> None:
        if self.steps == self.last:
            self.close()  # not in `look`, where torch still goes through the hooks
        elif model.training and args:
            self.inputs.append(args[0])

    def look(self, optimizer: Optimizer, *_: Any) -> None:
        """Raise NotFinite before a bad step, with the layer where it began."""
        if self.steps == self.last:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        grads = [p.grad for p in parameters if p.grad is not None]
        skipped = getattr(optimizer, "found_inf", None)  # GradScaler lets it pass over this step
        if skipped is None or not skipped:
            if grads and not torch.stack(torch._foreach_norm(grads)).isfinite().all():
                raise NotFinite(f"{self.guilty()}; {self.advice()}")
            if self.steps == 0 and len(grads) < len(parameters):
                idle = [n for n, p in self.model.named_parameters() if p.requires_grad]
                idle = [n for n in idle if self.model.get_parameter(n).grad is None]
                self.log(f"no gradient reaches {some(idle)}: python main.py check says why")
        self.inputs.clear()
        self.steps += 1

    def advice(self) -> str:
        self.keeper.wait()
        saved = self.keeper.path
        if not saved.exists():
            return "the step is not made, and nothing saved yet: start again with a lower --lr"
        words = f"--resume={saved.parent} --allow-changes with a lower --lr"
        return f"the step is not made, and {saved} is good: {words} goes on"

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.inputs.clear()

    @torch.enable_grad()
    def guilty(self) -> str:
        """Go through the step again, on a copy of the model, to see where it began."""
        for name, weight in self.model.named_parameters():
            if not weight.isfinite().all():
                return f"{name} is not finite"
        inputs = [*self.inputs]
        self.close()
        model, found = copy.deepcopy(self.model), []

        def note(name: str) -> Callable:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                if isinstance(output, Tensor) and not output.isfinite().all():
                    found.append(name)

            return hook

        for name, module in model.named_modules():
            module.register_forward_hook(note(name or type(model).__name__))
        for images in inputs:
            if not images.isfinite().all():
                return "a picture is not finite"
            with self.autocast:
                logits = model(images)
            if found:
                return f"the output of {found[0]} is not finite"
            F.cross_entropy(logits.float(), logits.argmax(dim=1)).backward()
            if bad := bad_gradients(model):
                return f"the gradient of {bad[-1]} is not finite"
        return "the loss or its gradient is not finite"
