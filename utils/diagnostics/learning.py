"""Does training train? The project's own step, evaluation and command, on a few pictures."""

import contextlib
import io
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from utils import engine, runs
from utils.device import Precision
from utils.seed import seed_everything

from . import Doubt, Wrong

STEPS = 60  # enough for a model that learns to learn eight pictures by heart
SECONDS = 20.0  # for learning a hundred
SHORT = {"max_epoch": 2, "batch_size": 8, "accumulate": 1}  # a rehearsal of the command train
SHORT |= {"num_workers": 0, "cache": "none", "visdom_port": 1, "resume": False}


@dataclass
class Case:
    """A model to be made anew, pictures on its device, and how the project trains."""

    make_model: Callable[[], nn.Module]
    images: Tensor  # (M, 3, H, W), normalised
    labels: Tensor  # (M,)
    classes: list[str]
    criterion: nn.Module
    amp: Precision
    lr: float
    clip_norm: float | None
    copy_pictures: Callable[[Path], bool] | None = None  # fills a folder, if there are enough
    rehearse: Callable[[Path], Any] | None = None  # the command `train` on such a folder
    folder: Path | None = None  # where the picture of the gradients goes

    def model(self) -> nn.Module:
        seed_everything(0, "check")
        return self.make_model()

    def step(self, model: nn.Module, optimizer: Optimizer, rows: Tensor, **more: Any) -> tuple:
        """One train_step on some of the pictures: logits (N, K) and losses (N,)."""
        images, labels = self.images[rows], self.labels[rows]
        more = {"clip_norm": self.clip_norm, **more}
        return engine.train_step(model, images, labels, self.criterion, optimizer, self.amp, **more)

    def learn(self, size: int, lr: float) -> tuple[bool, list[float]]:
        """Repeat one batch: whether it came to be known by heart, and its losses on the way."""
        model, rows = self.model().train(), spread(self.labels, size)
        optimizer = engine.build_optimizer(model, lr, weight_decay=0.0)
        losses, goal, known = [], self.goal(rows), False
        while not known and (len(losses) < STEPS or falls(losses)):
            engine.set_lr(optimizer, lr * min(1, (len(losses) + 1) / 10))
            seed_everything(0, "check", len(losses))
            logits, loss = self.step(model, optimizer, rows)
            losses.append(loss.mean().item())
            known = losses[-1] < goal and torch.equal(logits.argmax(dim=1), self.labels[rows])
        return known, losses

    def goal(self, rows: Tensor) -> float:
        """A tenth of the way from the least loss there is up to that of a model without a clue."""
        truth = nn.functional.one_hot(self.labels[rows], len(self.classes)).float()
        losses = [
            self.criterion(scale * truth, self.labels[rows]).mean().item()
            for scale in (0, *torch.logspace(0, 2, 30).tolist())
        ]
        return min(losses) + 0.1 * (losses[0] - min(losses))


def falls(losses: list[float]) -> bool:
    """Whether it is worth while to go on, up to five times as long."""
    return len(losses) < 5 * STEPS and losses[-1] < 0.98 * losses[-STEPS // 3]


def spread(labels: Tensor, size: int) -> Tensor:
    """Indices of `size` pictures, of all classes in turn."""
    rank = torch.zeros_like(labels)
    for kind in labels.unique():
        rank[labels == kind] = torch.arange(int((labels == kind).sum()), device=labels.device)
    return rank.argsort(stable=True)[:size]


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().float().flatten() for p in model.parameters()])


