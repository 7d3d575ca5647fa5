"""What a run does for its loops: saving at the right place, guarding its files, restoring."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import data
import main
from tests.helpers import PRECISION, PROJECT, SMALL, as_words, linux_only, posix_only, steps_made
from utils import checkpoint, engine, files, metrics, run_folder
from utils.options import UsageError
from utils.signals import Stopped
from utils.watch import Watch

SMALL = SMALL | {"batch_size": 21}  # two steps an epoch


class ColourModel(nn.Module):
    """A plain model: no BasicModule, no moving buffers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, num_classes)

    def forward(self, images):
        return self.linear(images.mean(dim=(2, 3)))


class WithBatchNorm(ColourModel):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images):
        return super().forward(self.norm(images))


def train(pictures: Path, root: Path, **options) -> Path:
    given = {"train_data_root": pictures / "train", "checkpoint_root": root, "model": ColourModel}
    return main.train(**SMALL | given | options)


def only_run(root: Path) -> Path:
    (run,) = root.iterdir()
    return run


def last(run: Path) -> dict:
    return checkpoint.read(run / "last.pth", digest_required=True)


# The place that is saved belongs to the weights that are saved.


@pytest.mark.parametrize("model", [ColourModel, WithBatchNorm])
def test_weights_that_were_updated_since_the_place_was_noted_are_not_saved(
    model, pictures, tmp_path, monkeypatch
):
    """As with `n` past train_step and then `q` in the debugger."""
    train_step, calls = main.engine.train_step, []

    def then_quit(*args, **options):
        result = train_step(*args, **options)
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("quit")
        return result

    straight = train(pictures, tmp_path / "straight", model=model, max_epoch=3)
    monkeypatch.setattr(main.engine, "train_step", then_quit)
    with pytest.raises(RuntimeError, match="quit"):
        train(pictures, tmp_path / "cut", model=model, max_epoch=3)
    monkeypatch.undo()
    run = only_run(tmp_path / "cut")
    saved = last(run)
    assert (saved["epoch"], saved["step"]) == (1, 0)
    assert steps_made(saved) == 2
    main.train(resume=run)
    assert steps_made(last(run)) == 6
    for name, value in last(straight)["model"].items():
        assert torch.equal(last(run)["model"][name], value), name


def test_an_error_between_two_updates_saves_the_newest_place(pictures, tmp_path, monkeypatch):
    def fail(*_):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("a bug elsewhere")

    calls = []
    monkeypatch.setattr(main, "pause_if_asked", fail)
    with pytest.raises(RuntimeError, match="a bug elsewhere"):
        train(pictures, tmp_path, max_epoch=3)
    assert (last(only_run(tmp_path))["epoch"], last(only_run(tmp_path))["step"]) == (1, 1)


def test_a_stop_during_the_report_leaves_last_pth_as_it_was(pictures, tmp_path, monkeypatch):
    """By then the model has the best weights, which are not those of the last epoch."""

    def stop(run, *_):
        raise RuntimeError("interrupted")

    monkeypatch.setattr(metrics, "is_best", lambda name, history: len(history) == 1)
    whole = last(train(pictures, tmp_path / "whole", max_epoch=3))
    monkeypatch.setattr(main.Run, "write_report", stop)
    with pytest.raises(RuntimeError, match="interrupted"):
        train(pictures, tmp_path / "cut", max_epoch=3)
    run = only_run(tmp_path / "cut")
    assert checkpoint.read(run / "best.pth")["epoch"] == 1
    assert torch.equal(last(run)["model"]["linear.weight"], whole["model"]["linear.weight"])


@pytest.mark.parametrize(("disk", "epoch"), [("fine", 1), ("without best.pth", 3)])
def test_the_report_says_of_which_epoch_the_weights_are(
    disk, epoch, pictures, tmp_path, monkeypatch
):
    def write(path, *args, **options):
        if disk != "fine" and Path(path).name == "best.pth":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_write(path, *args, **options)

    real_write = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", write)
    monkeypatch.setattr(metrics, "is_best", lambda name, history: len(history) == 1)
    with suppress(OSError):  # the run is complete, but not all on the disk
        train(pictures, tmp_path, max_epoch=3)
    run = only_run(tmp_path)
    assert f"the weights of epoch {epoch} on val" in (run / "log.txt").read_text()
    assert f"<p>The weights of epoch {epoch} of 3" in (run / "report.html").read_text()


