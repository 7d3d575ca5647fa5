"""Watch the command `train` while it runs on a few samples."""

import contextlib
import io
import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from utils.seed import seed_everything

from . import some
from .model import ModelCase, Samples


class Pass(NamedTuple):
    """A forward pass that the rehearsal has made."""

    model: nn.Module
    training: bool
    gradients: bool  # are computed
    gradients_left: bool  # of an earlier step
    images: Tensor

    @property
    def pictures(self) -> set[int]:
        return {hash(image.cpu().numpy().tobytes()) for image in self.images}


class Rehearsal:
    """What the command `train` does, noted by hooks on all modules and optimizers."""

    def __init__(self, case: ModelCase, rehearse: Callable[[], Samples]) -> None:
        self.case, self.model_class = case, type(case.model())
        self.inner: set[nn.Module] = set()  # parts of the model, which may be of its own class
        self.passes: list[Pass] = []
        self.losses: list[tuple[nn.Module, Tensor]] = []  # the criterion and the labels of a step
        self.stepped: set[int] = set()  # the weights that an optimizer changes
        self.rates: list[float] = []  # the learning rate of each step
        self.weights: dict[int, Tensor] = {}  # as they were when a pass, or a step, had ended
        self.faults: dict[str, None] = {}  # used as an ordered set
        self.watching = True
        with contextlib.ExitStack() as hooks, contextlib.redirect_stdout(io.StringIO()):
            for hook in (
                register_module_forward_pre_hook(self.before_pass),
                register_module_forward_hook(self.after_pass),
                register_optimizer_step_pre_hook(self.before_step),
                register_optimizer_step_post_hook(self.after_step),
            ):
                hooks.callback(hook.remove)
            self.samples = rehearse()

    def before_pass(self, module: nn.Module, inputs: Any) -> None:
        gradients = torch.is_grad_enabled()
        if self.watching and type(module) is type(self.case.criterion) and gradients:
            self.losses.append((module, inputs[1]))
        if self.is_model(module):
            self.inner.update(set(module.modules()) - {module})
            named = dict(module.named_parameters())
            left = any(p.grad is not None and p.grad.any() for p in named.values())
            images = inputs[0].detach().clone()
            self.passes.append(Pass(module, module.training, gradients, left, images))
            if gradients:  # val may use other weights for a while
                kept = {name: self.weights.get(id(p), p) for name, p in named.items()}
                changed = [name for name in kept if not torch.equal(named[name], kept[name])]
                self.note(changed, f"{some(changed)} changes between two steps")
            seed_everything(0, "check")  # for the same dropout in expected_gradient

    def note(self, is_fault: object, words: str) -> None:
        self.faults |= {words: None} if is_fault else {}

    def is_model(self, module: nn.Module) -> bool:
        # By name, since models/from_torchvision.py makes a class for each model.
        is_model = type(module).__qualname__ == self.model_class.__qualname__
        return self.watching and is_model and module not in self.inner

    def after_pass(self, module: nn.Module, _inputs: Any, _output: Any) -> None:
        if self.is_model(module) and torch.is_grad_enabled():  # forward may limit its weights
            self.keep_weights(module)

    def keep_weights(self, model: nn.Module) -> None:
        self.weights |= {id(weight): weight.detach().clone() for weight in model.parameters()}

    def before_step(self, optimizer: Optimizer, *_: Any) -> None:
        groups = optimizer.param_groups
        self.rates.append(max(g["lr"] for g in groups))  # the head's; the body may learn slower
        self.stepped.update(id(weight) for g in groups for weight in g["params"])
        last = self.passes[-1]
        if len(self.rates) == 1 and self.losses and last.gradients:
            weights = [weight for weight in last.model.parameters() if weight.requires_grad]
            actual = as_vector(torch.zeros_like(p) if p.grad is None else p.grad for p in weights)
            expected = self.expected_gradient(last)
            norm, clip_norm = expected.norm().item(), self.case.options.clip_norm or math.inf
            seen = f"the gradient has norm {norm:.2g}, and is clipped to almost 0"
            self.note(clip_norm < 1e-5 * norm, seen)
            fault = difference(actual, expected * min(1, clip_norm / (norm + 1e-12)), 0.4)
            self.note(fault, f"the gradient of a step is {fault}")

    @torch.enable_grad()
    def expected_gradient(self, last: Pass) -> Tensor:
        """Return the gradient of the mean loss, as one vector, by a second pass with copies."""
        self.watching, (criterion, labels) = False, self.losses[-1]
        weights = {
            name: p.detach().clone().requires_grad_(p.requires_grad)
            for name, p in last.model.named_parameters()
        }
        tensors = weights | {name: x.clone() for name, x in last.model.named_buffers()}
        seed_everything(0, "check")
        with self.case.amp.autocast:
            loss = criterion(functional_call(last.model, tensors, last.images), labels).mean()
        trainable = [weight for weight in weights.values() if weight.requires_grad]
        gradients = torch.autograd.grad(loss, trainable, materialize_grads=True)
        self.watching = True
        return as_vector(gradients)

    def after_step(self, optimizer: Optimizer, *_: Any) -> None:
        model = self.passes[-1].model
        if len(self.rates) == 1 and self.rates[0] and self.weights:
            self.judge_step(dict(model.named_parameters()))
        self.keep_weights(model)

    def judge_step(self, named: dict[str, nn.Parameter]) -> None:
        """Note whether a step has changed all weights that have a gradient, downwards, a little."""
        before = {name: self.weights[id(weight)] for name, weight in named.items()}
        changes = {name: weight.detach() - before[name] for name, weight in named.items()}
        learned = {n: p.grad for n, p in named.items() if p.grad is not None and p.grad.any()}
        still = [name for name in learned if not changes[name].any()]
        self.note(still, f"the step does not change {some(still)}")
        slope = sum((changes[name] * gradient).sum().item() for name, gradient in learned.items())
        self.note(slope > 0, "the step goes up the gradient instead of down")
        matrices = [name for name in learned if named[name].ndim > 1]
        shares = [(changes[n].norm() / (before[n].norm() + 1e-12)).item() for n in matrices]
        share = statistics.median(shares or [0.0])
        in_warmup = self.rates[0] < 0.1 * self.case.options.lr
        seen = f"the first step changes the weights by {share:.0%} of their size"
        self.note(share > (0.03 if in_warmup else 0.5), seen)

    def wrong_labels(self, train_passes: list[Pass]) -> str:
        """Return how many pictures reached the loss with a wrong label, or "" if few."""
        if not self.samples:
            return ""
        pictures = code(torch.stack([picture for picture, _ in self.samples]))
        truth = torch.tensor([label for _, label in self.samples])
        wrong, total = 0, 0
        for p, (_, labels) in zip(train_passes, self.losses, strict=False):
            if labels.ndim == 1 and len(labels) == len(p.images):
                likeness, nearest = (code(p.images.cpu()) @ pictures.T).max(dim=1)
                known = likeness > 0.999  # not of mixed pictures
                wrong += int((truth[nearest] != labels.cpu())[known].sum())
                total += int(known.sum())
        return f"{wrong} of {total} pictures have another label" if wrong > 0.1 * total else ""


