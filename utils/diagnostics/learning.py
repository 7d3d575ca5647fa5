"""Does training train? The project's own step, evaluation and command, on a few pictures."""

import copy
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from utils import engine, files, recipe
from utils.muon import Muon
from utils.seed import seed_everything

from . import Doubt, NotChecked, Wrong, checks_in
from .model import ModelCase
from .rehearsal import Rehearsal, as_vector, difference, shuffled


def the_loss_favours_the_right_class(case: ModelCase) -> str:
    """The loss favours the right class
    Why: the loss must be lowest when the model is sure of the right class.
    Do: look for labels that are shuffled or shifted, for a wrong sign, and at --label-smoothing."""
    labels = case.labels[case.rows(16)]
    logits = torch.zeros(len(labels), len(case.classes), device=labels.device).requires_grad_()
    losses = case.criterion(logits, labels)
    Wrong.when(losses.shape != labels.shape, f"{len(labels)} pictures have {losses.numel()} losses")
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    wrong = ((-gradient).argmax(dim=1) != labels).sum() if gradient.any() else len(labels)
    Wrong.when(wrong, f"for {wrong} of {len(labels)} pictures it falls with another logit")
    size = gradient.norm(dim=1).mean().item()
    Wrong.when(size < 1e-4, f"its gradient is {size:.1e} for a new model, and usually 0.7")
    best, least = min(scales_of_right_logits(case, labels), key=lambda pair: pair[1])
    Wrong.when(least < -0.01, f"it falls below 0, to {least:.3g}: it is no likelihood")
    truth = F.one_hot(labels, len(case.classes)).float()
    sure = (best * truth).softmax(dim=1)[truth > 0].mean().item()
    seen = f"it is lowest where the right class has {sure:.0%}"
    Wrong.when(sure < 0.7, seen)
    return seen


def scales_of_right_logits(case: ModelCase, labels: Tensor) -> list[tuple[float, float]]:
    """Return sizes of the right logit, where the others are 0, each with the mean loss."""
    truth = F.one_hot(labels, len(case.classes)).float()
    scales = [0.0, *torch.logspace(0, 2, 30).tolist()]
    return [(scale, case.criterion(scale * truth, labels).mean().item()) for scale in scales]


class GradientDescent(Muon):
    """A step subtracts lr times the gradient. torch's SGD takes seconds to load."""

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.sub_(weight.grad, alpha=group["lr"])


def a_step_follows_the_gradient(case: ModelCase) -> str:
    """A step follows the gradient of the mean loss
    Why: a forgotten zero_grad, a second backward or a wrong factor spoil each update.
    Do: zero_grad, backward once of the mean over the whole batch, step; see utils/engine.py."""
    model, rows = case.settle(case.model()), case.rows(8)
    state = copy.deepcopy(model.state_dict())
    weights = [p for p in model.parameters() if p.requires_grad]
    with torch.enable_grad(), case.amp.autocast:
        loss = case.criterion(model(case.images[rows]), case.labels[rows]).mean()
    gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
    expected = -0.1 * as_vector(gradients)

    def fault_of_update(old_gradient: float, accumulate: int = 1) -> str:
        """Return how a step differs; in eval mode, where parts of a batch are independent."""
        model.load_state_dict(state)
        before = as_vector(weights)
        for parameter in weights:
            parameter.grad = torch.full_like(parameter, old_gradient)
        optimizer = GradientDescent(weights, lr=0.1)
        case.step(model, optimizer, rows, clip_norm=None, accumulate=accumulate)
        return difference(as_vector(weights) - before, expected)

    if fault := fault_of_update(old_gradient=1.0):
        plain = fault_of_update(old_gradient=0.0)
        Wrong.when(plain, f"the update is {plain}")
        raise Wrong(f"what an earlier step left in .grad changes the update: it is {fault}")
    fault = fault_of_update(old_gradient=0.0, accumulate=2)
    Wrong.when(fault, f"--accumulate=2 gives another update: it is {fault}")
    return "with an old gradient and in two parts as well"


def steps_lower_the_loss(case: ModelCase) -> str:
    """Small steps of the optimizer lower the loss of their batch
    Why: if they do not, the optimizer does not follow the gradient.
    Do: look at the optimizer, at its sign, and at what is done to the weights after the step."""
    model, rows = case.settle(case.model()), case.rows(8)
    optimizer = case.optimizer(model, lr=case.options.lr / 20)
    losses = [case.step(model, optimizer, rows)[1].mean().item() for _ in range(3)]
    seen = f"{losses[0]:.4f} to {losses[-1]:.4f} in two steps"
    Wrong.when(not losses[-1] < losses[0], seen)
    return seen


