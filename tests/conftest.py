"""Pictures for all tests: drawn ones, and real photos where DOGCAT_PHOTOS says there are some."""

import os
import runpy
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors; before torch is loaded

import pytest

from config import DefaultConfig
from tests.drawings import DrawnTrees, draw_set
from tests.helpers import PROJECT, SMALL, as_words

# A shell lets its background jobs ignore SIGINT, and so would the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw 60 training and 6 test pictures: `train/`, `test1/`, `test1_labels.csv`; read only."""
    root = tmp_path_factory.mktemp("pictures")
    draw_set(root, count=60)
    return root


@pytest.fixture(scope="session")
def photos() -> Path:
    """Give the folder of real photos: `photos/train`, `photos/test1`, `odd/`, `kaggle112.tar`."""
    folder = os.environ.get("DOGCAT_PHOTOS")
    if not folder:
        pytest.skip("DOGCAT_PHOTOS names no folder with real photos")
    return Path(folder).absolute()


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str
    warnings: list[str]


@pytest.fixture
def command(monkeypatch, capsys):
    """Run main.py with these words, in this process: its checks, fire, and the command."""
    DefaultConfig(dataset=DrawnTrees)  # makes its name known

    def run(*words: str) -> Done:
        small = as_words(SMALL | {"dataset": "DrawnTrees"})  # a bare state dict has no classes
        given = {word.partition("=")[0].replace("-", "_") for word in words}
        small = [word for word in small if word.partition("=")[0].replace("-", "_") not in given]
        monkeypatch.setattr(sys, "argv", ["main.py", *map(str, words), *small])
        capsys.readouterr()
        code: Any = 0
        with warnings.catch_warnings(record=True) as caught:  # they would be further lines
            # fire, with Python 3.14; Python does not show it to users.
            warnings.filterwarnings("ignore", ".*iscoroutinefunction", DeprecationWarning)
            try:
                runpy.run_path(str(PROJECT / "main.py"), run_name="__main__")
            except SystemExit as end:
                code = end.code
        out, err = capsys.readouterr()
        return Done(code, out, err, [str(warning.message) for warning in caught])

    return run
