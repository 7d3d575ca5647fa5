"""A Jupyter kernel: bars, pages, the stop button, what a command leaves behind; the tutorial."""

import html
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import main
from tests.helpers import PROJECT, SMALL, assert_same_weights, children_of, wait_until

pytest.importorskip("ipykernel", reason="ipykernel is not installed: no test in a notebook")
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

TUTORIAL = PROJECT / "docs/tutorial.ipynb"
PRESS = "(press the stop button)"  # the kernel prints it to have it done

# A model, and what may happen to it in a step. `state` is what a command must leave as it was.
CELL = f"""
import gc, os, signal, sys, threading, time
from torch import nn

kept = 7
steps_left, happens = 0, None

class Tiny(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, stride=4)
        self.norm, self.dropout = nn.BatchNorm2d(8), nn.Dropout()
        self.linear = nn.Linear(8, num_classes)

    def forward(self, images):
        global steps_left
        steps_left -= 1
        if steps_left == 0:
            happens()
        return self.linear(self.dropout(self.norm(self.convolution(images)).mean(dim=(2, 3))))

def fail():
    1 / 0

def press():
    print({PRESS!r}, flush=True)
    while signal.getsignal(signal.SIGINT).__self__.received is None:
        time.sleep(0.01)

def press_twice():
    press()
    press_and_wait()

def press_and_wait():
    print({PRESS!r}, flush=True)
    time.sleep(60)

def state():
    return {{
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "streams": (sys.stdin, sys.stdout, sys.stderr, sys.excepthook, sys.displayhook),
        "place": (os.getcwd(), sys.argv),
        "cores": os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
        "threads": sorted(type(thread).__name__ for thread in threading.enumerate()),
        "bars": len(getattr(sys.modules.get("tqdm"), "tqdm")._instances),
    }}

def changed(old):
    new = state()
    return [name for name in new if new[name] != old[name]]

before = state()
from main import train, val
changed_by_import = changed(before)
"""


@dataclass
class Output:
    """What a cell has put out."""

    text: str = ""
    shown: list[dict] = field(default_factory=list)  # by type, as "text/html"; in their order
    places: list[str] = field(default_factory=list)  # where each is shown; "" has no name
    error: list[str] = field(default_factory=list)  # the lines of the traceback


class Kernel:
    """A Jupyter kernel that runs cells with this Python."""

    def __init__(self, folder: Path, home: Path) -> None:
        specs = KernelSpecManager(kernel_dirs=[])  # not a kernel that somebody has installed
        self.manager = KernelManager(kernel_spec_manager=specs)
        self.manager.start_kernel(cwd=folder, env=os.environ | {"IPYTHONDIR": str(home)})
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)
        provisioner: Any = self.manager.provisioner
        self.pid = provisioner.pid

    def run(self, code: str) -> Output:
        """Run a cell to its end. Where it prints PRESS, the stop button is pressed."""
        output = Output()

        def take(message: dict) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                output.text += content["text"]
                for _ in range(content["text"].count(PRESS)):
                    self.manager.interrupt_kernel()
            elif message["msg_type"] == "error":
                output.error = content["traceback"]
            elif "data" in content:
                output.shown.append(content["data"])
                output.places.append(content.get("transient", {}).get("display_id", ""))

        self.client.execute_interactive(code, output_hook=take, timeout=120)
        return output

    def end(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    kernel = Kernel(PROJECT, tmp_path_factory.mktemp("home"))
    try:
        kernel.run("import tqdm")
        assert not kernel.run(CELL).error
        yield kernel
    finally:
        kernel.end()


def call_of_train(pictures: Path, root: Path, **options: object) -> str:
    """Return the call as it stands in a cell: three epochs of three steps, loaded by processes."""
    options = SMALL | {"max_epoch": 3, "num_workers": 2, "cache": "none"} | options
    paths = {"train_data_root": str(pictures / "train"), "checkpoint_root": str(root)}
    return f"run = train(model=Tiny, **{options | paths})"


@pytest.fixture(scope="module")
def straight(kernel, pictures, tmp_path_factory) -> tuple[Path, Output]:
    """Train in the kernel without a disturbance; return the run and what the cell has put out."""
    root = tmp_path_factory.mktemp("straight")
    output = kernel.run(call_of_train(pictures, root))
    assert not output.error
    assert not kernel.run("after_a_run = state()").error
    return next(root.iterdir()), output


def test_importing_main_changes_nothing_in_the_kernel(kernel):
    assert kernel.run("print(changed_by_import)").text == "[]\n"


def test_bars_and_the_log_are_text_and_the_report_is_shown_in_one_place(straight):
    run, output = straight
    for title in ("epoch 1/3", "epoch 3/3", "val", "best"):
        assert f"\r{title}:   0%|" in output.text and " pictures/s" in output.text
    last_line = output.text.rstrip().splitlines()[-1]
    assert last_line == f"report    {run / 'report.html'}"
    assert len(output.shown) == 4  # after each epoch, and at the end
    assert len({*output.places}) == 1 and output.places[0]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert html.escape(page) in output.shown[-1]["text/html"]
    assert output.shown[-1]["text/plain"] == str(run / "report.html")


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ("press", "Stopped: stopped by SIGINT; --resume goes on"),
        ("press_twice", "KeyboardInterrupt"),
        ("fail", "ZeroDivisionError"),
    ],
)
def test_a_run_that_ends_early_leaves_nothing_behind_and_goes_on_to_the_same_bits(
    event, error, kernel, straight, pictures, tmp_path
):
    kernel.run(f"steps_left, happens = 9, {event}")  # in the second epoch, or the val pass of it
    output = kernel.run(call_of_train(pictures, tmp_path))
    if event == "press":
        assert output.error == [error]
        left = "gc.collect(); print([thing for thing in gc.get_objects() if type(thing) is Tiny])"
        assert kernel.run(left).text == "[]\n"  # IPython keeps the error, but not the model
    else:
        assert error in output.error[-1]
    assert children_of(kernel.pid) == []
    wait_until(lambda: kernel.run("print(kept, changed(after_a_run))").text == "7 []\n", 20)
    output = kernel.run(f"run = train(resume=True, checkpoint_root={str(tmp_path)!r})")
    assert not output.error and "goes on at epoch 2" in output.text
    assert_same_weights(next(tmp_path.iterdir()), straight[0])


