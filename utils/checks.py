"""Alarms while training: weights that should (not) change, NaN, inf, outputs out of range.

The calls and messages are those of torcheck 1.0.1 (Peng Yan, MIT licence), here on hooks that come
off again: code written for it runs with `from utils import checks as torcheck`.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partialmethod
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

Watched = Optimizer | nn.Module
Range = tuple[float | None, float | None]  # low, high; both belong to it
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size in bytes


@dataclass(eq=False)
class Check:
    """What is asked of a tensor, or of a module's output, and how the tensor was when last seen."""

    label: str  # "fc1.weight", "output"
    module_name: str | None = None
    nan: bool = False
    inf: bool = False
    changing: bool | None = None
    old: Tensor | None = None
    norm: float = math.nan
    range: Range | None = None
    negate: bool = False
    masks: tuple[str, ...] = ()  # a module's buffers that hold inf by design

    @property
    def name(self) -> str:
        if self.module_name is None:
            return "Module's output" if self.label == "output" else self.label
        return f"Module {self.module_name}'s {self.label}"

    def update(self, label: str, module_name: str | None, nan: bool, inf: bool) -> None:
        old_name, self.label = self.name, label
        self.module_name = self.module_name if module_name is None else module_name
        if self.name != old_name:
            full_stop = "." * (label == "output")
            warnings.warn(f"{old_name} is renamed as {self.name}{full_stop}", stacklevel=4)
        self.nan, self.inf = self.nan or nan, self.inf or inf

    def of(self, label: str) -> "Check":
        """Look for NaN and inf in a gradient or a buffer as well."""
        return Check(label, self.module_name, self.nan, self.inf)

    def faults(self, tensors: list[Tensor], norms: list[float], changed: bool) -> Iterator[str]:
        if self.changing is not None and self.changing != changed:
            yield f"{self.name} should {'' if self.changing else 'not '}change."
        if not all(map(math.isfinite, norms)):  # NaN, inf, or a norm that overflowed
            if self.nan and any(tensor.isnan().any() for tensor in tensors):
                yield f"{self.name} contains NaN."
            if self.inf and any(tensor.isinf().any() for tensor in tensors):
                yield f"{self.name} contains inf."

    def output_faults(self, tensors: list[Tensor]) -> Iterator[str]:
        low, high = self.range or (None, None)
        least, most = -math.inf if low is None else low, math.inf if high is None else high
        flags = [((t >= least) & (t <= most)).all() for t in tensors] if self.range else []
        norms, inside = fetch(tensors, flags)
        if self.range and all(inside) == self.negate:
            bounds = [f"> {low}"] * (low is not None) + [f"< {high}"] * (high is not None)
            should, end = (
                ("shouldn't", "") if self.negate else ("should", ". Some are out of range")
            )
            yield f"{self.name} {should} all {' and '.join(bounds)}{end}"
        yield from self.faults(tensors, norms, changed=False)


