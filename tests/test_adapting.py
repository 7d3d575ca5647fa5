"""Make the changes that docs/adapting.md counts, in a copy that then runs train, val, test, check.

A change is a list of places: the page has a table of how many there are. A place is a new file, or
a text that a file has once and what that text becomes.
"""

import colorsys
import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from config import DefaultConfig
from tests.helpers import PROJECT, SMALL, as_words
from tests.test_docs import ADAPTING, copy_code, import_line
from utils import checkpoint, commands

QUIET = [
    f"--{name}={SMALL[name]}" for name in ("use_gpu", "precision", "num_workers", "debug_file")
]
OPTIONS = SMALL | {"model": "Tiny", "max_epoch": 1, "limit_batches": 2}
TEN = [f"colour_{number}" for number in range(10)]


class Place(NamedTuple):
    file: str
    new: str
    old: str = ""  # "": the file is new


def behind(file: str, old: str, new: str) -> Place:
    """Return the place behind the text `old`."""
    return Place(file, old + new, old)


def a_class(file: str, code: str, line: str) -> list[Place]:
    """Return the places that a class takes: its file, and a line at the end of `__init__.py`."""
    package = f"{Path(file).parent}/__init__.py"
    last = (PROJECT / package).read_text(encoding="utf-8").splitlines(keepends=True)[-1]
    return [Place(file, code), behind(package, last, line)]


def of_the_page(file: str) -> list[Place]:
    """Return the places of a class that the page shows."""
    code = re.search(rf"```python\n# {file}\n(.+?)```", ADAPTING, re.S)[1]
    return a_class(file, code, import_line(file))


ARRAYS = '''\
"""Pictures that are rows of one array."""

import numpy as np
import torch

from .image_dataset import ImageDataset


class Arrays(ImageDataset):
    classes = ("warm", "cold")

    def __init__(self, root, mode, image_size, crop_scale):
        super().__init__(mode, image_size, crop_scale)
        rows = {"train": slice(40), "val": slice(40, 60), "test": slice(60)}[mode]
        self.pictures = np.load(f"{root}/pictures.npy")[rows]  # (M, H, W, 3)
        if mode == "test":
            self.ids = range(len(self.pictures))
        else:
            self.labels = np.load(f"{root}/labels.npy")[rows]

    def read(self, index):
        return torch.from_numpy(self.pictures[index]).permute(2, 0, 1)
'''
METRIC = '    "error": (lambda logits, labels: 1 - accuracy(logits, labels), min),\n'
OPTION = "    loss_scale: PositiveFloat = 1.0  # the loss is multiplied by it\n"
LOSS = """\
    if not dataset.multi_label:
        scale = torch.full((dataset.num_classes,), opt.loss_scale)
        return nn.CrossEntropyLoss(scale, reduction="none")
"""
ADAMW = "torch.optim.AdamW(groups, lr=opt.lr, betas=(0.9, 0.99), fused=True)"
SGD = "torch.optim.SGD(groups, lr=opt.lr, momentum=0.8)"
SCHEDULE = "    return opt.lr * (1 - progress)\n"

RECIPE, END = "utils/recipe.py", '\n    """\n'  # the end of a docstring
CHANGES = {
    "a model": of_the_page("models/tiny.py"),
    "ten classes, in folders": [],
    "classes in the names of files": of_the_page("data/flowers.py"),
    "any other data set": a_class("data/arrays.py", ARRAYS, "from .arrays import Arrays\n"),
    "several classes in one picture": of_the_page("data/colors.py"),
    "a metric": [behind("utils/metrics.py", '    "accuracy": (accuracy, max),\n', METRIC)],
    "an option": [behind("config.py", "    # Training\n", OPTION)],
    "a loss": [behind(RECIPE, f"If it is multi-label, labels are (N, K).{END}", LOSS)],
    "an optimizer": [Place(RECIPE, SGD, ADAMW)],
    "a schedule": [behind(RECIPE, f"so that a resumed run needs no state for it.{END}", SCHEDULE)],
}


def test_the_page_tells_how_many_places_each_change_takes():
    table = ADAPTING.partition("\n## How many places\n")[2].partition("\n## ")[0]
    counts = dict(re.findall(r"^\| (\w.+?) \| (\d+) \|", table, re.M))
    assert counts == {name: str(len(places)) for name, places in CHANGES.items()}


