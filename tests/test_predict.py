"""Classes of any pictures, by a run that has been trained."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import data
import main
import models
from models.basic_module import BasicModule
from tests.drawings import DrawnTrees, draw
from tests.helpers import PROJECT, SMALL, TOLERANCE, as_words
from utils import checkpoint, engine, files
from utils.checkpoint import CheckpointError
from utils.options import UsageError, split_arguments

QUIET = {name: SMALL[name] for name in ("batch_size", "num_workers", "use_gpu", "precision")}


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory) -> Path:
    """Train for a moment."""
    options = SMALL | {"train_data_root": pictures / "train", "max_epoch": 2}
    return main.train(**options, checkpoint_root=tmp_path_factory.mktemp("runs"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Pictures with odd names, in folders; one of them is cut off, one is no picture."""
    for number, name in enumerate(["a b.jpg", "=1+1.jpg", "deep/er/x[1].PNG", "deep/日本.webp"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw("oak", number).save(path)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a b.jpg").read_bytes()[:900])
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    return tmp_path


def predict(
    run: Path, *words: object, cwd: Path = PROJECT, **how: Any
) -> subprocess.CompletedProcess:
    command = [sys.executable, str(PROJECT / "main.py"), "predict", *map(str, words)]
    command += [f"--load-model-path={run}", *as_words(QUIET)]
    return subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", **how)


def test_each_picture_gets_a_line_with_the_probability_that_test_gives_it(run, pictures, tmp_path):
    main.test(
        load_model_path=run,
        test_data_root=pictures / "test1",
        **QUIET | {"result_file": tmp_path / "result.csv"},
    )
    oaks = {row["id"]: float(row["label"]) for row in files.read_csv(tmp_path / "result.csv")}
    paths = [pictures / "test1" / f"{number}.jpg" for number in (3, 1, 6)]
    done = predict(run, *paths)
    assert done.returncode == 0 and done.stderr == f"checkpoint {run / 'best.pth'}\n"
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [*map(str, paths)]
    for path, name, probability in lines:
        oak = oaks[Path(path).stem]
        assert name == ("oak" if oak > 0.5 else "fir")
        assert float(probability) == pytest.approx(max(oak, 1 - oak), abs=TOLERANCE)


def test_folders_patterns_and_stdin_give_their_pictures_in_order(run, folder):
    listed = "deep/日本.webp\n\ndeep\r\n"
    words = ["=1+1.jpg", "deep", "d*/*/*.PNG", "**/*.jpg", "-", "a b.jpg", "deep/er/x[1].PNG"]
    done = predict(run, *words, "--top", "5", cwd=folder, input=listed)
    deep = ["deep/er/x[1].PNG", "deep/日本.webp"]
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [
        *("=1+1.jpg", *deep, "deep/er/x[1].PNG", "=1+1.jpg", "a b.jpg"),
        *("deep/日本.webp", *deep, "a b.jpg", "deep/er/x[1].PNG"),
    ]
    for line in done.stdout.splitlines():
        _, first, high, second, low = line.split("\t")
        assert {first, second} == {"fir", "oak"} and float(high) >= float(low)
        assert float(high) + float(low) == pytest.approx(1, abs=2e-4)
    reasons = [line for line in done.stderr.splitlines() if "left out" in line]
    assert len(reasons) == 1 and reasons[0].startswith("cut.jpg is left out: ")
    assert done.returncode == 1


def test_what_cannot_be_read_is_a_line_and_the_others_have_their_answers(run, folder):
    words = ["gone.jpg", "cut.jpg", "a b.jpg", "empty", "notes.txt", "*.gif", "=1+1.jpg", "gone"]
    done = predict(run, "--json", *words, "--csv=tables/all.csv", cwd=folder)
    assert done.returncode == 1
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"] for row in rows] == words
    reasons = {row["path"]: row["error"] for row in rows if "error" in row}
    assert [*reasons] == ["gone.jpg", "cut.jpg", "empty", "notes.txt", "*.gif", "gone"]
    assert reasons["gone.jpg"] == reasons["*.gif"] == "it does not exist"
    assert reasons["empty"] == "there is no picture in it" and reasons["cut.jpg"]
    lines = [f"{path} is left out: {reason}" for path, reason in reasons.items()]
    assert done.stderr.splitlines()[1:] == lines
    for row in (rows[2], rows[6]):
        assert list(row["probabilities"]) == ["fir", "oak"]
        assert sum(row["probabilities"].values()) == pytest.approx(1)
        assert row["probability"] == row["probabilities"][row["class"]] >= 0.5
    table = files.read_csv(folder / "tables/all.csv")
    assert list(table[0]) == ["path", "class", "probability", "fir", "oak"]
    assert [row["path"] for row in table] == [*words[:6], "./=1+1.jpg", "gone"]  # no formula
    for row, cells in zip(rows, table, strict=True):
        assert cells["class"] == row.get("class", "")
        if "error" not in row:
            numbers = [float(cells[name]) for name in ("probability", "fir", "oak")]
            assert numbers == [row["probability"], *row["probabilities"].values()]


def test_only_unreadable_pictures_are_no_crash(run, folder, capsys):
    result = main.predict(folder / "cut.jpg", folder / "gone", load_model_path=run, **QUIET)
    assert [sorted(row) for row in result] == 2 * [["error", "path"]] and result.exit_code == 1
    assert capsys.readouterr().out == ""
    assert main.predict(paths=[folder / "a b.jpg"], load_model_path=run, **QUIET).exit_code == 0


def test_a_name_with_strange_characters_is_one_line_and_is_read(run, tmp_path):
    names = ["new\nline.jpg", "tab\there.jpg", "next\x85line.jpg", os.fsdecode(b"caf\xe9.jpg")]
    for number, name in enumerate(names):
        draw("fir", number).save(tmp_path / "x.jpg")
        (tmp_path / "x.jpg").rename(tmp_path / name)
    done = predict(run, *names, "--csv=t.csv", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    shown = [line.split("\t")[0] for line in done.stdout.split("\n")[:-1]]
    assert shown == [r"new\nline.jpg", r"tab\there.jpg", "next\x85line.jpg", r"caf\xe9.jpg"]
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [*names[:3], r"caf\xe9.jpg"]
    done = predict(run, "--json", ".", cwd=tmp_path)
    paths = [json.loads(line)["path"] for line in done.stdout.splitlines()]
    assert sorted(map(os.path.normpath, paths)) == sorted(names)


def test_lines_appear_batch_by_batch(run, pictures, monkeypatch, capsys):
    printed, ours = [], engine.evaluate

    def spy(*arguments):
        printed.append(capsys.readouterr().out.count("\n"))
        return ours(*arguments)

    monkeypatch.setattr(engine, "evaluate", spy)
    found = main.predict(pictures / "train", load_model_path=run, **QUIET | {"num_workers": 1})
    assert printed == [0, 16, 16, 16] and len(found) == 60


def test_a_closed_pipe_ends_it_quietly_but_a_table_is_finished(run, pictures, tmp_path):
    for words, left_out in [([], 0), ([f"--csv={tmp_path / 't.csv'}"], 1)]:
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "main.py", "predict", pictures / "train", "gone.jpg", *words]
        command += [f"--load-model-path={run}", *as_words(QUIET)]
        done = subprocess.run(
            command, cwd=PROJECT, stdout=writer, stderr=subprocess.PIPE, encoding="utf-8"
        )
        os.close(writer)
        assert done.stderr.count("left out") == done.returncode == left_out  # it comes last
        assert "Error" not in done.stderr
    assert len(files.read_csv(tmp_path / "t.csv")) == 61


def test_wrong_usage_ends_before_torch_is_loaded(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was loaded')")
    for words, says in [
        ([], "predict needs a picture or a folder: python main.py predict PATH …"),
        (["a.jpg", f"--csv={tmp_path}"], f"--csv={tmp_path} is a folder: name a file in it"),
        (["a.jpg", "--top=0"], "--top takes a whole number from 1 up or None, not '0'"),
    ]:
        command = [sys.executable, "main.py", "predict", *words]
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONIOENCODING": "utf-8"}
        done = subprocess.run(
            command, cwd=PROJECT, capture_output=True, encoding="utf-8", env=environment
        )
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{says}\n")
    with pytest.raises(UsageError, match="needs a picture"):
        main.predict()


def test_an_option_of_yes_or_no_leaves_the_word_behind_it_alone():
    assert split_arguments(["predict", "--json", "a.jpg", "-", "--top", "2"]) == (
        "predict",
        {"json": True, "paths": "a.jpg\0-", "top": "2"},
    )
    assert split_arguments(["predict", "--json", "no", "a.jpg"])[1]["json"] == "no"


def test_weights_alone_take_the_classes_of_the_data_set(run, pictures, tmp_path):
    weights = models.SqueezeNet(num_classes=2).save(tmp_path / "bare.pth")
    options = QUIET | {"image_size": 64, "load_model_path": weights}
    (row,) = main.predict(pictures / "test1/1.jpg", **options, dataset=DrawnTrees)
    assert list(row["probabilities"]) == ["fir", "oak"]
    with pytest.raises(CheckpointError, match=r"weights only, and Pictures does not name its cl"):
        main.predict(pictures / "test1/1.jpg", **options, dataset="Pictures")


def test_a_stored_temperature_divides_the_logits(run, pictures, tmp_path):
    contents = checkpoint.read(run / "best.pth")
    path = checkpoint.write(tmp_path / "warm.pth", {**contents, "temperature": 2.0})
    odds = []
    for weights in (run, path):
        (row,) = main.predict(pictures / "test1/1.jpg", load_model_path=weights, **QUIET)
        odds.append(row["probabilities"]["oak"] / row["probabilities"]["fir"])
    assert odds[0] != pytest.approx(1, abs=1e-3)
    assert odds[1] == pytest.approx(math.sqrt(odds[0]), rel=1e-3)


class Things(data.MultiLabelDataset):
    classes = ("red", "path", "blue")


class Constant(BasicModule):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), -1)


def test_of_several_labels_all_that_are_more_probable_than_not_are_the_answer(tmp_path, capsys):
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((70, 80, 3), np.uint8)).save(path)
    options = QUIET | {"dataset": Things, "model": Constant, "load_model_path": tmp_path / "w.pth"}
    model = Constant(3)
    for logits, answer, line in [
        ([3.0, -1.0, 1.0], ["red", "blue"], "red\t0.9526\tblue\t0.7311"),
        ([-3.0, -1.0, -2.0], [], ""),
    ]:
        model.logits.data = torch.tensor(logits)
        model.save(options["load_model_path"])
        capsys.readouterr()
        (row,) = main.predict(path, **options, csv=tmp_path / "t.csv")
        assert row["class"] == answer
        assert row["probability"] == [row["probabilities"][name] for name in answer]
        assert [*row["probabilities"].values()] == pytest.approx(
            [1 / (1 + math.exp(-x)) for x in logits], abs=TOLERANCE
        )
        assert capsys.readouterr().out == f"{path}\t{line}".rstrip("\t") + "\n"
        (cells,) = files.read_csv(tmp_path / "t.csv")
        assert cells["class"] == ", ".join(answer) and cells["path"] == str(path)
        assert float(cells["class path"]) == row["probabilities"]["path"]
    main.predict(path, **options, top=1)
    assert capsys.readouterr().out == f"{path}\tpath\t0.2689\n"


def test_real_photos_and_odd_files(run, photos, tmp_path):
    shutil.copytree(photos / "odd", tmp_path / "odd")
    done = predict(run, "--json", "odd", photos / "photos/test1/1.jpg", cwd=tmp_path)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    bad = sorted(Path(row["path"]).name.split(".")[1] for row in rows if "error" in row)
    assert bad == ["90001", "90002", "90004", "90005", "90020"]
    assert len(rows) - len(bad) == 11 and done.returncode == 1
