"""Train, measure and use a classifier: python main.py COMMAND --option=value …

Read from top to bottom: train, val, test, then the doors to the optional commands. Options arrive
as keyword arguments, which DefaultConfig validates. `train` calls `train_step` in utils/engine.py,
and that calls `optimizer.step()`.
"""

import sys
from pathlib import Path

from config import COMMANDS, DefaultConfig
from utils import commands
from utils.options import check_usage, help_text
from utils.output import protect_output
from utils.signals import exit_on_signals

if __name__ == "__main__":  # ends the program for wrong usage and help, before torch is loaded
    protect_output()
    exit_on_signals()
    sys.argv[1:] = check_usage(DefaultConfig, COMMANDS, sys.argv[1:])

import fire
from fire.decorators import SetParseFn

import data
import models
from utils import distributed, engine, files, metrics, recipe
from utils.debug import pause_if_asked
from utils.device import set_up_device
from utils.failures import one_line_failures
from utils.guard import guard_is_on
from utils.memory import StepWithinMemory
from utils.meters import TrainMeters
from utils.run import Run
from utils.seed import seed_everything
from utils.trained import open_checkpoint


def train(**options) -> Path:
    """Train a model, validating after each epoch; return the run's folder."""
    # step 1: options, of a new run or of the one to resume; device and precision
    run = Run.open(DefaultConfig(**options))  # run.saved: the checkpoint to resume, {} if none
    opt = run.opt
    device, amp = set_up_device(opt.use_gpu, opt.precision, opt.deterministic)

    # step 2: data
    loader_options: dict = {"log": run.log, "saved": run.saved, "cache": opt.cache}
    train_loader = data.build_loader(opt, "train", device, **loader_options)
    val_loader = data.build_loader(opt, "val", device, **loader_options)

    # step 3: model, loss, optimizer, meters
    num_classes = train_loader.dataset.num_classes
    model = models.build(opt, num_classes, load=not run.saved, log=run.log).to(device)
    body = models.body_weights(opt, model, num_classes)  # [] without --freeze and --backbone-lr
    criterion = recipe.build_criterion(opt, train_loader.dataset).to(device)
    optimizer = recipe.build_optimizer(opt, model, body)
    meters = TrainMeters(num_classes, train_loader.dataset.multi_label)
    train_step = StepWithinMemory(engine.train_step, opt, run.log)  # in parts, if memory is short

    # step 4: make the run's folder, or restore the state of the run; history: a dict per epoch
    first_step, history = run.start(
        train_loader, val_loader, amp, model=model, optimizer=optimizer, meters=meters
    )
    with train_loader, val_loader, run:  # on leaving, run saves, then the loaders stop
        for epoch in run.epochs():
            # step 5: train
            model.train()
            recipe.freeze(model, body, epoch < opt.freeze)
            batches = train_loader.epoch(epoch, first_step, f"epoch {epoch + 1}/{opt.max_epoch}")
            batches = run.watch("train", batches)
            for step, images, labels in batches:
                # A resumed run has the same dropout; each rank of torchrun has its own.
                seed_everything(opt.seed, epoch, step, *distributed.SEED_KEY)
                progress = (epoch + step / len(train_loader)) / opt.max_epoch
                lr = recipe.learning_rate(opt, progress, history)
                recipe.set_lr(optimizer, lr)
                logits, losses, norm = train_step(
                    model,
                    images,
                    labels,
                    criterion=criterion,
                    optimizer=optimizer,
                    amp=amp,
                    clip_norm=opt.clip_norm,
                    guard=guard_is_on(opt.checks, amp.updates),
                )
                logits, labels, losses = train_loader.gather(logits, labels, losses)
                meters.add(logits, labels, losses)
                # step_done shows these numbers every print_freq steps, and saves when it is time.
                loss = losses.mean()
                run.step_done(epoch, step + 1, history, loss=loss, lr=lr, gradient_norm=norm)
                pause_if_asked(opt.debug_file)

            # step 6: validate
            batches = run.watch("val", val_loader.epoch(title="val"))
            logits, labels = engine.evaluate(model, batches, amp, debug_file=opt.debug_file)
            # `lr` is undefined if the run was resumed after the last step of an epoch.
            row = {"epoch": epoch + 1, "lr": optimizer.param_groups[0]["lr"]}
            row |= meters.row() | metrics.measure(logits, labels, prefix="val_")
            for line in train_loader.new_failures() + val_loader.new_failures():
                run.log(line)

            # step 7: save
            history = [*history, row]
            meters.reset()
            first_step = 0
            # epoch_done writes metrics.csv, last.pth and best.pth, and shows what is new.
            run.epoch_done(epoch + 1, history, logits, labels)

        # step 8: what the best weights do, in words and pictures
        run.load_best()
        batches = run.watch("val", val_loader.epoch(title="best"))
        logits, labels = engine.evaluate(model, batches, amp, mirror=opt.mirror)
        run.write_report(history, logits, labels)
    return run.folder


