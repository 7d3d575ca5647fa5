"""The data: what counts as a picture, who is in which split, what a broken file does."""

import gc
import importlib.util
import inspect
import io
import multiprocessing
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import traceback
import unicodedata
import zlib
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

import data
from data import Loader, Pictures
from data.build import keep_pictures
from data.cache import free_memory
from data.image_dataset import ImageDataset
from data.listing import flat_example
from data.loader import SampleError
from data.read_image import MAX_PIXELS, UnreadableImage, decode_any, decode_plain_jpeg, read_image
from data.sampler import EpochSampler
from data.transforms import MiddleSquare, Normalize, RandomCropAndFlip, resize
from tests.drawings import DrawnTrees, draw, draw_set
from tests.helpers import linux_only, posix_only
from utils.checkpoint import CheckpointError
from utils.options import UsageError

# Which files are pictures, and what they show.


def fill(root: Path, *names: str) -> Path:
    root.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / name, "JPEG")
    return root


def names_of(dataset: Pictures) -> list[str]:
    return [name.decode() for name in dataset.names]


def everything(root: Path, image_size: int = 64) -> DrawnTrees:
    """Open a folder without setting pictures apart for val."""
    return DrawnTrees(root, mode="train", val_share=0.0, image_size=image_size)


def test_only_names_of_the_pattern_count_and_the_others_are_named(tmp_path):
    good = ["fir.2.jpg", "fir.10.JPG", "Fir.3.jpeg", "oak.2.Jpg", "OAK.4.png", "oak.5.webp"]
    good += ["oak.6.bmp", "fir.007.jpg"]
    bad = ["soak.1.jpg", "fir.jpg", "fir.1.jpgx", "oakfir.1.jpg", "fir.-1.jpg", "fir. 1.jpg"]
    bad += ["fir.١.jpg", "fir.²2.jpg", "fir.1.2.jpg", "fir_1.jpg", "1.jpg", "bird.1.jpg"]
    bad += ["fir.1234567890123456789.jpg"] + ["fir.1.jpg\n"] * (os.name != "nt")
    root = fill(
        tmp_path / "set", *good, *bad, ".DS_Store", "Thumbs.db", "desktop.ini", "._fir.9.jpg"
    )
    (root / "fir.1.txt").write_text("fir")
    (root / "fir.5.jpg").mkdir()
    dataset = everything(root)
    assert names_of(dataset) == [
        "fir.2.jpg",
        "Fir.3.jpeg",
        "fir.007.jpg",
        "fir.10.JPG",
        "oak.2.Jpg",
        "OAK.4.png",
        "oak.5.webp",
        "oak.6.bmp",
    ]
    assert dataset.labels.tolist() == [0] * 4 + [1] * 4  # 1 is an oak
    assert dataset.classes[1] == "oak"
    assert dataset.rejected == {
        **dict.fromkeys([*bad, "fir.1.txt"], "its name is not like fir.12.jpg or oak.12.jpg"),
        "fir.5.jpg": "it is not a file",
    }


@pytest.fixture(scope="module")
def flat(tmp_path_factory) -> Path:
    """Draw the pictures without a folder for each class; read only."""
    root = tmp_path_factory.mktemp("flat")
    draw_set(root, count=60, flat=True)
    return root / "train"


def test_the_label_belongs_to_the_picture(flat):
    dataset = everything(flat)
    assert len(dataset) == 60 and dataset.class_counts == [30, 30]
    for index, name in enumerate(names_of(dataset)):
        assert dataset[index][1] == dataset.labels[index] == name.startswith("oak")


def test_counts_and_folder_are_told_in_one_line(flat, pictures):
    line = DrawnTrees(flat, mode="val").describe()
    layout = "layout flat (the class in each name)"
    assert line == f"18 pictures (9 fir, 9 oak) in {flat}, {layout}"
    line = DrawnTrees(pictures / "test1", mode="test").describe()
    assert line == f"6 pictures in {pictures / 'test1'}"


def make_or_skip(path: bytes | Path) -> None:
    """Make an empty file, if the file system takes such a name (macOS takes UTF-8 only)."""
    try:
        open(path, "wb").close()
    except OSError:
        pytest.skip("this file system takes no such name")


@posix_only
def test_a_name_that_is_not_utf_8_is_left_out_and_told_in_plain_text(tmp_path):
    make_or_skip(os.fsencode(tmp_path) + b"/\xe9")
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    for name in (b"caf\xe9.1.jpg", b"fir.2.jp\xe9g"):
        make_or_skip(folder + b"/" + name)
    root = fill(Path(os.fsdecode(folder)), "fir.1.jpg", "fir.2.jpg", "oak.1.jpg")
    (root / "oak.2.jpg").touch()
    dataset = everything(root)
    assert names_of(dataset) == ["fir.1.jpg", "fir.2.jpg", "oak.1.jpg", "oak.2.jpg"]
    assert [*dataset.rejected] == ["caf\\xe9.1.jpg", "fir.2.jp\\xe9g"]
    loader = Loader(dataset, 4, 2)
    assert [labels.tolist() for *_, labels in loader.epoch()] == [[0, 0, 1]]
    (failure,) = loader.new_failures()
    assert failure.startswith(f"{tmp_path}/caf\\xe9/oak.2.jpg is left out: ")
    for text in (dataset.describe(), dataset.fingerprint, failure):
        text.encode("utf-8")  # so that it can be printed and written into log.txt
    keep_pictures(dataset, "disk", tmp_path / "cache")
    assert torch.equal(dataset[1][0], DrawnTrees(root, dataset.transforms, val_share=0)[1][0])
    shutil.rmtree(folder)
    os.mkdir(folder)
    with pytest.raises(FileNotFoundError) as caught:
        everything(root)
    assert str(caught.value).startswith(f"{tmp_path}/caf\\xe9 has no picture named like fir.12")


@posix_only
def test_a_link_that_leads_nowhere_is_left_out_and_named(tmp_path):
    root = fill(tmp_path / "set", "fir.1.jpg", "oak.1.jpg", "oak.3.jpg")
    (root / "fir.2.jpg").symlink_to(root / "fir.2.jpg")  # to itself
    (root / "fir.3.jpg").symlink_to(root / "gone.jpg")
    (root / "oak.2.jpg").symlink_to(root / "oak.1.jpg")
    (root / "folder").symlink_to(root / "folder")
    dataset = everything(root)
    assert names_of(dataset) == ["fir.1.jpg", "oak.1.jpg", "oak.2.jpg", "oak.3.jpg"]
    assert dataset.rejected == {
        **dict.fromkeys(["fir.2.jpg", "fir.3.jpg"], "it is not a file"),
        "folder": "its name is not like fir.12.jpg or oak.12.jpg",
    }
    assert dataset.fingerprint == everything(root).fingerprint


class Fruit(data.Pictures):
    classes = ("Äpfel", "Öl", "STRASSE")


