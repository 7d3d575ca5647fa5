"""Is the model wired right? Each check takes a Case and costs a few passes of one small batch."""

import copy
import math
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from models.basic_module import BasicModule
from utils import checkpoint, engine
from utils.device import Precision

from . import Doubt, Wrong, bad_gradients, some

FP32 = Precision("fp32", torch.device("cpu"))


@dataclass
class Case:
    """A model to be made anew for each check, and one batch for it, on the CPU."""

    make_model: Callable[[int], nn.Module]  # takes the number of classes
    images: Tensor  # (N, 3, H, W), normalised
    labels: Tensor  # (N,)
    num_classes: int
    lr: float = 1e-3

    def model(self, seed: int = 0, training: bool = False) -> nn.Module:
        torch.manual_seed(seed)
        return self.make_model(self.num_classes).train(training)

    @torch.enable_grad()
    def trained(self, model: nn.Module | None = None) -> nn.Module:
        """Train for three steps: what starts from zero, as last layers may, has moved by then."""
        model = model or self.model(training=True)
        optimizer = engine.build_optimizer(model, min(self.lr, 1e-3), weight_decay=0.0)
        criterion = engine.ClassificationLoss()
        torch.manual_seed(0)
        for _ in range(3):
            engine.train_step(model, self.images, self.labels, criterion, optimizer, FP32)
        return model  # with the gradients of the last step


def one_logit_a_class(case: Case) -> str:
    """One logit a class

    Why: the loss compares (N, K) numbers with N labels; any other shape is an error or a lie.
    Do: end the model with a layer of `num_classes` outputs, and use that argument.
    """
    for classes in (case.num_classes, case.num_classes + 3):
        torch.manual_seed(0)
        model = case.make_model(classes).eval()
        for size in (len(case.images), 1):
            with torch.no_grad():
                logits = model(case.images[:size])
            if not isinstance(logits, Tensor):
                raise Wrong(f"it returns a {type(logits).__name__}, not a tensor")
            if logits.shape != (size, classes):
                found = tuple(logits.shape)
                raise Wrong(f"made for {classes} classes and {size} pictures it returns {found}")
    return f"({len(case.images)}, {case.num_classes})"


def all_is_registered(case: Case) -> str:
    """Every layer and weight is registered

    Why: what is in a plain list, dict or closure is not trained, moved or saved with the model.
    Do: use nn.ModuleList, nn.ModuleDict, nn.Parameter, and register_buffer for constants.
    """
    model = case.model(training=True)
    known = {id(thing) for thing in [*model.modules(), *model.parameters(), *model.buffers()]}
    lost, constants = [], []
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            for thing in flat(value):
                if id(thing) not in known:
                    trained = isinstance(thing, nn.Module) or thing.requires_grad
                    (lost if trained else constants).append(f"{path}.{name}".strip("."))
    leaves = [leaf for leaf in leaves_of(model(case.images)) if id(leaf) not in known]
    if lost or leaves:
        shapes = [f"a tensor of shape {tuple(leaf.shape)}" for leaf in leaves]
        raise Wrong(f"{some(dict.fromkeys(lost) or shapes)} is used but not part of the model")
    if constants:
        raise Doubt(f"{some(dict.fromkeys(constants))} will not move to another device with it")
    return f"{sum(p.numel() for p in model.parameters()):,} parameters"


def flat(value: Any) -> Iterator[nn.Module | Tensor]:
    """Modules and tensors in an attribute, within lists and dicts too."""
    if isinstance(value, nn.Module) or (isinstance(value, Tensor) and value.is_leaf):
        yield value
    elif isinstance(value, dict | list | tuple | set):
        for part in value.values() if isinstance(value, dict) else value:
            yield from flat(part)


def leaves_of(output: Tensor) -> list[Tensor]:
    """All trainable tensors that `output` was computed from."""
    found, seen, waiting = [], set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found += [node.variable] if hasattr(node, "variable") else []
            waiting += [following for following, _ in node.next_functions]
    return found


