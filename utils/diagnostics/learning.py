"""Does training train? The project's own step, evaluation and command, on a few pictures."""

import contextlib
import io
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from utils import engine, files, recipe
from utils.seed import seed_everything

from . import Doubt, NotChecked, Wrong, checks_in
from .model import ModelCase

BATCH_STEPS = 60  # enough to overfit eight pictures; five times as many while the loss falls
HUNDRED_STEPS = 160  # for a hundred pictures: 40 passes


def update(case: ModelCase, old_gradient: bool = False, accumulate: int = 1) -> Tensor:
    """Return by how much a step of plain gradient descent changes the weights, in one vector.

    In eval mode, where dropout and BatchNorm make no difference between parts and the whole.
    """
    model = case.settle(case.model())
    trainable = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trainable]
    for parameter in trainable if old_gradient else ():
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    case.step(model, optimizer, case.rows(8), clip_norm=None, accumulate=accumulate)
    changes = [(p.detach() - old).flatten() for p, old in zip(trainable, before, strict=True)]
    return torch.concat(changes).float()


def nearly_equal(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= 0.1 * one.norm())


def gradients_start_from_zero(case: ModelCase) -> str:
    """Each step starts from a gradient of zero
    Why: gradients add up until zero_grad; those of earlier steps then spoil the update.
    Do: call optimizer.zero_grad() once per step, before the first backward."""
    equal = nearly_equal(update(case), update(case, old_gradient=True))
    Wrong.when(not equal, "what an earlier step left in .grad changes the update")
    return "what an earlier step left in .grad has no effect"


def parts_add_up(case: ModelCase) -> str:
    """A batch in parts gives the same update as the whole
    Why: --accumulate must give the same training with less memory.
    Do: divide each part's sum of losses by the size of the whole batch."""
    equal = nearly_equal(update(case), update(case, accumulate=2))
    Wrong.when(not equal, "--accumulate=2 gives another update")
    return "in one part or two"


def a_step_lowers_the_loss(case: ModelCase) -> str:
    """A small step lowers the loss of its batch
    Why: if it does not, the gradient is not that of the loss, or has the wrong sign.
    Do: look at the sign of the loss, and whether all its terms reach backward."""
    model, rows = case.settle(case.model()), case.rows(8)
    optimizer = case.optimizer(model, lr=case.options.lr / 20)
    steps = [case.step(model, optimizer, rows) for _ in range(6)]
    first, last = steps[0][1].mean().item(), steps[-1][1].mean().item()
    errors = [F.cross_entropy(logits.float(), case.labels[rows]).item() for logits, _ in steps]
    seen = f"{first:.4f} to {last:.4f} in five steps"
    Wrong.when(not last < first, seen)
    Wrong.when(not errors[-1] < errors[0], f"{seen}, but the cross-entropy rises")
    return seen


def evaluate_is_right(case: ModelCase) -> str:
    """evaluate returns the logits of eval mode, in order
    Why: a pass in training mode, with gradients, or in another order measures something else.
    Do: call model.eval() before it and go back after; keep logits and labels together."""
    model, rows = case.settle(case.model()), case.rows(8)
    images, labels = case.images[rows], case.labels[rows]
    with torch.inference_mode(), case.amp.autocast:
        expected = model(images).float().cpu()
    batches = [(0, images[:5], labels[:5]), (1, images[5:], labels[5:])]
    logits, found = engine.evaluate(model.train(), batches, case.amp)
    Wrong.when(not model.training, "it leaves the model in eval mode: no dropout in later epochs")
    gap = (logits - expected).abs().max() / (expected.std() + 1e-6)
    differ = found.tolist() != labels.tolist() or not gap < 0.05
    Wrong.when(differ, "its logits are not those of eval mode, picture by picture")
    Wrong.when(logits.requires_grad, "it keeps the graph of every batch in memory")
    return f"{len(labels)} pictures in two batches"


def updates_have_a_sensible_size(case: ModelCase) -> str:
    """Steps change the weights by a sensible share
    Why: 0.1 % per step is usual; far more destroys what was learned, far less takes for ever.
    Do: change --lr; the chart of the gradients shows the layers."""
    table = gradient_flow(case)
    NotChecked.when(not table, "no trainable weight is a matrix or a filter")
    median = statistics.median(row["update"] for row in table)
    seen = f"{median:.1e} of their size in the median layer"
    if case.folder:
        seen += f"; all layers are in {draw_flow(table, case.folder / 'gradients.png')}"
    Wrong.when(not median < 0.5, seen)  # nan as well
    Doubt.when(median < 1e-6, seen)
    return seen


