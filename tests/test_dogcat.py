"""Kaggle's Dogs vs. Cats: its names, its classes, its photos; and that no other file knows them.

This file belongs to data/dogcat.py: delete both when another data set takes their place.
"""

import csv
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from data import DogCat, Loader, read_image
from data.transforms import MiddleSquare
from tests.drawings import draw_set
from tests.helpers import PROJECT, SMALL, as_words


def names_of(dataset: DogCat) -> list[str]:
    return [name.decode() for name in dataset.names]


def run(command: str, **options) -> str:
    """Type a command; return what it prints."""
    options = SMALL | {"dataset": "DogCat"} | options
    words = [sys.executable, "main.py", command, *as_words(options)]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train_and_test(root: Path, folder: Path) -> tuple[str, dict[int, float]]:
    """Train an epoch on root/train and classify root/test1; return the log and {id: P(dog)}."""
    log = run("train", train_data_root=root / "train", checkpoint_root=folder, max_epoch=1)
    result = folder / "result.csv"
    run("test", test_data_root=root / "test1", checkpoint_root=folder, result_file=result)
    with open(result, newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(list(row) == ["id", "label"] for row in rows)
    return log, {int(row["id"]): float(row["label"]) for row in rows}


def test_label_1_is_a_dog_and_pictures_that_are_named_otherwise_are_left_out(tmp_path):
    names = ["Cat.3.jpeg", "DOG.4.png", "cat.0.jpg", "dog.12499.jpg"]
    left_out = ["cat.jpg", "hotdog.1.jpg", "dogcat.1.jpg"]
    for name in names + left_out:
        (tmp_path / name).touch()
    dataset = DogCat(tmp_path, val_share=0)
    assert dict(zip(names_of(dataset), dataset.labels.tolist(), strict=True)) == {
        **{"cat.0.jpg": 0, "Cat.3.jpeg": 0},
        **{"DOG.4.png": 1, "dog.12499.jpg": 1},
    }
    assert tuple(dataset.classes) == ("cat", "dog")
    unlike = "its name is not like cat.12.jpg or dog.12.jpg"
    assert dataset.rejected == dict.fromkeys(left_out, unlike)


def test_it_trains_on_kaggles_layout_and_on_folders(tmp_path):
    for flat in (True, False):
        root = tmp_path / f"flat {flat}"
        draw_set(root, count=40, kinds=DogCat.classes, flat=flat)
        log, found = train_and_test(root, root / "runs")
        assert "train: 28 pictures (14 cat, 14 dog)" in log
        assert list(found) == [1, 2, 3, 4] and all(0 < x < 1 for x in found.values())


def test_what_is_drawn_and_where_photos_come_from_fits_it(tmp_path):
    drawing = pytest.importorskip("utils.drawing")
    sources = pytest.importorskip("utils.preparation.sources")
    assert drawing.KINDS == DogCat.classes == ("cat", "dog")
    assert sources.KAGGLE == "dogs-vs-cats"
    for name in ("Bengal_1.jpg", "pug_1.jpg"):
        (tmp_path / name).touch()
    found, left_out = sources.plan_pets(tmp_path, breeds=False)
    assert {*found} == {"train/cat/Bengal_1.jpg", "train/dog/pug_1.jpg"} and not left_out


# Who brings another data set has no other place to change. In a project of your own, these words
# may stand anywhere (torch.cat), so `make test` leaves this out and `make test-copies` runs it.

OWN = ["data/dogcat.py", "tests/test_dogcat.py", "utils/drawing.py", "README*.md", "docs"]
# These name what a new project does not get.
OWN += ["utils/commands/new.py", "tests/test_new.py", "tests/test_copies.py"]


def grep(*words: str) -> list[str]:
    """Search the tracked files, all but those that may know of cats and dogs."""
    others = [f":(exclude){path}" for path in OWN]
    command = ["git", "grep", "-I", *words, "--", ".", *others]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout.splitlines()


@pytest.mark.copies
@pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="asks git which files are tracked")
def test_no_other_file_knows_of_cats_and_dogs():
    name_of_the_competition = 'utils/preparation/sources.py:KAGGLE = "dogs-vs-cats"'
    assert {*grep("-iwE", "cats?|dogs?")} <= {name_of_the_competition}
    assert grep("-cE", "DogCat|dogcat") == ["config.py:1", "data/__init__.py:1"]


