"""The learning rate range test."""

import math
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import main
from tests.helpers import PROJECT, SMALL, as_words
from tests.test_report import Reader
from utils import chart
from utils.commands import find_lr
from utils.files import digest_of
from utils.guard import NotFinite


@pytest.fixture(scope="module")
def options(pictures) -> dict:
    return SMALL | {"train_data_root": pictures / "train"}


def typed(options: dict, place: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(PROJECT / "main.py"), "find_lr", *as_words(options)]
    return subprocess.run(command, cwd=place, capture_output=True, text=True)


def test_the_command_prints_a_suggestion_and_writes_the_curve_and_nothing_else(options, tmp_path):
    places = [tmp_path / name for name in ("one", "two")]
    for place in places:
        place.mkdir()
    done = [typed(options | {"steps": 60}, place) for place in places]
    assert [(run.returncode, run.stderr) for run in done] == [(0, ""), (0, "")]
    words, curve = done[0].stdout.splitlines()[-2:]
    assert curve == "the curve is in find_lr.html"
    suggestion = float(re.match(r"--lr=(\S+) is where the loss falls fastest; ", words)[1])
    pages = [(place / "find_lr.html").read_text() for place in places]
    assert pages[0] == pages[1] and "<script" not in pages[0]  # same options, same bits
    dots = Reader(pages[0]).dots
    assert {x for x, _ in dots["loss by learning rate", "suggestion"]} == {suggestion}
    assert {x for x, _ in dots["loss by learning rate", "--lr"]} == {0.002}
    assert [path.name for path in places[0].iterdir()] == ["find_lr.html"]


def test_python_gets_the_numbers(options, tmp_path):
    result = main.find_lr(**options, steps=40, lr_low=1e-4, lr_high=1e-2, page=tmp_path / "a.html")
    assert len(result.rates) == len(result.losses) == len(result.smoothed) == 40
    assert (result.rates[0], result.rates[-1]) == (1e-4, pytest.approx(1e-2))
    factors = [b / a for a, b in zip(result.rates[:-1], result.rates[1:], strict=True)]
    assert factors == pytest.approx([100 ** (1 / 39)] * 39)
    for n in (0, 1, 39):
        weights = [0.9 ** (n - k) for k in range(n + 1)]
        products = [w * x for w, x in zip(weights, result.losses[: n + 1], strict=True)]
        assert result.smoothed[n] == pytest.approx(sum(products) / sum(weights))


def test_a_run_whose_weights_are_tested_keeps_every_bit(options, tmp_path):
    run = main.train(**options, max_epoch=1, checkpoint_root=tmp_path / "runs")
    before = {path: (digest_of(path), path.stat().st_mtime_ns) for path in run.iterdir()}
    place = {"page": tmp_path / "a.html", "checkpoint_root": tmp_path / "runs"}
    trained = main.find_lr(**options, **place, steps=40, load_model_path=run)
    new = main.find_lr(**options, **place, steps=40)
    assert trained.losses[0] != new.losses[0]
    after = {path: (digest_of(path), path.stat().st_mtime_ns) for path in run.iterdir()}
    assert after == before and [*(tmp_path / "runs").iterdir()] == [run]


def test_it_stops_when_the_loss_runs_away(options, tmp_path):
    result = main.find_lr(**options, lr_low=1e-3, lr_high=1e6, page=tmp_path / "a.html")
    assert len(result.rates) == len(result.losses) < 100
    assert all(map(math.isfinite, result.losses))


class Broken(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, images):
        return self.head(images.mean(dim=(2, 3))) * math.nan


