"""The options of train that end a run, shorten it, look into it, or fit it into the memory."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import main
from config import DefaultConfig
from tests.helpers import SMALL, as_words, assert_same_weights
from utils import checkpoint, metrics, recipe
from utils.files import read_csv
from utils.memory import TooLittleMemory, is_out_of_memory

SMALL = SMALL | {"batch_size": 14}  # an epoch of 42 pictures has three steps


class ColourModel(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.linear = nn.Linear(3, num_classes)

    def forward(self, images):
        colours = self.norm(images).mean(dim=(2, 3))
        return self.linear(nn.functional.dropout(colours, 0.2, self.training))


def train(pictures: Path, root: Path, **options) -> Path:
    given = {"train_data_root": pictures / "train", "checkpoint_root": root, "model": ColourModel}
    return main.train(**SMALL | given | options)


def epochs_of(run: Path) -> int:
    return len(read_csv(run / "metrics.csv"))


# Ending a run early.


def test_a_run_ends_after_some_epochs_without_a_lower_val_loss(pictures, tmp_path, capsys):
    """A learning rate that is 0 in float32: each val loss is that of the first epoch."""
    options = {"lr": 1e-300, "max_epoch": 6, "model": "SqueezeNet"}
    run = train(pictures, tmp_path, stop_after=2, **options)
    assert epochs_of(run) == 3
    reason = "the run ends after epoch 3: 2 epochs without a lower val loss (--stop-after)"
    assert reason in capsys.readouterr().out
    assert (run / "report.html").exists()
    options |= {"resume": True}
    train(pictures, tmp_path, stop_after=2, **options)  # nothing is left to do
    assert epochs_of(run) == 3
    train(pictures, tmp_path, stop_after=None, **options)
    assert epochs_of(run) == 6


@pytest.mark.parametrize(
    ("losses", "ends"),
    [([], False), ([1.0], False), ([1.0, 0.9, 0.95], False), ([1.0, 0.9, 0.95, 0.91], True)],
)
def test_stop_after_counts_from_the_lowest_loss(losses, ends):
    history = [{"val_loss": loss} for loss in losses]
    assert bool(recipe.end_early(DefaultConfig(stop_after=2), history, seconds=0)) == ends


@pytest.mark.parametrize(("seconds", "ends"), [(80, False), (81, True)])
def test_no_epoch_begins_that_would_end_too_late(seconds, ends):
    """Four epochs took 80 seconds: a fifth ends at 100."""
    opt, history = DefaultConfig(max_minutes=100 / 60), [{"val_loss": 1.0}] * 4
    assert bool(recipe.end_early(opt, history, seconds)) == ends


def test_a_run_that_its_minutes_ended_goes_on_to_the_same_bits(pictures, tmp_path):
    straight = train(pictures, tmp_path / "a", max_epoch=3)
    cut = train(pictures, tmp_path / "b", max_epoch=3, max_minutes=1e-9)
    assert epochs_of(cut) == 1
    assert_same_weights(straight, train(pictures, tmp_path / "b", resume=True, max_minutes=None))


# Short runs.


def test_limited_batches_are_spread_over_the_val_pictures(pictures, tmp_path, command):
    run = train(pictures, tmp_path / "runs", limit_batches=1, max_epoch=1, model="SqueezeNet")
    paths = {"checkpoint_root": tmp_path / "runs", "test_data_root": pictures / "test1"}
    done = command("val", *as_words(paths), "--limit-batches=1", "--batch-size=14")
    assert "of 14 pictures" in done.out  # of 18, which are in the order of their classes
    assert sorted(class_sizes_of(done.out)) == [7, 7]
    saved = checkpoint.read(run / "last.pth")
    assert saved["history"][0]["epoch"] == 1
    steps = [state.get("step", 1) for state in saved["optimizer"]["state"].values()]
    assert max(steps) == 1


def class_sizes_of(text: str) -> list[int]:
    """Return the sums of the rows of the confusion matrix that val prints."""
    table = text.partition("true class")[2].splitlines()[1:]
    return [sum(map(int, line.split()[-2:])) for line in table if line.strip()]


def test_a_dry_run_tries_every_part_and_leaves_nothing(command, pictures, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    paths = {"train_data_root": pictures / "train", "checkpoint_root": tmp_path / "runs"}
    done = command("train", *as_words(paths), "--dry-run", "--batch-size=2")
    assert done.code == 0, done.err
    assert "epoch 1/1" in done.out and "the dry run is complete" in done.out
    assert "of 18 pictures" in done.out  # 9 batches; of train it were 10 of 21
    assert list(scratch.iterdir()) == [] and not (tmp_path / "runs").exists()
    done = command("train", *as_words(paths), "--dry-run", "--resume")
    assert done.code == 2 and "leave out --resume" in done.err


# Options from a file.


def test_the_options_of_a_run_repeat_it(pictures, tmp_path):
    run = train(pictures, tmp_path / "a", max_epoch=1, lr=0.01, seed=3)
    again = main.train(config=run / "config.json", checkpoint_root=tmp_path / "b")
    assert again.parent == tmp_path / "b"
    assert_same_weights(run, again)


@pytest.mark.parametrize(
    ("name", "text"),
    [("my.json", '{"lr": 0.5, "max-epoch": 7}'), ("my.toml", "lr = 0.5\nmax_epoch = 7")],
)
def test_the_command_line_wins_over_a_file(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    opt = DefaultConfig(config=tmp_path / name, max_epoch="9")
    assert (opt.lr, opt.max_epoch) == (0.5, 9)
    assert opt.given == {"config", "lr", "max_epoch"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"lr": "fast"}', "--lr takes a number above 0, not 'fast'"),
        ('{"learning_rate": 1}', "there is no option --learning-rate; did you mean --lr?"),
        ('{"train_data_root": "nowhere"}', "nowhere does not exist"),
        ("[1, 2]", "has no options in JSON or TOML"),
        ("lr: 0.1", "has no options in JSON or TOML"),
    ],
)
def test_a_wrong_file_of_options_is_one_line(command, text, message, tmp_path):
    path = tmp_path / "options.json"
    path.write_text(text)
    done = command("train", f"--config={path}")
    assert done.code == 2
    assert message in done.err and done.err.count("\n") == 1


# A memory that is too small.


class Hungry(ColourModel):
    """A stand-in for a full GPU: in training, more than 7 pictures at a time are too many."""

    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    fails_in, room, calls = "forward", 7, 0

    def forward(self, images):
        logits = super().forward(images)
        Hungry.calls += self.training
        if self.training and len(images) > self.room and self.calls > 1:
            if self.fails_in == "forward":
                raise self.error
            logits.register_hook(self.fail)
        return logits

    def fail(self, _gradient):
        raise self.error


@pytest.mark.parametrize("fails_in", ["forward", "backward"])
def test_a_full_memory_divides_the_batch_and_no_picture_is_lost(
    fails_in, pictures, tmp_path, monkeypatch, capsys
):
    """From its second step on, the run is one with --accumulate=2, to the bit."""
    monkeypatch.setattr(Hungry, "fails_in", fails_in)
    monkeypatch.setattr(Hungry, "calls", 0)
    run = train(pictures, tmp_path / "a", model=Hungry, max_epoch=1)
    assert "a batch is computed in 2 parts (--accumulate)" in capsys.readouterr().out
    assert json.loads((run / "config.json").read_text())["accumulate"] == 2
    # The same run without the errors: one part in the first step, then two.
    monkeypatch.setattr(Hungry, "room", 1000)
    train_step, steps = main.engine.train_step, []

    def in_parts(*args, accumulate, **options):
        steps.append(len(args[1]))
        return train_step(*args, accumulate=1 if len(steps) == 1 else 2, **options)

    monkeypatch.setattr(main.engine, "train_step", in_parts)
    other = train(pictures, tmp_path / "b", model=Hungry, max_epoch=1)
    assert steps == [14, 14, 14]
    assert_same_weights(run, other)  # and the history: loss and accuracy over the same pictures


def test_a_run_in_parts_is_resumed_in_parts(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Hungry, "calls", 1)
    train(pictures, tmp_path, model=Hungry, max_epoch=1)
    capsys.readouterr()
    train(pictures, tmp_path, model=Hungry, resume=True, max_epoch=2)
    assert "the memory is full" not in capsys.readouterr().out


def test_too_little_memory_for_two_pictures_ends_the_run(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(Hungry, "room", 0)
    monkeypatch.setattr(Hungry, "calls", 1)
    with pytest.raises(TooLittleMemory, match="CUDA out of memory"):
        train(pictures, tmp_path, model=Hungry, max_epoch=1)


def test_other_errors_are_no_lack_of_memory():
    full = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 80 bytes")
    assert is_out_of_memory(full) and is_out_of_memory(Hungry.error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


# Looking into a run.


def test_a_profile_is_a_trace_and_changes_no_bit(pictures, tmp_path, capfd):
    plain = train(pictures, tmp_path / "a", max_epoch=1, batch_size=4)
    run = train(pictures, tmp_path / "b", max_epoch=1, batch_size=4, profile=True)
    assert_same_weights(plain, run)
    trace = json.loads((run / "trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert "aten::linear" in names or "aten::addmm" in names
    steps = [name for name in names if str(name).startswith("ProfilerStep#")]
    assert len(steps) == 6
    assert "Self CPU" in (run / "log.txt").read_text()


def test_too_few_steps_for_a_profile_are_said(pictures, tmp_path, capsys):
    run = train(pictures, tmp_path, max_epoch=1, batch_size=42, profile=True)
    assert not (run / "trace.json").exists()
    assert "too few steps" in capsys.readouterr().out


class WithRoot(ColourModel):
    """The slope of a square root at 0 is infinite, and infinity times 0 is NaN."""

    def forward(self, images):
        return super().forward(images) + (0 * self.linear.bias).sqrt() * 0


@pytest.mark.filterwarnings("ignore:.*")  # with them, torch shows where the operation stands
@pytest.mark.parametrize("detect", [True, False])
def test_the_operation_whose_gradient_is_nan_is_named(detect, pictures, tmp_path):
    with pytest.raises(RuntimeError if detect else FloatingPointError) as caught:
        train(pictures, tmp_path, model=WithRoot, detect_anomaly=detect)
    assert ("SqrtBackward0" in str(caught.value)) == detect
    assert not torch.is_anomaly_enabled()


# Calibration.


def test_the_temperature_of_logits_three_times_too_large_is_three():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 4, generator=generator)
    labels = logits.softmax(dim=1).multinomial(1, generator=generator).squeeze(1)
    temperature = metrics.fit_temperature(3 * logits, labels)
    assert temperature == pytest.approx(3, rel=0.03)
    yes = (logits.sigmoid() > torch.rand(logits.shape, generator=generator)).float()
    assert metrics.fit_temperature(3 * logits, yes) == pytest.approx(3, rel=0.03)


def test_a_temperature_for_perfect_answers_is_finite():
    logits = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
    assert 0.0099 < metrics.fit_temperature(logits, torch.tensor([0, 1])) < 0.0101
    assert math.isfinite(metrics.fit_temperature(torch.zeros(2, 2), torch.tensor([0, 1])))


def test_a_calibrated_run_has_a_lower_log_loss_and_the_same_answers(pictures, tmp_path, command):
    options = {"max_epoch": 2, "model": "SqueezeNet"}
    plain = train(pictures, tmp_path / "a", **options)
    run = train(pictures, tmp_path / "b", calibrate=True, **options)
    assert_same_weights(plain, run)
    saved = checkpoint.read(run / "best.pth", digest_required=True)
    assert saved["temperature"] > 0 and "temperature" not in checkpoint.read(plain / "best.pth")
    found = {}
    for folder in (plain, run):
        summary = main.val(load_model_path=folder, **SMALL)
        assert command("val", f"--load-model-path={folder}").code == 0
        result = tmp_path / f"{folder.parent.name}.csv"
        paths = {"test_data_root": pictures / "test1", "result_file": result}
        main.test(load_model_path=folder, **SMALL | paths)
        found[folder] = summary, [float(row["label"]) for row in read_csv(result)]
    (before, shares), (after, calibrated) = found.values()
    assert after["loss"] < before["loss"] and after["accuracy"] == before["accuracy"]
    for share, new in zip(shares, calibrated, strict=True):  # the logit, divided
        assert math.log(new / (1 - new)) * saved["temperature"] == pytest.approx(
            math.log(share / (1 - share)), abs=1e-3
        )


# torch.compile.


class WithoutDropout(ColourModel):
    """torch.compile draws other random numbers."""

    def forward(self, images):
        return self.linear(self.norm(images).mean(dim=(2, 3)))


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_has_the_same_names_and_nearly_the_same_weights(pictures, tmp_path):
    options = {"max_epoch": 1, "precision": "fp32", "model": WithoutDropout}
    plain = train(pictures, tmp_path / "a", **options)
    run = train(pictures, tmp_path / "b", compile=True, **options)
    first, second = (checkpoint.read(folder / "last.pth")["model"] for folder in (plain, run))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=1e-4), name
    assert (run / "autograd.svg").exists()