def the_run_has_enough_steps(case: ModelCase) -> str:
    """The run has enough steps
    Why: weights move a little in each step; a few dozen steps from random weights learn nothing.
    Do: choose a smaller --batch-size or more epochs (--max-epoch)."""
    if case.train_size is None:
        raise NotChecked("the number of pictures is not known")
    epochs, batches = case.options.max_epoch, math.ceil(case.train_size / case.options.batch_size)
    shown = min(batches, case.options.limit_batches or batches)  # in an epoch
    steps = epochs * shown
    seen = f"{steps:,} in {epochs} epochs"
    Wrong.when(shown < batches / 2, f"{seen}: --limit-batches shows {shown} of {batches} batches")
    frozen = case.options.freeze >= epochs and not case.weights_loaded
    Wrong.when(frozen, f"{seen}, and none for random weights: --freeze={case.options.freeze}")
    norms = [m for m in case.model().modules() if isinstance(m, _BatchNorm)]
    left = max(((1 - (norm.momentum or 1)) ** steps for norm in norms), default=0.0)
    slow = left > 0.9 and not case.weights_loaded
    words = f"BatchNorm follows the data slowly, and keeps {left:.0%} of its first statistics"
    Wrong.when(slow, f"{seen}: {words}")
    Wrong.when(batches == 1 and 1 < steps < 15, f"{seen}: a batch is larger than the data")
    Doubt.when(steps < 100, seen)
    return seen


def evaluate_is_right(case: ModelCase) -> str:
    """evaluate returns the logits of eval mode, in order
    Why: a pass in training mode, with gradients, or in another order measures something else.
    Do: call model.eval() before it and go back after; keep logits and labels together."""
    model, rows = case.settle(case.model()), case.rows(8)
    images, labels = case.images[rows], case.labels[rows]
    with torch.inference_mode(), case.amp.autocast:
        expected = model(images).float().cpu()
    batches = [(0, *part) for part in zip(images.split(5), labels.split(5), strict=True)]
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
    Wrong.when(not 1e-6 < median < 0.5, f"{seen}; 1e-4 to 1e-2 is usual")  # nan as well
    Doubt.when(median < 1e-5, f"{seen}; 1e-4 to 1e-2 is usual")
    return seen


def gradient_flow(case: ModelCase) -> list[dict[str, Any]]:
    """Return for each trainable matrix: mean and max of |gradient|, and |update| / |weight|."""
    model = case.model(training=True)
    optimizer, rows = case.optimizer(model, case.options.lr), case.rows(8)
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

    Learned: each label is right, and the loss is below minimum + 30 % of (uniform loss - minimum).
    """
    uniform, *others = (loss for _, loss in scales_of_right_logits(case, case.labels[case.rows(8)]))
    goal = min(others) + 0.3 * (uniform - min(others))
    losses: list[float] = []
    for predictions, labels, loss in passes(case, case.model(training=True), 8, lr, parts=1):
        losses.append(loss)
        learned = loss < goal and torch.equal(predictions, labels)
        if learned or stagnates(losses, least=60):
            break
    return learned, losses


def passes(
    case: ModelCase, model: nn.Module, size: int, lr: float, parts: int
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Train on some pictures without end; yield the predictions and labels (M,), and the loss."""
    optimizer, rows, step = case.optimizer(model, lr), case.rows(size), 0
    while True:
        seed_everything(0, "check", step)
        rows = rows[torch.randperm(len(rows)).to(rows.device)] if parts > 1 else rows
        results = []
        for part in rows.tensor_split(parts):
            step += 1
            recipe.set_lr(optimizer, lr * min(1, step / 10))
            results.append(case.step(model, optimizer, part))
        logits, losses = map(torch.concat, zip(*results, strict=True))
        yield logits.argmax(dim=1), case.labels[rows], losses.mean().item()


