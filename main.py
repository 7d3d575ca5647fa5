"""Train, measure and use a classifier: python main.py COMMAND --option=value …

Read from top to bottom: the commands in the order one uses them, then what they share. What stands
on the command line comes in as keyword arguments, and DefaultConfig(**options) checks it. `train`
calls `train_step` in utils/engine.py, and that is all there is up to `optimizer.step()`.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from config import COMMANDS, DefaultConfig
from utils.options import check_usage
from utils.signals import Stop, die_quietly

if __name__ == "__main__":  # wrong usage and help end here, at once: torch is not loaded yet
    die_quietly()
    sys.argv[1:] = check_usage(DefaultConfig, COMMANDS, sys.argv[1:])

import fire
import torch
from fire.decorators import SetParseFn
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

import data
import models
from data.prepare import prepare_demo
from models.basic_module import BasicModule
from utils import checkpoint, diagnostics, engine, metrics, runs
from utils.debug import pause_if_asked
from utils.device import Precision, pick_device
from utils.diagnostics import Finding
from utils.diagnostics import data as check_data
from utils.diagnostics import learning as check_learning
from utils.diagnostics import model as check_model
from utils.diagnostics.watch import Watch
from utils.failures import one_line_failures
from utils.meters import AverageMeter, ConfusionMeter
from utils.report import write_report
from utils.seed import seed_everything
from utils.visualize import Visualizer

# What a checkpoint says of itself, so that val and test need nothing else.
FROM_CHECKPOINT = ("model", "dataset", "image_size", "mirror", "train_data_root")


def prepare(**options) -> Path:
    """Get a data set and lay it out as train and test expect it; return its folder."""
    opt = DefaultConfig(**options)
    root = Path(opt.prepare_root or f"data/{opt.source}")
    with tqdm(desc=f"drawing into {root}", total=opt.count + opt.count // 10, disable=None) as bar:
        prepare_demo(root, opt.count, opt.seed, progress=lambda done, total: bar.update())
    print(f"{root} is ready; next: python main.py train --train-data-root={root / 'train'}")
    return root


def train(**options) -> Path:
    """Train a model, validating after each epoch; return the run's folder."""
    # step 1: options and a folder, of a new run or of one to go on with
    opt, run, saved = open_run(options)
    lock = runs.lock(run)
    log, vis = runs.Log(run / "log.txt"), Visualizer(opt.env, run, opt.visdom_port)
    disk = runs.Disk(warn=log)

    # step 2: data
    device, amp = open_device(opt)
    train_data, train_loader = build_data(opt, "train", device, log, saved)
    keep = opt.cache != "none"  # the pictures of val are the same each epoch
    val_data, val_loader = build_data(opt, "val", device, log, saved, keep)

    # step 3: model, loss, optimizer
    seed_everything(opt.seed, "weights")
    model = build_model(opt, train_data.num_classes).to(device)
    if saved:
        model.load_weights(saved["model"], source=run)
    else:
        load_weights(opt, model)
    criterion = build_criterion(opt, train_data).to(device)
    optimizer = engine.build_optimizer(model, opt.lr, opt.weight_decay)
    log(f"{opt.model} with {model.num_parameters:,} parameters on {device} in {amp.name}")

    # step 4: what a checkpoint keeps, and where the run stands
    train_loss, confusion = AverageMeter(), ConfusionMeter(train_data.num_classes)
    live = {
        "model": model,
        "optimizer": optimizer,
        "scaler": amp.scaler,
        "train_loss": train_loss,
        "confusion": confusion,
        "vis": vis,
    }
    facts = {
        "options": opt,
        "classes": list(train_data.classes),
        "mean": list(train_data.mean),
        "std": list(train_data.std),
        "data": train_data.fingerprint,
    }
    stop = Stop()
    keeper = checkpoint.Keeper(run / "last.pth", live, facts, opt.save_minutes, stop, disk)
    # Its hooks run inside train_step, just before optimizer.step().
    watch = Watch(opt.checks, model, optimizer, amp.autocast, log, keeper)
    first_epoch, first_step, history = keeper.restore(saved)  # history has a row an epoch
    if saved:
        log(f"goes on at epoch {first_epoch + 1}, step {first_step + 1}")

    with lock, train_loader, val_loader, stop, keeper, watch:  # ends them in reverse
        for epoch in range(first_epoch, opt.max_epoch):
            # step 5: train
            model.train()
            stalls = engine.stalls([row["val_loss"] for row in history])
            decay = opt.lr_decay**stalls if opt.schedule == "plateau" else 1.0
            title = f"epoch {epoch + 1}/{opt.max_epoch}"
            for step, images, labels in train_loader.epoch(epoch, first_step, title):
                seed_everything(opt.seed, epoch, step)  # a step depends on nothing before it
                # No scheduler object: a rate is a function of its place, as --resume needs it.
                progress = (epoch + step / len(train_loader)) / opt.max_epoch
                lr = opt.lr * decay * engine.lr_share(opt.schedule, progress, opt.warmup)
                engine.set_lr(optimizer, lr)
                logits, loss = engine.train_step(
                    model, images, labels, criterion, optimizer, amp, opt.clip_norm, opt.accumulate
                )
                train_loss.add(loss)
                confusion.add(logits, labels)
                if (step + 1) % opt.print_freq == 0:
                    steps = epoch * len(train_loader) + step + 1
                    vis.plot_many({"loss": train_loss.value()[0], "lr": lr}, x=steps)
                keeper.reached(epoch=epoch, step=step + 1, history=history)
                pause_if_asked(opt.debug_file)

            # step 6: validate
            batches = stop.watch(val_loader.epoch(title="val"))
            logits, labels = engine.evaluate(model, batches, amp, debug_file=opt.debug_file)
            summary = metrics.summarize(logits, labels)
            row = {
                "epoch": epoch + 1,
                "lr": optimizer.param_groups[0]["lr"],  # `lr` is not set if nothing was left
                "train_loss": train_loss.value()[0],
                "train_accuracy": confusion.accuracy(),
                "val_loss": summary["log_loss"],
                "val_accuracy": summary["accuracy"],
            }
            history = [*history, row]
            with disk(run / "metrics.csv"):
                runs.write_csv(run / "metrics.csv", history)
            log(", ".join(f"{name} {value:.4g}" for name, value in row.items()))
            for line in train_loader.new_failures() + val_loader.new_failures():
                log(line)
            shown = ("train_accuracy", "val_loss", "val_accuracy")
            vis.plot_many({name: row[name] for name in shown}, x=epoch + 1)
            vis.flush()

            # step 7: save
            files = [run / "last.pth"]
            if row["val_accuracy"] == max(past["val_accuracy"] for past in history):
                files.insert(0, run / "best.pth")
            train_loss.reset()
            confusion.reset()
            first_step = 0
            keeper.reached(*files, epoch=epoch + 1, step=0, history=history)

        # step 8: what the best weights do, in words and pictures
        keeper.wait()
        if (run / "best.pth").exists():
            model.load(run / "best.pth")
        batches = stop.watch(val_loader.epoch(title="best"))
        logits, labels = engine.evaluate(model, batches, amp, opt.mirror)
        summary = metrics.summarize(logits, labels)
        mistakes = metrics.worst_mistakes(logits, labels)
        title, page = f"{opt.model} on {opt.dataset}", run / "report.html"
        seen = Subset(val_data, val_loader.readable()), val_data.classes
        with disk(page):
            write_report(page, title, opt.shaping(), history, summary, mistakes, *seen)
        stop.check()

    vis.close()
    mirror = ", with mirror images" if opt.mirror else ""
    log(f"the best epoch on val{mirror}:\n" + metrics.as_text(summary, val_data.classes))
    log(f"weights   {run / 'best.pth'}\nreport    {page}")
    disk.raise_failures()
    return run


