"""What several tests share: small options, processes to look at, the precision of this pass."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from utils import checkpoint

# For a test that asks Linux about processes, memory or open files.
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
# For a test with signals, links, odd names of files, or limits of a process.
posix_only = pytest.mark.skipif(os.name != "posix", reason="needs a Unix system")

PROJECT = Path(__file__).resolve().parent.parent
NOBODY = 1  # a port where no visdom server is

# `make test` runs the tests of training twice, in float32 and in bfloat16.
PRECISION = os.environ.get("TEST_PRECISION", "fp32")
# How far a probability may be from the same computed in float32, picture by picture.
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}[PRECISION]

SMALL = {
    "dataset": "Pictures",  # reads the drawn pictures, whatever the project's own data set is
    "image_size": 64,
    "batch_size": 16,
    "num_workers": 0,
    "use_gpu": False,
    "precision": PRECISION,
    "visdom_port": NOBODY,
    "debug_file": None,
    "print_freq": 1,
}


def steps_made(checkpoint: dict) -> int:
    """Return how many updates the optimizer of a checkpoint has made."""
    return max(int(state.get("step", 0)) for state in checkpoint["optimizer"]["state"].values())


def as_words(options: dict) -> list[str]:
    """Write options as on a command line."""
    return [f"--{name}={value}" for name, value in options.items()]


def children_of(pid: int) -> list[int]:
    """List the processes whose parent is `pid`, from Linux's /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def assert_same_weights(one: Path, other: Path) -> None:
    """The last weights and the optimizer's state agree bit for bit."""
    first, second = (checkpoint.read(run / "last.pth") for run in (one, other))
    assert first["model"].keys() == second["model"].keys()
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    for number, state in first["optimizer"]["state"].items():
        for name, value in state.items():
            found = second["optimizer"]["state"][number][name]
            same = torch.equal(value, found) if isinstance(value, torch.Tensor) else value == found
            assert same, (number, name)
    assert first["history"] == second["history"]
