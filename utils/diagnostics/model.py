"""Is the model wired right? Each check takes a ModelCase and costs a few passes of one batch."""

import copy
import math
import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from utils import checkpoint, engine, recipe
from utils.device import Precision
from utils.guard import not_finite
from utils.seed import seed_everything

from . import Doubt, NotChecked, Wrong, checks_in, some

FP32 = Precision("fp32", torch.device("cpu"))


@dataclass
class ModelCase:
    """A model, made anew for each check, some pictures for it, and how the project trains.

    The checks of this file need float32 on a CPU, where two equal passes give the same bits.
    """

    make_model: Callable[[int], nn.Module]  # takes the number of classes
    images: Tensor  # (M, 3, H, W), normalised
    labels: Tensor  # (M,)
    classes: list[str]
    options: Any  # lr, clip_norm, and what recipe.build_optimizer reads
    weights_loaded: bool = False  # whether a training would start from the weights of a file
    criterion: nn.Module = field(default_factory=recipe.ClassificationLoss)
    amp: Precision = FP32
    rehearse: Callable[[], Any] | None = None  # runs the command `train` on a few samples
    folder: Path | None = None  # for the chart of the gradients

    def __post_init__(self) -> None:
        self.batch, self.batch_labels = self.images[self.rows(8)], self.labels[self.rows(8)]

    def model(self, seed: int = 0, training: bool = False) -> nn.Module:
        seed_everything(seed, "check")
        return self.make_model(len(self.classes)).train(training)

    def optimizer(self, model: nn.Module, lr: float) -> Optimizer:
        """Return the project's optimizer with this learning rate and no weight decay."""
        options: Any = SimpleNamespace(**vars(self.options))
        options.lr, options.weight_decay = lr, 0.0
        return recipe.build_optimizer(options, model)

    def rows(self, size: int) -> Tensor:
        return one_class_after_another(self.labels, size)

    @torch.enable_grad()
    def step(self, model: nn.Module, optimizer: Optimizer, rows: Tensor, **more: Any) -> tuple:
        """Make a step on some of the pictures; return the logits (N, K) and losses (N,)."""
        parts = {"criterion": self.criterion, "optimizer": optimizer, "amp": self.amp}
        more = {**parts, "clip_norm": self.options.clip_norm, "guard": False, **more}
        return engine.train_step(model, self.images[rows], self.labels[rows], **more)[:2]

    @torch.no_grad()
    def settle(self, model: nn.Module, batches: Iterable[Tensor] = ()) -> nn.Module:
        """Set BatchNorm's statistics to the mean over batches of rows; return it in eval mode.

        In eval mode a new model uses statistics that belong to no data; a deep one then gives
        numbers far from those of training mode. Layers that never update theirs keep them.
        """
        norms = [m for m in model.train().modules() if isinstance(m, _BatchNorm) and m.training]
        momentum = {norm: norm.momentum for norm in norms if norm.momentum != 0}
        model.eval()
        for norm in momentum:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over all batches
            norm.train()
        for rows in batches or [self.rows(8)]:
            model(self.images[rows])
        for norm in momentum:
            norm.momentum = momentum[norm]
        return model.eval()

    def trained(self, model: nn.Module | None = None) -> nn.Module:
        """Make three steps, after which layers that start from zero have changed; go to eval mode.

        The gradients of the last step stay.
        """
        model = model or self.model(training=True)
        optimizer = self.optimizer(model, lr=min(self.options.lr, 1e-3))
        seed_everything(0, "check")
        for _ in range(3):
            self.step(model, optimizer, self.rows(8))
        return self.settle(model)

    def loss(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), self.batch_labels)


def one_class_after_another(labels: Tensor, size: int) -> Tensor:
    """Return the indices of `size` samples: the first of each class, then the second, …"""
    rank = torch.zeros_like(labels)
    for label in labels.unique():
        rank[labels == label] = torch.arange(int((labels == label).sum()), device=labels.device)
    return rank.argsort(stable=True)[:size]