def val(**options) -> dict:
    """Measure a checkpoint on the val split; return the numbers."""
    opt, model, dataset, loader, amp = open_checkpoint(options, "val")
    with loader:
        batches = loader.epoch(title="val")
        logits, labels = engine.evaluate(model, batches, amp, opt.mirror, opt.debug_file)
    summary = metrics.summarize(logits, labels)
    print(*loader.new_failures(), metrics.as_text(summary, dataset.classes), sep="\n")
    return summary


def test(**options) -> Path:
    """Write `id,label` for a folder of unlabelled pictures, label = P(dog); return the file."""
    opt, model, dataset, loader, amp = open_checkpoint(options, "test")
    Path(opt.result_file).parent.mkdir(parents=True, exist_ok=True)  # now, not after the work
    with loader:
        batches = loader.epoch(title="test")
        logits, ids = engine.evaluate(model, batches, amp, opt.mirror, opt.debug_file)
    found = dict(zip(ids.tolist(), logits.softmax(dim=1)[:, -1].tolist(), strict=True))
    unknown = 1 / dataset.num_classes  # for a picture that could not be read
    rows = [{"id": i, "label": found.get(i, unknown)} for i in dataset.labels.tolist()]
    runs.write_csv(opt.result_file, rows)
    print(*loader.new_failures(), f"{len(rows):,} rows are in {opt.result_file}", sep="\n")
    return Path(opt.result_file)