def test_a_val_that_is_stopped_ends_its_loader_processes(kernel, straight):
    call = f"val(load_model_path={str(straight[0])!r}, num_workers=2, use_gpu=False)"
    output = kernel.run(f"steps_left, happens = 1, press_and_wait\n{call}")
    assert "KeyboardInterrupt" in output.error[-1] and PRESS in output.text
    assert children_of(kernel.pid) == []
    assert kernel.run("print(kept, changed(after_a_run))").text == "7 []\n"
    output = kernel.run(f"numbers = {call}\nprint(numbers['count'])")
    assert not output.error and output.text.endswith("\n18\n")


def test_wrong_usage_is_one_line(kernel):
    assert kernel.run("train(lr=0)").error == ["UsageError: --lr takes a number above 0, not '0'"]
    (line,) = kernel.run("train(learning_rate=0.1)").error
    assert line.endswith("did you mean --lr?")


# The tutorial.


@pytest.fixture(scope="module")
def tutorial() -> dict:
    if not TUTORIAL.exists():
        pytest.skip("docs/tutorial.ipynb was removed")
    return json.loads(TUTORIAL.read_text(encoding="utf-8"))


def test_the_tutorial_is_kept_without_outputs(tutorial):
    cells = [cell for cell in tutorial["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 9
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    names = {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert tutorial["metadata"] == {"kernelspec": names, "language_info": {"name": "python"}}


def test_the_tutorial_runs_from_its_first_cell_to_its_last(tutorial, tmp_path):
    sources = {
        cell["id"]: "".join(cell["source"])
        for cell in tutorial["cells"]
        if cell["cell_type"] == "code"
    }
    commands = re.search(r"from main import (.+)", sources["import"])[1].split(", ")
    if missing := [name for name in commands if not hasattr(main, name)]:
        pytest.skip(f"the tutorial needs {missing}, which was removed")
    place = tmp_path / "project"
    for pattern in ("*.py", "data/*.py", "models/*.py", "utils/**/*.*", "docs/*.*"):
        for path in PROJECT.glob(pattern):
            copy = place / path.relative_to(PROJECT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    kernel = Kernel(place / "docs", tmp_path / "home")
    try:
        outputs = {name: kernel.run(source) for name, source in sources.items()}
    finally:
        kernel.end()
    assert {name: output.error for name, output in outputs.items() if output.error} == {}
    assert "\rdrawing: " in outputs["prepare"].text
    assert len([*(place / "data/tutorial/train").iterdir()]) == 200
    assert ["image/png" in data for data in outputs["look"].shown] == [True, True]
    assert "\repoch 1/3:   0%|" in outputs["train"].text
    assert "The weights of epoch" in outputs["train"].shown[-1]["text/html"]
    accuracy = re.search(r"accuracy +([\d.]+)% of 60 pictures", outputs["val"].text)[1]
    (shown,) = outputs["val"].shown
    assert f"{float(shown['text/plain']):.2%}" == f"{accuracy}%"
    assert "report.html" in outputs["folder"].text.splitlines()
    assert ", 0 ✗, " in outputs["check"].text and outputs["check"].shown == []
    assert "goes on at epoch 4, step 1" in outputs["resume"].text
    for model in ("SqueezeNet_", "Tiny_"):
        assert model in outputs["compare"].shown[0]["text/html"]
    assert "20 rows are in result.csv\nid,label\n1,0." in outputs["test"].text
