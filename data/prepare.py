"""Draw the demo's pictures in the layout of Kaggle's Dogs vs. Cats."""

import random
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from .synthetic import draw

KINDS = ("cat", "dog")  # the index is the label
TEST_SEEDS = 10**6  # training pictures use the seeds below, test pictures those from here on


def save(job: tuple[Path, str, int]) -> None:
    """Draw the picture of a kind and a seed into a JPEG file."""
    path, kind, seed = job
    draw(kind, seed).save(path, quality=90)


def prepare_demo(
    root: Path,
    count: int = 2000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draw `count` training and `count // 10` test pictures in Kaggle's layout under `root`.

    `progress` is called with the number of pictures written and their total.
    Raises FileExistsError if `root` holds files; a killed run leaves no `root`.
    """
    root = Path(root).resolve()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} already exists: delete it or name another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as folder:
        build = Path(folder) / root.name  # a whole folder: renaming it is all or nothing
        (build / "train").mkdir(parents=True)
        (build / "test1").mkdir()
        first = 2 * TEST_SEEDS * seed
        jobs = [
            (build / "train" / f"{KINDS[n % 2]}.{n // 2}.jpg", KINDS[n % 2], first + n // 2)
            for n in range(count)
        ]
        rng, rows = random.Random(seed), ["id,label\n"]
        for n in range(1, count // 10 + 1):
            label = rng.randrange(2)
            rows.append(f"{n},{label}\n")
            jobs.append((build / "test1" / f"{n}.jpg", KINDS[label], first + TEST_SEEDS + n))
        (build / "test1_labels.csv").write_text("".join(rows))
        with ProcessPoolExecutor() as pool:
            for done, _ in enumerate(pool.map(save, jobs, chunksize=16), start=1):
                if progress:
                    progress(done, len(jobs))
        if root.exists():
            root.rmdir()  # it is empty, and Windows renames onto nothing that exists
        build.rename(root)
