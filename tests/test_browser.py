"""What people see of a run, read back from a real browser while it goes on and after its end.

These tests need Chromium and selenium; the board's also need the files that tests/board_assets.sh
gets, in the folder that the environment variable DOGCAT_BOARD_ASSETS names.
"""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from tests.browser import (
    STICKING_OUT,
    asset_folder,
    colors_of,
    complaints,
    look,
    open_browser,
    printed,
    requested,
    wait_for,
)
from tests.drawings import draw
from tests.helpers import PROJECT, SMALL, as_words, wait_until
from tests.test_board import environment, free_port, serving

# The command `train`, which waits for the file that PAUSE names after its second epoch.
PAUSING = """
import os, runpy, shutil, sys, time
from pathlib import Path
from utils.run import Run
epoch_done = Run.epoch_done
def pause(self, epochs, *parts):
    epoch_done(self, epochs, *parts)
    self.wait()  # a thread has written all files
    if epochs == 1:
        shutil.copy(self.folder / "last.pth", self.folder / "first.pth")
    if epochs == 2:
        print("paused", flush=True)
        while not Path(os.environ["PAUSE"]).exists():
            time.sleep(0.02)
Run.epoch_done = pause
sys.argv[0] = "main.py"
runpy.run_path("main.py", run_name="__main__")
"""
STEPS = 3  # of an epoch, of the 42 training pictures
EVIL = [
    "<script>window.hacked=1</script>",
    '"><img src=x onerror=window.hacked=1>',
    'it\'s a "quoted" <b>name</b> & more',
    "非常长的中文类名松和枫一二三四五六七八九十甲乙丙丁",
    "W" * 200,
    "a|pipe `code` *star* [x](javascript:window.hacked=1)",
]


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with open_browser() as browser:
        yield browser


class Training:
    """A training that has done two epochs of three, and goes on when it is told to."""

    def __init__(self, process: subprocess.Popen, folder: Path, log: Path, gate: Path) -> None:
        self.process, self.folder, self.log, self.gate = process, folder, log, gate

    def finish(self) -> None:
        assert self.process.poll() is None
        self.gate.touch()
        assert self.process.wait(timeout=120) == 0, self.log.read_text()


@contextmanager
def training(pictures: Path, root: Path, **options) -> Iterator[Training]:
    """Start a training, and wait until two of its three epochs are done."""
    options = {"train_data_root": pictures, "max_epoch": 3, "histograms": True} | options
    options = SMALL | {"checkpoint_root": root / "runs"} | options
    log, gate = root / "train.log", root / "go"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", PAUSING, "train", *as_words(options)],
            cwd=PROJECT,
            env=environment(PAUSE=str(gate)),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: "paused" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        (folder,) = (path.parent for path in (root / "runs").glob("*/metrics.csv"))
        yield Training(process, folder, log, gate)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory) -> Path:
    """The folder of a run that had no server and has ended; read only."""
    with training(pictures / "train", tmp_path_factory.mktemp("run")) as started:
        started.finish()
    return started.folder


