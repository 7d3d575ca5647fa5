"""Is the model wired right? Each check takes a ModelCase and costs a few passes of one batch."""

import copy
import itertools
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map_only

from utils import checkpoint, engine, recipe
from utils.device import Precision
from utils.guard import not_finite
from utils.seed import seed_everything
from utils.trace import PRODUCTS, Operation, Trace, is_scrambled

from . import Doubt, NotChecked, Wrong, checks_in, some

Samples = list[tuple[Tensor, int]]  # pictures (3, H, W) and their labels
FP32 = Precision("fp32", torch.device("cpu"))
SCALINGS = ("mul", "div", "mul_", "div_", "__mul__", "__rmul__", "true_divide", "multiply")
COMPARISONS = ("gt", "lt", "ge", "le", "__gt__", "__lt__", "__ge__", "__le__")
PIXELS = 48  # that are changed, one in each pass of a picture


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
    rehearse: Callable[[], Samples] | None = None  # runs `train` on the samples that it returns
    train_size: int | None = None  # pictures of the train split
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

    @cached_property
    def made(self) -> nn.Module:
        """A model after three steps. All checks share it; none may change it."""
        return self.train_shortly(self.model(training=True))

    def trained(self) -> nn.Module:
        return self.made.eval()

    def train_shortly(self, model: nn.Module) -> nn.Module:
        """Make three steps, after which layers that start from zero have changed; go to eval mode.

        The gradients of the last step stay.
        """
        optimizer = self.optimizer(model, lr=min(self.options.lr, 1e-3))
        seed_everything(0, "check")
        for _ in range(3 if any(p.requires_grad for p in model.parameters()) else 0):
            self.step(model, optimizer, self.rows(8))
        return self.settle(model)

    def loss(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), self.batch_labels)

    @cached_property
    def trace(self) -> Trace:
        """What happens in a forward and a backward pass after three steps, in eval mode."""
        rows = self.rows(13)  # a number that no layer has, so that this axis is easily known
        return Trace(
            self.trained(),
            self.images[rows],
            loss=lambda logits: F.cross_entropy(logits.float(), self.labels[rows]),
        )


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
                computed = getattr(part, "grad_fn", None)  # as by torch.nn.utils.weight_norm
                if isinstance(part, nn.Module | Tensor) and id(part) not in known and not computed:
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
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    Wrong.when(not trainable, "all weights are frozen")
    for _ in range(6):  # a model may skip blocks at random
        logits = model(case.batch)
        if logits.requires_grad:
            case.loss(logits).backward()
        missing = [name for name, p in trainable.items() if p.grad is None]
        if not missing:
            break
    layers = dict.fromkeys(name.rpartition(".")[0] for name in missing)
    unused = [layer for layer in layers if layer not in called]
    reasons = f"; never called: {some(unused)}" if unused else ""
    cuts = [op for op in Trace(model, case.batch).operations if op.cuts_gradient] if missing else []
    places = dict.fromkeys(f"{op.name} in {op.place}" for op in cuts)
    reasons += f"; the graph is cut by {some(places)}" if places else ""
    lost = sum(trainable[name].numel() for name in missing)
    is_small = lost < 0.01 * sum(p.numel() for p in trainable.values()) and not reasons
    Doubt.when(missing and is_small, f"none at {some(missing)}")
    Wrong.when(missing, f"none at {some(missing)}{reasons}")
    bad = not_finite((name, p.grad) for name, p in trainable.items())
    Wrong.when(bad, f"it is not finite at {some(bad)}")
    if not all(p.grad is not None and p.grad.any() for p in trainable.values()):
        case.train_shortly(model)
    zero = [name for name, p in trainable.items() if p.grad is None or not p.grad.any()]
    Wrong.when(zero, f"it is exactly 0 at {some(zero)}")
    modules = dict(model.named_modules())
    used = {nn.Identity, nn.Sequential, nn.ModuleList, nn.ModuleDict}
    used |= {type(modules[name]) for name in called}  # one block may lack the dropout of the others
    idle = [name for name, module in modules.items() if type(module) not in used]
    idle = [name for name in idle if not [*modules[name].parameters(), *modules[name].children()]]
    Doubt.when(idle, f"forward never calls {some(idle)}")
    return f"{len(trainable)} tensors"


