"""A run cannot be lost: kills, signals, damaged files, full disks, and what a resume refuses."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import main
from tests.crash.__main__ import Trials, differences, finished_run
from tests.drawings import draw_set
from tests.helpers import PRECISION, SMALL, as_words, linux_only, posix_only, steps_made
from utils import checkpoint
from utils.muon import Muon
from utils.options import UsageError
from utils.signals import Stopped, StopRequest

SMALL = SMALL | {"batch_size": 8}


@pytest.fixture(scope="module")
def trials(pictures, tmp_path_factory) -> Trials:
    return Trials(
        tmp_path_factory.mktemp("trials"),
        pictures / "train",
        seed=random.randrange(10**9),
        precision=PRECISION,
    )


@posix_only
@pytest.mark.parametrize("number", range(2))  # python -m tests.crash has any number of them
def test_a_killed_run_comes_to_the_same_bits(trials, number):
    assert trials.trial(number, signal.SIGKILL) == []


@posix_only
@pytest.mark.parametrize(
    ("name", "group"),
    [("SIGTERM", True), ("SIGINT", False)],
)
def test_a_signal_ends_a_run_cleanly_and_loses_nothing(trials, name, group):
    number = getattr(signal, name)
    assert trials.trial(100 + 2 * number + group, number, group) == []


@pytest.fixture(scope="module")
def sealed(pictures, tmp_path_factory) -> Path:
    """Train for two epochs, so that last.pth has one before it."""
    root = tmp_path_factory.mktemp("sealed")
    data = pictures / "train"
    run = main.train(train_data_root=data, checkpoint_root=root, max_epoch=2, **SMALL)
    return run / "last.pth"


def test_any_flipped_bit_is_noticed_and_the_one_before_used(sealed, capsys):
    size, chance = sealed.stat().st_size, random.Random(0)
    for _ in range(400):
        place, bit = chance.randrange(size), 1 << chance.randrange(8)
        flip(sealed, place, bit)
        assert checkpoint.read_newest(sealed)["epoch"] == 1
        assert "damaged" in (line := capsys.readouterr().out)
        assert "last.previous.pth" in line
        flip(sealed, place, bit)
    assert checkpoint.read_newest(sealed)["epoch"] == 2


def flip(path: Path, place: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ bit]))


def test_any_cut_off_file_is_noticed_and_the_one_before_used(sealed):
    whole, chance = sealed.read_bytes(), random.Random(1)
    for length in [0, 1, *(chance.randrange(len(whole)) for _ in range(48))]:
        sealed.write_bytes(whole[:length])
        assert checkpoint.read_newest(sealed)["epoch"] == 1
    sealed.write_bytes(whole)


def test_other_programs_read_a_sealed_file(sealed):
    assert torch.load(sealed, weights_only=True)["epoch"] == 2


def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = checkpoint.write(tmp_path / "last.pth", {"epoch": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.write(path, {"epoch": 2}, keep_previous=True)
    monkeypatch.undo()
    assert checkpoint.read(path)["epoch"] == 1
    assert os.listdir(tmp_path) == ["last.pth"]


def train_command(pictures: Path, root: Path, **options) -> list[str]:
    given = {"train_data_root": pictures / "train", "checkpoint_root": root, "max_epoch": 2}
    return [sys.executable, main.__file__, "train", *as_words(SMALL | given | options)]


@posix_only
def test_a_file_size_limit_costs_a_warning_and_the_exit_code(pictures, tmp_path):
    import resource

    result = subprocess.run(
        train_command(pictures, tmp_path / "runs"),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)),
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stdout.count("last.pth cannot be written") <= 1
    assert "epoch 2" in result.stdout  # it trained to its end
    assert "not all on the disk" in result.stderr


@linux_only
def test_a_disk_that_fills_up_keeps_the_last_good_checkpoint(pictures, tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", mount], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let root mount")
    try:
        (mount / "filler").write_bytes(bytes(44 << 20))  # room for three checkpoints, not for four
        result = subprocess.run(
            train_command(pictures, mount / "runs", save_minutes=0.0001),
            capture_output=True,
            text=True,
        )
        run = finished_run(mount / "runs")
        assert result.returncode == 1, result.stderr
        assert "epoch 2" in result.stdout
        assert "No space left on device" in result.stdout
        saved = checkpoint.read_newest(run / "last.pth")
        (mount / "filler").unlink()
        folder = main.train(resume=str(run))
        assert checkpoint.read(folder / "last.pth")["epoch"] == 2
        assert (saved["epoch"], saved["step"]) <= (2, 0)
    finally:
        subprocess.run(["umount", mount], check=False)


@pytest.fixture(scope="module")
def straight(pictures, tmp_path_factory) -> Path:
    """Train two epochs without a stop."""
    root = tmp_path_factory.mktemp("straight")
    data = pictures / "train"
    return main.train(train_data_root=data, checkpoint_root=root, max_epoch=2, **SMALL)


def test_an_exception_on_the_way_is_saved_and_resumed_to_the_same_bits(
    pictures, straight, tmp_path, monkeypatch
):
    def fail(*_):
        calls.append(1)
        if len(calls) == 8:  # in the second epoch
            raise RuntimeError("a viewer's bug")

    calls = []
    monkeypatch.setattr(main, "pause_if_asked", fail)
    data = pictures / "train"
    with pytest.raises(RuntimeError, match="a viewer's bug"):
        main.train(train_data_root=data, checkpoint_root=tmp_path, max_epoch=2, **SMALL)
    saved = checkpoint.read_newest(finished_run(tmp_path) / "last.pth")
    assert (saved["epoch"], saved["step"]) == (1, 2)
    monkeypatch.undo()
    folder = main.train(resume=True, checkpoint_root=tmp_path, num_workers=1)
    assert list(differences(straight, folder)) == []


def test_half_a_step_is_not_saved(pictures, tmp_path, monkeypatch):
    step = Muon.step

    def fail(self, *args):
        steps.append(1)
        step(self, *args)
        if len(steps) == 3:
            raise RuntimeError("power failure")

    steps = []
    monkeypatch.setattr(Muon, "step", fail)
    with pytest.raises(RuntimeError, match="power failure"):
        main.train(
            train_data_root=pictures / "train",
            checkpoint_root=tmp_path,
            save_minutes=0.00001,
            **SMALL,
        )
    saved = checkpoint.read_newest(finished_run(tmp_path) / "last.pth")
    assert saved["step"] == 2


def test_a_finished_run_that_may_go_on_longer_does(pictures, tmp_path):
    data = pictures / "train"
    run = main.train(train_data_root=data, checkpoint_root=tmp_path, max_epoch=1, **SMALL)
    again = main.train(resume=str(run), max_epoch=2)
    assert again == run
    assert len((run / "metrics.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "options", [{"lr": 0.5}, {"batch_size": 4, "seed": 3}, {"model": "ResNet34"}, {"max_epoch": 1}]
)
def test_a_resume_names_the_options_that_would_change_the_result(straight, options):
    with pytest.raises(UsageError) as error:
        main.train(resume=str(straight), **options)
    for name, value in options.items():
        assert f"--{name.replace('_', '-')}={value}" in str(error.value)
    assert "--allow-changes" in str(error.value)


def test_other_pictures_than_the_run_began_with_are_refused(straight, tmp_path):
    draw_set(tmp_path / "other", count=20)
    with pytest.raises((UsageError, checkpoint.CheckpointError), match="--allow-changes"):
        main.train(resume=str(straight), train_data_root=str(tmp_path / "other" / "train"))


def test_nothing_to_resume_starts_a_new_run(pictures, tmp_path, capsys):
    data = pictures / "train"
    run = main.train(
        resume=True, train_data_root=data, checkpoint_root=tmp_path, max_epoch=1, **SMALL
    )
    assert (run / "best.pth").exists()
    assert "has no run to resume" in capsys.readouterr().out


def test_what_a_killed_run_left_half_written_is_gone_after_the_next_start(straight):
    (straight / ".best.pth.tmp").write_bytes(b"half")
    main.train(resume=str(straight))
    assert list(straight.glob(".*.tmp")) == []


@posix_only
def test_a_second_ctrl_c_ends_at_once():
    code = """
