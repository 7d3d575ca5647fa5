"""Get a data set, sort out what cannot be used, and write which picture is train, val or test."""

import os
import random
import shlex
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from config import DefaultConfig
from utils.options import Limits, PositiveInt, UsageError

NAMES = ("demo", "oxford-pets", "microsoft", "kaggle")


class SourceLimits(Limits):
    """Takes a name, a path that exists, or an address."""

    def contain(self, value: str) -> bool:
        return value in NAMES or "://" in value or os.path.exists(value)


Source = Annotated[str, SourceLimits(f"{', '.join(NAMES)}, a folder, an archive or an address")]


class Options(DefaultConfig):
    """The options of `prepare` besides those in config.py."""

    source: Source = "demo"  # demo: draws pictures; oxford-pets: 7,390 photos, no account
    prepare_root: str | None = None  # folder to lay the set out in; None: data/<source>
    count: PositiveInt = 2000  # training pictures to draw (demo); a tenth more for test
    breeds: bool = False  # oxford-pets: the classes are the 37 breeds, not the 2 species


OPTIONS_USED = ("source", "count", "breeds", "seed", "dataset", "layout", "val_share")
TEST_SEEDS = 10**6  # training pictures use the seeds below, test pictures those from here on


def run(opt: Options) -> Path:
    """Lay the data set out, tell what to type next, and return its folder.

    Raises FileExistsError if the folder holds files. Until all is done, the folder has another
    name; after a failure or a signal, the same command goes on in it.
    """
    from utils import files, run_folder
    from utils.preparation.archives import ArchiveError
    from utils.preparation.sources import SourceError, archive_name
    from utils.signals import StopRequest

    if "train_data_root" in opt.given:
        raise UsageError("prepare takes its pictures from --source, not --train-data-root")
    name = opt.source if opt.source in NAMES else archive_name(opt.source).partition(".")[0]
    if not (opt.prepare_root or name):
        raise UsageError(f"--source={opt.source} has no name: add --prepare-root=FOLDER")
    root = Path(opt.prepare_root or f"data/{name}")
    target = root.resolve()
    if target == Path(opt.source).resolve():
        raise UsageError(f"{root} is the source itself: name another folder by --prepare-root")
    if os.path.ismount(target) or (
        target.exists() and (not target.is_dir() or any(target.iterdir()))
    ):
        raise FileExistsError(f"{target} is there already: name another folder by --prepare-root")
    work = target.with_name(f".{target.name}.partial")
    work.mkdir(parents=True, exist_ok=True)
    lock = run_folder.lock(work, print)
    asked = {name: getattr(opt, name) for name in OPTIONS_USED}
    if os.path.isfile(opt.source):
        asked["archive"] = [os.path.getsize(opt.source), os.stat(opt.source).st_mtime_ns]
    if not was_asked(work, asked):  # of a command with other options
        for path in work.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    files.write_json(work / "options.json", asked)
    try:
        with lock, StopRequest(advice="; the same command goes on") as stop:
            if opt.source == "demo":
                draw_all(work, opt.count, opt.seed, stop.raise_if_received)
            else:
                sort_out(work, opt, stop.raise_if_received)
    except (ArchiveError, SourceError):  # another attempt would fail as well
        shutil.rmtree(work)
        raise
    for file in (".lock", "options.json"):
        (work / file).unlink()
    if target.exists():
        target.rmdir()  # it is empty, and Windows cannot rename to a name that exists
    work.rename(target)
    train = root if (root / "val").exists() else root / "train"
    option = shlex.quote(f"--train-data-root={train.as_posix()}")  # Windows takes / as well
    print(f"{root} is ready; next: python main.py train {option}")
    return root


def was_asked(work: Path, asked: dict) -> bool:
    """Return whether the folder of an unfinished command belongs to these options."""
    import json

    try:
        return json.loads((work / "options.json").read_text(encoding="utf-8")) == asked
    except (OSError, ValueError):
        return False