def val(**options) -> dict:
    """Measure a checkpoint on the val split; return the numbers."""
    opt, saved, device, amp = open_checkpoint(DefaultConfig(**options))
    loader = data.build_loader(opt, "val", device, saved=saved)
    model = models.build(opt, loader.dataset.num_classes).to(device)
    with loader:
        batches = loader.epoch(title="val")
        logits, labels = engine.evaluate(model, batches, amp, opt.mirror, opt.debug_file)
    logits = logits / saved.get("temperature", 1.0)  # see --calibrate
    summary = metrics.summarize(logits, labels)
    print(*loader.new_failures(), metrics.as_text(summary, loader.dataset.classes), sep="\n")
    return summary


def test(**options) -> Path:
    """Write the probabilities of unlabelled pictures; return the file.

    The columns are id and label, the probability of the second of two classes, as Kaggle wants it;
    with more classes, or multi-label ones, id and a column for each class.
    """
    opt, saved, device, amp = open_checkpoint(DefaultConfig(**options))
    loader = data.build_loader(opt, "test", device, saved=saved)
    model = models.build(opt, loader.dataset.num_classes).to(device)
    Path(opt.result_file).parent.mkdir(parents=True, exist_ok=True)  # before the work
    with loader:
        batches = loader.epoch(title="test")
        logits, indices = engine.evaluate(model, batches, amp, opt.mirror, opt.debug_file)
    logits = logits / saved.get("temperature", 1.0)  # see --calibrate
    rows = metrics.result_rows(loader.dataset, indices, logits)
    if distributed.RANK == 0:
        files.write_csv(opt.result_file, rows)
    print(*loader.new_failures(), f"{len(rows):,} rows are in {opt.result_file}", sep="\n")
    return Path(opt.result_file)


def help(command: str = "") -> None:
    """Show the commands and every option, or the options that one command adds."""
    print(help_text(DefaultConfig, COMMANDS, command))


# Each of the other commands is a file in utils/commands/. To remove one, delete it and its line.
prepare = commands.get("prepare")
split = commands.get("split")
check = commands.get("check", train)
find_lr = commands.get("find_lr")
sweep = commands.get("sweep")
predict = commands.get("predict")
export = commands.get("export")
board = commands.get("board")
compare = commands.get("compare")
new = commands.get("new")


if __name__ == "__main__":
    names = [name for name in [*COMMANDS, *commands.names()] if name in globals()]
    with one_line_failures("--traceback=True" in sys.argv, "--debug_on_error=True" in sys.argv):
        result = fire.Fire(
            # Values stay text: DefaultConfig converts them.
            {name: SetParseFn(str)(globals()[name]) for name in names},
            serialize=lambda _: None,  # what a command returns is for notebooks
        )
        sys.exit(getattr(result, "exit_code", 0))  # the result of check has one