def gradient_flow(case: ModelCase) -> list[dict[str, Any]]:
    """Return for each trainable matrix: mean and max of |gradient|, and |update| / |weight|."""
    model = case.model(training=True)
    optimizer, rows = case.optimizer(model, case.options.lr), case.rows(16)
    for _ in range(3):  # weights that start from zero have a size by then
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        case.step(model, optimizer, rows)
    table = []
    for name, p in model.named_parameters():
        if p.grad is not None and p.ndim > 1:  # vectors start at 0: no size to compare with
            share = (p.detach() - before[name]).norm() / (before[name].norm() + 1e-12)
            row = {"mean": p.grad.abs().mean(), "max": p.grad.abs().max(), "update": share}
            table.append({"name": name, **{key: value.item() for key, value in row.items()}})
    return table


def draw_flow(table: list[dict[str, Any]], path: Path) -> Path:
    """Write the table as a CSV file, and as a chart from the first layer to the last."""
    files.write_csv(path.with_suffix(".csv"), table)
    from matplotlib.figure import Figure  # slow to load

    figure = Figure(figsize=(max(6, 0.25 * len(table)), 6), layout="constrained")
    axes = figure.subplots()
    labels = {"mean": "mean |gradient|", "max": "max |gradient|", "update": "|update| / |weight|"}
    for column, label in labels.items():
        axes.semilogy([max(row[column], 1e-12) for row in table], "o-", label=label)
    axes.set_xticks(range(len(table)), [row["name"] for row in table], rotation=90, fontsize=7)
    axes.legend()
    figure.savefig(path, dpi=100)
    return path


def overfits_eight_pictures(case: ModelCase) -> str:
    """Overfits eight pictures
    Why: a model that cannot learn eight pictures it sees at each step cannot learn more.
    Do: mend what is wrong above; if nothing is, change --lr as told here."""
    lr = case.options.lr
    learned, losses = overfit(case, lr)
    seen = f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps at lr {lr:g}"
    if learned:
        return seen
    Doubt.when(losses[-1] < 0.7 * losses[0], f"{seen}: it learns, but slowly")
    for factor in (0.1, 0.01, 10.0, 100.0, 1e-3, 1e3, 1e4):
        high = "high" if factor < 1 else "low"
        better = overfit(case, factor * lr)[0]
        Wrong.when(better, f"{seen}, which is too {high}: it learns at {factor * lr:g}")
    raise Wrong(f"{seen}, and no better at other rates")