def column(folder: Path, name: str) -> list[float]:
    """Return a column of metrics.csv."""
    with open(folder / "metrics.csv", newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def steps_shown(epochs: int) -> list[int]:
    """Return the steps that have a point of their own: the last of an epoch is the epoch's."""
    return [step for step in range(1, STEPS * epochs) if step % STEPS]


# A page in a file


def points(browser, chart: str, line: str) -> list[tuple[float, float]]:
    """Return the points of a line, as the page draws them."""
    script = """return [...document.querySelectorAll(`svg[aria-label="${arguments[0]}"] circle`)]
        .filter(dot => dot.dataset.line == arguments[1])
        .map(dot => [Number(dot.dataset.x), Number(dot.dataset.y)])"""
    return [tuple(point) for point in browser.execute_script(script, chart, line)]


def texts(browser, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map(box => box.textContent)"
    return [text.strip() for text in browser.execute_script(script, selector)]


def open_file(browser, path: Path) -> None:
    """Open a page, and prove that it needs nothing else."""
    list(requested(browser)), complaints(browser)
    browser.get(path.resolve().as_uri())
    addresses = [url for url in requested(browser) if not url.startswith("data:")]
    assert addresses == [path.resolve().as_uri()]
    assert complaints(browser) == []
    assert browser.execute_script("return window.hacked === undefined")
    assert texts(browser, "script") == []


def assert_it_fits(browser) -> None:
    """Prove that nothing sticks out, and no short word is broken, at two widths."""
    broken = """
    const lines = cell => {
        const range = document.createRange();
        range.selectNodeContents(cell);
        return new Set([...range.getClientRects()].map(box => Math.round(box.top))).size;
    };
    return [...document.querySelectorAll("td:first-child, th:first-child")]
        .filter(cell => lines(cell) > 5 + cell.textContent.length / 5
            || /^\\w{1,11}$/.test(cell.textContent) && lines(cell) > 1)
        .map(cell => cell.textContent)"""
    for width in (400, 1280):
        look(browser, width)
        assert browser.execute_script("return innerWidth") == width
        assert browser.execute_script(STICKING_OUT) == []
        assert browser.execute_script(broken) == []


def assert_schemes(browser) -> None:
    """Prove that the page is dark where the user wants it dark."""
    script = """const style = getComputedStyle(document.body);
        return [style.backgroundColor, style.color].map(
            words => words.match(/\\d+/g).slice(0, 3).reduce((sum, x) => sum + Number(x), 0) / 3)"""
    look(browser, dark=True)
    background, text = browser.execute_script(script)
    assert background < 60 and text > 180
    look(browser)
    background, text = browser.execute_script(script)
    assert background > 230 and text < 80


def assert_report(browser, folder: Path, epochs: int) -> None:
    """Prove that report.html shows the epochs of a run, and its pictures."""
    open_file(browser, folder / "report.html")
    for name in ("loss", "accuracy"):
        for line in ("train", "val"):
            values = column(folder, f"{line}_{name}")
            expected = list(zip(range(1, epochs + 1), values, strict=True))
            assert points(browser, f"{name} by epoch", line) == expected
    sizes = "return [...document.images].map(image => image.naturalWidth)"
    assert len(browser.execute_script(sizes)) > 2 and all(browser.execute_script(sizes))
    assert_it_fits(browser)
    assert_schemes(browser)
    assert printed(browser).startswith(b"%PDF-") and printed(browser).count(b"/Type /Page") > 2


def test_the_report_is_there_during_and_after_a_training(browser, pictures, tmp_path):
    with training(pictures / "train", tmp_path) as started:
        assert_report(browser, started.folder, epochs=2)
        assert texts(browser, "h1 + p") == ["Epoch 2 of 3."]
        assert "Where the model looks" not in texts(browser, "h2")
        assert started.process.poll() is None
        started.finish()
    assert_report(browser, started.folder, epochs=3)
    assert "of 3, with mirror images." in texts(browser, "h1 + p")[0]
    headings = texts(browser, "h2")
    for heading in ("Most confident mistakes", "Least sure right answers", "Where the model looks"):
        assert heading in headings
    counts = [int(text) for text in texts(browser, "td.count")]
    assert len(counts) == 4 and sum(counts) == 18  # fir and oak; all val pictures
    answers = sum(counts[:1] + counts[3:]), sum(counts[1:3])
    looks = min(4, answers[0]) + min(4, answers[1])
    galleries = "return [...document.querySelectorAll('.small')].map(box => box.children.length)"
    galleries = browser.execute_script(galleries)
    assert galleries == [min(12, answers[1]), min(12, answers[0]), looks]
    widths = "return [...document.querySelectorAll('.bar')].map(bar => bar.offsetWidth)"
    assert len(set(browser.execute_script(widths))) == 1  # as many firs as oaks
    assert browser.execute_script(widths)[0] > 100


@pytest.fixture(scope="module")
def many_classes(tmp_path_factory) -> Path:
    """The folder of a run with 37 classes that have odd names; read only."""
    root = tmp_path_factory.mktemp("many")
    names = [*EVIL, *(f"a class whose name has forty letters {n:03}" for n in range(31))]
    with open(root / "list.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for k, name in enumerate(names):
            for n, split in enumerate(("train", "train", "val")):
                draw("fir", 10 * k + n).resize((64, 64)).save(root / f"{k}_{n}.jpg")
                rows.writerow([f"{k}_{n}.jpg", name, split])
    with training(root / "list.csv", root, batch_size=32, lr=0.004) as started:
        started.finish()
    return started.folder


def test_the_report_of_many_classes_with_odd_names(browser, many_classes):
    assert_report(browser, many_classes, epochs=3)
    cells = texts(browser, "td:first-child, th:first-child")
    for name in EVIL:
        assert cells.count(name) == 2  # the confusion matrix, and the pictures of each class
    assert len(texts(browser, "table.dense tr")) == 38
    assert sum(map(int, texts(browser, "td.count"))) == 37
    look(browser, 400)
    wide = "const box = document.querySelector('.dense').parentElement;"
    scrolled = wide + "box.scrollLeft = 1e6; return [box.scrollLeft, box.clientWidth]"
    distance, width = browser.execute_script(scrolled)
    assert distance > width  # so the last column can be seen,
    edges = """const box = document.querySelector('.dense').parentElement;
        const cells = document.querySelector('.dense').rows[1].cells;
        const left = box.getBoundingClientRect().left;
        return [cells[0].getBoundingClientRect().left - left,
            cells[cells.length - 1].getBoundingClientRect().right - left - box.clientWidth]"""
    assert browser.execute_script(edges) == pytest.approx([0, 0], abs=2)  # with the class's name
    look(browser)


def test_the_page_that_compares_runs(browser, run, many_classes, tmp_path):
    pytest.importorskip("utils.commands.compare")  # it may have been deleted
    evil = tmp_path / "<script>window.hacked=1<"
    shutil.copytree(many_classes, evil)
    options = json.loads((evil / "config.json").read_text())
    (evil / "config.json").write_text(json.dumps(options | {"env": EVIL[1]}))
    page, runs = tmp_path / "page.html", [run, evil]
    command = [sys.executable, "main.py", "compare", *map(str, runs), f"--page={page}"]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, timeout=120)
    open_file(browser, page)
    for chart, name in (("val loss", "val_loss"), ("train accuracy", "train_accuracy")):
        for number, folder in enumerate(runs, 1):
            expected = list(enumerate(column(folder, name), 1))
            assert points(browser, f"{chart} by epoch", f"run {number}") == expected
    cells = texts(browser, "td")
    assert str(evil) in cells and EVIL[1] in cells
    rows = "return [...document.rows].map(row => [...row.cells].map(cell => cell.innerText))"
    rows = browser.execute_script(rows.replace("document.rows", "document.querySelectorAll('tr')"))
    for row in (["lr", "0.002", "0.004"], ["batch_size", "16", "32"]):
        assert row in rows
    assert_it_fits(browser)
    assert_schemes(browser)


# The board


WINDOW = "//div[@class='window'][.//div[contains(@class, 'pull-right')][text()='{}']]"


def colors_of_window(browser, name: str) -> int:
    """Return how many colours a window of the board has, without its bar."""
    windows = browser.find_elements("xpath", WINDOW.format(name))
    if not windows:
        return 0
    window = windows[0].find_element("css selector", ".content")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", window)
    with Image.open(io.BytesIO(window.screenshot_as_png)) as image:
        return len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0))


