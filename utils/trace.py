"""Record what happens in a forward pass: each operation from the pictures to the logits."""

import sys
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

PRODUCTS = ("matmul", "bmm", "__matmul__")
TORCH_FOLDER = str(Path(torch.__file__).parent)


@dataclass(eq=False)
class Operation:
    """A call of a function of torch, as `conv2d` or `view`, and numbers of its result."""

    name: str
    layer: str  # the module whose forward calls it
    place: str  # the line of the project that calls it, as "nets.py:12"
    sources: list[int]  # the operations whose results it takes
    weights: list[Tensor]  # the parameters that it takes, or what was computed from them
    options: dict[str | int, Any]  # other arguments, by name or number
    shapes: tuple[torch.Size, torch.Size]  # of its first tensor and of its result
    cuts_gradient: bool  # its first tensor has a gradient, its result has none
    levels: int  # different numbers among up to 10,000 of its result
    width: int = 0  # numbers for a picture; 0: it is not known which axis is that of the pictures
    size: float = 0.0  # root mean square
    spread: float = 1.0  # root mean square of the difference from the mean picture, over `size`
    token_spread: float = 1.0  # the same from the mean token, of a result (N, tokens, features)
    flat: float = 0.0  # of a function of single numbers: share of them at which its slope is near 0
    bounded: bool = False  # that function is flat on both sides
    rows_sum_to_1: bool = True  # of the first factor of a matrix product, as in attention
    gradient: float = 0.0  # norm of the loss's gradient by the result, after a backward pass

    def __str__(self) -> str:
        return f"{self.layer} ({self.name})" if self.layer else f"{self.name} in {self.place}"

    @property
    def is_layer(self) -> bool:
        return any(weight.ndim > 1 for weight in self.weights)

    def option(self, name: str, position: int, default: Any) -> Any:
        """Return an argument by its name, or by its position among those without a name."""
        return self.options.get(name, self.options.get(position, default))

    @property
    def influence(self) -> float:
        """How much the loss depends on what differs between pictures: gradient times difference."""
        return self.gradient * self.spread * self.size * self.shapes[1].numel() ** 0.5