class Registry:
    """Which optimizers, tensors and modules are checked; it keeps none of them alive."""

    def __init__(self) -> None:
        self.hooks: WeakKeyDictionary[Watched, RemovableHandle] = WeakKeyDictionary()
        self.active: WeakSet[Watched] = WeakSet()
        self.tensors = WeakTensorKeyDictionary()  # Tensor: Check
        self.outputs: WeakKeyDictionary[nn.Module, Check] = WeakKeyDictionary()
        self.verbose = False

    def __reduce__(self) -> tuple:
        return Registry, ()  # a copied module's hook asks a registry that knows no module

    def register(self, optimizer: Optimizer, every: int = 1) -> None:
        """After every N-th step, look at this optimizer's tensors and at those of no optimizer."""
        if optimizer in self.hooks:
            raise RuntimeError("The optimizer has already been registered.")
        steps = itertools.count(1)

        def after_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
            if next(steps) % every == 0 and optimizer in self.active:
                self.look_at_tensors(optimizer)

        self.hooks[optimizer] = optimizer.register_step_post_hook(after_step)
        self.active.add(optimizer)

    def unregister(self, *things: Watched) -> None:
        """Take the hooks off optimizers and modules and forget their parameters."""
        for thing in things:
            if thing in self.hooks:
                self.hooks.pop(thing).remove()
            self.active.discard(thing)
            if isinstance(thing, nn.Module):
                self.outputs.pop(thing, None)
            for tensor in parameters(thing):
                self.tensors.pop(tensor, None)

    def unregister_all(self) -> None:
        self.unregister(*self.hooks)
        self.tensors.clear()

    def add_tensor(
        self,
        tensor: Tensor,
        tensor_name: str,
        module_name: str | None = None,
        changing: bool | None = None,  # True: it must from now on; False: it must not
        check_nan: bool = False,
        check_inf: bool = False,
    ) -> None:
        """Check it after steps; RuntimeError if it is trainable and in no registered optimizer."""
        optimizers = self.known(Optimizer)
        trained = any(tensor is p for optimizer in optimizers for p in parameters(optimizer))
        if not trained and (tensor.requires_grad or not optimizers):
            raise RuntimeError(
                "The tensor doesn't belong to any optimizer. Please register its optimizer first."
            )
        check = self.tensors.setdefault(tensor, Check(tensor_name, module_name))
        check.update(tensor_name, module_name, check_nan, check_inf)
        if changing is not None:
            check.changing, check.old, check.norm = changing, tensor.detach().clone(), math.nan

    def add_module(
        self,
        module: nn.Module,
        module_name: str | None = None,
        changing: bool | None = None,
        output_range: Range | None = None,
        negate_range: bool = False,
        check_nan: bool = False,
        check_inf: bool = False,
    ) -> None:
        """Check all parameters; for NaN and inf also gradients, buffers and what it returns.

        Outputs are looked at in training mode only. Add the module before torch.compile runs it.
        """
        if not isinstance(module, nn.Module):
            raise RuntimeError(f"Module should be nn.Module type, but is {type(module)}.")
        if changing is not None or check_nan or check_inf:
            for name, parameter in module.named_parameters():
                self.add_tensor(
                    parameter,
                    name,
                    module_name,
                    changing=changing,
                    check_nan=check_nan,
                    check_inf=check_inf,
                )
        if output_range is None and not check_nan and not check_inf:
            return
        if module not in self.hooks:
            masks = tuple(name for name, b in module.named_buffers() if b.isinf().any())
            self.outputs[module] = Check("output", module_name, masks=masks)
            self.hooks[module] = module.register_forward_hook(self.look_at_output)
            self.active.add(module)
        check = self.outputs[module]
        check.update("output", module_name, check_nan, check_inf)
        if output_range is not None:
            check.range, check.negate = output_range, negate_range

    def add_module_output_range_check(
        self, module: nn.Module, output_range: Range, negate_range: bool = False, module_name=None
    ) -> None:
        self.add_module(module, module_name, output_range=output_range, negate_range=negate_range)

    add_tensor_changing_check = partialmethod(add_tensor, changing=True)
    add_tensor_unchanging_check = partialmethod(add_tensor, changing=False)
    add_tensor_nan_check = partialmethod(add_tensor, check_nan=True)
    add_tensor_inf_check = partialmethod(add_tensor, check_inf=True)
    add_module_changing_check = partialmethod(add_module, changing=True)
    add_module_unchanging_check = partialmethod(add_module, changing=False)
    add_module_nan_check = partialmethod(add_module, check_nan=True)
    add_module_inf_check = partialmethod(add_module, check_inf=True)

    def known(self, kind: type) -> list:
        return [thing for thing in self.hooks if isinstance(thing, kind)]

    def disable_optimizers(self, *things: Watched) -> None:
        for thing in things:
            self.active.remove(thing)  # KeyError for one that is not active

    def enable_optimizers(self, *things: Watched) -> None:
        self.active.update(things)

    disable_modules, enable_modules = disable_optimizers, enable_optimizers

    def disable(self, optimizers: Iterable | None = None, modules: Iterable | None = None) -> None:
        for kind, things in ((Optimizer, optimizers), (nn.Module, modules)):
            self.disable_optimizers(
                *self.active.intersection(self.known(kind)) if things is None else things
            )

    def enable(self, optimizers: Iterable | None = None, modules: Iterable | None = None) -> None:
        self.active.update(self.known(Optimizer) if optimizers is None else optimizers)
        self.active.update(self.known(nn.Module) if modules is None else modules)

    verbose_on = partialmethod(setattr, "verbose", True)  # show the tensor with each message
    verbose_off = partialmethod(setattr, "verbose", False)

    def is_verbose(self) -> bool:
        return self.verbose

    def line(self, faults: Iterable[str], tensor: Any) -> str:
        line = " ".join(faults)
        return f"{line}\nThe tensor is:\n{tensor}\n" if line and self.verbose else line

    @torch.no_grad()
    def look_at_output(self, module: nn.Module, args: tuple, output: Any) -> None:
        tensors = [output] if isinstance(output, Tensor) else [*floating(output)]
        if not (tensors and module.training and module in self.active):
            return
        if line := self.line(self.outputs[module].output_faults(tensors), output):
            raise RuntimeError(line)

    @torch.no_grad()
    def look_at_tensors(self, optimizer: Optimizer) -> None:
        """Raise one RuntimeError for all faults; if there are none, wait for the device once.

        A norm that moved proves a change; where it did not, and in frozen tensors, bits decide.
        """
        if getattr(optimizer, "found_inf", False):  # GradScaler let a fused optimizer skip it
            return
        lrs = {id(p): group.get("lr") for group in optimizer.param_groups for p in group["params"]}
        others = {id(p) for other in self.known(Optimizer) for p in parameters(other)}
        own = [(t, c) for t, c in self.tensors.items() if id(t) in lrs or id(t) not in others]
        looks = own + [
            (buffer, check.of(name))
            for module, check in self.outputs.items()
            for name, buffer in module.named_buffers()
            if module in self.active and name not in check.masks
        ]
        looks += [
            (t.grad._values() if t.grad.is_sparse else t.grad, check.of(f"{check.label}.grad"))
            for t, check in own
            if t.grad is not None and (check.nan or check.inf)
        ]
        frozen = [(t, check) for t, check in own if check.changing is False]
        norms, flags = fetch([t for t, _ in looks], [differ(t, check.old) for t, check in frozen])
        changed = {check for (_, check), flag in zip(frozen, flags, strict=True) if flag}
        lines = []
        for (tensor, check), norm in zip(looks, norms, strict=True):
            if check.changing:
                moved = abs(norm - check.norm) > 0 or differ(tensor, check.old)
                if moved or lrs.get(id(tensor)) == 0:
                    changed.add(check)
                check.old.copy_(tensor)
                check.norm = norm
            lines.append(self.line(check.faults([tensor], [norm], check in changed), tensor))
        if any(lines):
            errors = "\n".join(filter(None, lines))
            raise RuntimeError(f"The following errors are detected while training:\n{errors}")