def wait_for_colors(browser, window: str, least: int) -> None:
    deadline = time.monotonic() + 30
    while (found := colors_of_window(browser, window)) <= least:
        assert time.monotonic() < deadline, f"{window} has {found} colours"


def board_lines(browser, chart: str) -> dict[str, list[list[float]]]:
    """Return {line: points} of a chart, as plotly holds them."""
    script = """
    const plot = [...document.querySelectorAll(".js-plotly-plot")].find(
        plot => (plot.layout.title.text ?? plot.layout.title) == arguments[0]);
    return plot ? plot.data.map(line => [line.name, [...line.x], [...line.y]]) : []"""
    return {
        name: [[x, y] for x, y in zip(xs, ys, strict=True) if y is not None]
        for name, xs, ys in browser.execute_script(script, chart)
    }


def assert_board(browser, folder: Path, epochs: int) -> None:
    """Prove that the open page has the curves and pictures of a run."""
    expected = {
        line: [[STEPS * n, y] for n, y in enumerate(column(folder, f"{line}_loss"), 1)]
        for line in ("train", "val")
    }
    assert len(expected["val"]) == epochs
    wait_until(lambda: len(board_lines(browser, "loss").get("val", [])) >= epochs, seconds=60)
    found = board_lines(browser, "loss")
    assert found.keys() == expected.keys()
    for line, wanted in expected.items():  # TensorBoard's files have 32 bits of a number
        assert np.allclose(found[line], wanted, rtol=1e-6, atol=0)
    assert [x for x, _ in board_lines(browser, "step/lr")["1"]] == steps_shown(epochs)
    galleries = ("first train batch", "first val batch", "mistakes")
    for name in (*galleries, "confusion", "autograd graph", "options", "classes"):
        least = 2000 if name in galleries else 30 if name == "confusion" else 5
        wait_for_colors(browser, name, least)
    words = texts(browser, ".window")
    assert any("image_size" in text for text in words)
    assert any("conv2d" in text for text in words)
    for chart in ("confidence", "probability", "log10 |weights|", "log10 |gradients|"):
        shown = [chart, chart.removeprefix("log10 |").removesuffix("|")]  # the latter: replayed
        filled = partial(lambda titles: any(is_filled(browser, title) for title in titles), shown)
        wait_until(filled, seconds=20)