def test_the_readme_has_the_same_numbers():
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    lines = readme.partition("| places to change for")[2].partition("\n\n")[0].splitlines()
    if not lines:
        pytest.skip("README.md has no such table any more")
    names, _, *columns = (line.split(" | ")[1:] for line in lines)
    for number, name in enumerate(names):
        row = " | ".join([name.strip(" |"), *(column[number].strip(" |") for column in columns)])
        assert f"| {row} |" in ADAPTING


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the project, make all changes in the copy, and draw pictures for each data set."""
    project = tmp_path_factory.mktemp("adapted")
    copy_code(project)
    for place in (place for places in CHANGES.values() for place in places):
        path = project / place.file
        text = path.read_text(encoding="utf-8") if place.old else ""
        assert path.exists() == bool(place.old) and text.count(place.old) == 1, place
        path.write_text(text.replace(place.old, place.new), encoding="utf-8")
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 10
    pictures = [draw(label / 10, rng) for label in labels]
    rows = ["path,red,green,blue"]
    for number, (label, picture) in enumerate(zip(labels, pictures, strict=True)):
        rows.append(f"{number}.png,{label % 2},{label // 2 % 2},{label // 4 % 2}")
        flower = ("rose", "tulip")[label % 2]
        for name in (f"ten/{TEN[label]}/", f"flowers/{flower}.", "colors/"):
            path = project / f"{name}{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
    (project / "colors/labels.csv").write_text("\n".join(rows))
    (project / "arrays").mkdir()
    np.save(project / "arrays/pictures.npy", pictures)
    np.save(project / "arrays/labels.npy", labels // 5)
    return project


def draw(hue: float, rng: np.random.Generator) -> np.ndarray:
    """Return a picture (96, 96, 3) of squares that have one hue, and are bright and dark."""
    light = rng.uniform(60, 255, (8, 8, 1)).repeat(12, axis=0).repeat(12, axis=1)
    picture = light * colorsys.hsv_to_rgb(hue, 0.8, 1) + rng.normal(0, 5, (96, 96, 3))
    return picture.clip(0, 255).astype(np.uint8)


def run(project: Path, *words: str, code: int = 0) -> str:
    """Run `python main.py WORD …` in the copy; return what it prints."""
    command = [sys.executable, "main.py", *words]
    done = subprocess.run(command, cwd=project, capture_output=True, encoding="utf-8")
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Trained(NamedTuple):
    """What train, val and test leave and print."""

    folder: Path
    row: dict[str, float]  # of metrics.csv
    val: str
    answers: list[dict[str, str]]  # result.csv


def train_val_test(project: Path, root: str, **options: object) -> Trained:
    """Run the three commands on two batches of the pictures in `root`."""
    options = OPTIONS | {"train_data_root": root} | options
    run(project, "train", *as_words(options))
    folder = max((project / "checkpoints").glob("Tiny_*"), key=os.path.getmtime)
    (row,) = read_rows(folder / "metrics.csv")
    val = run(project, "val", *QUIET)  # of the newest run
    run(project, "test", f"--test-data-root={root}", *QUIET)
    answers = read_rows(project / "result.csv")
    return Trained(folder, {name: float(x) for name, x in row.items()}, val, answers)


def check(project: Path, root: str, code: int = 0, **options: object) -> str:
    if "check" not in commands.names():
        pytest.skip("the command check was removed")
    options = OPTIONS | {"train_data_root": root} | options
    return run(project, "check", *as_words(options), code=code)


def test_ten_classes_with_an_own_model_metric_option_loss_optimizer_and_schedule(project):
    options = {"loss_scale": 3, "best_metric": "error", "optimizer": "adamw"}
    done = train_val_test(project, "ten", dataset="Pictures", **options)
    assert done.row["train_objective"] == pytest.approx(3 * done.row["train_loss"], rel=1e-3)
    assert done.row["lr"] == pytest.approx(DefaultConfig.lr / 2)  # in the second of two steps
    assert done.row["val_error"] == pytest.approx(1 - done.row["val_accuracy"])
    (error,) = re.findall(r"^error +(\S+)", done.val, re.M)
    (accuracy,) = re.findall(r"^accuracy +(\S+)%", done.val, re.M)
    assert float(error) == pytest.approx(1 - float(accuracy) / 100, abs=1e-4)
    saved = checkpoint.read(done.folder / "last.pth")["optimizer"]["param_groups"][0]
    assert saved["momentum"] == 0.8 and "dampening" in saved  # which SGD alone has
    assert len(done.answers) == 60 and list(done.answers[0]) == ["id", *TEN]
    assert all(name in done.val for name in TEN)


def test_check_finds_no_fault_in_them(project):
    assert ", 0 ✗, " in check(project, "ten", dataset="Pictures")


def test_the_option_is_validated_and_shown(project):
    assert "--loss-scale=1.0 " in run(project, "help")
    error = run(project, "train", "--loss-scale=0", code=2)
    assert error == "--loss-scale takes a number above 0, not '0'\n"
    assert "did you mean error?" in run(project, "train", "--best-metric=eror", code=2)


def test_an_own_data_set(project):
    done = train_val_test(project, "arrays", dataset="Arrays")
    assert list(done.answers[0]) == ["id", "label"] and len(done.answers) == 60
    assert "true class" in done.val and "cold" in done.val
    assert ", 0 ✗, " in check(project, "arrays", dataset="Arrays")


def test_names_of_files_that_tell_the_class(project):
    options = OPTIONS | {"dataset": "Flowers", "train_data_root": "flowers", "dry_run": True}
    assert "21 rose, 21 tulip" in run(project, "train", *as_words(options))


def test_several_classes_in_one_picture(project):
    done = train_val_test(project, "colors", dataset="Colors", loss_scale=3)
    assert done.row["train_objective"] == pytest.approx(done.row["train_loss"], rel=1e-3)
    assert list(done.answers[0]) == ["id", "red", "green", "blue"] and len(done.answers) == 60
    sums = [sum(float(row[name]) for name in ("red", "green", "blue")) for row in done.answers]
    assert max(sums) - min(sums) > 0.01  # not shares of one answer
    assert "all answers on 20 pictures" in done.val
    assert "one label for each picture only" in check(project, "colors", code=2, dataset="Colors")
