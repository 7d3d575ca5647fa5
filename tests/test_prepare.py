"""The command prepare: what the drawn pictures show, and a folder that is whole or not there."""

import csv
import hashlib
import importlib
import io
import itertools
import os
import random
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data import Pictures
from data.read_image import printable
from tests import drawings
from tests.drawings import DrawnTrees
from tests.helpers import PROJECT, linux_only, posix_only, wait_until
from utils.commands import prepare
from utils.commands.prepare import Options
from utils.drawing import KINDS, draw
from utils.options import UsageError
from utils.preparation import sources
from utils.preparation.archives import ArchiveError
from utils.preparation.sources import KAGGLE, SourceError
from utils.signals import Stopped


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
    first = draw(KINDS[0], 7)
    random.seed(2)
    np.random.seed(2)
    assert first.tobytes() == draw(KINDS[0], 7).tobytes()
    assert first.mode == "RGB" and all(160 <= side <= 220 for side in first.size)
    assert first.tobytes() != draw(KINDS[0], 8).tobytes()
    assert first.tobytes() != draw(KINDS[1], 7).tobytes()


def test_a_linear_classifier_of_grey_pixels_does_not_tell_the_kinds_apart():
    pixels = np.stack(
        [
            np.asarray(draw(kind, seed).convert("L").resize((32, 32)), np.float32).ravel() / 255
            for kind in KINDS
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
def test_brightness_and_contrast_do_not_tell_the_kinds_apart(measure):
    first, second = (
        np.array([measure(np.asarray(draw(kind, seed))) for seed in range(100)]) for kind in KINDS
    )
    assert 0.35 < (first[:, None] > second).mean() < 0.65  # chance is 0.5, give or take 0.04


# The folder.


def test_the_drawn_set_has_kaggles_layout(drawn):
    expected = {f"train/{kind}.{n}.jpg" for kind in KINDS for n in range(30)}
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
    assert other[f"train/{KINDS[0]}.0.jpg"] not in large.values()


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
    assert (tmp_path / "empty" / "train" / f"{KINDS[1]}.0.jpg").exists()


def test_a_failure_in_a_worker_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("utils.drawing.KINDS", (KINDS[0], "mouse"))  # nobody draws a mouse
        with pytest.raises(KeyError, match="mouse"):
            prepare.run(Options(prepare_root=tmp_path / "demo", count=40))
    assert [path.name for path in tmp_path.iterdir()] == [".demo.partial"]
    prepare.run(Options(prepare_root=tmp_path / "demo", count=2))  # other options start anew
    names = [f"train/{kind}.0.jpg" for kind in KINDS]
    assert {*contents(tmp_path)} == {f"demo/{name}" for name in (*names, "test1_labels.csv")}


# Signals.


# What main.py does with `prepare`, without torch, which takes seconds to load.
LIGHT = """
import sys
from utils import commands
from utils.failures import one_line_failures
from utils.signals import exit_on_signals

exit_on_signals()
with one_line_failures(show_traceback=False):
    commands.get("prepare")(prepare_root=sys.argv[1], count=sys.argv[2])
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
    wait_until(
        lambda: process.poll() is not None or any(root.glob(f".demo.partial/train/{KINDS[1]}.*"))
    )
    if sys.platform != "win32" and to_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    return process


def output(process: subprocess.Popen) -> tuple[str, str]:
    """Wait until nobody holds the pipes any more: the process and its workers have ended."""
    try:
        return process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        if sys.platform != "win32":
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.fail("workers are left")


@posix_only
@pytest.mark.parametrize(
    ("name", "to_group"),
    [("SIGTERM", False), ("SIGTERM", True), ("SIGHUP", True), ("SIGINT", False), ("SIGINT", True)],
)
def test_a_signal_leaves_no_worker_and_no_folder_that_looks_whole(name, to_group, tmp_path):
    number = getattr(signal, name)
    words = ["-c", LIGHT, str(tmp_path / "demo"), "20000"]
    process = signalled(tmp_path, words, number, to_group)
    out, err = output(process)
    line = f"stopped by {name}; the same command goes on\n"
    # With Python 3.14, SIGHUP ends a process of multiprocessing as well, which warns of that.
    assert out == "" and (line in err if name == "SIGHUP" else line == err)
    assert process.returncode == 128 + number
    assert [path.name for path in tmp_path.iterdir()] == [".demo.partial"]


@posix_only
def test_the_command_ends_on_a_signal_in_the_same_way(tmp_path):
    words = ["main.py", "prepare", f"--prepare-root={tmp_path / 'demo'}", "--count=20000"]
    process = signalled(tmp_path, words, signal.SIGTERM, to_group=True)
    assert output(process) == ("", "stopped by SIGTERM; the same command goes on\n")
    assert process.returncode == 143
    assert not (tmp_path / "demo").exists()


@posix_only
def test_a_killed_command_leaves_no_worker_and_goes_on_to_the_same_bytes(drawn, tmp_path):
    words = ["-c", LIGHT, str(tmp_path / "demo"), "60"]
    process = signalled(tmp_path, words, signal.SIGKILL, to_group=False)
    output(process)
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "demo").exists()
    done = {p.name: p.stat().st_ino for p in (tmp_path / ".demo.partial/train").glob("*.jpg")}
    prepare.run(Options(prepare_root=tmp_path / "demo", count=60))
    assert contents(tmp_path / "demo") == contents(drawn)
    now = {name: (tmp_path / "demo" / "train" / name).stat().st_ino for name in done}
    assert done == now and 0 < len(done) < 60  # these were not drawn a second time
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


# Sources: folders, archives, addresses, and names.


def photos_in(root: Path, *names: str) -> Path:
    """Draw a picture for each name, which tells what to draw."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        drawings.draw("fir" if "fir" in name.lower() else "oak", number).save(root / name)
    return root


def get(tmp_path: Path, **options) -> dict[str, bytes]:
    """Prepare into tmp_path/new; return {path: bytes} of the new folder, without split.*"""
    root = prepare.run(Options(prepare_root=tmp_path / "new", dataset=DrawnTrees, **options))
    files = contents(root)
    assert "split.html" in files and files.pop("split.html")
    rows = [*csv.DictReader(io.StringIO(files.pop("split.csv").decode()))]
    assert {row["path"] for row in rows} == {
        n for n in files if n.startswith(("train", "val", "test1"))
    }
    for row in rows:
        assert row["sha256"] == hashlib.sha256(files[row["path"]]).hexdigest()
        assert int(row["size"]) == len(files[row["path"]])
    return files


FLAT = [f"{kind}.{n}.jpg" for kind in ("fir", "oak") for n in range(4)]
FOLDERS = [f"{kind}/Bild {n}.jpg" for kind in ("Fir", "Oak") for n in range(4)]


def zipped(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))
    return archive


def tarred(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, arcname=".")
    return archive


@pytest.mark.parametrize("pack", [None, zipped, tarred])
@pytest.mark.parametrize(
    ("names", "start"),
    [
        (FLAT, ""),
        (FOLDERS, ""),
        ([f"PetImages/{name}" for name in FOLDERS], "PetImages/"),
        ([f"images/{name}" for name in FLAT], "images/"),
    ],
)
def test_a_folder_or_an_archive_is_laid_out_byte_for_byte(tmp_path, pack, names, start):
    source = photos_in(tmp_path / "flowers", *names)
    before = contents(source)
    if pack:
        source = pack(source, tmp_path / ("flowers.zip" if pack is zipped else "flowers.tar.gz"))
    files = get(tmp_path, source=str(source))
    assert files == {f"train/{name.removeprefix(start)}": before[name] for name in names}
    assert contents(tmp_path / "flowers") == before
    train, val = (DrawnTrees(tmp_path / "new" / "train", mode=mode) for mode in ("train", "val"))
    assert len(train) + len(val) == 8 and str(train.split_file) == str(tmp_path / "new/split.csv")


def test_a_set_split_by_its_owner_stays_split(tmp_path):
    names = [f"{split}/{name}" for split in ("train", "valid", "test") for name in FOLDERS]
    before = contents(photos_in(tmp_path / "mine", *names))
    files = get(tmp_path, source=str(tmp_path / "mine"))
    new_name = {"train": "train", "valid": "val", "test": "test1"}
    for name, content in before.items():
        split, _, rest = name.partition("/")
        assert files.pop(f"{new_name[split]}/{rest}") == content
    assert not files
    val = Pictures(tmp_path / "new", mode="val")
    assert {*val.names.tolist()} == {f"val/{name}".encode() for name in FOLDERS}


def test_the_command_that_is_told_next_works(tmp_path, capsys):
    names = [f"{split}/{name}" for split in ("train", "val") for name in FOLDERS]
    photos_in(tmp_path / "my set", *names)
    source, new = str(tmp_path / "my set"), tmp_path / "new set"
    prepare.run(Options(prepare_root=new, source=source, dataset="Pictures"))
    words = shlex.split(capsys.readouterr().out.splitlines()[-1].partition("next: ")[2])
    assert words[:3] == ["python", "main.py", "train"]
    options = [*words[3:], "--max-epoch=1", "--image-size=64", "--num-workers=0", "--use-gpu=no"]
    options.append("--dataset=Pictures")
    command = [sys.executable, "main.py", "train", *options, f"--checkpoint-root={tmp_path / 'r'}"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0 and "val: 8 pictures (4 Fir, 4 Oak)" in done.stdout, done.stderr


def test_what_prepare_cannot_do_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos_in(tmp_path / "data" / "mine", *FLAT)
    refused = [
        ({"source": "data/mine"}, UsageError, "is the source itself"),
        ({"source": "."}, UsageError, "has no name: add --prepare-root"),
        ({"train_data_root": "data/mine"}, UsageError, "takes its pictures from --source"),
        ({"source": "http://127.0.0.1:1/page"}, SourceError, "is no .zip, .tar, .tar.gz or"),
    ]
    for options, error, words in refused:
        with pytest.raises(error, match=words):
            prepare.run(Options(**options))
    (tmp_path / "bad.zip").write_text("no archive")
    with pytest.raises(ArchiveError, match="cannot be read as an archive"):
        prepare.run(Options(source="bad.zip"))
    photos_in(tmp_path / "broken", *FLAT)
    for path in (tmp_path / "broken").iterdir():
        path.write_bytes(b"")
    with pytest.raises(SourceError, match=r"no picture can be used, train/fir\.0\.jpg: no picture"):
        prepare.run(Options(source="broken", dataset=DrawnTrees))
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine"]


@posix_only
def test_a_second_prepare_of_a_folder_is_refused_while_the_first_goes_on(tmp_path):
    words = ["-c", LIGHT, str(tmp_path / "demo")]
    first = signalled(tmp_path, [*words, "900"], signal.SIGSTOP, to_group=False)
    second = subprocess.run(
        [sys.executable, *words, "20"], cwd=PROJECT, capture_output=True, text=True
    )
    os.kill(first.pid, signal.SIGCONT)
    assert second.returncode == 1 and "another process is at work in" in second.stderr
    output(first)
    assert first.returncode == 0 and len([*(tmp_path / "demo/train").iterdir()]) == 900


def test_an_archive_that_was_replaced_is_prepared_anew(tmp_path, monkeypatch):
    archive = zipped(photos_in(tmp_path / "one", *FLAT), tmp_path / "mine.zip")
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop = Stopped(signal.SIGTERM)
        patched.setattr("utils.preparation.look.key_of", lambda path: (_ for _ in ()).throw(stop))
        get(tmp_path, source=str(archive))
    zipped(photos_in(tmp_path / "two", *FOLDERS), archive)
    assert {*get(tmp_path, source=str(archive))} == {f"train/{name}" for name in FOLDERS}


@posix_only
def test_what_cannot_be_used_is_rejected_with_a_reason_each(tmp_path):
    source = photos_in(tmp_path / "mine", *FLAT, "soak.1.jpg", "fir.jpg")
    whole = (source / "fir.0.jpg").read_bytes()
    for name, content in {
        "fir.7.jpg": whole[:3000],
        "oak.7.jpg": b"",
        "fir.8.jpg": b"<html>",
    }.items():
        (source / name).write_bytes(content)
    (source / "Thumbs.db").write_bytes(b"system")
    (source / "oak.8.jpg").symlink_to("oak.8.jpg")
    before = contents(source)
    files = get(tmp_path, source=str(source))
    reasons = [*csv.DictReader(io.StringIO(files.pop("rejected/reasons.csv").decode()))]
    words = {row["path"]: row["reason"] for row in reasons}
    assert words.pop("train/fir.7.jpg").startswith("image file is truncated")
    unlike = "its name is not like fir.12.jpg or oak.12.jpg"
    assert words == {
        "train/oak.7.jpg": "no picture of a known kind",
        "train/fir.8.jpg": "no picture of a known kind",
        "soak.1.jpg": unlike,
        "fir.jpg": unlike,
        "oak.8.jpg": "it is not a file",
    }
    expected = {f"train/{name}": before[name] for name in FLAT}
    for name in (
        "train/fir.7.jpg",
        "train/oak.7.jpg",
        "train/fir.8.jpg",
        "soak.1.jpg",
        "fir.jpg",
    ):
        expected[f"rejected/{name}"] = before[name.removeprefix("train/")]
    assert files == expected and contents(source) == before


def test_one_picture_with_two_labels_is_rejected_twice_and_named(tmp_path, capsys):
    source = photos_in(tmp_path / "mine", *FLAT)
    shutil.copy(source / "fir.1.jpg", source / "oak.9.jpg")
    files = get(tmp_path, source=str(source))
    assert {"rejected/train/fir.1.jpg", "rejected/train/oak.9.jpg"} <= {*files}
    words = "train/fir.1.jpg (fir) and train/oak.9.jpg (oak) are the same picture"
    assert capsys.readouterr().out.count(words) == 2


def test_a_broken_picture_of_test_stays_for_an_answer_is_expected(tmp_path, capsys):
    source = photos_in(tmp_path / "mine", *(f"train/{name}" for name in FLAT), "test1/1.jpg")
    (source / "test1" / "2.jpg").write_bytes(b"")
    options = {"source": str(source), "dataset": DrawnTrees}
    root = prepare.run(Options(prepare_root=tmp_path / "new", **options))
    assert (
        root / "test1" / "2.jpg"
    ).exists() and "test1/2.jpg: no picture" in capsys.readouterr().out


def test_kaggles_archive_of_archives_is_taken(tmp_path):
    mine = photos_in(tmp_path / "kaggle", *(f"train/{name}" for name in FLAT), "test1/1.jpg")
    outer = tmp_path / "outer"
    outer.mkdir()
    for part in ("train", "test1"):
        with zipfile.ZipFile(outer / f"{part}.zip", "w") as file:
            for path in sorted((mine / part).iterdir()):
                file.write(path, f"{part}/{path.name}")
    (outer / "sampleSubmission.csv").write_text("id,label\n1,0\n")
    archive = zipped(outer, tmp_path / "kaggle.zip")
    files = get(tmp_path, source=str(archive))
    assert files == contents(mine)


FAKE_CLIENT = """#!{python}
import shutil, sys
assert sys.argv[1:6] == ["competitions", "download", "-c", "{competition}", "-p"]
{action}
"""


def kaggle_client(tmp_path: Path, monkeypatch, action: str) -> None:
    path = tmp_path / "bin" / "kaggle"
    path.parent.mkdir()
    path.write_text(FAKE_CLIENT.format(python=sys.executable, competition=KAGGLE, action=action))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent))
    monkeypatch.chdir(tmp_path)  # downloads go to data/downloads