def is_filled(browser, chart: str) -> bool:
    """Tell whether a chart has bars or a map that is not empty."""
    script = """
    const plot = [...document.querySelectorAll(".js-plotly-plot")].find(
        plot => (plot.layout.title.text ?? plot.layout.title) == arguments[0]);
    return plot && plot.data.some(part => [...(part.z ?? [part.y])].some(
        row => [...row].some(value => value > 0)))"""
    return bool(browser.execute_script(script, chart))


def test_the_board_during_and_after_a_training(browser, pictures, tmp_path):
    assets = asset_folder()
    with serving(tmp_path, f"--assets={assets}", program=("main.py",)) as server:
        options = {"visdom_port": server.port, "env": "shown", "checkpoint_root": tmp_path / "r"}
        (tmp_path / "train").mkdir()
        options["checkpoint_root"] = tmp_path / "train" / "runs"
        with training(pictures / "train", tmp_path / "train", **options) as started:
            look(browser, height=2000)
            browser.get(f"http://127.0.0.1:{server.port}/env/shown")
            assert_board(browser, started.folder, epochs=2)
            started.finish()
        assert_board(browser, started.folder, epochs=3)  # on the page that was open all the time
        assert "visdom on port" not in started.log.read_text()
    severe = [line for line in complaints(browser) if "Uncaught" in line]
    assert severe == []


def test_the_board_replays_a_run_that_had_no_server(browser, run, tmp_path):
    options = (f"--assets={asset_folder()}", f"--replay={run}")
    with serving(tmp_path, *options, program=("main.py",)) as server:
        look(browser, height=2000)
        browser.get(f"http://127.0.0.1:{server.port}/env/{run.name}")
        assert_board(browser, run, epochs=3)


def test_odd_names_are_text_on_the_board(browser, many_classes, tmp_path):
    options = (f"--assets={asset_folder()}", f"--replay={many_classes}")
    with serving(tmp_path, *options, program=("main.py",)) as server:
        look(browser, height=2000)
        browser.get(f"http://127.0.0.1:{server.port}/env/{many_classes.name}")
        wait_until(lambda: len(board_lines(browser, "loss").get("val", [])) == 3, seconds=60)
        wait_for(browser, f"return document.body.textContent.includes({json.dumps(EVIL[4])})")
        cells = texts(browser, ".window td:first-child")
        assert {*EVIL} <= {*cells}
        assert browser.execute_script("return window.hacked === undefined")
        wait_for_colors(browser, "confusion", least=30)