def check(**options) -> list[Finding]:
    """Say whether data, model and training are sound before they cost time; return the findings.

    Ends with exit code 1 if something is wrong.
    """
    opt = DefaultConfig(**options)
    device, amp = open_device(opt)
    with diagnostics.Table(opt.json) as table:
        # step 1: the data
        about_data = check_data.Case(
            open_split(opt, "train"),
            open_split(opt, "val"),
            lambda: open_split(opt, "test") if Path(opt.test_data_root).exists() else None,
            lambda dataset, workers: data.Loader(dataset, 8, workers, seed=opt.seed),
        )
        table.fill(check_data.CHECKS, about_data)
        images, labels = about_data.train_batch
        few = check_learning.spread(labels, 8)
        classes = list(about_data.train.classes)

        # step 2: the model
        about_model = check_model.Case(
            lambda number: build_model(opt, number), images[few], labels[few], len(classes), opt.lr
        )
        table.fill(check_model.CHECKS, about_model)

        # step 3: how it learns; dropout would only hide whether it can
        firm = DefaultConfig(**{**vars(opt), "dropout": 0.0})

        def rehearse(root: Path) -> None:
            short = {"train_data_root": root, "checkpoint_root": root.parent}
            train(**{**options, **short, **check_learning.SHORT})

        about_learning = check_learning.Case(
            lambda: build_model(firm, len(classes)).to(device),
            images.to(device),
            labels.to(device),
            classes,
            build_criterion(opt, about_data.train).to(device),
            amp,
            opt.lr,
            opt.clip_norm,
            about_data.copy,
            rehearse,
            Path(opt.checkpoint_root),
        )
        table.fill(check_learning.CHECKS, about_learning)
    if table.wrong:
        sys.exit(1)
    return table.findings


def help() -> None:
    """Show the commands and every option."""
    print(DefaultConfig.table(COMMANDS))


# What the commands share.


def open_run(options: dict) -> tuple[DefaultConfig, Path, dict]:
    """Make a new run's folder, or open the one to resume: options, folder, checkpoint or {}."""
    opt = DefaultConfig(**options)
    if opt.resume:
        run = runs.newest_run(opt.checkpoint_root) if opt.resume is True else Path(opt.resume)
        if run:
            saved = checkpoint.read_newest(run / "last.pth")
            return opt.resumed(saved["options"], options), run, saved
        tqdm.write(f"{opt.checkpoint_root} has no run to resume; a new one starts")
    run = runs.new_run(opt.checkpoint_root, opt.model)
    runs.write_json(run / "config.json", opt.state_dict())
    runs.write_json(run / "environment.json", runs.environment())
    return opt, run, {}