class Trace(TorchFunctionMode):
    """The operations of one forward pass, and of the backward pass of a loss."""

    def __init__(
        self, model: nn.Module, images: Tensor, loss: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """loss: of the logits (N, K). None: no backward pass is made, and no number is measured."""
        super().__init__()
        self.measures = loss is not None
        self.operations: list[Operation] = []
        self.running: list[str] = []  # the layers, from the outermost to the innermost
        self.results: list[Any] = []  # kept, because an id may be used again for a new tensor
        self.images = images.clone().requires_grad_()
        with torch.enable_grad():
            images = self.images * 1  # a model may change its input in place
        self.count, self.maker = len(images), {id(images): -1}
        self.parameters = {id(weight) for weight in model.parameters()}
        with ExitStack() as hooks, torch.enable_grad():
            for name, module in model.named_modules():
                enter = module.register_forward_pre_hook(
                    lambda *_, name=name: self.running.append(name)
                )
                hooks.callback(enter.remove)
                hooks.callback(module.register_forward_hook(self.note_layer).remove)
            with self:
                self.logits = model(images)
        if loss and self.logits.requires_grad:
            with torch.enable_grad():
                loss(self.logits).backward()

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", str(function))
        name = function.__self__.__name__ if name == "__get__" else name  # .T, .data
        first = args[0] if args and isinstance(args[0], Tensor) else None
        in_place = name.endswith("_") or kwargs.get("inplace") or any(a is True for a in args)
        before = first.detach().clone() if first is not None and in_place else first
        result = function(*args, **kwargs)
        known = self.note(name, args, kwargs, first if name == "__setitem__" else result)
        if self.measures and known and before is not None and isinstance(result, Tensor):
            call = lambda x: function(x, *args[1:], **kwargs)  # noqa: E731
            with suppress(Exception), warnings.catch_warnings(action="ignore"):
                # Functions that do not take numbers in another shape raise, or warn.
                note_slope(self.operations[-1], call, before.detach(), result.detach())
        return result

    def note_layer(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Note a layer whose result is made by something else than functions of torch."""
        tensors = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
        if tensors and not any(id(tensor) in self.maker for tensor in tensors):
            with torch._C.DisableTorchFunction():  # what `note` computes is no operation
                self.note(type(module).__name__, inputs, {}, output)
        self.running.pop()

    def note(self, name: str, args: tuple, kwargs: dict, result: Any) -> bool:
        """Note an operation that depends on the pictures; return whether it does."""
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        sources = [self.maker[id(tensor)] for tensor in tensors if id(tensor) in self.maker]
        if not outputs or not sources:
            return False
        self.maker |= {id(tensor): len(self.operations) for tensor in outputs}
        self.results.append(result)
        before, output = tensors[0].detach(), outputs[0].detach()
        options = {key: x for key, x in [*enumerate(args), *kwargs.items()] if x is not tensors[0]}
        operation = Operation(
            name=name,
            layer=self.running[-1] if self.running else "",
            place=calling_line(),
            sources=sources,
            weights=[tensor for tensor in tensors if self.is_weight(tensor)],
            options=options,
            shapes=(before.shape, output.shape),
            cuts_gradient=tensors[0].requires_grad and not outputs[0].requires_grad,
            levels=different(output) if self.measures else 0,
        )
        is_split = len(outputs) > 1 and (
            name in ("split", "chunk", "unbind") or outputs[1].shape == outputs[0].shape
        )
        can_measure = self.measures and output.is_floating_point() and not is_split
        if can_measure and self.count in output.shape[:2]:
            axis = output.shape.index(self.count)
            rows = output.transpose(0, axis).reshape(self.count, -1).float()
            operation.width, norm = rows.shape[1], rows.norm()
            operation.size = (norm / rows.numel() ** 0.5).item()
            operation.spread = ((rows - rows.mean(dim=0)).norm() / (norm + 1e-30)).item()
            if output.ndim == 3 and axis == 0 and output.shape[1] > 1:
                tokens = rows.view(output.shape)
                tokens = (tokens - tokens.mean(dim=1, keepdim=True)).norm()
                operation.token_spread = (tokens / (norm + 1e-30)).item()
        if name in PRODUCTS:
            operation.rows_sum_to_1 = bool(((before.sum(dim=-1) - 1).abs() < 1e-3).all())
        if outputs[0].requires_grad:
            outputs[0].register_hook(lambda g: setattr(operation, "gradient", g.norm().item()))
        self.operations.append(operation)
        return True

    def is_weight(self, tensor: Tensor) -> bool:
        """Return whether a tensor is a parameter, or computed from parameters (weight_norm)."""
        computed = tensor.requires_grad and id(tensor) not in self.maker
        return id(tensor) in self.parameters or computed

    @cached_property
    def path(self) -> list[Operation]:
        """The operations on which the logits depend."""
        return [self.operations[index] for index in self.path_indices]

    @cached_property
    def path_indices(self) -> list[int]:
        needed, waiting = set(), [self.maker.get(id(self.logits), -1)]
        while waiting:
            if (index := waiting.pop()) >= 0 and index not in needed:
                needed.add(index)
                waiting += self.operations[index].sources
        return sorted(needed)

    @cached_property
    def passages(self) -> list[Operation]:
        """The operations that lie on every way from the pictures to the logits."""
        last_use = {s: index for index in self.path_indices for s in self.operations[index].sources}
        found, reach = [], last_use.get(-1, -1)
        for index in self.path_indices:
            if reach <= index:
                found.append(self.operations[index])
            reach = max(reach, last_use.get(index, index))
        return found

    def users(self, operation: Operation) -> list[Operation]:
        """Return the operations that take the result of another one."""
        index = self.operations.index(operation)
        return [user for user in self.path if index in user.sources]


@torch.enable_grad()
def note_slope(
    operation: Operation, call: Callable[[Tensor], Tensor], before: Tensor, after: Tensor
) -> None:
    """Set `flat` and `bounded` of a function that works on each number alone, as tanh."""
    few = after.flatten()[:50]
    same = before.shape == after.shape and call(before.flatten()[:50].clone()).allclose(few)
    if not same:
        return
    grid = torch.cat([before.new_tensor([-30, 30]), torch.linspace(-3, 3, 60)]).requires_grad_()
    slopes = torch.autograd.grad(call(grid * 1).sum(), grid)[0].abs()
    low, high = (slopes[:2] < 0.01 * slopes[2:].max()).tolist()
    if slopes.isfinite().all() and (low or high):
        numbers = before.requires_grad_()
        (slope,) = torch.autograd.grad(call(numbers * 1).sum(), numbers)
        operation.bounded = low and high
        least = 0.01 * slopes[2:].max() if operation.bounded else 0
        operation.flat = (slope.abs() <= least).float().mean().item()


def different(tensor: Tensor) -> int:
    """Return how many different numbers are among up to 10,000 of a tensor."""
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return len(tensor.flatten()[:: max(1, tensor.numel() // 10_000)].unique())


def calling_line() -> str:
    """Return the line of the project that called torch, as "nets.py:12"."""
    frame: Any = sys._getframe(1)
    while frame.f_code.co_filename.startswith((TORCH_FOLDER, __file__)) and frame.f_back:
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def is_scrambled(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Return whether a reshape has the shape of a transposition, which would move the numbers.

    A reshape is sound if it only splits axes or only joins neighbours: (6, 4, 8) to (6, 32). One
    that gives (4, 48), the shape that permute and flatten give, cuts the rows in other places.
    """
    before, after = (tuple(side for side in shape if side > 1) for shape in (before, after))
    if len(before) == len(after) == 3 and before[1] % after[1] == 0:
        return False  # neighbours may have been joined, as frames of a sound
    borders = [{prod(shape[:n]) for n in range(len(shape) + 1)} for shape in (before, after)]
    if borders[0] <= borders[1] or borders[1] <= borders[0]:
        return False
    left = Counter(before) - Counter(after), Counter(after) - Counter(before)
    return min(part.total() for part in left) <= 1
