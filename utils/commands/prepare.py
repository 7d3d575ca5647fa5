"""Get a data set and lay it out as train and test expect it."""

import os
import random
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread
from typing import Literal

from config import DefaultConfig
from utils.options import PositiveInt


class Options(DefaultConfig):
    """The options of `prepare` besides those in config.py."""

    required_path = None

    source: Literal["demo"] = "demo"  # demo: draws cats and dogs
    prepare_root: str | None = None  # folder to lay the set out in; None: data/<source>
    count: PositiveInt = 2000  # training pictures to draw (demo); a tenth more for test


KINDS = ("cat", "dog")  # the index is the label
TEST_SEEDS = 10**6  # training pictures use the seeds below, test pictures those from here on


def run(opt: Options) -> Path:
    """Lay the data set out, tell what to type next, and return its folder.

    Raises FileExistsError if the folder holds files. A run that fails or is stopped by a signal
    leaves no folder and no process.
    """
    from utils.signals import StopRequest

    root = Path(opt.prepare_root or f"data/{opt.source}")
    target = root.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} already exists: delete it or name another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    hidden = {"prefix": f".{target.name}-", "dir": target.parent}
    with StopRequest() as stop, tempfile.TemporaryDirectory(**hidden) as folder:
        build = Path(folder) / target.name  # a whole folder: renaming it is all or nothing
        jobs = lay_out(build, opt.count, opt.seed)
        draw_all(jobs, f"drawing into {root}", after_each=stop.raise_if_received)
        if target.exists():
            target.rmdir()  # it is empty, and Windows cannot rename to a name that exists
        build.rename(target)
    print(f"{root} is ready; next: python main.py train --train-data-root={root / 'train'}")
    return root


def lay_out(root: Path, count: int, seed: int) -> list[tuple[Path, str, int]]:
    """Make Kaggle's folders and test1_labels.csv; return a file, kind and seed for each picture."""
    for name in ("train", "test1"):
        (root / name).mkdir(parents=True)
    first = 2 * TEST_SEEDS * seed
    jobs = [
        (root / "train" / f"{KINDS[n % 2]}.{n // 2}.jpg", KINDS[n % 2], first + n // 2)
        for n in range(count)
    ]
    rng, rows = random.Random(seed), ["id,label\n"]
    for n in range(1, count // 10 + 1):
        label = rng.randrange(2)
        rows.append(f"{n},{label}\n")
        jobs.append((root / "test1" / f"{n}.jpg", KINDS[label], first + TEST_SEEDS + n))
    (root / "test1_labels.csv").write_text("".join(rows))
    return jobs


def draw_all(jobs: list[tuple[Path, str, int]], title: str, after_each: Callable) -> None:
    """Draw the pictures, one process a core. All processes have ended when this returns or raises.

    Not with multiprocessing.Pool: it waits forever for the result of a worker that was killed.
    """
    from tqdm import tqdm

    pool = ProcessPoolExecutor(initializer=start_worker)
    try:
        for _ in tqdm(pool.map(save, jobs, chunksize=4), title, len(jobs), disable=None):
            after_each()
    finally:
        pool.shutdown(cancel_futures=True)  # waits for the pictures that are being drawn


def start_worker() -> None:
    """Leave signals to the main process, and end when it has been killed."""
    from utils.signals import ignore_signals

    ignore_signals()  # a terminal sends Ctrl-C to its whole group
    parent = parent_process()
    Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def save(job: tuple[Path, str, int]) -> None:
    """Draw one picture into its JPEG file."""
    from utils.drawing import draw

    path, kind, seed = job
    draw(kind, seed).save(path, quality=90)