def one_logit_per_class(case: ModelCase) -> str:
    """One logit per class
    Why: the loss compares (N, K) numbers with N labels; another shape is an error or goes unseen.
    Do: end the model with a layer of `num_classes` outputs, and use that argument."""
    for num_classes in (len(case.classes), len(case.classes) + 3):
        model = case.make_model(num_classes).eval()
        for size in (len(case.batch), 1):
            with torch.no_grad():
                logits = model(case.batch[:size])
            Wrong.when(not isinstance(logits, Tensor), f"it returns {type(logits)}, not a tensor")
            seen = f"made for {num_classes} classes, {size} pictures give {tuple(logits.shape)}"
            Wrong.when(logits.shape != (size, num_classes), seen)
    return f"({len(case.batch)}, {len(case.classes)})"


def all_is_registered(case: ModelCase) -> str:
    """Every layer and weight is registered
    Why: what is in a plain list, dict or closure is not trained, moved or saved with the model.
    Do: use nn.ModuleList, nn.ModuleDict, nn.Parameter, and register_buffer for constants."""
    model = case.model(training=True)
    known = {id(part) for part in [*model.modules(), *model.parameters(), *model.buffers()]}
    lost: dict[str, Any] = {}  # used as ordered sets, both
    constants: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            parts = value.values() if isinstance(value, dict) else value
            for part in parts if isinstance(parts, list | tuple) else [value]:
                if isinstance(part, nn.Module | Tensor) and id(part) not in known:
                    is_constant = isinstance(part, Tensor) and not part.requires_grad
                    (constants if is_constant else lost)[f"{path}.{name}".strip(".")] = part
    leaves = [leaf for leaf in trainable_inputs(model(case.batch)) if id(leaf) not in known]
    shapes = [f"a tensor of shape {tuple(leaf.shape)}" for leaf in leaves]
    Wrong.when(lost or leaves, f"{some(lost or shapes)} is used but not part of the model")
    Doubt.when(constants, f"{some(constants)} will not move to a GPU with the model")
    return f"{sum(p.numel() for p in model.parameters()):,} parameters"


def trainable_inputs(output: Tensor) -> list[Tensor]:
    """Return all trainable tensors that `output` was computed from."""
    found, seen, waiting = [], set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found += [node.variable] if hasattr(node, "variable") else []
            waiting += [following for following, _ in node.next_functions]
    return found


def gradient_reaches_every_weight(case: ModelCase) -> str:
    """The gradient reaches every trainable weight
    Why: a weight without a gradient keeps its random value.
    Do: use each layer in forward, with no detach, .data, no_grad, argmax or NumPy on the way."""
    model, called = case.model(training=True), set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    with CutFinder() as cuts:
        logits = model(case.batch)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    Wrong.when(not trainable, "all weights are frozen")
    if logits.requires_grad:
        case.loss(logits).backward()
    missing = [name for name, p in trainable.items() if p.grad is None]
    layers = dict.fromkeys(name.rpartition(".")[0] for name in missing)
    unused = [layer for layer in layers if layer not in called]
    reasons = f"; never called: {some(unused)}" if unused else ""
    reasons += f"; the graph is cut by {some(cuts.found)}" if cuts.found else ""
    Wrong.when(missing, f"none at {some(missing)}{reasons}")
    bad = not_finite((name, p.grad) for name, p in trainable.items())
    Wrong.when(bad, f"it is not finite at {some(bad)}")
    if not all(p.grad is not None and p.grad.any() for p in trainable.values()):
        case.trained(model)
    zero = [name for name, p in trainable.items() if p.grad is None or not p.grad.any()]
    Wrong.when(zero, f"it is exactly 0 at {some(zero)}")
    containers = (nn.Identity, nn.Sequential, nn.ModuleList, nn.ModuleDict)
    idle = {n: m for n, m in model.named_modules() if n not in called and not any(m.children())}
    idle = {n: m for n, m in idle.items() if not isinstance(m, containers)}
    skipped = [name for name, module in idle.items() if not [*module.parameters()]]
    Doubt.when(skipped, f"forward never calls {some(skipped)}")
    return f"{len(trainable)} tensors"