def first_loss(case: Case) -> str:
    """The first loss is near ln K

    Why: a new model knows nothing; a higher loss says that its weights or inputs are too large.
    Do: initialise the weights (kaiming_normal_), the last layer small, and normalise the pictures.
    """
    with torch.no_grad():
        loss = F.cross_entropy(case.model(training=True)(case.images).float(), case.labels).item()
    expected = math.log(case.num_classes)
    seen = f"{loss:.3f}, and ln {case.num_classes} is {expected:.3f}"
    if not loss < 4 * expected + 1:  # nan as well
        raise Wrong(seen)
    if loss > 2 * expected + 0.5:
        raise Doubt(seen)
    return seen


def logits_not_probabilities(case: Case) -> str:
    """Outputs are logits

    Why: the loss takes the softmax itself; on top of another one, or of a ReLU, it hardly learns.
    Do: return what the last layer gives, without softmax, sigmoid or ReLU.
    """
    model, called = case.trained().eval(), []
    hooks = [
        module.register_forward_hook(lambda module, *_: called.append(module))
        for module in model.modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    with torch.no_grad():
        logits = model(case.images).double()
        for hook in hooks:
            hook.remove()
        outputs = []
        for factor in (1000, -1000):  # logits follow what the last layer gives, with either sign
            hook = called[-1].register_forward_hook(lambda *parts, by=factor: parts[2] * by)
            outputs.append(model(case.images).double())
            hook.remove()
    both, seen = torch.cat(outputs), f"{logits.min():.3g} … {logits.max():.3g}"
    low, high = both.min().item(), both.max().item()
    if low >= 0 and (both.sum(dim=1) - 1).abs().max() < 1e-4:
        raise Wrong("each row is a probability: there is a softmax at its end")
    if both.logsumexp(dim=1).abs().max() < 1e-4:
        raise Doubt("each row is a log-probability: the loss takes the logarithm again")
    if low >= 0 and high <= 1:
        raise Wrong("all outputs lie within 0 … 1: there is a sigmoid or the like at its end")
    if low >= 0 or high <= 0:
        raise Wrong("all outputs have one sign: there is a ReLU, a softplus or the like at its end")
    if max(-low, high) < 20 * logits.abs().max():
        raise Doubt(f"{seen}, and no further: there is a tanh or a normalisation at its end")
    return seen


def gradient_reaches_every_weight(case: Case) -> str:
    """The gradient reaches every trainable weight

    Why: a weight without a gradient stays what chance made it.
    Do: use each layer in forward, with no detach, .data, no_grad, argmax or NumPy on the way.
    """
    model, called = case.model(training=True), set()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.add(name))
        for name, module in model.named_modules()
    ]
    with CutFinder() as cuts:
        logits = model(case.images)
    for hook in hooks:
        hook.remove()
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise Wrong("all weights are frozen")
    if logits.requires_grad:
        F.cross_entropy(logits.float(), case.labels).backward()
    missing = [name for name, p in trainable if p.grad is None]
    if missing:
        layers = dict.fromkeys(name.rpartition(".")[0] for name in missing)
        unused = [layer for layer in layers if layer not in called]
        way = f"; never called: {some(unused)}" if unused else ""
        way += f"; the graph is cut by {some(cuts.found)}" if cuts.found else ""
        raise Wrong(f"none at {some(missing)}{way}")
    if bad := bad_gradients(model):
        raise Wrong(f"it is not finite at {some(bad)}")
    zero = [name for name, p in trainable if not p.grad.any()]
    if zero:
        case.trained(model)
        zero = [name for name, p in trainable if not p.grad.any()]
    if zero:
        raise Wrong(f"it is exactly 0 at {some(zero)}")
    containers = (nn.Identity, nn.Sequential, nn.ModuleList, nn.ModuleDict)
    skipped = [
        name
        for name, module in model.named_modules()
        if name not in called and not isinstance(module, containers)
        if not any(module.children()) and not any(True for _ in module.parameters())
    ]
    if skipped:
        raise Doubt(f"forward never calls {some(skipped)}")
    return f"{len(trainable)} tensors"