# Weights that are not finite.


def spoil(step: int, change) -> object:
    """Do `change(model, images)` before the forward pass of a step of training (1, 2, …)."""

    def hook(model, args):
        if isinstance(model, ColourModel) and model.training:
            count.append(1)
            if len(count) == step:
                change(model, args[0])

    count: list[int] = []
    return nn.modules.module.register_module_forward_pre_hook(hook)


@torch.no_grad()
def spoil_a_weight(model, images):
    model.linear.weight[0, 0] = math.nan


def spoil_a_picture(model, images):
    images[0, 0, 0, 0] = math.inf


@pytest.mark.parametrize("save_minutes", [10, 1e-9])
@pytest.mark.parametrize(
    ("checks", "change", "words"),
    [
        ("always", spoil_a_weight, "linear.weight is not finite"),
        ("always", spoil_a_picture, "a picture is not finite"),
        ("off", spoil_a_weight, "linear.weight is not finite"),
        ("off", spoil_a_picture, "linear.weight is not finite"),
    ],
)
def test_weights_that_are_not_finite_never_reach_a_file(
    checks, change, words, save_minutes, pictures, tmp_path
):
    hook = spoil(4, change)  # in the second epoch
    try:
        with pytest.raises(FloatingPointError, match=words) as error:
            train(pictures, tmp_path, max_epoch=3, checks=checks, save_minutes=save_minutes)
    finally:
        hook.remove()
    run = only_run(tmp_path)
    assert f"{run / 'last.pth'} is good: --resume={run}" in str(error.value)
    assert "\n" not in str(error.value)
    for path in run.glob("*.pth"):
        contents = checkpoint.read(path, digest_required=True)
        assert all(value.isfinite().all() for value in contents["model"].values())
        states = contents["optimizer"]["state"].values()
        moments = [x for state in states for x in state.values() if isinstance(x, torch.Tensor)]
        assert moments and all(moment.isfinite().all() for moment in moments)


def test_a_spoiled_first_step_says_that_nothing_is_saved_yet(pictures, tmp_path):
    hook = spoil(1, spoil_a_weight)
    try:
        with pytest.raises(FloatingPointError, match="nothing is saved yet: start again"):
            train(pictures, tmp_path)
    finally:
        hook.remove()


@pytest.mark.parametrize("checks", ["off", "always"])
def test_checks_change_no_bit(checks, pictures, tmp_path):
    one = last(train(pictures, tmp_path / "start", max_epoch=2))
    other = last(train(pictures, tmp_path / checks, max_epoch=2, checks=checks))
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])


class HasAnIdleLayer(ColourModel):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.idle = nn.Linear(2, 2)


def test_weights_that_no_gradient_reaches_are_named_in_the_log(pictures, tmp_path):
    run = train(pictures, tmp_path, model=HasAnIdleLayer, max_epoch=1)
    assert (run / "log.txt").read_text().count("no gradient reaches idle.weight, idle.bias") == 1


# What is saved can be read back.


class NumpyFacts(data.Pictures):
    mean: Any = np.array([0.4, 0.5, 0.6], dtype=np.float32)
    std: Any = np.array([0.2, 0.2, 0.2])

    def __init__(self, root, mode, image_size):
        super().__init__(root, mode=mode, image_size=image_size)
        self.classes = tuple(np.array(self.classes))  # np.str_


class StrangeFacts(data.Pictures):
    std: Any = (0.2, 0.2, complex(0.2))