def every_weight_moves(case: ModelCase) -> str:
    """Steps change every trainable weight and no frozen one
    Why: the optimizer trains only the weights it is given; a frozen random weight never learns.
    Do: give it all parameters; freeze with requires_grad_(False), and only weights from a file."""
    model, before = case.trained(), dict(case.model().named_parameters())
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    learns = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    still = [name for name in before if name in learns - moved - frozen]
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
    logits = case.model(training=True)(case.batch).float()
    loss, expected = case.loss(logits).item(), math.log(len(case.classes))
    seen = f"{loss:.3f}, and ln {len(case.classes)} is {expected:.3f}"
    Wrong.when(not loss < expected + 20, seen)  # nan as well; networks that start at 14 do learn
    mean, spread = logits.mean(dim=0), logits.std(dim=0).max()
    constant = mean.max() - mean.min() > 10 * max(1.0, spread)
    Wrong.when(constant, f"{seen}; each picture has nearly the logits {some(mean.tolist())}")
    Doubt.when(loss > 2 * expected + 0.5, seen)
    return seen


@torch.no_grad()
def outputs_are_logits(case: ModelCase) -> str:
    """Outputs are logits
    Why: the loss applies the softmax; after another one, or a ReLU, the model hardly learns.
    Do: return the output of the last layer, with nothing behind it."""
    model, path = case.trained(), case.trace.path
    logits = model(case.batch).double()
    last_layer = ["", *(op.layer for op in path if op.is_layer)][-1]
    outputs = [logits]
    for factor in (1000, -1000) if last_layer else ():  # of what the last layer returns

        def scale(_layer: nn.Module, _inputs: Any, output: Any, factor: int = factor) -> Any:
            return tree_map_only(Tensor, lambda x: x * factor, output)

        hook = model.get_submodule(last_layer).register_forward_hook(scale)
        outputs.append(model(case.batch).double())
        hook.remove()
    both, seen = torch.concat(outputs), f"{logits.min():.3g} … {logits.max():.3g}"
    low, high = both.min().item(), both.max().item()
    is_probability = low >= 0 and (both.sum(dim=1) - 1).abs().max() < 1e-4
    Wrong.when(is_probability, "each row is a probability: there is a softmax at the end")
    is_log_probability = both.logsumexp(dim=1).abs().max() < 1e-4
    Doubt.when(is_log_probability, "each row is a log-probability: the loss takes the logarithm")
    NotChecked.when(not last_layer, "the last layer is no module")
    Wrong.when(low >= 0 and high <= 1, "all lie within 0 … 1: there is a sigmoid at the end")
    last = max((n for n, op in enumerate(path) if op.is_layer), default=len(path))
    one_sign = "all are positive: there is a ReLU or softplus at the end"
    at_the_end = any(op.flat for op in path[last:] if op.shapes[1][1:] == logits.shape[1:])
    Wrong.when(low >= 0 and at_the_end, one_sign)
    Doubt.when(low >= 0, one_sign)
    others = (logits.shape[1] - 1) * math.exp(min(low - high, 0.0))
    sure = 1 / (1 + others)  # one logit is as high as it can be, and the others as low
    scaled = any(op.weights for op in path[last + 1 :])  # by a number that is learned
    too_small = sure < 0.95 and not scaled
    Wrong.when(too_small, f"the surest answer it can give has a probability of {sure:.0%}")
    fault = fault_behind_the_last_layer(case.trace, path[last:])
    Wrong.when(fault, f"behind the last layer comes {fault}")
    return seen


def fault_behind_the_last_layer(trace: Trace, path: list[Operation]) -> str:
    """Return what normalises, drops or rescales the logits, or "" if nothing does.

    path: the operations from the last layer on.
    """
    behind = path[1:]
    for op in behind:
        is_dropout = "dropout" in op.name and op.option("p", 1, default=0.0)
        if op.shapes == (trace.logits.shape,) * 2 and ("norm" in op.name or is_dropout):
            return str(op)
    if behind and all(op.name in SCALINGS and not op.weights for op in behind):
        factor, size = behind[-1].size / (path[0].size + 1e-30), behind[-1].size
        if (factor < 0.1 and size < 0.05) or (factor > 10 and size > 5):
            return f"{behind[-1]}, which multiplies the logits by {factor:.2g}"
    return ""


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
        Wrong.when(not gap < 0.005, f"in another batch logits differ by {gap:.1%} of their range")
    return f"{len(case.batch)} pictures, together and alone"