def update(case: Case, rubbish: bool = False, **more: Any) -> Tensor:
    """How a step moves the weights, in eval mode, which BatchNorm and dropout do not blur."""
    model = case.model().eval()
    before = weights(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for parameter in model.parameters() if rubbish else ():
        parameter.grad = torch.ones_like(parameter)
    case.step(model, optimizer, spread(case.labels, 8), clip_norm=None, **more)
    return weights(model) - before


def gradients_start_from_zero(case: Case) -> str:
    """Each step starts from a gradient of zero

    Why: gradients add up until zero_grad; with those of old steps, the weights run away.
    Do: call optimizer.zero_grad() once a step, before the first backward.
    """
    if not same(update(case), update(case, rubbish=True)):
        raise Wrong("what an earlier step left in .grad moves the weights")
    return "what an earlier step left does not count"


def parts_add_up(case: Case) -> str:
    """A batch in parts moves the weights as the whole does

    Why: with --accumulate the same training is meant, in less memory.
    Do: divide each part's sum of losses by the size of the whole batch.
    """
    if not same(update(case), update(case, accumulate=2)):
        raise Wrong("with --accumulate=2 the weights move otherwise")
    return "in one part or two"


def same(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= 0.1 * one.norm())


def a_step_lowers_the_loss(case: Case) -> str:
    """A small step lowers the loss of its own batch

    Why: if it does not, the gradient is not that of the loss, or has the wrong sign.
    Do: look at the sign of the loss, and whether all its parts reach backward.
    """
    model, rows = case.model().eval(), spread(case.labels, 8)
    optimizer = engine.build_optimizer(model, case.lr / 20, weight_decay=0.0)
    steps = [case.step(model, optimizer, rows) for _ in range(6)]
    first, last = steps[0][1].mean().item(), steps[-1][1].mean().item()
    errors = [F.cross_entropy(logits.float(), case.labels[rows]).item() for logits, _ in steps]
    seen = f"{first:.4f} to {last:.4f} in five steps"
    if not last < first:
        raise Wrong(seen)
    if not errors[-1] < errors[0]:
        raise Wrong(f"{seen}, but the answers become worse")
    return seen


def evaluate_tells_the_truth(case: Case) -> str:
    """evaluate measures the model as it is used

    Why: a pass in training mode, with gradients, or in another order measures something else.
    Do: call model.eval() before it and go back after; keep logits and labels together.
    """
    model = case.model().train()
    rows = spread(case.labels, 8)
    images, labels = case.images[rows], case.labels[rows]
    batches = [(0, images[:5], labels[:5]), (1, images[5:], labels[5:])]
    logits, found = engine.evaluate(model, batches, case.amp)
    if not model.training:
        raise Wrong("it leaves the model in eval mode: the next epoch would train without dropout")
    with torch.inference_mode(), case.amp.autocast:
        expected = model.eval()(images).float().cpu()
    gap = (logits - expected).abs().max() / (expected.std() + 1e-6)
    if found.tolist() != labels.tolist() or not gap < 0.05:
        raise Wrong("its logits are not those of the model in eval mode, picture by picture")
    if logits.requires_grad:
        raise Wrong("it keeps the graph of every batch: memory grows until it ends")
    return f"{len(labels)} pictures in two batches"


def learns_a_batch_by_heart(case: Case) -> str:
    """Learns eight pictures by heart

    Why: a model that cannot repeat what it sees each time will learn nothing from more.
    Do: mend what is wrong above; if nothing is, change --lr as told here.
    """
    known, losses = case.learn(8, case.lr)
    seen = f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps at lr {case.lr:g}"
    if known:
        return seen
    if losses[-1] < 0.7 * losses[0]:
        raise Doubt(f"{seen}: it learns, but slowly")
    for factor in (0.1, 0.01, 10.0, 100.0, 1e-3, 1e3, 1e4):
        if case.learn(8, factor * case.lr)[0]:
            high = "high" if factor < 1 else "low"
            raise Wrong(f"{seen}, which is too {high}: at {factor * case.lr:g} it does")
    raise Wrong(f"{seen}, and no more at others")


def learns_a_hundred_pictures(case: Case) -> str:
    """Learns a hundred pictures by heart

    Why: less than all of them right, with no augmentation, means labels or model are at fault.
    Do: look at the pictures and labels; then for a model that is too small or decays too much.
    """
    model, rows = case.model().train(), spread(case.labels, 100)
    for layer in model.modules():  # statistics that follow slowly would need a longer training
        if getattr(layer, "momentum", None):
            layer.momentum = max(layer.momentum, 0.1)
    parts = rows.chunk(math.ceil(len(rows) / 25))  # none of a single picture
    optimizer = engine.build_optimizer(model, case.lr / 2, weight_decay=0.0)
    started, passes, step, best = time.monotonic(), 0, 0, 0.0
    while best < 1 and time.monotonic() - started < SECONDS:
        answers = []
        for part in parts:
            engine.set_lr(optimizer, case.lr / 2 * min(1, (step + 1) / 20))
            step += 1
            answers.append(case.step(model, optimizer, part)[0].argmax(dim=1))
        answers, passes = torch.cat(answers), passes + 1
        best = max(best, (answers == case.labels[rows]).float().mean().item())
    commonest = answers.bincount().max().item()
    chance = case.labels[rows].bincount().max().item() / len(rows)
    seen = f"{best:.0%} of {len(rows)} right after {passes} passes"
    if best < 1 and commonest == len(rows):
        kind = case.classes[answers[0]]
        raise Wrong(f"{seen}: it answers {kind} to all; lower --lr, or balance the classes")
    if best < 0.5 + chance / 2 - 0.1 and passes >= 12:
        raise Wrong(seen)
    if best < 0.97 and passes >= 40:
        raise Doubt(seen)
    if best > 0.97 and len(rows) >= 20:
        training, measured = both_accuracies(case, model, parts)
        if measured < training - 0.2:
            raise Wrong(
                f"{training:.0%} of {len(rows)} right in training mode, {measured:.0%} in eval"
            )
    return seen if best > 0.97 else f"{seen}; {SECONDS:.0f} s were up"


def both_accuracies(case: Case, model: nn.Module, parts: Sequence[Tensor]) -> tuple[float, float]:
    """Accuracy in training mode and in eval mode, of the same weights.

    BatchNorm's statistics catch up with the weights first.
    """
    with torch.no_grad(), case.amp.autocast:
        logits = [model(case.images[part]) for part in [*parts] * 10][-len(parts) :]
    labels = case.labels[torch.cat([*parts])]
    batches = [(step, case.images[part], case.labels[part]) for step, part in enumerate(parts)]
    measured, _ = engine.evaluate(model, batches, case.amp)
    answers = torch.cat(logits).argmax(dim=1), measured.argmax(dim=1).to(labels.device)
    return tuple((answer == labels).float().mean().item() for answer in answers)


def updates_have_a_sensible_size(case: Case) -> str:
    """Steps change weights by a sensible share

    Why: a thousandth a step is usual; far more forgets, far less takes for ever.
    Do: change --lr; the picture of the gradients shows the layers.
    """
    flow = gradient_flow(case)
    middle = statistics.median(row["update"] for row in flow)
    seen = f"{middle:.1e} of their size in the middle layer"
    if case.folder:
        seen += f"; all layers are in {draw_flow(flow, case.folder)}"
    if not math.isfinite(middle) or middle > 0.5:
        raise Wrong(seen)
    if middle < 1e-6:
        raise Doubt(seen)
    return seen


def gradient_flow(case: Case) -> list[dict[str, Any]]:
    """For each trainable tensor: mean and max of |gradient|, and the update's share of its size."""
    model, rows = case.model().train(), spread(case.labels, 16)
    optimizer = engine.build_optimizer(model, case.lr, weight_decay=0.0)
    for _ in range(3):  # what starts from zero has a size by then
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        case.step(model, optimizer, rows)
    table = []
    for name, p in model.named_parameters():
        if p.requires_grad and p.ndim > 1:  # vectors start at 0 and have no size to compare with
            grad = torch.zeros_like(p) if p.grad is None else p.grad.abs()
            share = (p.detach() - before[name]).norm() / (before[name].norm() + 1e-12)
            row = {"name": name, "mean": grad.mean().item(), "max": grad.max().item()}
            table.append(row | {"update": share.item(), "reached": p.grad is not None})
    return table


def draw_flow(table: list[dict[str, Any]], folder: Path) -> Path:
    """Write gradients.csv, and draw it: by layer, from the input on the left to the output."""
    path = folder / "gradients.png"
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_csv(path.with_suffix(".csv"), table)
    from matplotlib.figure import Figure  # slow to load

    figure = Figure(figsize=(max(6, 0.25 * len(table)), 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for name in ("mean", "max"):
        upper.semilogy([max(row[name], 1e-12) for row in table], "o-", label=f"{name} |gradient|")
    lower.semilogy([max(row["update"], 1e-12) for row in table], "o-", label="update : weight")
    lower.axhline(1e-3, color="grey", linewidth=0.8)
    for axes in (upper, lower):
        axes.legend()
        axes.grid(alpha=0.3)
        for place, row in enumerate(table):
            if not row["reached"]:
                axes.axvline(place, color="red")
    lower.set_xticks(range(len(table)), [row["name"] for row in table], rotation=90, fontsize=7)
    figure.savefig(path, dpi=100)
    return path


def the_loop_is_in_order(case: Case) -> str:
    """The command train does its steps in order

    Why: a forgotten train(), eval(), no_grad or step runs without an error and learns badly.
    Do: compare the loop of `train` in main.py with its steps 5 and 6 as they were.
    """
    kind = type(case.model())
    passes: list[tuple[bool, bool, bool]] = []  # training mode, gradients on, gradients left
    steps: list[float] = []
    orders: list[Tensor] = []  # the labels of each step
    pictures: dict[bool, set[int]] = {True: set(), False: set()}  # with gradients, without

    def note_pass(module: nn.Module, inputs: Any) -> None:
        if type(module) is type(case.criterion) and torch.is_grad_enabled():
            orders.append(inputs[1].cpu())
        if type(module) is kind:
            found = pictures[torch.is_grad_enabled()]
            found |= {hash(image.cpu().numpy().tobytes()) for image in inputs[0]}
            left = any(p.grad is not None and p.grad.any() for p in module.parameters())
            passes.append((module.training, torch.is_grad_enabled(), left))

    def note_step(optimizer: Optimizer, *_: Any) -> None:
        steps.append(max(group["lr"] for group in optimizer.param_groups))

    hooks = register_module_forward_pre_hook(note_pass), register_optimizer_step_pre_hook(note_step)
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            root = Path(folder) / "train"
            if not (case.copy_pictures and case.copy_pictures(root)):
                return "not rehearsed: there are too few files"
            case.rehearse(root)
    except FileNotFoundError as error:  # a data set that is more than its pictures
        return f"not rehearsed: {error}"
    finally:
        for hook in hooks:
            hook.remove()
    learning = [(training, left) for training, gradients, left in passes if gradients]
    measuring = [training for training, gradients, _ in passes if not gradients]
    faults = [
        (not learning, "no pass computes gradients"),
        (not measuring, "val computes gradients, or is left out"),
        (any(left for _, left in learning), "a step starts with the gradient of the one before"),
        (not all(training for training, _ in learning), "it trains in eval mode"),
        (any(measuring), "val runs in training mode"),
        (len(steps) != len(learning), f"{len(steps)} optimizer steps for {len(learning)} batches"),
        (not any(steps), "the learning rate is 0 at every step"),
        (max(steps, default=0) > 1.01 * case.lr, f"the learning rate goes above {case.lr:g}"),
        (len(pictures[True] & pictures[False]) > 2, "val measures what train has learned from"),
        (not shuffled(orders), "pictures come in the same order, or class by class, each epoch"),
    ]  # fmt: skip
    found = [words for fault, words in faults if fault]
    if found:
        raise Wrong("; ".join(found))
    return f"{len(learning)} steps and {len(measuring)} passes of val watched"


def shuffled(orders: list[Tensor]) -> bool:
    """Whether the labels of two epochs, by step, come in a new order and mixed."""
    first, second = orders[: len(orders) // 2], orders[len(orders) // 2 :]
    if len(first) < 2 or len(torch.cat(orders).unique()) < 2:
        return True
    again = all(map(torch.equal, first, second))
    return not again and any(len(labels.unique()) > 1 for labels in orders)


CHECKS = [
    gradients_start_from_zero,
    parts_add_up,
    a_step_lowers_the_loss,
    evaluate_tells_the_truth,
    updates_have_a_sensible_size,
    learns_a_batch_by_heart,
    learns_a_hundred_pictures,
    the_loop_is_in_order,
]