def test_a_model_that_is_broken_from_the_start_is_a_failure(options, tmp_path):
    with pytest.raises(NotFinite):
        main.find_lr(**options, model=Broken, page=tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


def suggest(losses: list[float]) -> float | None:
    """Return the suggestion for losses at the rates 0, 1, 2 …"""
    return find_lr.steepest_fall(range(len(losses)), losses, find_lr.exponential_mean(losses))


def noise(size: float) -> float:
    return random.uniform(-size, size)


def test_the_suggestion_is_where_the_loss_falls_fastest():
    random.seed(0)
    flat = [0.7 + noise(0.01) for _ in range(40)]
    slow = [0.7 - 0.005 * n + noise(0.01) for n in range(20)]
    fast = [0.6 - 0.02 * n + noise(0.01) for n in range(20)]
    late = [0.2 + 0.1 * n for n in range(20)]
    assert 66 <= suggest(flat + slow + fast + late) <= 74
    # A loss that has jumped and falls back does not count, however fast it falls.
    back = [4.0 - 0.4 * n for n in range(10)]
    assert 66 <= suggest(flat + slow + fast + back + [0.1] * 20) <= 74
    # Nor does a single batch.
    flat[20] = 0.9
    assert 66 <= suggest(flat + slow + fast + late) <= 74


def test_a_loss_that_does_not_fall_gives_no_suggestion():
    for seed in range(50):
        random.seed(seed)
        assert suggest([random.expovariate(10) for _ in range(100)]) is None
    assert suggest([0.7 + 0.01 * n for n in range(60)]) is None
    assert suggest([0.7, 0.6, 50.0]) is None
    assert suggest([0.1] + [0.7] * 40) is None


@pytest.mark.parametrize(
    ("lr", "says"),
    [
        (1e-3, "--lr=0.002 is where the loss falls fastest; --lr=0.001 is close to it"),
        (1e-2, "--lr=0.01 is 5 times higher: the loss may jump"),
        (1e-4, "--lr=0.0001 is 20 times lower: training may be slow"),
    ],
)
def test_a_rate_that_is_far_away_is_named(lr, says):
    assert find_lr.in_words(find_lr.Options(lr=lr), 2e-3, [1e-5, 1.0]).endswith(says)


def test_no_suggestion_is_said_as_well():
    words = find_lr.in_words(find_lr.Options(), None, [1e-5, 0.5])
    assert words.startswith("the loss does not fall from --lr=1e-05 to 0.5; try")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("--lr-low=2", "--lr-low=2.0 has to be below --lr-high=1.0"),
        ("--steps=39", "--steps=39 shows too little: give 40 or more"),
        ("--page=utils", "--page=utils is a folder: name a file in it"),
        ("--train-data-root=nowhere", "nowhere does not exist"),
    ],
)
def test_wrong_usage_is_one_line(wrong, says, pictures):
    words = [wrong] if "root" in wrong else [wrong, f"--train-data-root={pictures / 'train'}"]
    command = [sys.executable, "main.py", "find_lr", *words]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert done.stderr.startswith(says)


def test_freeze_counts_as_in_train(options, tmp_path):
    result = main.find_lr(**options, steps=40, freeze=1, page=tmp_path / "a.html")
    free = main.find_lr(**options, steps=40, page=tmp_path / "a.html")
    assert result.losses[-1] != free.losses[-1]
    assert torch.tensor(result.losses).isfinite().all()


def test_a_chart_can_have_a_logarithmic_axis_or_one_of_names():
    points = {"a": [(0.001, 1.0), (0.01, 2.0), (1.0, 3.0), (10.0, 1.0)]}
    drawing = chart.line_chart("b", points, "x", x_log=True)
    places = [float(x) for x in re.findall(r'cx="(\S+)"', drawing)]
    width = places[3] - places[0]
    assert [(x - places[0]) / width for x in places] == pytest.approx([0, 0.25, 0.75, 1], abs=1e-3)
    assert re.findall(r'"middle">([\d.]+)<', drawing) == ["0.001", "0.01", "0.1", "1", "10"]
    inside = [x for x in chart.log_ticks(0.15, 2.0) if 0.15 <= x <= 2.0]
    assert inside == [0.2, 0.5, 1.0, 2.0]
    points = {"a": [(0, 1.0), (2, 2.0)]}
    drawing = chart.line_chart("b", points, "x", x_names=["muon", "<adamw>", "sgd"])
    assert re.findall(r'"middle">([^<]+)<', drawing) == ["muon", "&lt;adamw&gt;", "sgd", "x"]
    assert re.findall(r'data-x="(\d)"', drawing) == ["0", "2"]