@torch.no_grad()
def the_whole_picture_counts(case: ModelCase) -> str:
    """The prediction depends on the whole picture
    Why: the model cannot learn from what forward leaves out.
    Do: look for a wrong slice, a stride larger than its kernel, or an index instead of a mean."""
    model, images = case.trained(), case.batch
    logits = model(images).double()
    scale = logits.abs().max() + 1e-12

    def change(changed: Tensor, least: float = 1e-7) -> Tensor:
        """Return for which pictures (N,) the logits change."""
        return (model(changed).double() - logits).abs().amax(dim=1) > least * scale

    unseen = (~change(images.flip(3).roll(1, dims=0))).sum().item()
    fault = f"for {unseen} of {len(images)} pictures it does not depend on the picture"
    Wrong.when(unseen > len(images) / 2, fault)
    Doubt.when(unseen, fault)
    for channel in range(images.shape[1]):
        changed = images.clone()
        changed[:, channel] = images[:, channel].roll(1, dims=0).flip(2)
        Wrong.when(not change(changed).any(), f"colour channel {channel} is not used")
    differ = (logits - logits.mean(dim=0)).abs().max() > 1e-4 * scale
    for side in (2, 4, 7) if differ else ():
        coarse = F.interpolate(F.adaptive_avg_pool2d(images, side), size=images.shape[2:])
        blind = not change(coarse, least=1e-5).any()
        Wrong.when(blind, f"it sees no more than {side} x {side} pixels of a picture")
    seen, generator = [], torch.Generator().manual_seed(0)
    faint = 0.1 * images  # so that a bright or dark pixel also wins a maximum over all places
    logits = model(faint).double()
    for _ in range(PIXELS // len(images)):
        places = (torch.rand(len(images), 2, generator=generator) * images.shape[2]).long().tolist()
        changes = []
        for value in (10.0, -10.0):
            changed = faint.clone()
            for image, (y, x) in zip(changed, places, strict=True):
                image[:, y, x] = value
            changes.append(change(changed))
        seen += (changes[0] | changes[1]).tolist()
    share = sum(seen) / len(seen)
    words = f"{share:.0%} of {len(seen)} pixels that were changed make a difference"
    Wrong.when(share < 0.4, words)
    return words


@torch.no_grad()
def the_model_is_nonlinear(case: ModelCase) -> str:
    """The model is nonlinear
    Why: linear layers in a row can do no more than a single one.
    Do: put a ReLU, or another activation, after each layer but the last."""
    model = case.trained()
    first, second = model(case.batch).double(), model(case.batch.flip(0)).double()
    middle = model((case.batch + case.batch.flip(0)) / 2).double()
    bend = (middle - (first + second) / 2).abs().max() / (first - second).abs().max()
    layers = sum(op.is_layer for op in case.trace.passages)
    seen = f"{layers} layers in a row act like one: nothing between them is nonlinear"
    Wrong.when(bend < 1e-4 and layers > 2, seen)
    Doubt.when(bend < 1e-4, "the logits of the mean of two pictures are the mean of their logits")
    return f"logits halfway between two pictures are {bend:.0%} off the mean of their logits"


@torch.no_grad()
def eval_mode_is_deterministic(case: ModelCase) -> str:
    """Eval mode is deterministic
    Why: dropout that is active in eval mode makes the figures of val and test random.
    Do: use nn.Dropout, or F.dropout(x, p, training=self.training)."""
    model = case.trained()
    Wrong.when(not torch.equal(model(case.batch), model(case.batch)), "two equal passes differ")
    with training_mode(model):
        dropouts = [m for m in model.modules() if isinstance(m, _DropoutNd) and m.p]
        if not all(p.requires_grad for p in model.parameters()):  # a frozen part may stay in eval
            dropouts = [module for module in dropouts if module.training]
        equal = dropouts and torch.equal(model(case.batch), model(case.batch))
    Wrong.when(equal, "two passes in training mode are equal although there is dropout")
    return "two passes agree in each bit"


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Set a model to training mode; afterwards give it back its state, and eval mode."""
    state = copy.deepcopy(model.state_dict())
    model.train()
    yield
    model.load_state_dict(state)
    model.eval()


@torch.no_grad()
def both_modes_agree(case: ModelCase) -> str:
    """Training mode and eval mode compute the same, but for dropout
    Why: what is trained in one mode and missing in the other makes the figures of val bad.
    Do: look for `if self.training`, and for layers that are called in one mode only."""
    model, passes = case.trained(), []
    layers = {op.layer for op in case.trace.path if op.weights}
    expected, called = model(case.batch).double(), set()
    for _ in range(4):
        with training_mode(model):
            for part in model.modules():
                part.training = part.training and not isinstance(part, _DropoutNd)
            trace = Trace(model, case.batch)
            passes.append(trace.logits.detach().double())
            called |= {op.layer for op in trace.path if op.weights}
    only = sorted(layers ^ called)
    Wrong.when(only, f"{some(only)} is called in one mode only")
    gap = (torch.stack(passes).mean(dim=0) - expected).norm()
    gap = (gap / (expected - expected.mean(dim=0)).norm()).item()
    Wrong.when(gap > 3, f"logits differ by {gap:.1f} times their spread")
    return f"logits differ by {gap:.0%} of their spread"


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


def nothing_is_lost_on_the_way(case: ModelCase) -> str:
    """What differs between pictures reaches the logits
    Why: layers that return nearly the same for all pictures leave the others nothing to learn from.
    Do: initialise by fan-in (kaiming_normal_), normalise between layers, use ReLU or GELU."""
    passages = case.trace.passages
    NotChecked.when(not passages, "the pass cannot be followed")
    layers = [number for number, op in enumerate(passages) if op.is_layer]
    for number, op in enumerate(passages):
        before = passages[number - 1] if number else None
        is_cast = op.cuts_gradient and op.shapes[0] == op.shapes[1] and op.name not in COMPARISONS
        few = is_cast and op.levels < 8 and not (before and before.gradient)
        Wrong.when(few, f"{op} leaves {op.levels} different numbers, and no gradient")
        narrow = op.width == 1 and number < max(layers, default=0)
        Wrong.when(narrow, f"{op} leaves a single number for each picture")
    known = [op for op in passages if op.width]
    NotChecked.when(not known, "no layer keeps the pictures apart")
    bad = [str(op) for op in known if not math.isfinite(op.size)]
    Wrong.when(bad, f"the output is not finite at {some(bad, 1)}")
    largest = max(known, key=lambda op: op.size)
    Wrong.when(largest.size > 1e4, f"root mean square {largest.size:.1e} at {largest}")
    least = min(known, key=lambda op: op.spread)
    seen = f"pictures differ by at least {least.spread:.1e} of the size of a layer's output"
    seen += f", at {least}"
    Wrong.when(least.spread < 1e-4, f"{seen}; in a sound model by 1e-2 or more")
    Doubt.when(least.spread < 2e-3, f"{seen}; in a sound model by 1e-2 or more")
    behind = [op for op in passages[min(layers, default=0) :] if op.width]
    own = [op for op in behind if op.name not in ("stack", "expand")]  # those repeat on purpose
    alike = [op for op in own if op.token_spread < 1e-3]
    Wrong.when(alike, f"all places of a picture are the same at {some(alike, 1)}")
    most = max(op.influence for op in known)
    Wrong.when(most < 1e-4, f"the loss hardly depends on the pictures: by {most:.1e}")
    for before, op in itertools.pairwise(known):
        share = before.influence / (op.influence + 1e-30)
        blocked = 0 < share < 0.01 and op.name not in ("cat", "concat")
        Wrong.when(
            blocked, f"{share:.1%} of the gradient passes {op}; in a sound model 20 % or more"
        )
    return seen


def few_units_are_dead(case: ModelCase) -> str:
    """Few units are dead or saturated
    Why: where the slope of an activation is 0, no gradient passes, and nothing is learned.
    Do: start with biases of 0 and smaller weights, or use normalisation before the activation."""
    for op in case.trace.path:
        if op.name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            gain = max((w.std() * w.shape[1] ** 0.5).item() for w in op.weights if w.ndim > 1)
            Wrong.when(gain > 3, f"the weights of {op} shut its gates: {gain:.1f} times too large")
    active = [op for op in case.trace.path if op.flat]
    if not active:
        return "none"
    worst = max(active, key=lambda op: op.flat * (1 if op.bounded else 0.8))
    seen = f"the slope is 0 for {worst.flat:.0%} of the outputs of {worst}"
    Wrong.when(worst.flat > (0.8 if worst.bounded else 0.9), f"{seen}; in a sound model for half")
    return seen


def operations_suit_each_other(case: ModelCase) -> str:
    """Operations suit each other
    Why: a wrong axis or a wrong order raises no error, and the layers learn from mixed-up numbers.
    Do: permute before you reshape; a softmax takes the last axis; a layer follows a ReLU."""
    for op in case.trace.path:
        for find_fault in (scrambled_axes, misplaced_softmax, mean_of_channels):
            fault = find_fault(case.trace, op)
            Wrong.when(fault, f"{op} {fault}")
        far = max(tree_leaves(op.option("dilation", 5, default=1))) if "conv" in op.name else 1
        outside = far >= max(op.shapes[0][2:], default=1) > 1 and op in case.trace.passages
        Wrong.when(outside, f"{op} has a dilation of {far} for {tuple(op.shapes[0])}")
        dropped = op.option("p", 1, default=0.0) if "dropout" in op.name else 0.0
        Wrong.when(dropped > 0.8, f"{op} drops {dropped:.0%} of the numbers")
    norms = {n: m for n, m in case.model().named_modules() if isinstance(m, _BatchNorm)}
    forgets = [name for name, norm in norms.items() if (norm.momentum or 0) >= 0.9]
    Wrong.when(forgets, f"{some(forgets)} forgets all batches but the last: momentum 0.1 is usual")
    slow = [name for name, norm in norms.items() if 0 < (norm.momentum or 1) <= 0.002]
    Doubt.when(slow, f"{some(slow)} follows the data slowly: momentum 0.1 is usual")
    return f"{len(case.trace.path)} operations"


RESHAPES = {"view", "reshape", "unflatten"}
FILTERS = {"conv2d", "batch_norm", "relu", "relu_", "max_pool2d", "gelu", "silu", "add"}
PASSIVE = {"dropout", "view", "reshape", "flatten", "permute", "transpose", "batch_norm", "to"}
PASSIVE |= {"avg_pool2d", "max_pool2d", "adaptive_avg_pool2d"}  # a softmax stays one behind them


def scrambled_axes(trace: Trace, op: Operation) -> str:
    """Return what is wrong with a reshape; "" if it is sound, or undone by the next operation."""
    if op.name not in RESHAPES or not is_scrambled(*op.shapes):
        return ""
    if any(x.name in RESHAPES and x.shapes[1] == op.shapes[0] for x in trace.users(op)):
        return ""
    before, after = map(tuple, op.shapes)
    return f"goes from {before} to {after}: was permute or transpose meant?"


def misplaced_softmax(trace: Trace, op: Operation) -> str:
    """Return what is wrong with a softmax: the axis in attention, or that it is an activation."""
    if op.name != "softmax":
        return ""
    shape = op.shapes[1]
    axis = op.option("dim", 1, default=None)
    axis = int(len(shape) not in (1, 3)) if axis is None else axis % len(shape)  # torch's rule
    is_square = len(shape) > 2 and shape[-1] == shape[-2]  # queries x keys
    for user in users_of(trace, op):
        is_product = user.name in PRODUCTS and not user.weights
        is_wrong = axis < len(shape) - 2 or (is_square and not user.rows_sum_to_1)
        if is_product and is_wrong and len(user.shapes[0]) == len(shape):
            return f"takes axis {axis} of attention, not the last"
        if user.is_layer and user.name != "matmul" and op in trace.passages:
            return f"is an activation before {user}: use ReLU or GELU"
    return ""


def users_of(trace: Trace, operation: Operation) -> list[Operation]:
    """Return the operations that use a result, also behind others that do not change its sense."""
    found, waiting = [], [operation]
    while waiting:
        users = trace.users(waiting.pop())
        found += users
        waiting += [user for user in users if user.name in PASSIVE]
    return found


def mean_of_channels(trace: Trace, op: Operation) -> str:
    """Return what is wrong with a mean over the channels of filters, through which all passes."""
    if op.name not in ("mean", "sum", "amax") or len(op.shapes[0]) != 4 or op not in trace.passages:
        return ""
    axes = {axis % 4 for axis in tree_leaves(op.option("dim", 1, default=()))}
    makers = [trace.operations[source] for source in op.sources if source >= 0]
    if 1 in axes and any(maker.name in FILTERS for maker in makers):
        return f"is taken over the channels of {makers[0]}"
    return ""


def units_differ(case: ModelCase) -> str:
    """The units of a layer differ
    Why: units that start equal, from zeros or a constant, learn the same: a layer of one unit.
    Do: initialise weights at random; zeros are for biases and, at most, for the last layer."""
    model = case.model()  # in eval mode: dropout alone would make units differ
    weights = {n: p for n, p in model.named_parameters() if p.ndim > 1 and p.requires_grad}
    large = {n: p for n, p in weights.items() if len(p) > 1 and p[0].numel() > 1}
    constant = [n for n, p in large.items() if p.any() and (p == p.flatten()[0]).all()]
    Wrong.when(constant, f"all weights have one value in {some(constant)}")
    after = {name: p.flatten(1) for name, p in case.trained().named_parameters() if name in weights}
    equal = [name for name, p in after.items() if len(p) > 2 and (p == p[0]).all()]
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
