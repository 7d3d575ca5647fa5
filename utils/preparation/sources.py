"""Where data sets come from: addresses, archives and folders, and what of them becomes what."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from data.listing import (
    SPLIT_NAMES,
    SUFFIXES,
    files_below,
    flat_pattern,
    folded,
    list_labelled,
    sorted_entries,
    split_folders,
)
from utils.drawing import KINDS

from .archives import ArchiveError, is_archive, unpack
from .download import download

OXFORD_PETS = (  # as in torchvision.datasets.OxfordIIITPet: address and MD5
    "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",
    "5c4f3ee8e5d25df40f4fd59a7f44e54c",
)
MICROSOFT = (
    "https://download.microsoft.com/download/3/E/1/3E1C3F21-ECDB-4869-8368-6DEBA77B919F/"
    "kagglecatsanddogs_5340.zip"
)
KAGGLE = "dogs-vs-cats"
KAGGLE_PARTS = ("train.zip", "test1.zip")  # the archives in Kaggle's archive
Plan = dict[str, Path]  # where in the new folder: which file comes to lie there


class SourceError(RuntimeError):
    """A source that gives no data: one line with the reason and what to do."""


def fetch(source: str, downloads: Path, work: Path, after_each: Callable[[], object]) -> Path:
    """Return the folder with the files of a source. Archives are unpacked in `work`.

    downloads: the folder for what comes from the network; it is not loaded a second time.
    after_each: is called now and then; what it raises ends the work.
    """
    if Path(source).is_dir():
        return Path(source)
    address, md5 = {"oxford-pets": OXFORD_PETS, "microsoft": (MICROSOFT, None)}.get(
        source, (source, None)
    )
    if source == "kaggle":
        archive = ask_kaggle(downloads)
    elif "://" in address:
        # Archives of the same name from two places are two files.
        place = hashlib.sha256(address.encode()).hexdigest()[:8]
        archive = downloads / f"{place}-{archive_name(source)}"
        download(address, archive, md5, after_each)
    else:
        archive = Path(source)
    if not is_archive(archive):
        raise SourceError(f"{archive} is neither a folder nor a .zip, .tar, .tar.gz or .tgz file")
    folder = work / "unpacked"
    try:
        inner_archives = unpack(archive, folder, KAGGLE_PARTS, after_each)
    except ArchiveError as error:
        advice = f"; delete {archive} to load it again" if archive.parent == downloads else ""
        raise ArchiveError(f"{error}{advice}") from error
    for inner in inner_archives:
        part = work / inner.stem
        unpack(inner, part, after_each=after_each)
        inside = list(part.iterdir())
        if not (folder / inner.stem).exists():
            (inside[0] if len(inside) == 1 else part).rename(folder / inner.stem)
        inner.unlink()
        shutil.rmtree(part, ignore_errors=True)
    return folder


def archive_name(source: str) -> str:
    """Return the name of the file that a source is, or is loaded from."""
    address = {"oxford-pets": OXFORD_PETS[0], "microsoft": MICROSOFT}.get(source, source)
    name = Path(urlsplit(address).path if "://" in address else address).name
    if "://" in source and not is_archive(Path(name)):
        raise SourceError(f"{source} is no .zip, .tar, .tar.gz or .tgz file")
    return name


def ask_kaggle(downloads: Path) -> Path:
    """Let the kaggle client download the competition's archive; return it."""
    archive = downloads / f"{KAGGLE}.zip"
    if archive.exists():
        return archive
    by_hand = f"or get {archive.name} from kaggle.com/c/{KAGGLE}/data and give --source=PATH"
    if not (client := shutil.which("kaggle")):
        raise SourceError(f"the kaggle client is not installed: pip install kaggle, {by_hand}")
    downloads.mkdir(parents=True, exist_ok=True)
    command = [client, "competitions", "download", "-c", KAGGLE, "-p", str(downloads)]
    done = subprocess.run(command, stderr=subprocess.PIPE, encoding="utf-8", errors="replace")
    if done.returncode or not archive.exists():
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        advice = "put your token into ~/.kaggle/kaggle.json, accept the competition's rules"
        raise SourceError(f"the kaggle client failed ({said}): {advice}, {by_hand}")
    return archive


def plan(folder: Path, layout: str, flat_classes: Sequence[str]) -> tuple[Plan, dict[str, str]]:
    """Return {path in the new folder: file of the source}, and why other files are left out.

    Labelled pictures come into train/, and into val/ if the source has it; others into test1/.
    """
    folder = inner_folder(folder, flat_classes)
    listing = list_labelled(folder, layout, flat_classes)
    found: Plan = {}
    for picture in listing.pictures:
        rest = picture.path
        if listing.layout == "splits":
            rest = rest.partition("/")[2]
        found[f"{picture.split or 'train'}/{rest}"] = folder / picture.path
    left_out = dict(listing.left_out)
    parts = split_folders(folder)
    if "train" in parts and "test" in parts:
        for path in files_below(folder, left_out, parts["test"]):
            found[f"test1/{path.partition('/')[2]}"] = folder / path
    return found, {str(folder / path): reason for path, reason in left_out.items()}


def plan_pets(folder: Path, breeds: bool) -> tuple[Plan, dict[str, str]]:
    """Plan Oxford's pets: names like Abyssinian_1.jpg, whose first letter tells the species."""
    left_out: dict[str, str] = {}
    found: Plan = {}
    for path in files_below(folder, left_out, ""):
        name = Path(path).name
        species = KINDS[0] if name[0].isupper() else KINDS[1]
        label = name.rpartition("_")[0] if breeds else species
        found[f"train/{label}/{name}"] = folder / path
    return found, {str(folder / path): reason for path, reason in left_out.items()}


def inner_folder(folder: Path, flat_classes: Sequence[str]) -> Path:
    """Return the folder itself, or the one in it that everything lies in."""
    entries = sorted_entries(folder)
    inner = [Path(entry.path) for entry in entries if os.path.isdir(entry.path)]
    has_pictures = any(entry.name.lower().endswith(SUFFIXES) for entry in entries)
    if len(inner) != 1 or has_pictures or inner[0].name.lower() in SPLIT_NAMES:
        return folder
    pattern, inside = flat_pattern(flat_classes), sorted_entries(inner[0])
    go_in = any(
        os.path.isdir(entry.path) or pattern.fullmatch(folded(entry.name)) for entry in inside
    )
    return inner_folder(inner[0], flat_classes) if go_in else folder