def stagnates(losses: list[float], least: int) -> bool:
    """Return whether the loss does not fall any more, or only very slowly, after `least` passes."""
    falls = len(losses) < least or losses[-1] < 0.98 * losses[-1 - least // 3]
    return not falls or len(losses) == 5 * least


def overfits_a_hundred_pictures(case: ModelCase) -> str:
    """Overfits a hundred pictures
    Why: without augmentation all of them should be right; if not, labels or model are at fault.
    Do: look at pictures and labels; then the model may be too small."""
    model, best = case.model(training=True), 0.0
    size = min(100, len(case.labels))
    parts = math.ceil(size / min(50, case.options.batch_size))
    parts = max(1, min(parts, size // 2))  # none of a single picture
    losses: list[float] = []
    for predictions, labels, loss in passes(case, model, size, case.options.lr, parts):
        losses.append(loss)
        best = max(best, (predictions == labels).float().mean().item())
        if best >= 0.97 or stagnates(losses, least=60):
            break
    seen = f"{best:.0%} of {size} right after {len(losses) * parts} steps"
    constant = best < 0.97 and len(predictions.unique()) == 1
    Wrong.when(constant, f"{seen}: it answers {case.classes[predictions[0]]} to all; lower --lr")
    chance = labels.bincount().max().item() / size
    Wrong.when(best < 0.4 + chance / 2, seen)
    Doubt.when(best < 0.97, seen)
    batches = [(0, case.images[rows], case.labels[rows]) for rows in case.rows(size).chunk(parts)]
    with torch.no_grad(), case.amp.autocast:
        training = torch.concat([model(images).argmax(dim=1) for _, images, _ in batches]).cpu()
    case.settle(model, case.rows(size).chunk(parts))
    logits, labels = engine.evaluate(model, batches, case.amp)
    right = [(x == labels).float().mean().item() for x in (training, logits.argmax(dim=1))]
    lower = size >= 20 and right[1] < right[0] - 0.2
    Wrong.when(lower, f"{right[0]:.0%} are right in training mode, {right[1]:.0%} in eval mode")
    return seen


def train_command_is_in_order(case: ModelCase) -> str:
    """The command train does its steps in order
    Why: a forgotten train(), eval(), no_grad or step raises no error, and the model learns badly.
    Do: compare the loop of `train` in main.py with its original steps 5 and 6."""
    if case.rehearse is None:
        raise NotChecked("there is no command to rehearse")
    run = Rehearsal(case, case.rehearse)
    # Passes of a copy with gradients, as for a picture of the model's graph, are no training.
    passes = [
        p
        for p in run.passes
        if not (p.gradients and run.stepped) or run.stepped & set(map(id, p.model.parameters()))
    ]
    train_passes = [p for p in passes if p.gradients]
    val_passes = [p for p in passes if not p.gradients]
    train_pictures, val_pictures = (
        set().union(*(p.pictures for p in part)) for part in (train_passes, val_passes)
    )
    lr, rates, count = case.options.lr, run.rates, len(train_passes)
    norms = [m for p in train_passes for m in p.model.modules() if isinstance(m, _BatchNorm)]
    norms = [norm for norm in norms if all(p.requires_grad for p in norm.parameters())]
    still = [norm for norm in norms if norm.training and norm.num_batches_tracked == 0]
    highest, later = max(rates, default=0.0), max(rates[count // 2 :], default=0.0)
    labels = [labels.cpu() for _, labels in run.losses]
    faults = {
        "no pass computes gradients": not train_passes,
        "val computes gradients, or is left out": not val_passes,
        "a step starts with the gradient of the last one": any(
            p.gradients_left for p in train_passes
        ),
        "it trains in eval mode": not all(p.training for p in train_passes),
        "val runs in training mode": any(p.training for p in val_passes),
        f"{len(rates)} optimizer steps for {count} batches": len(rates) != count,
        f"the highest learning rate is {highest:.2g}, not {lr:g}": not 0.5 < highest / lr < 1.01,
        "the learning rate is 0 in the second half": later < 0.01 * lr,
        "the statistics of BatchNorm stay as they were": bool(still),
        "val measures pictures of train": len(train_pictures & val_pictures) > 2,
        "the order is the same in each epoch, or class by class": not shuffled(labels),
        run.wrong_labels(train_passes): bool(run.wrong_labels(train_passes)),
    }
    found = [*(words for words, is_fault in faults.items() if is_fault), *run.faults]
    Wrong.when(found, "; ".join(found))
    return f"{count} steps and {len(val_passes)} passes of val watched"


CHECKS = checks_in(globals())