def test_class_names_are_found_in_any_case_and_encoding(tmp_path):
    forms = [unicodedata.normalize(form, "Äpfel.1.jpg") for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    names = [*forms, "äpfel.2.jpg", "ÄPFEL.3.JPG", "öl.1.jpg"]
    names += [unicodedata.normalize("NFD", "ÖL.2.png"), "straße.1.jpg"]
    names += ["apfel.4.jpg", "ol.3.jpg"]
    for name in names:
        make_or_skip(tmp_path / name)
    dataset = Fruit(tmp_path, val_share=0)
    if len({*os.listdir(tmp_path)}) == len(names):
        assert dataset.class_counts == [4, 2, 1]
    assert {*names_of(dataset)} == {*names[:7]}
    assert {*dataset.rejected} == {"apfel.4.jpg", "ol.3.jpg"}
    assert flat_example(dataset.classes) == "äpfel.12.jpg or öl.12.jpg or strasse.12.jpg"


# The fingerprint, by which --resume notices other pictures.


def test_the_fingerprint_is_that_of_the_files_whatever_the_split_or_the_place(twenty, tmp_path):
    first = DrawnTrees(twenty).fingerprint
    assert first == DrawnTrees(twenty, mode="val").fingerprint
    copied = shutil.copytree(twenty, tmp_path / "copy", copy_function=shutil.copyfile)
    assert first == DrawnTrees(copied).fingerprint
    name = "oak.5.jpg"
    whole = (copied / name).read_bytes()
    changes = {
        "other content": lambda: (copied / name).write_bytes(whole[:-9] + b"X" + whole[-8:]),
        "longer": lambda: (copied / name).write_bytes(whole + b"X"),
        "another name": lambda: (copied / name).rename(copied / "oak.55.jpg"),
        "one less": lambda: (copied / "oak.55.jpg").unlink(),
    }
    seen = {first}
    for number, change in enumerate(changes.values(), start=2):
        change()
        seen.add(DrawnTrees(copied).fingerprint)
        assert len(seen) == number


def test_the_fingerprint_of_many_files_reads_few_of_them_but_from_all_parts(tmp_path, monkeypatch):
    names = [f"{kind}.{n}.jpg" for kind in ("fir", "oak") for n in range(1000)]
    for name in names:
        (tmp_path / name).write_text(name)
    opened, true_open = [], open

    def counting(path, *rest):
        opened.append(Path(path).name)
        return true_open(path, *rest)

    monkeypatch.setattr("builtins.open", counting)
    first = DrawnTrees(tmp_path).fingerprint
    assert 32 <= len(opened) <= 64
    indices = [names.index(name) for name in opened]
    assert max(np.diff([0, *indices, len(names)])) <= 64
    for name in names:
        (tmp_path / name).write_text(name[::-1])  # other pictures, as long, under the same names
    assert DrawnTrees(tmp_path).fingerprint != first


# The split.

# The three lowest of ten md5 sums in each class, as `printf fir.3.jpg | md5sum` tells them.
VAL_NAMES = ["fir.3.jpg", "fir.4.jpg", "fir.9.jpg", "oak.1.jpg", "oak.5.jpg", "oak.6.jpg"]


@pytest.mark.parametrize(("firs", "oaks"), [(10, 10), (100, 10), (7, 23), (1000, 1000)])
def test_the_split_is_seven_to_three_within_each_class(tmp_path, firs, oaks):
    names = [f"fir.{n}.jpg" for n in range(firs)] + [f"oak.{n}.jpg" for n in range(oaks)]
    for name in names:
        (tmp_path / name).touch()
    train, val = (DrawnTrees(tmp_path, mode=mode) for mode in ("train", "val"))
    assert val.class_counts == [round(0.3 * firs), round(0.3 * oaks)]
    assert train.class_counts == [firs - round(0.3 * firs), oaks - round(0.3 * oaks)]
    assert sorted(names_of(train) + names_of(val)) == sorted(names)


@pytest.fixture
def twenty(tmp_path):
    return fill(
        tmp_path / "twenty", *[f"{kind}.{n}.jpg" for kind in ("fir", "oak") for n in range(10)]
    )


def test_every_machine_puts_the_same_pictures_into_val(twenty):
    assert names_of(DrawnTrees(twenty, mode="val")) == VAL_NAMES


def test_neither_listing_order_nor_time_stamps_change_what_is_found(twenty, monkeypatch):
    fill(twenty, "1.jpg", "01.jpg", "001.jpg", "2.jpg")

    def found():
        datasets = [DrawnTrees(twenty, mode=mode) for mode in ("train", "val", "test")]
        return [(names_of(dataset), [*dataset.rejected]) for dataset in datasets]

    before, listing, paths = found(), os.scandir, sorted(twenty.iterdir())
    for seed in range(3):
        for number, path in enumerate(paths):
            os.utime(path, (seed * 1000 + number, 10**9 - seed * number))
        shuffle = random.Random(seed).shuffle

        def shuffled(root, shuffle=shuffle):
            entries = [*listing(root)]
            shuffle(entries)
            return iter(entries)

        monkeypatch.setattr(os, "scandir", shuffled)
        assert found() == before


def test_a_new_picture_moves_no_more_than_one_other(twenty):
    before = {*names_of(DrawnTrees(twenty, mode="val"))}
    fill(twenty, "fir.10.jpg")
    assert len(before ^ {*names_of(DrawnTrees(twenty, mode="val"))}) <= 2


# Pictures to classify.


def test_in_test_mode_the_label_is_the_id_in_numeric_order(tmp_path):
    root = fill(tmp_path / "test1", "10.jpg", "2.jpg", "1.jpg", "100.JPG", "1.png")
    dataset = DrawnTrees(root, mode="test", image_size=64)
    assert dataset.ids.tolist() == [1, 2, 10, 100]
    assert not hasattr(dataset, "labels")
    assert names_of(dataset) == ["1.jpg", "2.jpg", "10.jpg", "100.JPG"]
    samples = [dataset[index][1] for index in range(4)]
    assert samples == [1, 2, 10, 100] and all(type(number) is int for number in samples)
    assert dataset.rejected == {"1.png": "another picture has the same name"}


@posix_only
def test_pictures_to_classify_may_have_any_names(tmp_path):
    root = fill(tmp_path / "test1", "10.jpg", "2.jpg", "01.jpg", "1.jpg", "fir.3.jpg", "Ähre 7.jpg")
    dataset = DrawnTrees(root, mode="test", image_size=64)
    assert dataset.ids.tolist() == ["01", "1", "2", "10", "fir.3", "Ähre 7"]
    assert [dataset[index][1] for index in (3, 5)] == ["10", "Ähre 7"] and not dataset.rejected
    fill(root / "deeper", "2.jpg")
    ids = DrawnTrees(root, mode="test").ids.tolist()
    assert ids == ["01", "1", "2", "10", "deeper/2", "fir.3", "Ähre 7"]
    (root / "notes.txt").write_text("no picture")
    (root / "loop").symlink_to(root)
    dataset = DrawnTrees(root, mode="test")
    assert dataset.ids.tolist() == ids
    assert dataset.rejected == {
        "notes.txt": "its name does not end in .jpg, .jpeg, .png, .bmp, .webp, .gif",
        "loop": "this folder is listed already, by another name",
    }


@pytest.mark.parametrize("mode", ["train", "val", "test"])
def test_a_folder_without_pictures_is_refused_in_one_line(tmp_path, mode):
    with pytest.raises(FileNotFoundError) as caught:
        DrawnTrees(tmp_path, mode=mode)
    message = str(caught.value)
    assert str(tmp_path) in message and "nothing in it" in message and "\n" not in message


def test_a_folder_one_level_too_high_is_understood(pictures):
    assert DrawnTrees(pictures, mode="test").ids.tolist() == [1, 2, 3, 4, 5, 6]
    for mode in ("train", "val"):
        one, other = DrawnTrees(pictures, mode=mode), DrawnTrees(pictures / "train", mode=mode)
        assert one.class_counts == other.class_counts and one.layout == "splits"


def test_a_folder_without_a_picture_is_refused_with_what_is_inside(pictures, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        DrawnTrees(tmp_path, mode="train")
    words = "has no picture for train; it has 3 other files, among them the folders a, b"
    assert str(caught.value) == f"{tmp_path} {words}"
    with pytest.raises(FileNotFoundError) as caught:
        DrawnTrees(pictures / "test1", mode="val")
    words = "has no picture named like fir.12.jpg or oak.12.jpg for val; it has 6 other files; "
    words += "each class needs a folder of its own"
    assert str(caught.value) == f"{pictures / 'test1'} {words}"


# Odd pictures, made up here.


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def scene(size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Draw red above blue, smooth enough for JPEG."""
    image = Image.new("RGB", size, (220, 30, 30))
    image.paste((30, 30, 220), (0, size[1] // 2, *size))
    return image


def bomb(side: int = 30_000) -> bytes:
    """Make a whole PNG of `side` x `side` pixels, 1 bit each: small here, 900 MB as RGB bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes((side // 8 + 1) * side), 1)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def grey16(value: int) -> bytes:
    return encoded(Image.fromarray(np.full((40, 60), value, np.uint16)), "PNG")


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn by 90 degrees clockwise to see it upright
    return encoded(scene(), "JPEG", exif=exif)


def see_through(mode: str) -> Image.Image:
    """Draw transparent black left and solid black right."""
    image = Image.new("LA", (60, 40), (0, 0))
    image.paste((0, 255), (30, 0, 60, 40))
    return image.convert(mode)


def palette() -> bytes:
    image = Image.new("P", (60, 40), 0)
    image.putpalette([0, 0, 0, 255, 255, 0])
    image.paste(1, (30, 0, 60, 40))
    return encoded(image, "PNG", transparency=0)


WHITE, BLACK = (255, 255, 255), (0, 0, 0)
USABLE = {  # name: (its bytes, colour at (15, 20), colour at (45, 20), size upright)
    "alpha": (lambda: encoded(see_through("RGBA"), "PNG"), WHITE, BLACK, (60, 40)),
    "grey alpha": (lambda: encoded(see_through("LA"), "PNG"), WHITE, BLACK, (60, 40)),
    "palette": (palette, WHITE, (255, 255, 0), (60, 40)),
    "gif": (lambda: encoded(scene().convert("P"), "GIF"), None, None, (60, 40)),
    "cmyk": (
        lambda: encoded(Image.new("CMYK", (60, 40), (0, 255, 255, 0)), "JPEG"),
        (255, 0, 0),
        (255, 0, 0),
        (60, 40),
    ),
    "grey": (lambda: encoded(Image.new("L", (60, 40), 90), "JPEG"), (90,) * 3, (90,) * 3, (60, 40)),
    "1 bit": (lambda: encoded(Image.new("1", (60, 40), 1), "PNG"), WHITE, WHITE, (60, 40)),
    "16 bits, mid-grey": (lambda: grey16(128 * 257), (128,) * 3, (128,) * 3, (60, 40)),
    "16 bits, dark": (lambda: grey16(10 * 257), (10,) * 3, (10,) * 3, (60, 40)),
    "16 bits, white": (lambda: grey16(65535), WHITE, WHITE, (60, 40)),
    "turned": (turned, (30, 30, 220), None, (40, 60)),
    "junk after": (lambda: encoded(scene(), "JPEG") + b"junk" * 99, None, None, (60, 40)),
    "1 x 1": (lambda: encoded(Image.new("RGB", (1, 1), WHITE), "PNG"), None, None, (1, 1)),
    "1 x 3000": (lambda: encoded(scene((1, 3000)), "PNG"), None, None, (1, 3000)),
    "3000 x 1": (lambda: encoded(scene((3000, 1)), "PNG"), None, None, (3000, 1)),
}
BROKEN = {
    "cut": lambda: encoded(draw("fir", 1), "JPEG")[:3000],
    "cut in its header": lambda: encoded(draw("fir", 1), "JPEG")[:100],
    "cut png": lambda: encoded(draw("fir", 1), "PNG")[:3000],
    "empty": lambda: b"",
    "html": lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "noise": lambda: random.Random(0).randbytes(3000),
    "bomb": bomb,
    "tiff": lambda: encoded(scene(), "TIFF"),  # not one of the formats that are let in
}


@pytest.mark.parametrize("kind", USABLE)
def test_an_odd_picture_is_read_as_upright_rgb(kind, tmp_path):
    make, left, right, size = USABLE[kind]
    (tmp_path / "fir.1.jpg").write_bytes(make())
    image = read_image(tmp_path / "fir.1.jpg")
    assert (image.dtype, image.shape) == (torch.uint8, (3, *size[::-1]))
    for column, color in ((15, left), (45, right)):
        if color:
            assert image[:, 20, column].tolist() == pytest.approx(color, abs=8)


@pytest.mark.parametrize("side", [None, 8, 30, 64, 91])
@pytest.mark.parametrize("kind", ["RGB", "L", "progressive", "4:4:4", "odd size"])
def test_a_plain_jpeg_has_the_pixels_that_pillow_gives_it(kind, side, tmp_path):
    image = draw("fir", 3).resize((187, 131) if kind == "odd size" else (256, 192))
    options = {"progressive": {"progressive": True}, "4:4:4": {"subsampling": 0}}
    image.convert("L" if kind == "L" else "RGB").save(tmp_path / "1.jpg", **options.get(kind, {}))
    pixels = decode_plain_jpeg(tmp_path / "1.jpg", side)
    np.testing.assert_array_equal(pixels, decode_any(tmp_path / "1.jpg", side))
    assert min(pixels.shape[:2]) >= (side or 0)


def test_a_photograph_has_the_pixels_that_pillow_gives_it(photos):
    paths = sorted(photos.rglob("*.jpg"))[::40]
    assert len(paths) > 40
    plain = [(decode_plain_jpeg(path, 181), path) for path in paths]
    assert sum(pixels is not None for pixels, _ in plain) > 0.9 * len(paths)
    for pixels, path in plain:
        if pixels is not None:
            np.testing.assert_array_equal(pixels, decode_any(path, 181))


def test_what_only_pillow_reads_well_is_left_to_it(tmp_path):
    makers = USABLE | {kind: (make,) for kind, make in BROKEN.items()}
    for kind in ("turned", "palette", "cmyk", "cut", "cut in its header", "empty"):
        (tmp_path / "1.jpg").write_bytes(makers[kind][0]())
        assert decode_plain_jpeg(tmp_path / "1.jpg", None) is None, kind


def test_a_turned_photo_has_its_top_on_top(tmp_path):
    (tmp_path / "turned.jpg").write_bytes(turned())
    image = read_image(tmp_path / "turned.jpg")  # red was above: after the turn it is on the right
    assert image[2, 30, 5] > 200 and image[0, 30, 35] > 200


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_in_one_line_that_names_it(kind, tmp_path):
    path = tmp_path / "fir.1.jpg"
    path.write_bytes(BROKEN[kind]())
    with pytest.raises(UnreadableImage) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is left out: ") and "\n" not in message
    assert len(message) > len(f"{path} is left out: ")


def test_a_bomb_costs_no_memory(tmp_path, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(bomb())
    assert (tmp_path / "bomb.png").stat().st_size < 10**6
    Image.init()  # its plugins load a picture of their own
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    for limit in (10**9, None):  # Pillow's own alarm must not be what saves us
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UnreadableImage, match="30000 x 30000 pixels are too many"):
            read_image(tmp_path / "bomb.png")
    assert MAX_PIXELS == 10**8


@pytest.fixture(scope="module")
def odd(tmp_path_factory, pictures) -> Path:
    """Fill a folder: drawn pictures, then all usable and broken ones; odd ones count from 100."""
    root = tmp_path_factory.mktemp("odd")
    for number, (kind, seed) in enumerate([("fir", 0), ("oak", 0), ("fir", 1), ("oak", 1)]):
        draw(kind, seed).save(root / f"{kind}.{number}.jpg")
    for number, (make, *_) in enumerate(USABLE.values(), start=100):
        (root / f"{'fir' if number % 2 else 'oak'}.{number}.jpg").write_bytes(make())
    for number, make in enumerate(BROKEN.values(), start=200):
        (root / f"{'fir' if number % 2 else 'oak'}.{number}.jpg").write_bytes(make())
    return root


def number_of(name: str) -> int:
    return int(name.split(".")[1])


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_the_loader_leaves_broken_pictures_out_and_names_them(odd, tmp_path, cache):
    dataset = everything(odd)
    keep_pictures(dataset, cache, tmp_path)
    usable = [i for i, name in enumerate(names_of(dataset)) if number_of(name) < 200]
    assert len(dataset) == 4 + len(USABLE) + len(BROKEN)
    results = []
    for num_workers in (0, 2):
        loader = Loader(dataset, 5, num_workers, seed=0)
        batches = [*loader.epoch()]
        labels = torch.concat([labels for _, _, labels in batches])
        assert labels.tolist() == dataset.labels[usable].tolist()
        assert loader.readable() == usable
        told = loader.new_failures()
        assert len(told) == len(BROKEN)
        broken = [name for name in names_of(dataset) if number_of(name) >= 200]
        for line, name in zip(told, broken, strict=True):
            assert line.startswith(f"{odd / name} is left out: ") and "\n" not in line
        assert loader.new_failures() == []  # each of them is told of once
        results.append(batches)
    for (step, images, labels), (step2, images2, labels2) in zip(*results, strict=True):
        assert step == step2 and torch.equal(images, images2) and torch.equal(labels, labels2)


def test_a_batch_without_one_readable_picture_is_passed_over(tmp_path):
    draw("oak", 1).save(tmp_path / "oak.9.jpg")
    for number in range(4):
        (tmp_path / f"fir.{number}.jpg").touch()
    for num_workers in (0, 2):
        batches = [*Loader(everything(tmp_path), 2, num_workers).epoch()]
        assert [(step, labels.tolist()) for step, _, labels in batches] == [(2, [1])]


# A data set of one's own: what the docstring of data/__init__.py asks for, and no more.


def options(pictures: Path, **changes) -> SimpleNamespace:
    """Return the options that concern the data."""
    defaults = {
        "dataset": "Pictures",
        "train_data_root": pictures / "train",
        "test_data_root": pictures / "test1",
        "image_size": 32,
        "crop_scale": 0.5,
        "augment": None,
        "oversample": False,
        "balanced": False,
        "on_bad_image": "skip",
        "num_workers": 0,
        "batch_size": 8,
        "seed": 0,
        "cache": "auto",
        "cache_root": "data/cache",
        "limit_batches": None,
        "allow_changes": False,
        "load_model_path": "somewhere/best.pth",
    }
    return SimpleNamespace(**defaults | changes)


def build_loader(opt: Any, mode: str, **more) -> Loader:
    return data.build_loader(opt, mode, torch.device("cpu"), **{"log": lambda line: None, **more})


FLOWERS = """
import torch
from data import ImageDataset


class Flowers(ImageDataset):
    classes = ("rose", "tulip", "lily")

    def __init__(self, root, mode, image_size, crop_scale):
        self.size = image_size
        if mode == "test":
            self.ids = [70, 8]
        else:
            self.labels = [0, 1, 2, 2] if mode == "train" else [1]

    def __getitem__(self, index):
        number = self.labels[index] if self.ids is None else self.ids[index]
        return torch.full((3, self.size, self.size), number, dtype=torch.uint8), number


class Wilted(Flowers):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        if index == 2:
            image = image + "petal"
        return image, label


class Uneven(Flowers):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image[:, index:], label


class Plucked(Flowers):
    def __getitem__(self, index):
        raise OSError("the network is down")


class Missing(Flowers):
    def __getitem__(self, index):
        if index:
            open(f"no/such/{index}.jpg")
        return super().__getitem__(index)
"""


@pytest.fixture
def flowers(tmp_path, monkeypatch):
    """Import a user's file; its classes are known to --dataset."""
    path = tmp_path / "flowers.py"
    path.write_text(FLOWERS)
    spec = importlib.util.spec_from_file_location("flowers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "flowers", module)
    monkeypatch.syspath_prepend(tmp_path)  # where the loader processes import it from
    for name, member in vars(module).items():
        if inspect.isclass(member) and member is not ImageDataset:
            monkeypatch.setattr(data, name, member, raising=False)
    return module


def test_the_least_data_set_of_ones_own_trains_validates_and_tests(flowers, pictures):
    opt, lines = options(pictures, dataset="Flowers"), []
    loaders = {m: build_loader(opt, m, log=lines.append) for m in ("train", "val", "test")}
    assert lines == [
        "train: 4 pictures (1 rose, 1 tulip, 2 lily)",
        "val: 1 pictures (0 rose, 1 tulip, 0 lily)",
        "test: 2 pictures",
    ]
    train = loaders["train"].dataset
    assert isinstance(train, flowers.Flowers) and isinstance(data.open_split(opt, "val"), Dataset)
    assert (train.num_classes, train.class_counts, len(train)) == (3, [1, 1, 2], 4)
    (step, images, labels), *rest = loaders["train"].epoch()
    assert step == 0 and not rest and sorted(labels.tolist()) == [0, 1, 2, 2]
    expected = (labels[:, None] / 255 - torch.tensor(train.mean)) / torch.tensor(train.std)
    assert torch.allclose(images.mean(dim=(2, 3)), expected, atol=1e-5)
    ((_, _, ids),) = loaders["test"].epoch()
    assert ids.tolist() == [0, 1]  # the indices: an id may be a text
    assert loaders["test"].dataset[1][1] == loaders["test"].dataset.ids[1] == 8


@pytest.mark.parametrize("given", [(0, 2, 2), np.array([0, 2, 2]), torch.tensor([0, 2, 2])])
def test_labels_may_be_any_sequence(flowers, pictures, given):
    dataset = flowers.Flowers(pictures, "train", 32, 0.5)
    dataset.labels = given
    assert dataset.class_counts == [1, 0, 2] and len(dataset) == 3
    assert dataset.describe() == "3 pictures (1 rose, 0 tulip, 2 lily)"


@pytest.mark.parametrize("mode", ["train", "val"])
def test_a_cache_is_refused_where_a_data_set_has_no_pictures_to_keep(flowers, pictures, mode):
    opt = options(pictures, dataset="Flowers")
    for cache in ("ram", "disk"):
        with pytest.raises(UsageError) as caught:
            build_loader(opt, mode, cache=cache)
        assert str(caught.value) == f"Flowers has no `read`: leave out --cache={cache}"
    lines = []
    build_loader(opt, mode, cache="auto", log=lines.append)
    assert lines[1] == f"{mode}: pictures are decoded in each epoch, for Flowers has no `read`"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_in_a_data_set_names_the_users_line_and_the_sample(flowers, pictures, num_workers):
    def message(name: str) -> tuple[str, str]:
        loader = build_loader(options(pictures, dataset=name, num_workers=num_workers), "train")
        with loader, pytest.raises(SampleError) as caught:
            [*loader.epoch()]
        return str(caught.value), "".join(traceback.format_exception(caught.value))

    line = 1 + FLOWERS[: FLOWERS.index('image + "petal"')].count("\n")
    text, whole = message("Wilted")
    assert re.fullmatch(rf"TypeError: .*, at \S*flowers.py:{line}, sample 2", text)
    assert f'flowers.py", line {line}, in __getitem__' in whole  # which --traceback shows
    text, _ = message("Uneven")
    assert text == (
        "the images of a batch differ in their (H, W, C): "
        "[(29, 32, 3), (30, 32, 3), (31, 32, 3), (32, 32, 3)]"
    )
    text, _ = message("Plucked")  # no file is named: it may be more than one bad picture
    assert text.startswith("the network is down") and ", sample " in text


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_that_is_missing_is_left_out_and_all_of_them_end_the_run(
    flowers, pictures, num_workers
):
    dataset = data.open_split(options(pictures, dataset="Missing"), "train")
    with Loader(dataset, 8, num_workers) as loader:
        ((_, _, labels),) = loader.epoch()
        assert labels.tolist() == [0] and loader.readable() == [0]
        assert [re.search(r"no/such/\d.jpg", line)[0] for line in loader.new_failures()] == [
            f"no/such/{index}.jpg" for index in (1, 2, 3)
        ]


@pytest.mark.parametrize("cache", ["none", "ram"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_if_no_picture_can_be_read_the_first_one_and_its_reason_are_told(
    tmp_path, cache, num_workers
):
    root = fill(tmp_path / "set", "fir.1.jpg", "fir.2.jpg", "oak.1.jpg")
    for path in root.iterdir():
        path.write_bytes(b"")
    dataset = everything(root)
    keep_pictures(dataset, cache, tmp_path)
    with pytest.raises(UnreadableImage) as caught, Loader(dataset, 2, num_workers) as loader:
        [*loader.epoch()]
    expected = f"not one picture could be read: {root / 'fir.1.jpg'} is left out: "
    assert str(caught.value).startswith(expected) and "\n" not in str(caught.value)


# What a checkpoint knows of the data.


def checkpoint_of(dataset: Pictures, **changes) -> dict:
    facts = {"classes": [*dataset.classes], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    return {**facts, "data": dataset.fingerprint, **changes}


def test_the_loader_of_a_checkpoint_normalises_as_in_its_training(pictures):
    opt = options(pictures)
    saved = checkpoint_of(DrawnTrees(opt.train_data_root))
    for mode in ("train", "val", "test"):
        loader, lines = build_loader(opt, mode, saved=saved, log=(lines := []).append), lines
        assert (loader.dataset.mean, loader.dataset.std) == (saved["mean"], saved["std"])
        assert len(lines) == 1 and lines[0].startswith(f"{mode}: ")
        assert loader.sampler.shuffle == (mode == "train")
    _, images, _ = next(loader.epoch())
    raw = loader.dataset[0][0].float() / 255
    assert torch.allclose(images[0, 2], (raw[2] - 0.3) / 0.6, atol=1e-6)


def test_other_classes_than_those_of_the_checkpoint_are_refused(pictures):
    saved = checkpoint_of(DrawnTrees(pictures / "train"), classes=["oak", "fir"])
    for mode, source in (("train", "the run"), ("val", "somewhere/best.pth")):
        with pytest.raises(CheckpointError, match=rf"^{source}.* \['oak', 'fir'\], Pictures has"):
            build_loader(options(pictures), mode, saved=saved)
    test = build_loader(options(pictures), "test", saved=saved).dataset
    assert test.classes == ["oak", "fir"]  # pictures without labels do not tell their classes


def test_other_pictures_under_the_same_names_are_noticed(pictures, tmp_path):
    root = shutil.copytree(pictures, tmp_path / "copy")
    saved, opt = checkpoint_of(DrawnTrees(root / "train")), options(root)
    for number in range(30):
        paths = [root / "train" / kind / f"{kind}.{number}.jpg" for kind in ("oak", "fir")]
        shutil.copyfile(*paths)
    with pytest.raises(CheckpointError, match=r"train has other pictures than .*--allow-changes"):
        build_loader(opt, "train", saved=saved)
    opt.allow_changes = True
    assert len(build_loader(opt, "train", saved=saved).dataset) == 42
    lines = []
    build_loader(opt, "val", saved=saved, log=lines.append)
    assert lines[1].startswith("the pictures are not those of the training")
    build_loader(opt, "test", saved=saved, log=lines.append)
    assert len(lines) == 3


# Transforms and loader.


def test_a_callers_own_transforms_are_kept(pictures):
    def shrink(image):
        assert image.dtype == torch.uint8 and image.shape[0] == 3
        return torch.full((3, 2, 2), 7, dtype=torch.uint8)

    for mode in ("train", "val", "test"):
        root = pictures / ("test1" if mode == "test" else "train")
        dataset = DrawnTrees(root, shrink, mode)
        assert dataset.transforms is shrink
        assert dataset[0][0].tolist() == torch.full((3, 2, 2), 7).tolist()


def test_resizing_gives_the_pixels_of_torchvision():
    picture = torch.randint(0, 256, (3, 90, 70), dtype=torch.uint8)
    expected = functional.resize(picture, [33, 45], antialias=True).int()
    for flip in (False, True):
        seen = resize(picture.flip(2) if flip else picture, 33, 45, flip=flip)
        assert seen.shape == (3, 33, 45) and (seen.int() - expected).abs().max() <= 1
        assert seen.permute(1, 2, 0).is_contiguous()


def test_a_crop_is_decided_by_five_numbers_and_keeps_its_ratio():
    rows, columns = torch.meshgrid(torch.arange(100), torch.arange(200), indexing="ij")
    picture = torch.stack([rows, columns, rows]).to(torch.uint8)
    crop = RandomCropAndFlip(50, crop_scale=0.5)

    def box(*numbers: float) -> list[float]:
        """Return height and width of what is seen, and its upper left corner."""
        seen = crop(picture, numbers).float()
        height, width = (np.ptp(seen[channel].numpy()) for channel in (0, 1))
        return [height, width, seen[0].min().item(), seen[1].min().item()]

    square = (0.5 * 100 * 200) ** 0.5  # half of the area, as a square: at most 100 pixels high
    assert box(0, 0.5, 0, 0, 1) == pytest.approx([99, square, 0, 0], abs=3)
    assert box(0, 1, 0.999, 0.999, 1) == pytest.approx([86, 115, 13, 85], abs=3)
    assert box(0, 0, 0, 0, 1)[:2] == pytest.approx([99, 86], abs=3)
    assert box(0.999, 0.5, 0, 0.5, 1)[:2] == pytest.approx([99, 140], abs=3)
    flipped, straight = (crop(picture, (0.3, 0.5, 0.5, 0.5, flip)) for flip in (0.4, 0.6))
    assert torch.equal(flipped, straight.flip(2))


def test_a_picture_much_larger_than_needed_is_reduced(tmp_path):
    for number, size in enumerate([(800, 600), (67, 60), (300, 40)]):
        Image.new("RGB", size, "white").save(tmp_path / f"fir.{number}.png")
    dataset = everything(tmp_path, image_size=32)
    assert dataset.side == 45
    shapes = [tuple(dataset.picture(index).shape) for index in range(3)]
    assert shapes == [(3, 45, 60), (3, 60, 67), (3, 40, 300)]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalising_leaves_the_batch_as_it_was(dtype):
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    images = torch.randint(0, 256, (2, 5, 4, 3)).to(dtype).permute(0, 3, 1, 2)
    for batch in (images, images.contiguous()):
        before = batch.clone()
        seen = Normalize(mean, std, "cpu")(batch)
        assert torch.equal(batch, before) and seen.is_contiguous(memory_format=torch.channels_last)
        expected = functional.normalize(before.float() / 255, mean, std)
        assert torch.allclose(seen, expected, atol=1e-6)


def test_val_shows_the_middle_of_the_picture(tmp_path):
    image = Image.new("RGB", (400, 200), BLACK)
    image.paste(WHITE, (112, 12, 287, 187))  # the middle 175 pixels: 7 / 8 of 200
    image.save(tmp_path / "1.bmp")
    seen, _ = DrawnTrees(tmp_path, mode="test", image_size=128)[0]
    assert seen.min() > 240
    # At 64 pixels the picture is reduced first, which mixes its outermost pixels with the black.
    seen, _ = DrawnTrees(tmp_path, mode="test", image_size=64)[0]
    assert seen[:, 2:-2, 2:-2].min() > 240


def test_a_training_crop_shows_at_least_crop_scale_of_the_picture():
    crop = RandomCropAndFlip(64, 0.5)
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    picture = torch.from_numpy(np.stack([ramp, ramp.T, ramp]))
    torch.manual_seed(0)
    shares, flips = [], 0
    for _ in range(60):
        seen = crop(picture).float()
        width, height = np.ptp(seen[0].numpy()), np.ptp(seen[1].numpy())
        shares.append(width * height / 255**2)
        flips += int(seen[0, 0, 0] > seen[0, 0, -1])
    assert min(shares) > 0.45 and max(shares) > 0.8
    assert 15 < flips < 45


def epochs(root: Path, num_workers: int, seed: int = 0, numbers=(0, 1, 0)) -> list:
    loader = Loader(
        DrawnTrees(root, mode="train", image_size=32), 8, num_workers, seed=seed, shuffle=True
    )
    return [[*loader.epoch(number)] for number in numbers]


def same(one: list, other: list) -> bool:
    """Whether two epochs have the same steps, images and labels, bit for bit."""
    return len(one) == len(other) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2])
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_order_and_augmentation_are_a_function_of_seed_epoch_and_picture(pictures):
    root = pictures / "train"
    first, second, again = epochs(root, 0)
    assert same(first, again) and not same(first, second)
    for num_workers in (1, 4):
        theirs = epochs(root, num_workers)
        for one, other in zip((first, second, again), theirs, strict=True):
            assert same(one, other)
    assert not same(first, epochs(root, 0, seed=1, numbers=[0])[0])


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_any_transforms_of_ones_own_are_seeded_by_epoch_and_picture(pictures, tmp_path, cache):
    crop = RandomCropAndFlip(32, 0.5)
    own = v2.Compose([crop, v2.ColorJitter(0.4), v2.Lambda(with_numpys_noise)])
    results = []
    for num_workers in (0, 2):
        dataset = DrawnTrees(pictures / "train", own, image_size=32)
        keep_pictures(dataset, cache, tmp_path)
        with Loader(dataset, 8, num_workers, shuffle=True) as loader:
            results.append([[*loader.epoch(number)] for number in (0, 1, 0)])
    (first, second, again), others = results
    assert same(first, again) and not same(first, second)
    assert all(same(one, other) for one, other in zip(results[0], others, strict=True))
    plain = epochs(pictures / "train", 0, numbers=[0])[0]
    assert not torch.equal(first[0][1], plain[0][1]) and torch.equal(first[0][2], plain[0][2])


def test_what_is_added_to_the_train_transforms_takes_effect(pictures, monkeypatch):
    for edited in (lambda *_: MiddleSquare(32), lambda *_: v2.Compose([MiddleSquare(32)])):
        monkeypatch.setattr("data.image_dataset.train_transforms", edited)
        first, second, _ = epochs(pictures / "train", 0)
        sums = [
            sorted(image.sum().item() for _, images, _ in epoch for image in images)
            for epoch in (first, second)
        ]
        assert sums[0] == pytest.approx(sums[1], rel=1e-4)  # nothing is random any more


def with_numpys_noise(image: torch.Tensor) -> torch.Tensor:
    noise = np.random.randint(0, 9, image.shape) + random.randint(0, 9)
    image //= 2  # in place: what is kept must not change
    return image + torch.from_numpy(noise).to(torch.uint8)


GB = 10**9
LIMITS = {  # group: limit, used, files that can be freed; at the root, there is none in version 2
    "batch": (8 * GB, 5 * GB, GB),
    "batch/job": ("max", 2 * GB, GB),
    "batch/job/step": (30 * GB, GB, 0),
    "other": (GB, GB, 0),
}


def fake_machine(root: Path, membership: str, limits: dict, version: int, shm: bool = True) -> None:
    """Lay out /proc, /dev/shm and the control groups of a machine with 16 GB of free memory."""
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "memory"),
        2: ("memory.max", "memory.current", "inactive_file", ""),
    }[version]
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {16 * GB // 1024} kB\n")
    (root / "dev/shm").mkdir(parents=True)
    for group, (limit, used, freeable) in limits.items():
        folder = root / "sys/fs/cgroup" / names[3] / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{used}\n")
        stat = f"anon 1\ninactive_anon 7\n{names[2]} {freeable}\nactive_file 3\n"
        (folder / "memory.stat").write_text(stat)


V1 = {**LIMITS, "batch/job": (9223372036854771712, 2 * GB, GB), "": (2**63 - 4096, 9 * GB, GB)}
IN_CONTAINER = {"": (3 * GB, 2 * GB, GB // 2)}  # which sees its own group as the root


@pytest.mark.parametrize(
    ("membership", "limits", "version", "free"),
    [
        ("0::/batch/job/step\n", LIMITS, 2, 4 * GB),
        ("0::/batch/job\n", {**LIMITS, "batch/job": (3 * GB, 2 * GB, GB)}, 2, 2 * GB),
        ("0::/\n", LIMITS, 2, 16 * GB),
        ("0::/\n", IN_CONTAINER, 2, 1.5 * GB),
        ("3:cpu:/x\n4:cpuset,memory:/batch/job/step\n0::/other\n", V1, 1, 4 * GB),
        ("4:memory:/docker/12ab\n", IN_CONTAINER, 1, 1.5 * GB),
        ("4:memory:/batch\n", {"batch": (GB, 2 * GB, 0)}, 1, 0),
        ("3:cpu:/other\n4:memory:/\n", V1, 1, 16 * GB),
    ],
)
def test_memory_limits_of_all_groups_around_a_process_count(
    tmp_path, membership, limits, version, free
):
    fake_machine(tmp_path, membership, limits, version)
    assert free_memory(tmp_path) == pytest.approx(free, abs=1024)


def test_a_system_that_says_nothing_of_its_memory_has_four_gibibytes(tmp_path):
    assert free_memory(tmp_path) == 4 << 30


@pytest.mark.parametrize("where", ["ram", pytest.param("disk", marks=posix_only)])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_cache_changes_no_bit(pictures, tmp_path, where, num_workers):
    plain = epochs(pictures / "train", 0)
    for _ in range(2):  # the second time, the disk has them already
        dataset = DrawnTrees(pictures / "train", mode="train", image_size=32)
        keep_pictures(dataset, where, tmp_path)
        with Loader(dataset, 8, num_workers, shuffle=True) as loader:
            cached = [[*loader.epoch(number)] for number in (0, 1, 0)]
        assert all(same(one, other) for one, other in zip(plain, cached, strict=True))
        assert dataset.kept.stored().all()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pictures_in_memory_need_no_file_and_no_worker_any_more(pictures, tmp_path, num_workers):
    gc.collect()  # ends the workers of other tests
    root = shutil.copytree(pictures / "train", tmp_path / "train")
    dataset = DrawnTrees(root, mode="val", image_size=32)
    dataset.path(3).write_bytes(b"no picture")
    plain = Loader(dataset, 4, 0)
    parts, seen = [*plain.epoch(first_step=2)], [*plain.epoch()]
    keep_pictures(dataset, "ram", tmp_path)
    with Loader(dataset, 4, num_workers) as loader:
        assert same([*loader.epoch()], seen) and len(loader.new_failures()) == 1
        assert same([*loader.epoch()], seen) and not multiprocessing.active_children()
        shutil.rmtree(root)
        for batch, other in zip(loader.epoch(), seen, strict=True):
            assert torch.equal(batch[1], other[1])
            batch[1].zero_()  # a loop that changes what it gets changes no later epoch
            batch[2].fill_(-1)
        assert same([*loader.epoch()], seen)
        assert loader.readable() == [0, 1, 2, *range(4, 18)] and not loader.new_failures()
        assert same([*loader.epoch(first_step=2)], parts)


@posix_only
def test_pictures_on_the_disk_serve_the_next_run_and_a_full_disk_is_no_failure(
    pictures, tmp_path, monkeypatch
):
    kept = tmp_path / "cache"
    first = val_samples(pictures / "train", kept)
    assert [path.suffix for path in kept.iterdir()] == [".pictures"]
    with monkeypatch.context() as patched:
        patched.setattr(DrawnTrees, "read", None)
        again = val_samples(pictures / "train", kept)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    again = val_samples(pictures / "train", tmp_path / "full")
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    (tmp_path / "file").write_text("no folder can be here")
    with pytest.raises(OSError, match="file"):
        val_samples(pictures / "train", tmp_path / "file")


def val_samples(root: Path, cache_root: Path) -> list:
    dataset = DrawnTrees(root, mode="val", image_size=32)
    keep_pictures(dataset, "disk", cache_root)
    return [dataset[index][0] for index in range(len(dataset))]


@posix_only
def test_a_file_that_was_replaced_or_a_kept_one_that_was_damaged_is_read_anew(tmp_path):
    root, kept = tmp_path / "train", tmp_path / "cache"
    root.mkdir()
    for number in range(4):
        Image.new("RGB", (40, 40), "black").save(root / f"fir.{number}.bmp")
    assert val_samples(root, kept)[0].max() == 0
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert val_samples(root, kept)[0].max() == 0
    for place in (*range(32), 4096, 6000):  # the row of its facts, and pixels
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert val_samples(root, kept)[0].max() == 0
        assert file.read_bytes() == whole  # mended
    for path in root.iterdir():
        status = path.stat()
        Image.new("RGB", (40, 40), "white").save(path)  # as long as the one before
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert val_samples(root, kept)[0].min() == 255


@pytest.mark.parametrize("where", ["auto", "ram"])
def test_pictures_stay_in_memory_only_where_they_find_room(pictures, monkeypatch, where):
    dataset = DrawnTrees(pictures / "train", image_size=32)
    need = sum(dataset.picture(index).nbytes for index in range(len(dataset)))
    share = {"auto": 4, "ram": 2}[where]
    monkeypatch.setattr("data.build.free_memory", lambda: int(0.9 * share * need))
    told = keep_pictures(dataset, where, Path())
    assert told.startswith("pictures are decoded in each epoch: to keep them would take about ")
    assert dataset.kept is None
    monkeypatch.setattr("data.build.free_memory", lambda: int(1.1 * share * need))
    told = keep_pictures(dataset, where, Path())
    assert re.match(r"decoded pictures stay in memory, about \d MB of \d MB of free", told)
    assert dataset.kept is not None


@linux_only
def test_memory_is_given_back_with_the_data_set(pictures):
    def open_files() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    for _ in range(3):
        dataset = DrawnTrees(pictures / "train", image_size=32)
        keep_pictures(dataset, "ram", Path())
        with Loader(dataset, 8, 0, shuffle=True) as loader:
            assert len([*loader.epoch(0), *loader.epoch(1)]) == 12
        del dataset, loader
    assert open_files() == before


def resident_memory() -> int:
    """Return the bytes of memory that this process has."""
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


@linux_only
def test_the_words_about_the_size_agree_with_the_memory_that_is_taken(tmp_path):
    for number in range(40):
        noise = np.random.default_rng(number).integers(0, 256, (700, 500 + 10 * number, 3))
        Image.fromarray(noise.astype(np.uint8)).save(tmp_path / f"fir.{number}.bmp")
    dataset = everything(tmp_path, image_size=384)
    words = keep_pictures(dataset, "ram", Path())
    dataset[0]
    before = resident_memory()
    for index in range(len(dataset)):
        dataset[index]
    for index in range(len(dataset)):
        dataset[index]
    taken = (resident_memory() - before) / 1e6
    assert taken == pytest.approx(int(re.search(r"about (\d+) MB", words)[1]), rel=0.1)


@linux_only
def test_what_a_loop_keeps_of_its_batches_costs_no_open_files(pictures):
    """Labels that lie in memory shared with a worker would hold one each."""
    code = f"""if True:
        import os, resource
        from pathlib import Path
        from data import Loader, Pictures
        from data.build import keep_pictures

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for cache in ("none", "ram"):
            val = Pictures({str(pictures / "train")!r}, mode="val", image_size=32)
            keep_pictures(val, cache, Path())
            loader = Loader(val, 1, 2)
            list(loader.epoch())  # so that all is open that has to be
            opened = len(os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 24, hard))
            kept = [labels for epoch in range(4) for _, _, labels in loader.epoch(epoch)]
            assert len(kept) == 4 * len(val) == 72
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_large_jpeg_is_decoded_at_the_least_scale_that_leaves_enough(tmp_path):
    scene((800, 600)).save(tmp_path / "fir.1.jpg", quality=95)
    sizes = {side: read_image(tmp_path / "fir.1.jpg", side).shape for side in (None, 64, 90, 400)}
    assert sizes == {None: (3, 600, 800), 64: (3, 75, 100), 90: (3, 150, 200), 400: (3, 600, 800)}


def test_every_picture_and_every_seed_is_augmented_in_its_own_way(tmp_path):
    for number in range(4):
        draw("fir", 1).save(tmp_path / f"fir.{number}.png")
    images = []
    for seed in (0, 1):
        ((_, batch, _),) = Loader(everything(tmp_path), 4, 0, seed=seed).epoch()
        images += [*batch]
    assert len(images) == 8
    assert not any(torch.equal(one, other) for one, other in combinations(images, 2))


def keys(sampler: EpochSampler) -> list[tuple[int, int]]:
    return [key for batch in sampler for key in batch]


def test_augmentation_does_not_depend_on_place_or_on_other_pictures(pictures):
    dataset = DrawnTrees(pictures / "train", mode="train", image_size=32)
    shuffled, in_order = Loader(dataset, 7, 0, seed=3, shuffle=True), Loader(dataset, 5, 0, seed=3)
    order = [index for _, index in keys(shuffled.sampler)]
    moved = torch.concat([images for _, images, _ in shuffled.epoch(0)])
    straight = torch.concat([images for _, images, _ in in_order.epoch(0)])
    assert order != sorted(order)
    assert torch.equal(moved, straight[order])


def test_the_sampler_takes_every_picture_once_in_an_order_of_its_own_per_epoch():
    sampler = EpochSampler(100, 10, seed=0, shuffle=True)
    first = keys(sampler)
    sampler.epoch = 1
    second = keys(sampler)
    assert sorted(first) == [(0, index) for index in range(100)]
    assert sorted(second) == [(1, index) for index in range(100)]
    assert [index for _, index in first] != [index for _, index in second]
    assert [*EpochSampler(3, 2, seed=0, shuffle=False)] == [[(0, 0), (0, 1)], [(0, 2)]]


@pytest.mark.parametrize(
    ("size", "batch_size", "lengths"),
    [
        (9, 4, [4, 5]),
        (5, 4, [5]),
        (10, 4, [4, 4, 2]),
        (8, 4, [4, 4]),
        (3, 1, [1, 1, 1]),
        (3, 2, [3]),
        (1, 4, [1]),
        (1, 1, [1]),
    ],
)
def test_a_single_picture_left_over_joins_the_batch_before_in_training_alone(
    size, batch_size, lengths
):
    shuffled = EpochSampler(size, batch_size, seed=0, shuffle=True)
    assert [len(batch) for batch in shuffled] == lengths and len(shuffled) == len(lengths)
    batches = [*shuffled]
    assert [key for batch in batches for key in batch] == keys(shuffled)
    for shuffled.first_step in range(len(lengths) + 1):
        assert [*shuffled] == batches[shuffled.first_step :]
    in_order = EpochSampler(size, batch_size, seed=0, shuffle=False)
    full, left = divmod(size, batch_size)
    assert [len(batch) for batch in in_order] == [batch_size] * full + [left] * (left > 0)
    assert len(in_order) == full + (left > 0)


def test_a_last_batch_of_one_does_not_stop_batch_norm(pictures):
    dataset = DrawnTrees(pictures / "train", mode="train", image_size=32)  # 42 pictures
    norm = torch.nn.BatchNorm1d(3 * 32 * 32)
    for num_workers in (0, 2):
        with Loader(dataset, 41, num_workers, shuffle=True) as loader:
            assert [len(norm(images.flatten(1))) for _, images, _ in loader.epoch()] == [42]
    with Loader(dataset, 8, 0, shuffle=True) as loader:
        assert [len(labels) for *_, labels in loader.epoch()] == [8, 8, 8, 8, 8, 2]
    dataset.names, dataset.labels = dataset.names[:33], dataset.labels[:33]
    with Loader(dataset, 8, 2, shuffle=True) as loader:
        whole = [*loader.epoch(1)]
        assert [len(labels) for *_, labels in whole] == [8, 8, 8, 9] and len(loader) == 4
        assert same(whole[3:], [*loader.epoch(1, first_step=3)])  # as --resume goes on
        assert [*loader.epoch(1, first_step=4)] == []
    with Loader(dataset, 8, 0) as loader:
        assert [len(labels) for *_, labels in loader.epoch()] == [8, 8, 8, 8, 1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_loader_leaves_the_global_random_states_alone(pictures, num_workers):
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    epochs(pictures / "train", num_workers, numbers=[0])
    assert random.getstate() == before[0]
    np.testing.assert_equal(np.random.get_state(), before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


def test_the_loader_does_not_depend_on_the_global_random_states(pictures):
    results = []
    for seed in (5, 6):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        results.append(epochs(pictures / "train", 0, numbers=[0])[0])
    assert same(*results)


def test_batches_are_normalised_and_channels_last_and_the_last_may_be_one(pictures):
    dataset = DrawnTrees(pictures / "train", mode="val", image_size=32)  # 18 pictures
    loader = Loader(dataset, 17, 0)
    batches = [*loader.epoch()]
    assert len(loader) == 2 and [len(labels) for *_, labels in batches] == [17, 1]
    raw = torch.stack([dataset[index][0] for index in range(18)])
    expected = (raw / 255 - torch.tensor(dataset.mean).view(3, 1, 1)) / torch.tensor(
        dataset.std
    ).view(3, 1, 1)
    torch.testing.assert_close(torch.concat([images for _, images, _ in batches]), expected)
    assert batches[0][1].is_contiguous(memory_format=torch.channels_last)