def open_checkpoint(options: dict, mode: str) -> tuple:
    """Make ready what val and test need: options, model, data set, loader, precision.

    What the checkpoint says of its model and data holds where `options` say nothing.
    """
    opt = DefaultConfig(**options)
    path = opt.load_model_path or runs.newest_run(opt.checkpoint_root)
    if not path:
        raise FileNotFoundError(
            f"there is no run in {opt.checkpoint_root} yet; train, or give --load-model-path=PATH"
        )
    path = checkpoint.locate(path)
    contents = checkpoint.read(path)
    saved = contents if "options" in contents else {}  # a bare state dict says nothing
    own = {name: x for name, x in saved.get("options", {}).items() if name in FROM_CHECKPOINT}
    opt = DefaultConfig(**own | options | {"load_model_path": path})
    print(f"checkpoint {path}")
    device, amp = open_device(opt)
    dataset, loader = build_data(opt, mode, device, print, saved)
    model = build_model(opt, dataset.num_classes).to(device)
    load_weights(opt, model)
    return opt, model, dataset, loader, amp


def open_device(opt: DefaultConfig) -> tuple[torch.device, Precision]:
    device = pick_device(opt.use_gpu, opt.deterministic)
    return device, Precision(opt.precision, device)


def open_split(opt: DefaultConfig, mode: str) -> Dataset:
    root = opt.test_data_root if mode == "test" else opt.train_data_root
    dataset = getattr(data, opt.dataset)
    return dataset(root, mode=mode, image_size=opt.image_size, crop_scale=opt.crop_scale)


def build_data(
    opt: DefaultConfig,
    mode: str,
    device: torch.device,
    log: Callable[[str], None],
    saved: dict,
    keep: bool = False,
) -> tuple[Dataset, data.Loader]:
    """Open one split, tell what is in it and what is left out, and batch it.

    `saved`: a checkpoint whose classes and normalisation the data set has to agree with.
    """
    dataset = open_split(opt, mode)
    again = mode == "train" and not opt.on_device  # these files are read anew each epoch
    if opt.cache == "disk" or (opt.cache == "ram" and again):
        dataset.keep(opt.cache, opt.cache_root)
    log(dataset.describe())
    source = opt.load_model_path if mode != "train" else "the run"
    if saved and saved.get("classes", list(dataset.classes)) != list(dataset.classes):
        raise checkpoint.CheckpointError(
            f"{source} tells {saved['classes']} apart, {opt.dataset} has {list(dataset.classes)}"
        )
    changed = mode == "train" and saved and saved["data"] != dataset.fingerprint
    if changed and not opt.allow_changes:
        raise checkpoint.CheckpointError(
            f"{opt.train_data_root} has other pictures than {source} began with; "
            "--allow-changes takes them"
        )
    if mode == "val" and saved.get("data", dataset.fingerprint) != dataset.fingerprint:
        log("the pictures are not those of the training: some of val may have been trained on")
    # A model needs the normalisation it was trained with.
    dataset.mean, dataset.std = saved.get("mean", dataset.mean), saved.get("std", dataset.std)
    kind = data.ResidentLoader if opt.on_device else data.Loader
    parts = (dataset, opt.batch_size, opt.num_workers, device, opt.seed)
    return dataset, kind(*parts, shuffle=mode == "train", keep=keep)


def build_model(opt: DefaultConfig, num_classes: int) -> BasicModule:
    """Make the model of the options, with new weights."""
    model = getattr(models, opt.model)(num_classes=num_classes, dropout=opt.dropout)
    return model.to(memory_format=torch.channels_last)


def build_criterion(opt: DefaultConfig, dataset: Dataset) -> engine.ClassificationLoss:
    weight = engine.balanced_weights(dataset.class_counts) if opt.balanced else None
    return engine.ClassificationLoss(weight, opt.label_smoothing, opt.focal_gamma)


def load_weights(opt: DefaultConfig, model: BasicModule) -> None:
    """Load the weights that the options name, if they name any."""
    if opt.load_model_path:
        model.load(checkpoint.locate(opt.load_model_path))
    elif opt.pretrained:
        model.load_pretrained()


if __name__ == "__main__":
    with one_line_failures("--traceback=True" in sys.argv, "--debug_on_error=True" in sys.argv):
        fire.Fire(
            {name: SetParseFn(str)(globals()[name]) for name in COMMANDS},  # values as typed
            serialize=lambda result: None,  # what a command returns is for notebooks
        )