def draw_all(work: Path, count: int, seed: int, after_each: Callable[[], object]) -> None:
    """Draw the demo's pictures, in Kaggle's layout, and write test1_labels.csv."""
    from utils.drawing import KINDS
    from utils.files import write_text
    from utils.preparation.look import run_all

    first = 2 * TEST_SEEDS * seed
    jobs = [
        (work / "train" / f"{KINDS[n % 2]}.{n // 2}.jpg", KINDS[n % 2], first + n // 2)
        for n in range(count)
    ]
    rng, rows = random.Random(seed), ["id,label\n"]
    for n in range(1, count // 10 + 1):
        label = rng.randrange(2)
        rows.append(f"{n},{label}\n")
        jobs.append((work / "test1" / f"{n}.jpg", KINDS[label], first + TEST_SEEDS + n))
    for folder in ("train", "test1"):
        (work / folder).mkdir(exist_ok=True)
    write_text(work / "test1_labels.csv", "".join(rows))
    for _ in run_all(draw_one, jobs, "drawing", after_each):
        pass


def draw_one(job: tuple[Path, str, int]) -> None:
    """Draw one picture into its JPEG file, unless it is there."""
    from utils.drawing import draw

    path, kind, seed = job
    if not path.exists():
        unfinished = path.with_suffix(".unfinished")
        draw(kind, seed).save(unfinished, "jpeg", quality=90)
        unfinished.replace(path)


def sort_out(work: Path, opt: Options, after_each: Callable[[], object]) -> None:
    """Lay out the pictures of a source: train/, test1/, rejected/ with reasons.csv, split.csv."""
    import data
    from data.listing import relative
    from data.read_image import printable
    from utils import files
    from utils.options import find_class
    from utils.preparation import sources
    from utils.preparation.inspection import inspect_pictures

    flat_classes = find_class(data, opt.dataset).classes
    folder = sources.fetch(opt.source, Path("data/downloads"), work, after_each)
    if opt.source == "oxford-pets":
        found, left_out = sources.plan_pets(folder, opt.breeds)
    else:
        found, left_out = sources.plan(folder, opt.layout, flat_classes)
    if not found:
        raise sources.SourceError(f"{opt.source} has no picture")
    rejected = work / "rejected"
    reasons = {relative(path, folder): reason for path, reason in left_out.items()}
    link = folder.is_relative_to(work)  # was unpacked here, and is deleted at the end
    for path in reasons:
        take(folder / path, rejected / path, link)
    for path, source in found.items():
        take(source, work / path, link)
        after_each()
    inspection = inspect_pictures(
        root=work if (work / "val").exists() else work / "train",
        folder=work,
        layout="auto",
        flat_classes=flat_classes,
        test_root=work / "test1" if (work / "test1").exists() else None,
        memory=work / "seen.sqlite",
        after_each=after_each,
    )
    bad = inspection.contradictions() | inspection.unreadable()
    for number, reason in bad.items():
        picture = inspection.pictures[number]
        if not picture.label:
            reason += "; it stays, since an answer is expected for each picture of test1"
        else:
            place = rejected / picture.path
            place.parent.mkdir(parents=True, exist_ok=True)
            (work / picture.path).replace(place)
        reasons[picture.path] = reason
    inspection = inspection.without(bad)
    if not any(picture.label for picture in inspection.pictures):
        first = next(iter(reasons.items()))
        raise sources.SourceError(f"{opt.source}: no picture can be used, {first[0]}: {first[1]}")
    inspection.write_page(opt.val_share)
    print(inspection.write(opt.val_share))
    rows = [{"path": printable(path), "reason": reason} for path, reason in reasons.items()]
    if rows:
        files.write_csv(rejected / "reasons.csv", rows)
        print(f"{len(rows):,} files are not used, see rejected/reasons.csv")
        print(*(f"  {row['path']}: {row['reason']}" for row in rows[:20]), sep="\n")
    (work / "seen.sqlite").unlink()
    shutil.rmtree(work / "unpacked", ignore_errors=True)


def take(source: Path, path: Path, link: bool) -> None:
    """Copy a file of the source to `path`, unless it is there.

    link: make a second name of the file instead, for a source that is deleted afterwards.
    """
    if path.exists() or not source.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if link:
        with suppress(OSError):  # some file systems have no links
            os.link(source, path)
            return
    unfinished = path.with_name(".unfinished")
    shutil.copyfile(source, unfinished)
    unfinished.replace(path)