def overfit(case: ModelCase, lr: float) -> tuple[bool, list[float]]:
    """Train on eight pictures; return whether they were learned, and the loss of each step.

    Learned: each label is right, and the loss is below minimum + 10 % of (uniform loss - minimum).
    """
    model, rows = case.model(training=True), case.rows(8)
    labels = case.labels[rows]
    truth = F.one_hot(labels, len(case.classes)).float()
    scales = [0.0, *torch.logspace(0, 2, 30).tolist()]  # of right logits; 0: uniform ones
    uniform, *others = (case.criterion(scale * truth, labels).mean().item() for scale in scales)
    goal = min(others) + 0.1 * (uniform - min(others))
    optimizer = case.optimizer(model, lr)
    losses: list[float] = []
    learned, falls = False, True
    while not learned and (len(losses) < BATCH_STEPS or falls) and len(losses) < 5 * BATCH_STEPS:
        recipe.set_lr(optimizer, lr * min(1, (len(losses) + 1) / 10))
        seed_everything(0, "check", len(losses))
        logits, step_losses = case.step(model, optimizer, rows)
        losses.append(step_losses.mean().item())
        learned = losses[-1] < goal and torch.equal(logits.argmax(dim=1), labels)
        falls = losses[-1] < 0.98 * losses[-BATCH_STEPS // 3 :][0]
    return learned, losses


def overfits_a_hundred_pictures(case: ModelCase) -> str:
    """Overfits a hundred pictures
    Why: without augmentation all of them should be right; if not, labels or model are at fault.
    Do: look at pictures and labels; then the model may be too small."""
    model, rows, lr = case.model(training=True), case.rows(100), case.options.lr / 2
    optimizer = case.optimizer(model, lr)
    step, best = 0, 0.0
    while best < 1 and step < HUNDRED_STEPS:
        rows = rows[torch.randperm(len(rows)).to(rows.device)]
        parts = rows.tensor_split(math.ceil(len(rows) / 25))  # none of a single picture
        logits = []
        for part in parts:
            step += 1
            recipe.set_lr(optimizer, lr * min(1, step / 20))
            logits.append(case.step(model, optimizer, part)[0])
        answers = torch.concat(logits).argmax(dim=1)
        best = max(best, (answers == case.labels[rows]).float().mean().item())
    seen = f"{best:.0%} of {len(rows)} right after {step} steps"
    constant = best < 1 and len(answers.unique()) == 1
    Wrong.when(constant, f"{seen}: it answers {case.classes[answers[0]]} to all; lower --lr")
    chance = case.labels[rows].bincount().max().item() / len(rows)
    Wrong.when(best < 0.4 + chance / 2, seen)
    Doubt.when(best < 0.97, seen)
    with torch.no_grad(), case.amp.autocast:
        training = torch.concat([model(case.images[part]).argmax(dim=1) for part in parts])
        case.settle(model, parts)
    batches = [(0, case.images[part], case.labels[part]) for part in parts]
    measured = engine.evaluate(model, batches, case.amp)[0].argmax(dim=1)
    right = [(x.cpu() == case.labels[rows].cpu()).float().mean() for x in (training, measured)]
    lower = len(rows) >= 20 and right[1] < right[0] - 0.2
    Wrong.when(lower, f"{right[0]:.0%} are right in training mode, {right[1]:.0%} in eval mode")
    return seen


class Pass(NamedTuple):
    """A forward pass that the rehearsal has made."""

    model: nn.Module
    training: bool
    gradients: bool  # are computed
    gradients_left: bool  # of an earlier step
    pictures: set[int]  # their hashes


def train_command_is_in_order(case: ModelCase) -> str:
    """The command train does its steps in order
    Why: a forgotten train(), eval(), no_grad or step raises no error, and the model learns badly.
    Do: compare the loop of `train` in main.py with its original steps 5 and 6."""
    if case.rehearse is None:
        raise NotChecked("there is no command to rehearse")
    model_class = type(case.model())
    inner: set[nn.Module] = set()  # parts of the model, which may be of its own class
    passes: list[Pass] = []
    stepped: set[int] = set()  # the weights that an optimizer changes
    rates: list[float] = []  # the learning rate of each step
    orders: list[Tensor] = []  # the labels of each step

    def note_pass(module: nn.Module, inputs: Any) -> None:
        gradients = torch.is_grad_enabled()
        if type(module) is type(case.criterion) and gradients:
            orders.append(inputs[1].cpu())
        if type(module) is model_class and module not in inner:
            inner.update(set(module.modules()) - {module})
            left = any(p.grad is not None and p.grad.any() for p in module.parameters())
            seen = {hash(image.cpu().numpy().tobytes()) for image in inputs[0]}
            passes.append(Pass(module, module.training, gradients, left, seen))

    def note_step(optimizer: Optimizer, *_: Any) -> None:
        rates.append(max(g["lr"] / g.get("lr_factor", 1.0) for g in optimizer.param_groups))
        stepped.update(id(weight) for g in optimizer.param_groups for weight in g["params"])

    hooks = register_module_forward_pre_hook(note_pass), register_optimizer_step_pre_hook(note_step)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            case.rehearse()
    finally:
        for hook in hooks:
            hook.remove()
    # Passes of a copy, as for a picture of the model's graph, are no part of the training.
    passes = [p for p in passes if not stepped or stepped & set(map(id, p.model.parameters()))]
    train_passes = [p for p in passes if p.gradients]
    val_passes = [p for p in passes if not p.gradients]
    train_pictures, val_pictures = (
        set().union(*(p.pictures for p in part)) for part in (train_passes, val_passes)
    )
    lr, count = case.options.lr, len(train_passes)
    faults = {
        "no pass computes gradients": not train_passes,
        "val computes gradients, or is left out": not val_passes,
        "a step starts with the gradient of the last one": any(
            p.gradients_left for p in train_passes
        ),
        "it trains in eval mode": not all(p.training for p in train_passes),
        "val runs in training mode": any(p.training for p in val_passes),
        f"{len(rates)} optimizer steps for {count} batches": len(rates) != count,
        "the learning rate is 0 at every step": not any(rates),
        f"the learning rate goes above {lr:g}": max(rates, default=0) > 1.01 * lr,
        "val measures pictures of train": len(train_pictures & val_pictures) > 2,
        "the order is the same in each epoch, or class by class": not shuffled(orders),
    }
    found = [words for words, is_fault in faults.items() if is_fault]
    Wrong.when(found, "; ".join(found))
    return f"{count} steps and {len(val_passes)} passes of val watched"


def shuffled(orders: list[Tensor]) -> bool:
    """Return whether the labels of two epochs, step by step, come mixed and in a new order."""
    first, second = orders[: len(orders) // 2], orders[len(orders) // 2 :]
    if len(first) < 2 or len(torch.concat(orders).unique()) < 2:
        return True  # too few to tell
    mixed = any(len(labels.unique()) > 1 for labels in orders)
    return mixed and not all(map(torch.equal, first, second))


CHECKS = checks_in(globals())