class CutFinder(TorchFunctionMode):
    """Notes which operations take tensors that need a gradient and return one that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, None] = {}

    def __torch_function__(
        self, operation: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
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


def every_weight_moves(case: Case) -> str:
    """Steps move every trainable weight and no frozen one

    Why: a weight that the optimizer does not know is never trained; a frozen one must stay.
    Do: give the optimizer all parameters with requires_grad, and freeze with requires_grad_(False).
    """
    model = case.model(training=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    case.trained(model)
    moved = {name: not torch.equal(p, before[name]) for name, p in model.named_parameters()}
    still = [n for n, p in model.named_parameters() if p.requires_grad and not moved[n]]
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    if still:
        raise Wrong(f"{some(still)} did not change")
    if any(moved[name] for name in frozen):
        raise Wrong(f"{some(name for name in frozen if moved[name])} is frozen but changed")
    return f"{len(moved) - len(frozen)} moved, {len(frozen)} frozen"


@torch.no_grad()
def no_picture_sees_another(case: Case) -> str:
    """A picture's answer depends on that picture alone

    Why: an answer that changes with its neighbours is worth nothing outside its batch.
    Do: look for a mean, softmax or reshape over dimension 0; keep the batch first in every view.
    """
    model = case.trained().eval()
    torch.manual_seed(0)
    together = model(case.images).double()
    alone = torch.cat([model(image[None]) for image in case.images]).double()
    backwards = model(case.images.flip(0)).double().flip(0)
    scale = (together - together.mean(dim=0)).abs().max() + 1e-3 * together.abs().max() + 1e-12
    for other in (alone, backwards):
        if not (gap := ((together - other).abs().max() / scale).item()) < 0.02:
            raise Wrong(f"in another batch its logits differ by {gap:.0%} of their spread")
    return f"{len(case.images)} pictures, together and alone"


def the_whole_picture_counts(case: Case) -> str:
    """The answer depends on the whole picture

    Why: what forward drops cannot be learned from.
    Do: look for a wrong slice, an index where a mean was meant, or a constant output.
    """
    images = case.images.clone().requires_grad_()
    logits = case.trained().eval()(images)
    if not logits.requires_grad:
        raise Wrong("the answer does not depend on the picture by any gradient")
    logits.double().square().sum().backward()
    if images.grad is None:
        raise Doubt("no gradient reaches the picture: is there a no_grad around a frozen part?")
    reach = images.grad.abs()
    if not reach.flatten(1).any(dim=1).all():
        raise Wrong("the answer to some picture does not depend on it")
    channels = reach.sum(dim=(0, 2, 3)) > 0
    if not channels.all():
        raise Wrong(f"colour channel {some((~channels).nonzero().flatten().tolist())} is not used")
    seen = F.max_pool2d(reach.amax(dim=(0, 1))[None, None], 8, ceil_mode=True).gt(0)
    share = seen.float().mean().item()
    if share < 0.6:
        raise Wrong(f"it uses {share:.0%} of the area")
    return f"{share:.0%} of the area, all colours"


@torch.no_grad()
def it_can_bend(case: Case) -> str:
    """The model is more than a line

    Why: without a nonlinearity between them, any number of layers does no more than one.
    Do: put a ReLU, or the like, after each layer but the last.
    """
    model = case.trained().eval()
    logits, mirrored = model(case.images).double(), model(case.images.flip(0)).double()
    middle = model((case.images + case.images.flip(0)) / 2).double()
    bend = (middle - (logits + mirrored) / 2).abs().max() / (logits - mirrored).abs().max()
    if bend < 1e-4:
        raise Doubt("the answer to the mean of two pictures is the mean of their answers")
    return f"between two pictures it bends by {bend:.0%} of their distance"


@torch.no_grad()
def dropout_works_in_training_alone(case: Case) -> str:
    """Chance plays no part in eval mode

    Why: dropout that works in eval as well makes val and test a lottery.
    Do: use nn.Dropout, or F.dropout(x, p, training=self.training).
    """
    model = case.trained().eval()
    if not torch.equal(model(case.images), model(case.images)):
        raise Wrong("two passes over one batch differ")
    kind = nn.modules.dropout._DropoutNd
    dropouts = [m for m in model.train().modules() if isinstance(m, kind) and m.p]
    if any(p.requires_grad is False for p in model.parameters()):  # a frozen part may stay in eval
        dropouts = [m for m in dropouts if m.training]
    if dropouts and torch.equal(model(case.images), model(case.images)):
        raise Wrong("two passes in training mode agree in each bit, in spite of dropout")
    answers = torch.stack([model(case.images) for _ in range(8)])  # (8, N, K)
    if dropouts and (answers == 0).any() and not (answers == 0).all():
        raise Doubt(
            "in training mode some logits are exactly 0: dropout comes after the last layer"
        )
    return "two passes agree in each bit"


@torch.no_grad()
def eval_leaves_the_model_alone(case: Case) -> str:
    """Measuring leaves the model as it is

    Why: a model that learns from val pictures, if only their statistics, has seen them.
    Do: update statistics only `if self.training`; do not call .train() on parts in forward.
    """
    model = case.model()
    before = copy.deepcopy(model.state_dict())
    model(case.images)
    state = model.state_dict()
    changed = [name for name in state if not torch.equal(state[name], before[name])]
    modes = [name or "the model" for name, module in model.named_modules() if module.training]
    if changed or modes:
        raise Wrong(f"a pass in eval mode changed {some(changed or modes)}")
    before = {name: module.training for name, module in model.train().named_modules()}
    model(case.images)
    modes = [name for name, module in model.named_modules() if module.training != before[name]]
    if modes:
        raise Wrong(f"a pass in training mode sets {some(modes)} to eval mode")
    return f"{len(state)} tensors stay"


@torch.no_grad()
def comes_back_from_its_file(case: Case) -> str:
    """A saved model gives the same answers

    Why: what is not in the state dict is lost with the process.
    Do: make all that forward uses a parameter or a buffer, set in __init__.
    """
    model, other = case.trained(), case.model(seed=1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        if isinstance(model, BasicModule):
            model.save(path)
            other.load(path)
        else:
            other.load_state_dict(checkpoint.read(checkpoint.write(path, model.state_dict())))
    if not torch.equal(model.eval()(case.images), other.eval()(case.images)):
        raise Wrong("its answers differ")
    return "the same in each bit"


@torch.no_grad()
def same_on_every_device(case: Case) -> str:
    """Moves between devices

    Why: a tensor that stays behind ends the run on a GPU.
    Do: make constants with register_buffer or on the input's device.
    """
    model = case.model()
    expected = copy.deepcopy(model)(case.images)
    devices = [torch.device("cpu")]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator().type
        devices += [torch.device(kind, i) for i in range(torch.accelerator.device_count())]
    for device in devices:
        found = copy.deepcopy(model).to(device)(case.images.to(device)).cpu()
        if not torch.allclose(found, expected, 0.01, 0.01 * expected.abs().max().item()):
            raise Wrong(f"a copy on {device} gives other answers")
    return some(devices)


def activations_keep_their_size(case: Case) -> str:
    """Activations neither vanish nor explode

    Why: by depth they shrink or grow like a power; then so does the gradient.
    Do: initialise by fan-in (kaiming_normal_), or put normalisation between the layers.
    """
    model, sizes = case.model(training=True), {}

    def note(name: str) -> Callable:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                sizes.pop(name, None)  # in the order of the last calls
                sizes[name] = output.detach().float().square().mean().sqrt().item()

        return hook

    for name, module in model.named_modules():
        if any(p.abs().max() > 0.01 for p in module.parameters(recurse=False)):
            module.register_forward_hook(note(name))  # what starts near 0 is meant to
    with torch.no_grad():
        model(case.images)
    bad = [name for name, size in sizes.items() if not math.isfinite(size)]
    if bad:
        raise Wrong(f"{bad[0]} is the first layer whose output is not finite")
    inner = dict([*sizes.items()][:-1]) or sizes  # the last layer is often made small
    least, most = min(inner, key=inner.get), max(inner, key=inner.get)
    seen = f"root mean square {inner[least]:.2g} at {least} … {inner[most]:.2g} at {most}"
    if inner[most] > 1e4 or inner[least] < 1e-4:
        raise Wrong(seen)
    if inner[most] > 1e3 or inner[least] < 1e-3:
        raise Doubt(seen)
    return seen


def few_units_are_dead(case: Case) -> str:
    """Few units are dead

    Why: a unit that no picture wakes has no gradient and never will.
    Do: start with biases of 0 and a smaller learning rate, or use a leaky ReLU.
    """
    dead = {}
    for name, layer in case.trained().named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and len(layer.weight) > 3:
            grad = layer.weight.grad
            if grad is not None:
                dead[name] = grad.flatten(1).eq(0).all(dim=1).float().mean().item()
    worst = max(dead, key=dead.get, default="")
    seen = f"at most {dead.get(worst, 0):.0%}" + f", at {worst}" * (dead.get(worst, 0) > 0)
    if dead.get(worst, 0) > 0.9:
        raise Wrong(seen)
    if dead.get(worst, 0) > 0.6:
        raise Doubt(seen)
    return seen


def units_differ(case: Case) -> str:
    """No two units of a layer are twins

    Why: units that start alike, from zeros or a constant, learn alike: a layer of one unit.
    Do: draw weights at random; zeros are for biases, and for a last layer at most.
    """
    model = case.model()
    flat = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and p.ndim > 1 and len(p) > 1 and p[0].numel() > 1
        if p.min() == p.max() != 0
    ]
    if flat:
        raise Wrong(f"one number is everywhere in {some(flat)}")
    case.trained(model)  # in eval mode: dropout alone would tell them apart
    twins = [
        name
        for name, p in model.named_parameters()
        if p.ndim > 1 and p.requires_grad and len(p) > 2 and len(p.flatten(1).unique(dim=0)) == 1
    ]
    if twins:
        raise Wrong(f"after three steps all are still the same in {some(twins)}")
    return "in every layer"


def any_picture_is_finite(case: Case) -> str:
    """Black, white and flat pictures do no harm

    Why: one NaN, from log(0), 0 / 0 or a square root at 0, makes all weights NaN.
    Do: add a small number before log, sqrt and division, or clamp.
    """
    low, high = case.images.min(), case.images.max()
    model = case.model(training=True)
    for name, value in {"black": low, "white": high, "zero": torch.tensor(0.0)}.items():
        images = case.images.clone()
        images[: len(images) // 2] = value
        model.zero_grad()
        logits = model(images)
        if not logits.isfinite().all():
            raise Wrong(f"with a picture that is all {name} the logits are not finite")
        F.cross_entropy(logits.float(), case.labels).backward()
        if bad := bad_gradients(model):
            raise Wrong(f"with a picture that is all {name} the gradient of {bad[0]} is not finite")
    return "logits and gradients are finite"


CHECKS = [
    one_logit_a_class,
    all_is_registered,
    gradient_reaches_every_weight,
    every_weight_moves,
    first_loss,
    logits_not_probabilities,
    no_picture_sees_another,
    the_whole_picture_counts,
    it_can_bend,
    dropout_works_in_training_alone,
    eval_leaves_the_model_alone,
    comes_back_from_its_file,
    same_on_every_device,
    activations_keep_their_size,
    few_units_are_dead,
    units_differ,
    any_picture_is_finite,
]