def floating(output: Any) -> Iterator[Tensor]:
    """All floating tensors within tuples, lists and dicts."""
    if isinstance(output, Tensor) and output.is_floating_point():
        yield output
    elif isinstance(output, Mapping | tuple | list):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from floating(part)


def parameters(thing: Watched) -> list[Tensor]:
    if isinstance(thing, nn.Module):
        return [*thing.parameters()]
    return [parameter for group in thing.param_groups for parameter in group["params"]]


def differ(tensor: Tensor, old: Tensor) -> Tensor:
    """Compare bits, among which NaN equals NaN: a flag on the device."""
    integer = INTEGERS.get(tensor.element_size(), tensor.dtype)
    return (tensor.view(integer) != old.to(tensor).view(integer)).any()


def fetch(tensors: list[Tensor], flags: list[Tensor]) -> tuple[list[float], list[float]]:
    """The norms of tensors, and flags, waiting for the device once."""
    tensors = [t if t.is_floating_point() or t.is_complex() else t.float() for t in tensors]
    scalars = [*torch._foreach_norm(tensors), *flags] if tensors else []
    values = torch.stack([s.to(tensors[0].device) for s in scalars]).tolist() if scalars else []
    return values[: len(tensors)], values[len(tensors) :]


registry = Registry()


def __getattr__(name: str) -> Callable:
    """Every method of the registry is a function of this module."""
    return getattr(registry, name)