# Real photos, where DOGCAT_PHOTOS names them.

ODD_USED = {"dog.90007.jpg", "cat.90008.jpg", "dog.90013.jpg", "cat.90014.jpg", "cat.90016.jpg"}
ODD_USED |= {"dog.90018.jpg", "cat.90023.jpg", "dog.90026.JPG"}
ODD_BROKEN = {"cat.90001.jpg", "dog.90002.jpg", "cat.90004.jpg", "dog.90005.jpg", "dog.90020.jpg"}
ODD_NAMES = {"cat.jpg", "hotdog.90030.jpg"}
ODD_SYSTEM = {".DS_Store", "Thumbs.db"}


def take(root: Path, files: list[Path]) -> dict[str, tuple[int, torch.Tensor]]:
    """Load four drawn pictures and `files`; return label and image of each one that is used."""
    draw_set(root, count=4, kinds=DogCat.classes, flat=True)
    root = root / "train"
    for file in files:
        os.symlink(file, root / file.name)
    dataset = DogCat(root, MiddleSquare(64), image_size=64, val_share=0)
    loader = Loader(dataset, 3, 0)
    batches = [*loader.epoch()]
    images = torch.concat([images for _, images, _ in batches])
    labels = torch.concat([labels for *_, labels in batches]).tolist()
    used = [names_of(dataset)[index] for index in loader.readable()]
    told = "\n".join([*loader.new_failures(), *dataset.rejected])
    for file in files:
        assert (file.name in used) + (file.name in told) == (file.name not in ODD_SYSTEM), file
    return {name: (label, image) for name, label, image in zip(used, labels, images, strict=True)}


def test_each_real_odd_file_is_used_or_named_and_never_mislabelled(photos, tmp_path):
    files = sorted((photos / "odd").iterdir())
    assert {file.name for file in files} == ODD_USED | ODD_BROKEN | ODD_NAMES | ODD_SYSTEM
    drawn = take(tmp_path / "none", [])
    assert len(drawn) == 4
    together = take(tmp_path / "all", files)
    assert {*together} == {*drawn} | ODD_USED
    for number, file in enumerate(files):
        alone = take(tmp_path / str(number), [file])
        assert {*alone} == {*drawn} | ({file.name} & ODD_USED)
        for name, (label, image) in alone.items():
            assert label == name.lower().startswith("dog")
            assert image.isfinite().all()
            assert label == together[name][0] and torch.equal(image, together[name][1])


def test_the_real_turned_photo_comes_out_upright(photos):
    path = photos / "odd" / "cat.90016.jpg"
    with Image.open(path) as stored:
        assert stored.getexif()[0x0112] == 6
        size = stored.size
    assert read_image(path).shape == (3, *size)


def test_real_photos_split_as_they_should(photos):
    train, val = (DogCat(photos / "photos" / "train", mode=mode) for mode in ("train", "val"))
    assert train.class_counts == [700, 700] and val.class_counts == [300, 300]
    assert not {*names_of(train)} & {*names_of(val)}
    test = DogCat(photos / "photos" / "test1", mode="test")
    assert test.ids.tolist() == [*range(1, 201)]


def test_real_photos_go_through_train_and_test(photos, tmp_path):
    for folder, count in (("train", 40), ("test1", 10)):
        (tmp_path / folder).mkdir()
        every = sorted((photos / "photos" / folder).iterdir())
        for path in every[:: len(every) // count][:count]:
            os.symlink(path, tmp_path / folder / path.name)
    kinds = Counter(path.name[:3] for path in (tmp_path / "train").iterdir())
    assert kinds.total() == 40 and set(kinds) == {"cat", "dog"}
    log, found = train_and_test(tmp_path, tmp_path / "runs")
    assert "train: 28 pictures" in log and "is left out" not in log
    ids = sorted(int(path.stem) for path in (tmp_path / "test1").iterdir())
    assert list(found) == ids and all(0 < x < 1 for x in found.values())
