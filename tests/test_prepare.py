"""The command prepare: what the drawn pictures show, and a folder that is whole or not there."""

import csv
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import PROJECT, wait_until
from utils.commands import prepare
from utils.commands.prepare import Options
from utils.drawing import draw


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """Prepare 60 training and 6 test pictures; read only."""
    return prepare.run(Options(prepare_root=tmp_path_factory.mktemp("drawn") / "demo", count=60))


def contents(root: Path) -> dict[str, bytes]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


# The drawings.


def test_a_drawing_is_a_function_of_kind_and_seed():
    random.seed(1)
    first = draw("cat", 7)
    random.seed(2)
    np.random.seed(2)
    assert first.tobytes() == draw("cat", 7).tobytes()
    assert first.mode == "RGB" and all(160 <= side <= 220 for side in first.size)
    assert first.tobytes() != draw("cat", 8).tobytes()
    assert first.tobytes() != draw("dog", 7).tobytes()


def test_a_linear_classifier_of_grey_pixels_does_not_tell_cats_from_dogs():
    pixels = np.stack(
        [
            np.asarray(draw(kind, seed).convert("L").resize((32, 32)), np.float32).ravel() / 255
            for kind in ("cat", "dog")
            for seed in range(150)
        ]
    )
    labels = np.repeat([-1.0, 1.0], 150)
    pixels = np.hstack([pixels - pixels.mean(), np.ones((300, 1))])
    train = np.arange(300) % 3 > 0
    kernel = pixels @ pixels[train].T  # ridge regression, in its dual form
    best = 0.0
    for strength in (1.0, 10.0, 100.0):
        weights = np.linalg.solve(kernel[train] + strength * np.eye(200), labels[train])
        best = max(best, (np.sign(kernel[~train] @ weights) == labels[~train]).mean())
        assert (np.sign(kernel[train] @ weights) == labels[train]).mean() > 0.7  # it did learn
    assert best < 0.75


@pytest.mark.parametrize("measure", [np.mean, np.std], ids=["brightness", "contrast"])
def test_brightness_and_contrast_do_not_tell_cats_from_dogs(measure):
    cats, dogs = (
        np.array([measure(np.asarray(draw(kind, seed))) for seed in range(100)])
        for kind in ("cat", "dog")
    )
    assert 0.35 < (cats[:, None] > dogs).mean() < 0.65  # chance is 0.5, give or take 0.04


# The folder.


def test_the_drawn_set_has_kaggles_layout(drawn):
    expected = {f"train/{kind}.{n}.jpg" for kind in ("cat", "dog") for n in range(30)}
    expected |= {f"test1/{n}.jpg" for n in range(1, 7)} | {"test1_labels.csv"}
    assert {*contents(drawn)} == expected
    rows = [*csv.DictReader((drawn / "test1_labels.csv").open())]
    assert [int(row["id"]) for row in rows] == [*range(1, 7)]
    assert {row["label"] for row in rows} <= {"0", "1"}


def test_preparing_again_gives_the_same_bytes_and_a_smaller_set_is_a_part(drawn, tmp_path):
    prepare.run(Options(prepare_root=tmp_path / "small", count=21))
    small, large = contents(tmp_path / "small"), contents(drawn)
    assert len(small) == 21 + 2 + 1
    del small["test1_labels.csv"]
    assert {name: large[name] for name in small} == small
    prepare.run(Options(prepare_root=tmp_path / "other", count=4, seed=1))
    other = contents(tmp_path / "other")
    assert other["train/cat.0.jpg"] not in large.values()


def test_no_test_picture_is_a_training_picture(drawn):
    files = contents(drawn)
    assert len({*files.values()}) == len(files)


def test_a_folder_that_holds_something_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    for path in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(FileExistsError, match=re.escape(str(path))):
            prepare.run(Options(prepare_root=path, count=4))
    assert contents(tmp_path) == {"mine.txt": b"keep me"}
    (tmp_path / "empty").mkdir()
    prepare.run(Options(prepare_root=tmp_path / "empty", count=2))
    assert (tmp_path / "empty" / "train" / "dog.0.jpg").exists()


def test_a_failure_in_a_worker_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "KINDS", ("cat", "mouse"))  # nobody draws a mouse
    with pytest.raises(KeyError, match="mouse"):
        prepare.run(Options(prepare_root=tmp_path / "demo", count=400))
    assert [*tmp_path.iterdir()] == []


# Signals.


# What main.py does with `prepare`, without torch, which takes seconds to load.
LIGHT = """
import sys
from utils import commands
from utils.failures import one_line_failures
from utils.signals import exit_on_signals

exit_on_signals()
with one_line_failures(show_traceback=False):
    commands.get("prepare")(prepare_root=sys.argv[1], count=20_000)
"""


def signalled(root: Path, words: list[str], number: int, to_group: bool) -> subprocess.Popen:
    """Start a process that prepares root/demo, in a group of its own; signal it when it draws."""
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: process.poll() is not None or any(root.glob(".demo-*/demo/train/dog.*")))
    (os.killpg if to_group else os.kill)(process.pid, number)
    return process


def output(process: subprocess.Popen) -> tuple[str, str]:
    """Wait until nobody holds the pipes any more: the process and its workers have ended."""
    try:
        return process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.fail("workers are left")


@pytest.mark.parametrize(
    ("name", "to_group"),
    [("SIGTERM", False), ("SIGTERM", True), ("SIGHUP", True), ("SIGINT", False), ("SIGINT", True)],
)
def test_a_signal_leaves_no_worker_and_no_folder(name, to_group, tmp_path):
    number = getattr(signal, name)
    process = signalled(tmp_path, ["-c", LIGHT, str(tmp_path / "demo")], number, to_group)
    assert output(process) == ("", f"stopped by {name}\n")
    assert process.returncode == 128 + number
    assert [*tmp_path.iterdir()] == []


def test_the_command_ends_on_a_signal_in_the_same_way(tmp_path):
    words = ["main.py", "prepare", f"--prepare-root={tmp_path / 'demo'}", "--count=20000"]
    process = signalled(tmp_path, words, signal.SIGTERM, to_group=True)
    assert output(process) == ("", "stopped by SIGTERM\n")
    assert process.returncode == 143
    assert [*tmp_path.iterdir()] == []


def test_a_kill_leaves_no_worker_and_no_folder_that_looks_whole(tmp_path):
    words = ["-c", LIGHT, str(tmp_path / "demo")]
    process = signalled(tmp_path, words, signal.SIGKILL, to_group=False)
    output(process)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "demo").exists()