import os, signal
from utils.signals import StopRequest, exit_on_signals
exit_on_signals()  # as main.py does
with StopRequest():
    for number in (1, 2):
        os.kill(os.getpid(), signal.SIGINT)
        print("after", number, flush=True)
"""
    project = Path(main.__file__).parent
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=project, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (130, "after 1\n")


@posix_only
def test_what_fails_after_a_signal_is_not_taken_for_a_failure():
    with pytest.raises(Stopped) as stopped, StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("DataLoader worker exited unexpectedly")  # the signal was its group's
    assert stopped.value.exit_code == 143
    with pytest.raises(RuntimeError), StopRequest():
        raise RuntimeError("something else")


@posix_only
def test_two_processes_do_not_share_a_run(straight):
    code = (
        f"import fcntl; f = open({str(straight / '.lock')!r}, 'a'); fcntl.lockf(f, fcntl.LOCK_EX)"
    )
    code += "; print('locked', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(OSError, match="another process is at work in"):
            main.train(resume=str(straight), max_epoch=3)
    finally:
        other.kill()
        other.wait()


def test_a_debugged_change_of_the_learning_rate_survives_a_resume(pictures, tmp_path, monkeypatch):
    def halve(*_):
        opt = sys._getframe(1).f_locals["opt"]
        if not changed:
            changed.append(opt.lr / 2)
            opt.lr /= 2

    changed = []
    monkeypatch.setattr(main, "pause_if_asked", halve)
    data = pictures / "train"
    run = main.train(train_data_root=data, checkpoint_root=tmp_path, max_epoch=1, **SMALL)
    assert checkpoint.read(run / "last.pth")["options"]["lr"] == changed[0]


def test_a_resume_that_may_change_options_trains_with_the_new_ones(pictures, tmp_path):
    options = SMALL | {"train_data_root": pictures / "train", "checkpoint_root": tmp_path}
    run = main.train(max_epoch=1, **options)
    main.train(resume=run, allow_changes=True, max_epoch=2, weight_decay=0, precision="fp16")
    saved = checkpoint.read(run / "last.pth")
    assert saved["options"]["weight_decay"] == 0 and saved["amp"]["scale"] > 0
    groups = saved["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0, 0]
    assert steps_made(saved) > 6  # the moments go on
