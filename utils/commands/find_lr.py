"""Suggest a learning rate: it rises while a model trains, and the loss shows which ones work."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from config import DefaultConfig
from utils.options import PositiveFloat, PositiveInt, UsageError

WINDOW = 10  # steps whose mean loss is compared with that of the steps before
BETA = 0.9  # of the exponential mean
LAG = 9  # steps by which an exponential mean follows behind: BETA / (1 - BETA)


class Options(DefaultConfig):
    """What `find_lr` takes in addition to the options of `train`."""

    required_path = "train_data_root"

    lr_low: PositiveFloat = 1e-5  # learning rate of the first step
    lr_high: PositiveFloat = 1.0  # learning rate of the last step, if the loss allows it
    steps: PositiveInt = 100  # steps between the two; more steps show more clearly
    page: str = "find_lr.html"  # the file to write

    def validate(self) -> None:
        if self.lr_low >= self.lr_high:
            raise UsageError(f"--lr-low={self.lr_low} has to be below --lr-high={self.lr_high}")
        if self.steps < 4 * WINDOW:
            raise UsageError(f"--steps={self.steps} shows too little: give {4 * WINDOW} or more")
        if Path(self.page).is_dir():
            raise UsageError(f"--page={self.page} is a folder: name a file in it")


class RangeTest(NamedTuple):
    """What `find_lr` returns."""

    suggestion: float | None  # None: the loss does not fall
    rates: list[float]  # the learning rate of each step
    losses: list[float]  # the loss of each step, before its update
    smoothed: list[float]  # the exponential mean of the losses


def run(opt: Options) -> RangeTest:
    """Do the learning rate range test of Smith (2015, arXiv:1506.01186); write a page.

    Nothing is saved but the page: a run named by --load-model-path stays as it is.
    """
    from utils import chart, files, report

    rates, losses = train_with_rising_rate(opt)
    smoothed = exponential_mean(losses)
    suggestion = steepest_fall(rates, losses, smoothed)
    words = in_words(opt, suggestion, rates)
    top = 1.5 * smoothed[0]  # higher losses are not drawn: they would flatten the rest
    lines = {
        "loss of a step": list(zip(rates, losses, strict=True)),
        "smoothed": list(zip(rates, smoothed[LAG:], strict=False)),
        "--lr": [(opt.lr, min(smoothed)), (opt.lr, top)],
    }
    if suggestion:
        lines["suggestion"] = [(suggestion, min(smoothed)), (suggestion, top)]
    drawing = chart.line_chart(
        "loss by learning rate",
        {name: [(x, y) for x, y in points if y <= top] for name, points in lines.items()},
        "learning rate",
        sizes={"loss of a step": [0.0] * len(losses)},  # dots that no line connects
        x_log=True,
    )
    page = report.template("find_lr.html", Path(__file__).parent)
    options = opt.as_words()
    files.write_text(opt.page, page.render(title=words, options=options, drawing=drawing))
    print(words)
    print(f"the curve is in {opt.page}")
    return RangeTest(suggestion, rates, losses, smoothed)


def train_with_rising_rate(opt: Options) -> tuple[list[float], list[float]]:
    """Return the learning rate and the loss of each step, until the loss runs away."""
    from tqdm import tqdm

    import data
    import models
    from utils import ALL_CORES, engine, recipe
    from utils.device import OWN_CORE, set_up_device, use_cores
    from utils.guard import NotFinite
    from utils.memory import StepWithinMemory
    from utils.seed import seed_everything

    device, amp = set_up_device(opt.use_gpu, opt.precision, opt.deterministic)
    loader = data.build_loader(opt, "train", device, cache=opt.cache)
    model = models.build(opt, loader.dataset.num_classes, log=print).to(device)
    body = models.body_weights(opt, model, loader.dataset.num_classes)
    criterion = recipe.build_criterion(opt, loader.dataset).to(device)
    optimizer = recipe.build_optimizer(opt, model, body)
    train_step = StepWithinMemory(engine.train_step, opt, print)
    model.train()
    recipe.freeze(model, body, opt.freeze > 0)
    factor = (opt.lr_high / opt.lr_low) ** (1 / (opt.steps - 1))
    rates = [opt.lr_low * factor**number for number in range(opt.steps)]
    batches = (batch for epoch in itertools.count() for batch in loader.epoch(epoch))
    losses: list[float] = []
    if device.type == "cpu":
        use_cores(OWN_CORE)
    try:
        with loader:
            bar = tqdm(rates, "find_lr", unit=" steps", leave=False, disable=None)
            for lr, (_, images, labels) in zip(bar, batches, strict=False):
                seed_everything(opt.seed, "find_lr", len(losses))
                recipe.set_lr(optimizer, lr)
                _, step_losses, _ = train_step(
                    model,
                    images,
                    labels,
                    criterion=criterion,
                    optimizer=optimizer,
                    amp=amp,
                    clip_norm=opt.clip_norm,
                )
                loss = step_losses.mean().item()
                if not math.isfinite(loss):
                    break
                losses.append(loss)
                if has_run_away(losses):
                    break
    except NotFinite:
        if not losses:  # no learning rate has acted yet: the model or the data are broken
            raise
    finally:
        use_cores(ALL_CORES)
    return rates[: len(losses)], losses


def has_run_away(losses: Sequence[float]) -> bool:
    """Tell whether the mean loss is four times as high as it was; of a tiny loss, as high as 1."""
    smoothed = exponential_mean(losses)
    return smoothed[-1] > 4 * max(min(smoothed), 1.0)


def exponential_mean(losses: Sequence[float]) -> list[float]:
    """Return for each step the mean of the losses so far, in which newer ones count more.

    Divided by the sum of the weights, without which the first values would be too low.
    """
    total, weight, means = 0.0, 0.0, []
    for loss in losses:
        total, weight = BETA * total + loss, BETA * weight + 1
        means.append(total / weight)
    return means


def steepest_fall(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float]
) -> float | None:
    """Return the learning rate at which the loss falls fastest; None if it does not fall.

    Fastest: where the mean of ten losses is lowest, compared with that of the ten before. (The
    slope of the smoothed curve follows single batches; at its lowest point the rate is too high.)
    Steps after a jump do not count: from there the loss may fall fast, but only back.
    """
    start = losses[: 2 * WINDOW]  # such low rates change little: the losses differ by chance
    if len(losses) <= len(start):
        return None
    noise = stdev(start)
    jump = max(noise, 0.1 * fmean(start))
    lowest = LAG
    for step in range(LAG, len(losses)):
        if smoothed[step] < smoothed[lowest]:
            lowest = step
        elif smoothed[step] > smoothed[lowest] + jump:
            break
    if lowest < WINDOW or fmean(start) - smoothed[lowest] < 2 * noise:
        return None
    falls = {
        step: fmean(losses[step - WINDOW : step]) - fmean(losses[step : step + WINDOW])
        for step in range(WINDOW, min(lowest, len(losses) - WINDOW) + 1)
    }
    return float(f"{rates[max(falls, key=falls.__getitem__)]:.2g}")


def in_words(opt: Options, suggestion: float | None, rates: Sequence[float]) -> str:
    """Return the result as one line."""
    if suggestion is None:
        advice = "try more --steps, or other values of --lr-low and --lr-high"
        return f"the loss does not fall from --lr={opt.lr_low} to {rates[-1]:.2g}; {advice}"
    words = f"--lr={suggestion} is where the loss falls fastest"
    factor = max(opt.lr / suggestion, suggestion / opt.lr)
    if factor < 3:
        return f"{words}; --lr={opt.lr} is close to it"
    change = "higher: the loss may jump" if opt.lr > suggestion else "lower: training may be slow"
    return f"{words}; --lr={opt.lr} is {factor:.2g} times {change}"