def test_facts_of_a_data_set_are_saved_as_plain_values(pictures, tmp_path):
    run = train(pictures, tmp_path, dataset=NumpyFacts, max_epoch=1)
    saved = last(run)
    assert saved["classes"] == ["fir", "oak"] and {*map(type, saved["classes"])} == {str}
    assert saved["mean"] == pytest.approx([0.4, 0.5, 0.6])
    assert {*map(type, saved["mean"] + saved["std"])} == {float}
    assert main.val(load_model_path=run, use_gpu=False, num_workers=0)["count"] == 18


def test_a_fact_that_cannot_be_saved_is_refused_before_the_training(pictures, tmp_path):
    with pytest.raises(TypeError, match=r"\['std'\]\[2\] is a complex"):
        train(pictures, tmp_path, dataset=StrangeFacts)
    assert not list(tmp_path.iterdir())


def test_the_first_file_of_a_run_is_read_back(pictures, tmp_path, monkeypatch):
    """A writer whose files cannot be read ends the run at its first file, not at its end."""

    def write_badly(path, contents, keep_previous=False):
        Path(path).write_bytes(b"nothing that torch could read")

    monkeypatch.setattr(checkpoint, "write", write_badly)
    with pytest.raises(checkpoint.CheckpointError, match="not a readable checkpoint"):
        train(pictures, tmp_path, max_epoch=5, save_minutes=1e-9)
    assert not (only_run(tmp_path) / "metrics.csv").exists()


# Resuming.


def test_permission_to_change_options_holds_for_one_resume(pictures, tmp_path):
    run = train(pictures, tmp_path, max_epoch=1)
    main.train(resume=run, allow_changes=True, lr=0.01, max_epoch=2)
    assert last(run)["options"]["lr"] == 0.01
    assert "allow_changes" not in last(run)["options"]
    with pytest.raises(UsageError, match="--allow-changes"):
        main.train(resume=run, lr=0.02, max_epoch=3)


def test_config_json_follows_a_resume_and_the_debugger(pictures, tmp_path, monkeypatch):
    def options_on_disk() -> dict:
        return json.loads((run / "config.json").read_text())

    run = train(pictures, tmp_path, max_epoch=1)
    main.train(resume=run, max_epoch=2, print_freq=7)
    assert (options_on_disk()["max_epoch"], options_on_disk()["print_freq"]) == (2, 7)

    def change(_):
        sys._getframe(1).f_locals["opt"].lr = 0.00125

    monkeypatch.setattr(main, "pause_if_asked", change)
    main.train(resume=run, max_epoch=3)
    assert options_on_disk()["lr"] == last(run)["options"]["lr"] == 0.00125


def test_a_resume_with_a_model_that_does_not_fit_changes_no_file(pictures, tmp_path):
    run = train(pictures, tmp_path, max_epoch=1)
    before = (run / "config.json").read_bytes()
    with pytest.raises(checkpoint.CheckpointError, match="does not fit WithBatchNorm"):
        main.train(resume=run, allow_changes=True, model=WithBatchNorm, max_epoch=2)
    assert (run / "config.json").read_bytes() == before