@posix_only
def test_the_kaggle_client_is_asked(tmp_path, monkeypatch):
    archive = zipped(photos_in(tmp_path / "mine", *FLAT), tmp_path / "mine.zip")
    action = f"shutil.copy({str(archive)!r}, sys.argv[6] + '/{KAGGLE}.zip')"
    kaggle_client(tmp_path, monkeypatch, action)
    assert len(get(tmp_path, source="kaggle")) == 8


@posix_only
def test_without_client_or_token_a_clear_word_is_said(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setenv("PATH", str(tmp_path))
        with pytest.raises(
            SourceError, match=r"not installed: pip install kaggle, or get .*--source"
        ):
            prepare.run(Options(prepare_root=tmp_path / "new", source="kaggle"))
    kaggle_client(tmp_path, monkeypatch, "sys.exit('Could not find kaggle.json.')")
    with pytest.raises(SourceError, match=r"\(Could not find kaggle.json.\): put your token into"):
        prepare.run(Options(prepare_root=tmp_path / "new", source="kaggle"))


@pytest.mark.parametrize(
    ("breeds", "classes"), [(False, [*KINDS]), (True, ["Bengal", "Sphynx", "boxer", "pug"])]
)
def test_oxfords_pets_become_two_species_or_breeds(tmp_path, monkeypatch, breeds, classes):
    names = [
        f"images/{breed}_{n}.jpg"
        for breed in ("Bengal", "Sphynx", "boxer", "pug")
        for n in range(4)
    ]
    archive = tarred(photos_in(tmp_path / "mine", *names), tmp_path / "pets.tar.gz")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(sources, "OXFORD_PETS", (archive.as_uri(), md5))
    monkeypatch.chdir(tmp_path)
    files = get(tmp_path, source="oxford-pets", breeds=breeds)
    assert len(files) == 16 and sorted({name.split("/")[1] for name in files}) == classes


def test_microsofts_archive_is_taken(tmp_path, monkeypatch):
    names = [f"PetImages/{name}" for name in FOLDERS]
    source = photos_in(tmp_path / "mine", *names)
    (source / "PetImages/Fir/666.jpg").write_bytes(b"")
    (source / "PetImages/Oak/Thumbs.db").write_bytes(b"system")
    (source / "readme[1].txt").write_text("licence")
    monkeypatch.setattr(sources, "MICROSOFT", zipped(source, tmp_path / "pets.zip").as_uri())
    monkeypatch.chdir(tmp_path)
    files = get(tmp_path, source="microsoft")
    assert (
        files.pop("rejected/reasons.csv")
        == b"path,reason\ntrain/Fir/666.jpg,no picture of a known kind\n"
    )
    assert {*files} == {f"train/{name}" for name in FOLDERS} | {"rejected/train/Fir/666.jpg"}


@pytest.mark.parametrize("moment", ["unpacking", "laying out", "looking"])
def test_a_prepare_that_was_stopped_goes_on_to_the_same_bytes(tmp_path, monkeypatch, moment):
    archive = zipped(photos_in(tmp_path / "mine", *FLAT, "soak.1.jpg"), tmp_path / "mine.zip")
    whole = get(tmp_path, source=str(archive))
    shutil.rmtree(tmp_path / "new")
    place, count = {
        "unpacking": ("utils.preparation.archives.write", 5),
        "laying out": ("utils.commands.prepare.take", 6),
        "looking": ("utils.preparation.look.key_of", 4),
    }[moment]
    module, _, name = place.rpartition(".")
    true_function, calls = getattr(importlib.import_module(module), name), itertools.count(1)

    def stopping(*arguments):
        if next(calls) == count:
            raise Stopped(signal.SIGTERM)
        return true_function(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(place, stopping)
        with pytest.raises(Stopped):
            get(tmp_path, source=str(archive))
    assert not (tmp_path / "new").exists()
    assert get(tmp_path, source=str(archive)) == whole


@pytest.mark.parametrize("source", ["no/such/folder", "oxford"])
def test_a_source_that_is_none_is_refused_before_anything_is_loaded(source):
    words = [sys.executable, "main.py", "prepare", f"--source={source}"]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 2 and f"not '{source}'" in done.stderr
    assert done.stderr.startswith("--source takes demo, oxford-pets, microsoft, kaggle, a folder")


# Files that are damaged in all ways. TEST_MUTATIONS=10000 makes a long run of it.


def mutated(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Return a damaged picture and a suffix."""
    kind, place = rng.randrange(7), rng.randrange(1, len(data))
    if kind == 0:
        data = data[:place]  # cut
    elif kind == 1:  # flipped bits
        bits = bytearray(data)
        for _ in range(rng.choice((1, 10, 1000))):
            bits[rng.randrange(len(bits))] ^= 1 << rng.randrange(8)
        data = bytes(bits)
    elif kind == 2:
        data = data[place:] + data[:place]  # spliced
    elif kind == 3:
        data = b""
    elif kind == 4:  # huge dimensions in the header, of a PNG or a JPEG
        if (header := data.find(b"IHDR")) >= 0:
            data = (
                data[: header + 4]
                + struct.pack(">II", *rng.choices((1, 9000, 60000), k=2))
                + data[header + 12 :]
            )
        elif (header := data.find(b"\xff\xc0")) >= 0:
            data = (
                data[: header + 5]
                + struct.pack(">HH", *rng.choices((1, 9000, 60000), k=2))
                + data[header + 9 :]
            )
    elif kind == 5:
        data = data + rng.randbytes(100)
    return data, rng.choice((".jpg", ".png", ".gif", ".JPEG", ".bmp", ".webp", ".txt", ""))


@linux_only
def test_mutated_pictures_crash_nothing_and_each_is_listed(tmp_path):
    count, rng = int(os.environ.get("TEST_MUTATIONS", 300)), random.Random(0)
    source, good = tmp_path / "mine", []
    for label in ("rose", "tulip"):
        (source / label).mkdir(parents=True)
    for form in ("JPEG", "PNG", "GIF", "BMP", "WEBP"):
        file = io.BytesIO()
        draw(KINDS[0], len(good)).save(file, form)
        good.append(file.getvalue())
    names: set[bytes] = set()
    for number in range(count):
        content, suffix = mutated(rng.choice(good), rng)
        name = f"{number}{suffix}".encode()
        if number % 50 == 0:
            name = b"caf\xe9 " + name
        path = os.fsencode(source / rng.choice(("rose", "tulip"))) + b"/" + name
        try:
            if number % 61 == 0:
                os.symlink(name, path)  # to itself
            else:
                with open(path, "wb") as file:
                    file.write(content)
        except OSError:
            continue  # this file system takes no such name
        names.add(os.path.relpath(path, os.fsencode(source)))
    (source / "rose" / "loop").symlink_to(source)
    photos_in(source, "rose/good.jpg", "tulip/good.jpg")
    code = f"""if True:
        import re, resource
        from pathlib import Path
        from utils.commands.prepare import Options, run
        source, new = {str(source)!r}, {str(tmp_path / "new")!r}
        run(Options(source=source, prepare_root=new, dataset="Pictures"))
        own = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
        for peak in (own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss):
            print("peak", peak // 1024)
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    peaks = [int(peak) for peak in re.findall(r"peak (\d+)", done.stdout)]
    assert max(peaks) < 1000, peaks
    with open(tmp_path / "new/rejected/reasons.csv", newline="", encoding="utf-8") as file:
        rejected = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert all(rejected.values()) and not any("\n" in reason for reason in rejected.values())
    kept = {
        os.fsencode(p.relative_to(tmp_path / "new/train"))
        for p in (tmp_path / "new/train").rglob("*")
        if p.is_file()
    }
    listed = {path.removeprefix("train/") for path in rejected}
    for name in names:
        assert (name in kept) != (printable(os.fsdecode(name)) in listed), name
    assert {b"rose/good.jpg", b"tulip/good.jpg"} <= kept
