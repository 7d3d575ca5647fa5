"""A run's folder and the text files in it. No torch here."""

import csv
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "fire", "visdom", "torchnet", "tensorboard")


def new_run(root: str | Path, name: str) -> Path:
    """Make `<root>/<name>_<YYYYmmdd_HHMMSS>`, a folder that no other run has."""
    stem = f"{name}_{time.strftime('%Y%m%d_%H%M%S')}"
    for number in range(1, 1000):
        folder = Path(root) / (stem if number == 1 else f"{stem}_{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # a run that began in the same second
            continue
    raise FileExistsError(f"{root} has a thousand runs named {stem}")


def newest_run(root: str | Path) -> Path | None:
    """Find the run under `root` that saved a checkpoint last, if there is one."""
    saved = [(path.stat().st_mtime, path.parent) for path in Path(root).glob("*/last*.pth")]
    return max(saved)[1] if saved else None


def write_json(path: Path, contents: Any) -> None:
    path.write_text(json.dumps(contents, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_csv(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows, whose keys are the header, so that the file is whole at any moment."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def environment() -> dict[str, Any]:
    """Tell what this run ran on, enough to repeat it."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    describe = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.check_output(describe, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or not a clone
        commit = None
    return {
        "command": sys.argv,
        "git_commit": commit,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": versions,
    }


class Disk:
    """`with disk(path):` around a write: a disk that refuses it costs a warning, not the run.

    `failures` has the paths whose newest contents are not on the disk, and why.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self.failures: dict[Path, str] = {}

    @contextmanager
    def __call__(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            if reason not in self.failures.values():
                self.warn(f"{path} cannot be written ({reason}); the run goes on and tries again")
            self.failures[path] = reason
        else:
            self.failures.pop(path, None)

    def raise_failures(self) -> None:
        """Raise OSError if something is still not written."""
        if self.failures:
            words = ", ".join(f"{path} ({reason})" for path, reason in self.failures.items())
            raise OSError(f"the run is complete but not all on the disk: {words}")


def lock(folder: Path) -> TextIO:
    """Make a run's folder this process's own until the file returned is closed, however that
    happens; clean what a killed run left half written. OSError if another run has the folder.
    """
    file = open(folder / ".lock", "a")  # noqa: SIM115
    try:
        if fcntl:  # Windows has no such lock; here a record lock, since workers do not inherit it
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise OSError(f"{folder} belongs to a run that is going on now") from None
    for stale in folder.glob(".*.tmp"):
        stale.unlink()
    return file


class Log:
    """Print lines without breaking a progress bar, and keep them in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, line: str) -> None:
        tqdm.write(line)
        with suppress(OSError), open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