@pytest.mark.parametrize("native", [True, False])
def test_a_run_keeps_its_precision_on_a_machine_where_auto_means_another(
    native, pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr("utils.device.has_native_bf16", lambda device: native)
    run = train(pictures, tmp_path, max_epoch=1, precision="auto")
    chosen = "bf16" if native else "fp32"
    assert last(run)["options"]["precision"] == chosen
    for module in ("utils.device", "utils.run"):
        monkeypatch.setattr(f"{module}.has_native_bf16", lambda device: not native)
    main.train(resume=run, max_epoch=2)
    assert last(run)["options"]["precision"] == chosen
    assert ("which is slow here" in (run / "log.txt").read_text()) == native


def test_a_resume_on_another_device_says_that_the_bits_will_differ(pictures, tmp_path):
    run = train(pictures, tmp_path, max_epoch=1)
    contents = last(run)
    assert contents["device"] == "cpu"
    checkpoint.write(run / "last.pth", contents | {"device": "cuda"})
    main.train(resume=run, max_epoch=2)
    assert "it began on cuda: on cpu the bits will differ" in (run / "log.txt").read_text()


@pytest.mark.parametrize("name", ["last.pth", "best.pth", "config.json", ""])
def test_a_run_is_resumed_by_its_folder_or_any_file_in_it(name, pictures, tmp_path):
    run = train(pictures, tmp_path, max_epoch=1)
    assert main.train(resume=run / name, max_epoch=2) == run
    assert last(run)["epoch"] == 2


def test_an_option_that_no_longer_exists_does_not_hinder_a_resume(pictures, tmp_path):
    run = train(pictures, tmp_path, max_epoch=1)
    contents = last(run)
    contents["options"] |= {"an_old_option": 3}
    del contents["options"]["mirror"]
    checkpoint.write(run / "last.pth", contents)
    main.train(resume=run, max_epoch=2)
    assert "an_old_option" not in last(run)["options"] and last(run)["options"]["mirror"] is True


# Metrics.


def test_a_metric_added_later_appears_in_a_resumed_run(pictures, tmp_path, monkeypatch):
    run = train(pictures, tmp_path, max_epoch=1)
    share = (lambda logits, labels: 0.25, max)
    monkeypatch.setitem(metrics.METRICS, "share_of_oaks", share)
    main.train(resume=run, max_epoch=2)
    header, first, second = (run / "metrics.csv").read_text().splitlines()
    assert header.endswith(",val_share_of_oaks")
    assert first.endswith(",") and second.endswith(",0.25")
    assert ", share of oaks 0.25; " in (run / "log.txt").read_text()
    assert "share of oaks" in (run / "report.html").read_text()


@pytest.mark.parametrize(("metric", "best"), [("accuracy", 2), ("loss", 3)])
def test_the_metric_that_decides_on_best_pth_is_an_option(
    metric, best, pictures, tmp_path, monkeypatch
):
    answers = iter(  # logits of two pictures of class 0: right, right but less sure, wrong …
        [
            torch.tensor([[0.1, 0.0], [0.0, 9.0]]),
            torch.tensor([[0.1, 0.0], [0.1, 0.0]]),  # all right
            torch.tensor([[9.0, 0.0], [0.0, 0.1]]),  # one wrong, a lower loss
        ]
    )

    def evaluate(*_, **__):
        return next(answers), torch.tensor([0, 0])

    monkeypatch.setattr(main.engine, "evaluate", evaluate)
    monkeypatch.setattr(main.Run, "write_report", lambda *parts: None)
    with pytest.raises(StopIteration):  # of the pass for the report
        train(pictures, tmp_path, max_epoch=3, best_metric=metric)
    assert checkpoint.read(only_run(tmp_path) / "best.pth")["epoch"] == best


def test_an_unknown_metric_is_refused_before_anything_is_written(tmp_path):
    words = ["train", "--best-metric=acuracy", f"--train-data-root={tmp_path}"]
    command = [sys.executable, PROJECT / "main.py", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "accuracy" in done.stderr.splitlines()[0]
    assert not list(tmp_path.iterdir())


# Small sets, wrong paths, file systems.


@pytest.mark.parametrize("part", ["start", "batch", "step", "epoch", "pictures", "page", "end"])
def test_an_error_in_what_is_shown_costs_a_line_and_no_bit(part, pictures, tmp_path, monkeypatch):
    whole = train(pictures, tmp_path / "whole", max_epoch=2)

    def fail(*_args, **_options):
        raise ValueError("a viewer's bug")

    monkeypatch.setattr(Watch, part, fail)
    run = train(pictures, tmp_path / "other", max_epoch=2)
    lines = [x for x in (run / "log.txt").read_text().splitlines() if "a viewer's bug" in x]
    assert len(lines) == 1 and lines[0].endswith("; the run goes on")
    assert torch.equal(last(run)["model"]["linear.weight"], last(whole)["model"]["linear.weight"])


def test_histograms_need_no_gradient(pictures, tmp_path, monkeypatch):
    """A run that is resumed for the val pass of an epoch has made no step."""
    evaluate = engine.evaluate
    monkeypatch.setattr(engine, "evaluate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(pictures, tmp_path, max_epoch=1, histograms=True)
    monkeypatch.setattr(engine, "evaluate", evaluate)
    run = main.train(resume=only_run(tmp_path), visdom_port=1)
    assert last(run)["epoch"] == 1 and "incomplete" not in (run / "log.txt").read_text()


def test_a_small_set_has_a_loss_curve_too(pictures, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(pictures, tmp_path, max_epoch=2, print_freq=20)  # two steps an epoch
    events = EventAccumulator(str(run))
    events.Reload()
    assert [point.step for point in events.Scalars("step/loss")] == [1, 3]


def test_a_wrong_path_in_a_notebook_leaves_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        main.train(**SMALL | {"train_data_root": tmp_path / "gone", "checkpoint_root": tmp_path})
    assert not list(tmp_path.iterdir())


@posix_only
@pytest.mark.parametrize(
    ("code", "goes_on"), [(errno.EACCES, False), (errno.EAGAIN, False), (errno.ENOLCK, True)]
)
def test_only_a_lock_of_another_process_stops_a_run(
    code, goes_on, pictures, tmp_path, monkeypatch, capsys
):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.lockf", refuse)
    if goes_on:
        train(pictures, tmp_path, max_epoch=1)
        assert "cannot be locked (No locks available)" in capsys.readouterr().out
    else:
        with pytest.raises(OSError, match="another process is at work in"):
            train(pictures, tmp_path, max_epoch=1)


@linux_only
def test_a_disk_that_cannot_flush_folders_is_no_failure(tmp_path, monkeypatch):
    fsync = os.fsync

    def of_files_only(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_only)
    files.write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"


def test_a_file_that_cannot_be_written_is_named_once_and_at_the_end(
    pictures, tmp_path, monkeypatch, capsys
):
    write_csv = files.write_csv

    def full(path, rows):
        if len(rows) < broken_until:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_csv(path, rows)

    broken_until = 9
    monkeypatch.setattr(files, "write_csv", full)
    with pytest.raises(OSError, match=r"not all on the disk: .*metrics.csv \(No space left"):
        train(pictures, tmp_path / "full", max_epoch=3)
    assert capsys.readouterr().out.count("metrics.csv cannot be written") == 1
    broken_until = 3
    train(pictures, tmp_path / "room again", max_epoch=3)


# Signals.


@posix_only
def test_a_signal_that_the_parent_told_to_ignore_is_ignored(pictures, tmp_path):
    """As `nohup python main.py train &` does with SIGHUP."""
    options = SMALL | {"train_data_root": pictures / "train", "checkpoint_root": tmp_path}
    words = as_words(options | {"max_epoch": 3, "print_freq": 20})
    code = f"""
import os, runpy, signal, sys
sys.argv = ["main.py", "train", *{words!r}]
import main
def send(*_): os.kill(os.getpid(), signal.SIGHUP)
import torch
torch.nn.modules.module.register_module_forward_pre_hook(send)
runpy.run_path("main.py", run_name="__main__")
"""
    command = ["nohup", sys.executable, "-c", code]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert last(only_run(tmp_path))["epoch"] == 3
    done = subprocess.run(command[1:], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGHUP


@posix_only
def test_a_run_that_is_stopped_says_how_to_go_on(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(main, "pause_if_asked", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match=r"stopped by SIGTERM; --resume goes on"):
        train(pictures, tmp_path, max_epoch=3)
    assert last(only_run(tmp_path))["step"] == 1  # the signal comes after the first step is noted


def test_the_newest_run_is_the_one_that_saved_last(pictures, tmp_path):
    first, second = (train(pictures, tmp_path, max_epoch=1) for _ in range(2))
    assert run_folder.newest_run(tmp_path) == second
    main.train(resume=first, max_epoch=2)
    assert run_folder.newest_run(tmp_path) == first


def test_the_precision_of_these_tests_is_the_one_asked_for(pictures, tmp_path):
    assert last(train(pictures, tmp_path, max_epoch=1))["options"]["precision"] == PRECISION