def code(images: Tensor) -> Tensor:
    """Return vectors (N, 48) by which pictures are found again, also after normalisation."""
    cells = F.adaptive_avg_pool2d(images.float(), 4).flatten(2)  # (N, 3, 16)
    cells = F.normalize(cells - cells.mean(dim=2, keepdim=True), dim=2)
    return F.normalize(cells.flatten(1), dim=1)


def as_vector(tensors: Iterable[Tensor]) -> Tensor:
    """Return a copy of all numbers of tensors in one vector; a complex number counts as two."""
    parts = [torch.view_as_real(x) if x.is_complex() else x for x in tensors]
    return torch.concat([part.detach().flatten().float() for part in parts])


def difference(vector: Tensor, expected: Tensor, tolerance: float = 0.1) -> str:
    """Return how a vector differs from the expected one, or "" if it is nearly the same."""
    if (vector - expected).norm() <= tolerance * expected.norm():
        return ""
    ratio, cosine = vector.norm() / expected.norm(), F.cosine_similarity(vector, expected, dim=0)
    return f"{ratio:.2g} times as long as it should be, at a cosine of {cosine:.2f}"


def shuffled(orders: list[Tensor]) -> bool:
    """Return whether the labels of two epochs, step by step, come mixed and in a new order."""
    first, second = orders[: len(orders) // 2], orders[len(orders) // 2 :]
    if len(first) < 2:
        return True  # too few to tell
    mixed = any(len(labels.unique()) > 1 for labels in orders)
    return mixed and not all(map(torch.equal, first, second))
