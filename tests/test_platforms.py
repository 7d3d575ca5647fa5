"""train, val and test on other systems, as far as one system can show: see docs/setup.md.

What Windows lacks is taken away from Python, the start method is that of Windows and macOS, names
are Chinese, and the locale is one without Chinese letters. The weights have to be the same bits.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

from tests.drawings import draw
from tests.helpers import (
    PROJECT,
    SMALL,
    as_words,
    children_of,
    is_alive,
    linux_only,
    wait_until,
)

CLASSES = ("松", "枫", "桦")  # pine, maple, birch: in the order of their names
KINDS = ("pine", "maple", "birch")  # what is drawn
NOT_ON_WINDOWS = re.compile(r'[<>:"|?*\\]|[. ]$')  # what no name of a file may have there

# Python runs a file of this name before anything else, in the worker processes, too.
STUB = """
import multiprocessing, os, signal, sys

lacking = "fork forkpty getuid geteuid memfd_create mkfifo nice pread pwrite"
lacking += " sched_getaffinity sched_setaffinity statvfs"
for name in lacking.split():
    delattr(os, name)
for name in ("SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "alarm", "pause"):
    delattr(signal, name)
for name in ("fcntl", "grp", "pty", "pwd", "resource", "termios"):
    sys.modules[name] = None  # to import it is an error
if not multiprocessing.get_start_method(allow_none=True):
    multiprocessing.set_start_method("spawn")
"""


class Result(NamedTuple):
    weights: dict
    table: str  # result.csv
    words: str  # what val measured
    names: list[str]  # of all files and folders of the run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Draw three classes with Chinese names, a folder each, and a folder of unlabelled pictures."""
    root = tmp_path_factory.mktemp("pictures")
    for label, name in enumerate(CLASSES):
        (root / "train" / name).mkdir(parents=True)
        for n in range(16):
            draw(KINDS[label], n, KINDS).save(root / "train" / name / f"图 {n}.jpg")
    (root / "test1").mkdir()
    for n in range(4):
        draw(KINDS[n % 3], 100 + n, KINDS).save(root / "test1" / f"图 {n}.jpg")
    return root


def run_commands(
    folder: Path,
    pictures: Path,
    project: Path = PROJECT,
    environment: dict[str, str] | None = None,
    options: dict | None = None,
) -> Result:
    """Type train, val and test in a folder, with relative paths for all that is written."""

    def command(name: str, *words: str) -> str:
        options = as_words({**SMALL, **wanted})
        paths = [f"--train-data-root={pictures}/train", f"--test-data-root={pictures}/test1"]
        done = subprocess.run(
            [sys.executable, project / "main.py", name, *options, *paths, *words],
            cwd=folder,
            env={**clean, **(environment or {})},
            capture_output=True,
        )
        errors = done.stderr.decode(errors="replace")
        assert done.returncode == 0, errors
        # Of a text that is read or written in the encoding of the system.
        warnings = [line for line in errors.splitlines() if "EncodingWarning" in line]
        assert not [line for line in warnings if line.startswith(ours)], errors
        return done.stdout.decode(errors="replace")

    ours = tuple(
        f"{project}{os.sep}{name}" for name in ("config", "data", "main", "models", "utils")
    )
    wanted = {"max_epoch": 1, **(options or {})}
    locale = ("LANG", "LC_ALL", "LC_CTYPE", "PYTHONUTF8", "PYTHONIOENCODING")
    clean = {name: value for name, value in os.environ.items() if name not in locale}
    clean |= {"PYTHONWARNDEFAULTENCODING": "1"}
    command("train")
    (run,) = (folder / "checkpoints").glob("SqueezeNet_*")
    words = command("val").partition("\nloss ")[2]
    command("test")
    weights = torch.load(run / "last.pth", weights_only=True)["model"]
    table = (folder / "result.csv").read_text(encoding="utf-8")
    return Result(weights, table, words, [path.name for path in run.parent.rglob("*")])


def assert_same(one: Result, other: Result) -> None:
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
    assert one.table == other.table


@pytest.fixture(scope="module")
def usual(pictures, tmp_path_factory) -> Result:
    """What the commands do on this system."""
    result = run_commands(tmp_path_factory.mktemp("usual"), pictures)
    assert result.table.startswith(f"id,{','.join(CLASSES)}\n图 0,")
    assert len(result.table.splitlines()) == 5
    return result


def test_without_what_windows_lacks_the_bits_are_the_same(usual, pictures, tmp_path):
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "sitecustomize.py").write_text(STUB, encoding="utf-8")
    environment = {"PYTHONPATH": str(tmp_path / "stub")}
    result = run_commands(tmp_path, pictures, PROJECT, environment, {"num_workers": 2})
    assert_same(result, usual)
    assert result.words == usual.words
    assert not [name for name in result.names if NOT_ON_WINDOWS.search(name)]