# TensorBoard


class TensorBoard:
    """A running server."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"

    def get(self, path: str, body: dict | None = None, **query: str) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        url = f"{self.address}/data/{path}?{urlencode(query, quote_via=quote)}"
        with urlopen(Request(url, data, headers), timeout=30) as answer:
            return answer.read()

    def json(self, path: str, body: dict | None = None, **query: str):
        return json.loads(self.get(path, body, **query))

    def scalars(self, run: str, tag: str) -> list[tuple[int, float]]:
        points = self.json("plugin/scalars/scalars", run=run, tag=tag)
        return [(step, value) for _, step, value in points]


@contextmanager
def tensorboard(folder: Path, *options: str) -> Iterator[TensorBoard]:
    """Start TensorBoard; it reads the files again each second."""
    port, log = free_port(), folder.parent / "tensorboard.log"
    words = [f"--logdir={folder}", f"--port={port}", "--reload_interval=1", *options]
    program = "from tensorboard.main import run_main; run_main()"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *words],
            env=dict(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: f":{port}" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield TensorBoard(port)
    finally:
        process.terminate()  # it ends its data server
        process.wait(timeout=30)


def soon(call: Callable[[], Any], wanted: Callable[[Any], bool]) -> Any:
    """Return what a call returns as soon as it is what is wanted; at last, whatever it returns."""
    deadline = time.monotonic() + 30
    while True:
        try:
            found = call()
        except OSError:  # the server knows no such run yet
            found = None
        if (found is not None and wanted(found)) or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def assert_curves(server: TensorBoard, folder: Path, epochs: int) -> None:
    """Prove that TensorBoard gives the numbers of metrics.csv, with the steps since the start."""
    for tag, name in (("loss/val", "val_loss"), ("accuracy/train", "train_accuracy")):
        call = partial(server.scalars, folder.name, tag)
        found = soon(call, lambda points: len(points) >= epochs)
        values = [float(np.float32(value)) for value in column(folder, name)]  # it has 32 bits
        assert found == [(STEPS * n, value) for n, value in enumerate(values, 1)]
        assert len(found) == epochs


def test_tensorboard_during_and_after_a_training(browser, pictures, tmp_path):
    with (
        training(pictures / "train", tmp_path) as started,
        tensorboard(tmp_path / "runs") as server,
    ):
        assert_curves(server, started.folder, epochs=2)
        started.finish()
        assert_curves(server, started.folder, epochs=3)


def test_tensorboard_shows_two_runs(browser, run, many_classes, tmp_path):
    folders = {
        folder.name + suffix: folder for folder, suffix in ((run, "_a"), (many_classes, "_b"))
    }
    for name, folder in folders.items():
        shutil.copytree(folder, tmp_path / "runs" / name)
    name = next(iter(folders))
    with tensorboard(tmp_path / "runs") as server:
        runs = soon(lambda: server.json("runs"), lambda found: len(found) == 2)
        assert runs == sorted(folders)
        tags = server.json("plugin/images/tags")[name]
        assert {"first train batch", "first val batch", "confusion"} <= {*tags}
        for tag in tags:
            for entry in server.json("plugin/images/images", run=name, tag=tag, sample="0"):
                data = urlopen(
                    f"{server.address}/data/plugin/images/individualImage?{entry['query']}"
                )
                with Image.open(io.BytesIO(data.read())) as image:
                    assert np.asarray(image.convert("RGB")).std() > 10
        graph = server.get("plugin/graphs/graph", run=name, conceptual="false").decode()
        assert graph.count("node {") > 50 and 'op: "conv2d"' in graph
        tag = "confidence/all"
        histograms = server.json("plugin/histograms/histograms", run=name, tag=tag)
        for (_, step, buckets), expected in zip(histograms, (3, 6, 9), strict=True):
            assert step == expected and sum(count for *_, count in buckets) == 18
        layout = server.json("plugin/custom_scalars/layout")
        charts = {chart["title"]: chart for chart in layout["category"][0]["chart"]}
        assert charts["loss"]["multiline"]["tag"] == ["loss/train$", "loss/val$"]
        # The table of hyper-parameters, asked for as the page does.
        server.json("plugin/hparams/experiment", body={"experimentName": ""})
        statuses = [f"STATUS_{word}" for word in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")]
        question = {"experimentName": "", "allowedStatuses": statuses, "colParams": []}
        question |= {"startIndex": 0, "sliceSize": 100}
        answer = server.json("plugin/hparams/session_groups", body=question)
        groups = {group["name"]: group for group in answer["sessionGroups"]}
        assert groups.keys() == folders.keys()
        for title, lr in zip(folders, (0.002, 0.004), strict=True):
            assert groups[title]["hparams"]["lr"] == lr
            assert groups[title]["hparams"]["pretrained"] == "False"
            final = {m["name"]["tag"]: m["value"] for m in groups[title]["metricValues"]}
            ((step, accuracy),) = server.scalars(title, "final/accuracy")
            assert (step, final["final/accuracy"]) == (STEPS * 3 + 1, accuracy)
            report = (folders[title] / "report.html").read_text()
            assert f"<td>accuracy<td>{accuracy:.2%} of " in report
        # The pages.
        look(browser, height=1000)
        shows = {
            "scalars": ("svg, canvas", "tag: accuracy/val"),
            "images": ("img", "confusion"),
            "graphs": ("svg", "features"),
            "hparams": ("tf-hparams-dashboard", name),
        }
        for tab, (selector, words) in shows.items():
            browser.get("about:blank")
            browser.get(f"{server.address}/#{tab}")
            wait_for(browser, f"return {VISIBLE_TEXT}.includes({json.dumps(words)})")
            assert wait_for(browser, f"return {EVERY_BOX}.some(box => box.matches('{selector}'))")
            wait_until(lambda: colors_of(browser, "body") > 100, seconds=30)


# What a page of web components shows: each has a tree of its own.
EVERY_BOX = """(function boxes(root) {
    return [...root.querySelectorAll("*")].flatMap(
        box => box.shadowRoot ? [box, ...boxes(box.shadowRoot)] : [box]);
})(document)"""
VISIBLE_TEXT = f"""{EVERY_BOX}.filter(box => !["STYLE", "SCRIPT"].includes(box.tagName)).map(
    box => [...box.childNodes].filter(n => n.nodeType == 3).map(n => n.data).join("")).join(" ")
        .replace(/\\s+/g, " ")"""


def test_no_step_is_there_twice_after_a_resume(pictures, tmp_path):
    options = {"train_data_root": pictures / "train", "max_epoch": 3}
    options |= {"checkpoint_root": tmp_path / "runs"}
    with training(pictures / "train", tmp_path) as started:
        folder = started.folder
        started.process.kill()
        started.process.wait()
    # As if it had been killed before the save of the second epoch, whose events are there already.
    (folder / "first.pth").replace(folder / "last.pth")
    words = as_words(SMALL | options | {"resume": folder})
    subprocess.run(
        [sys.executable, "main.py", "train", *words],
        cwd=PROJECT,
        env=environment(),
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert len([*folder.glob("events.out.tfevents.*")]) == 2
    for loader in ("true", "false"):  # two programs that read the files
        with tensorboard(tmp_path / "runs", f"--load_fast={loader}") as server:
            assert_curves(server, folder, epochs=3)
            for tag in server.json("plugin/scalars/tags")[folder.name]:
                steps = [step for step, _ in server.scalars(folder.name, tag)]
                assert steps == sorted({*steps}), tag
            assert [x for x, _ in server.scalars(folder.name, "step/loss")] == steps_shown(3)
            question = {"run": folder.name, "tag": "confusion", "sample": "0"}
            shown = server.json("plugin/images/images", **question)
            assert [entry["step"] for entry in shown] == [3, 6, 9]
