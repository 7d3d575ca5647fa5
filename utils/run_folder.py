"""The folder of a run: where it is made, found and locked, and what it ran on. No torch here."""

import errno
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, BinaryIO

from utils.files import make_folder, sync_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PROJECT = Path(__file__).resolve().parent.parent


def new_run(root: str | Path, name: str) -> Path:
    """Make and return `<root>/<name>_<YYYYmmdd_HHMMSS>`, a folder that no other run has."""
    stem = f"{name}_{time.strftime('%Y%m%d_%H%M%S')}"
    make_folder(Path(root))
    for number in range(1, 1000):
        folder = Path(root) / (stem if number == 1 else f"{stem}_{number}")
        try:
            folder.mkdir()
            sync_folder(folder.parent)
            return folder
        except FileExistsError:  # of a run that began in the same second
            continue
    raise FileExistsError(f"{root} has a thousand runs named {stem}")


def newest_run(root: str | Path) -> Path | None:
    """Return the run under `root` that saved a checkpoint last, or None."""
    saved = [(path.stat().st_mtime, path.parent) for path in Path(root).glob("*/last*.pth")]
    return max(saved)[1] if saved else None


def run_of_launch(root: str | Path, launch: str) -> Path | None:
    """Return the run that this launch of torchrun has begun and saved under `root`, or None."""
    found = []
    for path in Path(root).glob("*/environment.json"):
        with suppress(OSError, ValueError):
            begun_by = json.loads(path.read_text(encoding="utf-8")).get("launch")
            if begun_by == launch and [*path.parent.glob("last*.pth")]:
                found.append((path.stat().st_mtime, path.parent))
    return max(found)[1] if found else None


def lock(folder: Path, log: Callable[[str], None]) -> BinaryIO:
    """Reserve a folder for this process until it ends or closes the file returned.

    Raises OSError if another process has it. A file system without locks costs a line in the log.
    """
    file = open(folder / ".lock", "ab")  # noqa: SIM115
    try:
        if fcntl and sys.platform != "win32":  # a record lock: loader processes do not inherit it
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise OSError(f"another process is at work in {folder}: wait until it ends") from None
        log(f"{folder} cannot be locked ({error.strerror}): do not start a second run in it")
    return file


def environment(launch: str = "") -> dict[str, Any]:
    """Return what this run ran on, enough to repeat it. launch: of torchrun."""
    describe = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        answer = subprocess.check_output(describe, encoding="utf-8", stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):  # no git, or not a clone
        answer = ""
    return {
        "command": sys.argv,
        "launch": launch or None,
        "git_commit": answer.strip() or None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": {package.name: package.version for package in distributions()},
    }
