"""Several runs on one page."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import main
from tests.helpers import PROJECT, SMALL
from tests.test_report import Reader
from utils.options import UsageError


@pytest.fixture(scope="module")
def runs(pictures, tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    options = SMALL | {"train_data_root": pictures / "train", "checkpoint_root": root}
    return [
        main.train(**options, max_epoch=2),
        main.train(**options, max_epoch=3, lr=0.01, env="<script>alert(1)</script>"),
    ]


def compare(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "main.py", "compare", *map(str, words)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)


def rows_of(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_has_the_curves_of_both_runs_and_what_differs(runs, tmp_path):
    page = tmp_path / "page.html"
    done = compare(runs[0], runs[1] / "best.pth", f"--page={page}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"what differs, are in {page}\n")
    text = page.read_text()
    assert "<script" not in text and not re.search(r"https?:|url\(", text)
    reader = Reader(text)
    for number, run in enumerate(runs, 1):
        rows = rows_of(run)
        for name in [name for name in rows[0] if name != "epoch"]:
            points = [(float(row["epoch"]), float(row[name])) for row in rows]
            assert reader.dots[f"{name.replace('_', ' ')} by epoch", f"run {number}"] == points
        assert [f"run {number}", str(run)] in reader.rows
    assert ["max_epoch", "2", "3"] in reader.rows and ["lr", "0.002", "0.01"] in reader.rows
    assert ["env", "default", "<script>alert(1)</script>"] in reader.rows
    assert not [row for row in reader.rows if row[0] in ("batch_size", "python", "seed")]
    best = [max(float(row["val_accuracy"]) for row in rows_of(run)) for run in runs]
    assert ["val accuracy", *(f"{x:.4g}" for x in best)] in reader.rows
    assert re.search(rf"^val accuracy +{best[0]:.4g} +{best[1]:.4g}$", done.stdout, re.M)


def test_a_notebook_gets_the_file(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.compare(*runs) == Path("compare.html")
    assert main.compare(runs=runs, page="b.html").read_text() == Path("compare.html").read_text()


def test_a_difference_of_versions_is_named(runs, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "metrics.csv"):
        (other / name).write_bytes((runs[0] / name).read_bytes())
    environment = json.loads((runs[0] / "environment.json").read_text())
    environment["packages"]["torch"] = "0.1"
    (other / "environment.json").write_text(json.dumps(environment | {"git_commit": "<b>"}))
    rows = Reader(main.compare(runs[0], other, page=tmp_path / "a.html").read_text()).rows
    differences = rows[rows.index(["", "run 1", "run 2"], 3) + 1 :]
    assert [row[0] for row in differences] == ["git_commit", "version of torch"]
    assert differences[0][2] == "<b>" and differences[1][2] == "0.1"


@pytest.mark.parametrize("count", [0, 1])
def test_one_run_is_not_enough(runs, count):
    done = compare(*runs[:count])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "compare needs two runs: python main.py compare RUN RUN …\n"
    with pytest.raises(UsageError, match="needs two runs"):
        main.compare(*runs[:count])


def test_a_page_cannot_be_a_folder(runs, tmp_path):
    done = compare(*runs, f"--page={tmp_path}")
    assert done.returncode == 2
    assert done.stderr == f"--page={tmp_path} is a folder: name a file in it\n"


def test_a_folder_that_is_no_run_costs_one_line(runs, tmp_path):
    for folder in (tmp_path, tmp_path / "gone"):
        done = compare(runs[0], folder, f"--page={tmp_path / 'page.html'}")
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert f"{folder} is not the folder of a run with an epoch" in done.stderr
    (tmp_path / "metrics.csv").write_text("epoch,val_accuracy\n")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "environment.json").write_text('{"packages": {}}')
    done = compare(runs[0], tmp_path)
    assert done.returncode == 1 and "run with an epoch" in done.stderr
    assert not (PROJECT / "compare.html").exists()
