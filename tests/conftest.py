"""Pictures for all tests: drawn ones, and real photos where DOGCAT_PHOTOS says there are some."""

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors; before torch is loaded

import pytest

from tests.drawings import draw_set

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