def test_the_project_may_lie_in_a_folder_with_spaces_and_chinese_letters(usual, pictures, tmp_path):
    project = tmp_path / "我的 项目 (1)"
    for pattern in ("*.py", "data/*.py", "models/*.py", "utils/**/*.*"):
        for path in PROJECT.glob(pattern):
            target = project / path.relative_to(PROJECT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    shutil.copytree(pictures, project / "data" / "图 集")
    result = run_commands(project, Path("data/图 集"), project)
    assert_same(result, usual)
    assert result.words == usual.words


@pytest.mark.parametrize("utf8", ["", "0"], ids=["C", "C without UTF-8"])
def test_class_names_need_no_locale_that_has_their_letters(usual, pictures, tmp_path, utf8):
    environment = {"LANG": "C", "LC_ALL": "C"}
    if utf8:
        environment |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = run_commands(tmp_path, pictures, environment=environment)
    assert_same(result, usual)
    (page,) = tmp_path.glob("checkpoints/*/report.html")
    assert all(name in page.read_text(encoding="utf-8") for name in CLASSES)


@linux_only
def test_the_path_of_the_pictures_may_have_bytes_that_are_no_utf_8(usual, pictures, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(pictures, folder)
    assert_same(run_commands(tmp_path, folder), usual)
    (file,) = tmp_path.glob("checkpoints/*/config.json")
    assert json.loads(file.read_text(encoding="utf-8"))["train_data_root"] == f"{folder}/train"


@linux_only
def test_no_loader_process_outlives_a_killed_run(pictures, tmp_path):
    """Python 3.14 starts them from a process of its own, so their parent does not die."""
    stub = "import multiprocessing\nmultiprocessing.set_start_method('forkserver', force=True)\n"
    (tmp_path / "sitecustomize.py").write_text(stub, encoding="utf-8")
    options = {**SMALL, "num_workers": 2, "cache": "none", "max_epoch": 1000}
    words = ["train", f"--train-data-root={pictures}/train", *as_words(options)]
    process = subprocess.Popen(
        [sys.executable, PROJECT / "main.py", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.DEVNULL,
    )
    family = []

    def has_workers() -> bool:
        servers = children_of(process.pid)
        workers = [worker for server in servers for worker in children_of(server)]
        family[:] = servers + workers
        return len(workers) == 4  # of train and of val

    try:
        wait_until(has_workers)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not any(map(is_alive, family)))


def test_the_workflow_tries_each_python_on_each_system():
    path = PROJECT / ".github/workflows/ci.yml"
    if not path.exists():
        pytest.skip("there is no workflow")
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert job["strategy"]["matrix"] == {
        "os": ["ubuntu-latest", "macos-latest", "windows-latest"],
        "python": ["3.11", "3.12", "3.13", "3.14"],  # 3.10 without quotes would be 3.1
    }
    assert workflow["permissions"] == {"contents": "read"} and job["timeout-minutes"] <= 60
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert used and all(re.fullmatch(r"actions/[\w-]+@v\d+", name) for name in used)
    lines = [line for step in job["steps"] for line in step.get("run", "").splitlines()]
    targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.M)
    made = [word for line in lines if line.startswith("make ") for word in line.split()[1:]]
    assert made and {*made} <= {*targets}


def test_a_commit_is_checked_by_the_ruff_of_the_lock():
    path = PROJECT / ".pre-commit-config.yaml"
    if not path.exists():
        pytest.skip("there is no .pre-commit-config.yaml")
    repos = yaml.safe_load(path.read_text(encoding="utf-8"))["repos"]
    (ruff,) = (repo for repo in repos if repo["repo"].endswith("/ruff-pre-commit"))
    lock = (PROJECT / "requirements.lock").read_text(encoding="utf-8")
    assert f"\nruff=={ruff['rev'].removeprefix('v')} " in lock
    assert [hook["id"] for hook in ruff["hooks"]] == ["ruff-check", "ruff-format"]
