"""Look at each picture once: can all of it be decoded, what are its bytes, what does it show."""

import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

COMMIT_EVERY = 500  # so many pictures may have to be looked at again after a kill
COLUMNS = "size, sha256, reason, thumbnail"


class Facts(NamedTuple):
    size: int  # bytes
    sha256: str
    reason: str  # why it cannot be read; "" if it can
    thumbnail: bytes  # of `copies.thumbnail`


def look_at(path: str) -> Facts:
    """Read and decode a picture as a whole. It does not have to be read a second time."""
    from data.read_image import UnreadableImage, read_image
    from utils.files import digest_of

    from .copies import SIDE, thumbnail

    try:
        size, digest = os.path.getsize(path), digest_of(path)
        return Facts(size, digest, "", thumbnail(read_image(path, side=2 * SIDE)).tobytes())
    except UnreadableImage as error:
        return Facts(size, digest, str(error).partition(" is left out: ")[2], b"")
    except OSError as error:
        return Facts(0, "", error.strerror or str(error), b"")


def look_at_all(
    paths: Sequence[Path], memory: Path, after_each: Callable[[], object] = lambda: None
) -> list[Facts]:
    """Return the facts of each picture; all cores work on it.

    memory: a file that keeps the facts for a later call. after_each: what it raises ends the work.
    """
    memory.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(memory, timeout=60)) as database:
        database.execute(f"CREATE TABLE IF NOT EXISTS facts (key PRIMARY KEY, {COLUMNS})")
        select = f"SELECT {COLUMNS} FROM facts WHERE key = ?"
        keys = [key_of(path) for path in paths]
        rows = (database.execute(select, [key]).fetchone() for key in keys)
        facts = [row and Facts(*row) for row in rows]
        missing = [number for number, known in enumerate(facts) if not known]
        results = run_all(look_at, [str(paths[n]) for n in missing], "looking", after_each)
        for part in range(0, len(missing), COMMIT_EVERY):
            numbers = missing[part : part + COMMIT_EVERY]
            for number, seen in zip(numbers, results, strict=False):
                facts[number] = seen
            # A file that could not be opened may be opened the next time.
            new = [(keys[number], *facts[number]) for number in numbers if facts[number].sha256]
            with database:
                insert = "INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?)"
                database.executemany(insert, new)
    return facts


def key_of(path: Path) -> bytes:
    """Return a key that changes with the file."""
    try:
        status = path.stat()
    except OSError:  # a link that leads nowhere
        return os.fsencode(path)
    return os.fsencode(path) + b"|%d|%d" % (status.st_size, status.st_mtime_ns)


def run_all(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    title: str,
    after_each: Callable[[], object],
) -> Iterator[Any]:
    """Yield what `function` returns for each job, in order. All processes have ended at the end.

    Not with multiprocessing.Pool: it waits forever for the result of a worker that was killed.
    """
    from tqdm import tqdm

    from utils.notebook import bar_options

    pool = ProcessPoolExecutor(initializer=start_worker)
    try:
        results = pool.map(function, jobs, chunksize=8)
        with tqdm(results, title, len(jobs), **bar_options()) as bar:
            for result in bar:
                yield result
                after_each()
    finally:
        pool.shutdown(cancel_futures=True)  # waits for what is being done


def start_worker() -> None:
    """Follow the main process, and use one core."""
    from utils.signals import follow_main_process

    follow_main_process()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