class CutFinder(TorchFunctionMode):
    """Notes the operations that take tensors with a gradient and return one without."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, None] = {}  # used as an ordered set

    def __torch_function__(
        self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        needed = any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)
        if needed and isinstance(result, Tensor) and not result.requires_grad:
            name = getattr(operation, "__name__", str(operation))
            if name == "__get__":
                name = operation.__self__.__name__  # .data
            torch_files = str(Path(torch.__file__).parent)
            frames = [f for f in traceback.extract_stack()[:-1] if torch_files not in f.filename]
            place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
            self.found[f"{name} at {place}"] = None
        return result


def every_weight_moves(case: ModelCase) -> str:
    """Steps change every trainable weight and no frozen one
    Why: the optimizer trains only the weights it is given; a frozen random weight never learns.
    Do: give it all parameters; freeze with requires_grad_(False), and only weights from a file."""
    model = case.model(training=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    case.trained(model)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    still = [name for name in before if name not in moved | frozen]
    Wrong.when(still, f"{some(still)} did not change")
    Wrong.when(moved & frozen, f"{some(sorted(moved & frozen))} is frozen but changed")
    other = case.model(seed=1)
    random = [n for n in sorted(frozen) if not torch.equal(before[n], other.get_parameter(n))]
    advice = "load weights (--pretrained, --load-model-path) or train it"
    untrained = random and not case.weights_loaded
    Wrong.when(untrained, f"{some(random)} is frozen at random values: {advice}")
    return f"{len(moved)} changed, {len(frozen)} frozen"


@torch.no_grad()
def first_loss(case: ModelCase) -> str:
    """The first loss is near ln K
    Why: a new model knows nothing; a higher loss means that weights or inputs are too large.
    Do: initialise the weights (kaiming_normal_), the last layer small; normalise the pictures."""
    loss = case.loss(case.model(training=True)(case.batch)).item()
    expected = math.log(len(case.classes))
    seen = f"{loss:.3f}, and ln {len(case.classes)} is {expected:.3f}"
    Wrong.when(not loss < expected + 20, seen)  # nan as well; networks that start at 8 do learn
    Doubt.when(loss > 2 * expected + 0.5, seen)
    return seen


@torch.no_grad()
def outputs_are_logits(case: ModelCase) -> str:
    """Outputs are logits
    Why: the loss applies the softmax; after another one, or a ReLU, the model hardly learns.
    Do: return the output of the last layer, without softmax, sigmoid or ReLU."""
    model, started = case.trained(), []
    for module in model.modules():
        if module is not model and any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(lambda module, _: started.append(module))
    logits = model(case.batch).double()
    outputs = [logits]
    for factor in (1000, -1000) if started else ():  # of what the last layer returns

        def scale(_layer: nn.Module, _inputs: Any, output: Any, factor: int = factor) -> Any:
            return tree_map_only(Tensor, lambda x: x * factor, output)

        hook = started[-1].register_forward_hook(scale)
        outputs.append(model(case.batch).double())
        hook.remove()
    both, seen = torch.concat(outputs), f"{logits.min():.3g} … {logits.max():.3g}"
    low, high = both.min().item(), both.max().item()
    is_probability = low >= 0 and (both.sum(dim=1) - 1).abs().max() < 1e-4
    Wrong.when(is_probability, "each row is a probability: there is a softmax at the end")
    is_log_probability = both.logsumexp(dim=1).abs().max() < 1e-4
    Doubt.when(is_log_probability, "each row is a log-probability: the loss takes the logarithm")
    NotChecked.when(not started, "the model has no layers with weights")
    Wrong.when(low >= 0 and high <= 1, "all lie within 0 … 1: there is a sigmoid at the end")
    Wrong.when(low >= 0 or high <= 0, "all have one sign: there is a ReLU or softplus at the end")
    is_bounded = max(-low, high) < 20 * logits.abs().max()
    Doubt.when(is_bounded, f"{seen}, never more: there is a tanh or a normalisation at the end")
    return seen


@torch.no_grad()
def pictures_are_independent(case: ModelCase) -> str:
    """The prediction for a picture depends on that picture alone
    Why: a prediction that changes with the rest of the batch is useless outside of that batch.
    Do: look for a mean, softmax or reshape over dimension 0; keep the batch first in every view."""
    model = case.trained()
    together = model(case.batch).double()
    alone = torch.concat([model(image[None]) for image in case.batch]).double()
    backwards = model(case.batch.flip(0)).double().flip(0)
    scale = (together - together.mean(dim=0)).abs().max() + 1e-3 * together.abs().max() + 1e-12
    for other in (alone, backwards):
        gap = ((together - other).abs().max() / scale).item()
        Wrong.when(not gap < 0.02, f"in another batch logits differ by {gap:.0%} of their range")
    return f"{len(case.batch)} pictures, together and alone"


def the_whole_picture_counts(case: ModelCase) -> str:
    """The prediction depends on the whole picture
    Why: the model cannot learn from what forward leaves out.
    Do: look for a wrong slice, an index instead of a mean, or a constant output."""
    images = case.batch.clone().requires_grad_()
    logits = case.trained()(images)
    Wrong.when(not logits.requires_grad, "it depends neither on the picture nor on any weight")
    logits.double().square().sum().backward()
    if images.grad is None:
        raise Doubt("no gradient: is there a no_grad around a frozen part?")
    influence = images.grad.abs()
    unseen = (influence.flatten(1).amax(dim=1) == 0).sum().item()
    Wrong.when(unseen, f"for {unseen} of {len(images)} pictures it does not depend on the picture")
    unused = (influence.sum(dim=(0, 2, 3)) == 0).nonzero().flatten().tolist()
    Wrong.when(unused, f"colour channel {some(unused)} is not used")
    area = F.max_pool2d(influence.amax(dim=(0, 1))[None, None], 8, ceil_mode=True).gt(0)
    share = area.float().mean().item()
    Wrong.when(share < 0.6, f"{share:.0%} of the area is used")
    return f"{share:.0%} of the area, all colours"


@torch.no_grad()
def the_model_is_nonlinear(case: ModelCase) -> str:
    """The model is nonlinear
    Why: linear layers in a row can do no more than a single one.
    Do: put a ReLU, or another activation, after each layer but the last."""
    model = case.trained()
    first, second = model(case.batch).double(), model(case.batch.flip(0)).double()
    middle = model((case.batch + case.batch.flip(0)) / 2).double()
    bend = (middle - (first + second) / 2).abs().max() / (first - second).abs().max()
    Doubt.when(bend < 1e-4, "the logits of the mean of two pictures are the mean of their logits")
    return f"logits halfway between two pictures are {bend:.0%} off the mean of their logits"


@torch.no_grad()
def eval_mode_is_deterministic(case: ModelCase) -> str:
    """Eval mode is deterministic
    Why: dropout that is active in eval mode makes the figures of val and test random.
    Do: use nn.Dropout, or F.dropout(x, p, training=self.training)."""
    model = case.trained()
    Wrong.when(not torch.equal(model(case.batch), model(case.batch)), "two equal passes differ")
    dropouts = [m for m in model.train().modules() if isinstance(m, _DropoutNd) and m.p]
    if not all(p.requires_grad for p in model.parameters()):  # a frozen part may stay in eval mode
        dropouts = [module for module in dropouts if module.training]
    logits = torch.stack([model(case.batch) for _ in range(8)])  # (8, N, K)
    equal = dropouts and torch.equal(logits[0], logits[1])
    Wrong.when(equal, "two passes in training mode are equal although there is dropout")
    is_dropped = dropouts and (logits == 0).any() and not (logits == 0).all()
    Doubt.when(is_dropped, "some logits are exactly 0: dropout comes after the last layer")
    return "two passes agree in each bit"


@torch.no_grad()
def evaluation_changes_nothing(case: ModelCase) -> str:
    """Evaluation does not change the model
    Why: a model that updates its statistics on val pictures has learned from them.
    Do: update statistics only `if self.training`; do not call .train() on layers in forward."""
    for training in (True, False):
        model = case.model(training=training)
        state = copy.deepcopy(model.state_dict())
        modes = {name: module.training for name, module in model.named_modules()}
        model(case.batch)
        switched = [name for name, m in model.named_modules() if m.training != modes[name]]
        Wrong.when(switched, f"forward switches the training mode of {some(switched)}")
    after = model.state_dict()
    changed = [name for name in state if not torch.equal(state[name], after[name])]
    Wrong.when(changed, f"a pass in eval mode changes {some(changed)}")
    return f"{len(state)} tensors stay"


@torch.no_grad()
def saved_model_predicts_the_same(case: ModelCase) -> str:
    """A model read from its file predicts the same
    Why: what is not in the state dict is lost when the process ends.
    Do: make all that forward uses a parameter or a buffer, set in __init__."""
    model, other = case.trained(), case.model(seed=1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        checkpoint.write(path, checkpoint.plain_copy(model.state_dict()))
        checkpoint.load_file(other, path)
    Wrong.when(not torch.equal(model(case.batch), other.eval()(case.batch)), "it does not")
    return "the same in each bit"


@torch.no_grad()
def activations_keep_their_size(case: ModelCase) -> str:
    """Activations neither vanish nor explode
    Why: they shrink or grow exponentially with depth, and so does the gradient.
    Do: initialise by fan-in (kaiming_normal_), or put normalisation between the layers."""
    model = case.model(training=True)
    sizes: dict[str, float] = {}
    names = {module: name for name, module in model.named_modules()}

    def note_size(layer: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            sizes.pop(names[layer], None)  # in the order of the last calls
            sizes[names[layer]] = output.float().square().mean().sqrt().item()

    for module in names:
        if any(p.abs().max() > 0.01 for p in module.parameters(recurse=False)):
            module.register_forward_hook(note_size)  # not what starts near 0 on purpose
    model(case.batch)
    NotChecked.when(not sizes, "the model has no layers with weights")
    bad = [name for name, size in sizes.items() if not math.isfinite(size)]
    Wrong.when(bad, f"the output is not finite at {some(bad, 1)}")
    inner = dict([*sizes.items()][:-1]) or sizes  # the last layer often starts small
    least, most = min(inner, key=inner.__getitem__), max(inner, key=inner.__getitem__)
    seen = f"root mean square {inner[least]:.2g} at {least} … {inner[most]:.2g} at {most}"
    Wrong.when(inner[most] > 1e4 or inner[least] < 1e-4, seen)
    Doubt.when(inner[most] > 1e3 or inner[least] < 1e-3, seen)
    return seen


def few_units_are_dead(case: ModelCase) -> str:
    """Few units are dead
    Why: a unit that is 0 for every picture has no gradient, and stays 0.
    Do: start with biases of 0 and a smaller learning rate, or use a leaky ReLU."""
    dead = {}
    for name, layer in case.trained().named_modules():
        grad = layer.weight.grad if isinstance(layer, nn.Linear | nn.Conv2d) else None
        if grad is not None and len(grad) > 3:
            dead[name] = grad.flatten(1).eq(0).all(dim=1).float().mean().item()
    NotChecked.when(not dead, "there is no trainable nn.Linear or nn.Conv2d")
    worst = max(dead, key=dead.__getitem__)
    seen = f"at most {dead[worst]:.0%}" + (f", at {worst}" if dead[worst] else "")
    Wrong.when(dead[worst] > 0.9, seen)
    Doubt.when(dead[worst] > 0.6, seen)
    return seen


def units_differ(case: ModelCase) -> str:
    """The units of a layer differ
    Why: units that start equal, from zeros or a constant, learn the same: a layer of one unit.
    Do: initialise weights at random; zeros are for biases and, at most, for the last layer."""
    model = case.model()  # in eval mode: dropout alone would make units differ
    weights = {n: p for n, p in model.named_parameters() if p.ndim > 1 and p.requires_grad}
    large = {n: p for n, p in weights.items() if len(p) > 1 and p[0].numel() > 1}
    constant = [name for name, weight in large.items() if weight.min() == weight.max() != 0]
    Wrong.when(constant, f"all weights have one value in {some(constant)}")
    case.trained(model)
    equal = [n for n, p in weights.items() if len(p) > 2 and len(p.flatten(1).unique(dim=0)) == 1]
    Wrong.when(equal, f"after three steps all units are still equal in {some(equal)}")
    return f"in {len(weights)} layers"


def uniform_pictures_are_finite(case: ModelCase) -> str:
    """Black, white and grey pictures give finite numbers
    Why: one NaN, from log(0), 0 / 0 or the square root of 0, makes all weights NaN.
    Do: add a small number before log, sqrt and division, or clamp."""
    model = case.model(training=True)
    values = {"black": case.batch.min(), "white": case.batch.max(), "grey": torch.tensor(0.0)}
    for name, value in values.items():
        images = case.batch.clone()
        images[: len(images) // 2] = value
        model.zero_grad()
        logits = model(images)
        Wrong.when(not logits.isfinite().all(), f"logits of {name} pictures are not finite")
        case.loss(logits).backward()
        bad = not_finite((n, p.grad) for n, p in model.named_parameters())
        Wrong.when(bad, f"{name} pictures give a gradient that is not finite at {some(bad)}")
    return "logits and gradients are finite"


CHECKS = checks_in(globals())
