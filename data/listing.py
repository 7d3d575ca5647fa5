"""Find pictures on the disk: which files there are, and what names and folders say of them."""

import csv
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from .read_image import printable

LAYOUTS = {  # the values of --layout, and what the log says
    "flat": "the class in each name",
    "folders": "a folder per class",
    "splits": "folders for train and val",
    "csv": "a list of paths and labels",
}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif")
IGNORED = {"thumbs.db", "desktop.ini", "__macosx", "split.csv", "split.html"}
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "test1": "test"}
SPLIT_NAMES["testing"] = "test"
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validation"), "val")
LISTED_ALREADY = "this folder is listed already, by another name"
COLUMNS = {  # of a list, and how others call them
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path"),
    "label": ("label", "class", "category", "target"),
    "split": ("split", "subset", "set"),
}


class ListError(ValueError):
    """A list of pictures that cannot be understood: one line that says where and why."""


class Picture(NamedTuple):
    path: str  # within the folder of the data set
    label: str = ""  # the name of its class
    split: str = ""  # train, val or test, where the data say so


class Listing(NamedTuple):
    layout: str
    classes: Sequence[str]
    pictures: list[Picture]  # by class, then by name
    left_out: dict[str, str]  # path: why


def list_labelled(root: Path, layout: str, flat_classes: Sequence[str]) -> Listing:
    """List the pictures of train and val.

    layout: one of LAYOUTS; "auto" finds it by looking. flat_classes: the classes of the layout
    "flat", whose files are named like `rose.12.jpg`; other layouts bring their own classes.
    """
    left_out: dict[str, str] = {}
    if layout == "auto":
        layout = find_layout(root, flat_classes)
    if (layout == "csv") != root.is_file() or (
        layout == "splits" and "train" not in split_folders(root)
    ):
        raise ListError(
            f"{printable(root)} is not laid out as --layout={layout}: leave out --layout"
        )
    if layout == "csv":
        pictures = [row for row in read_list(root, left_out) if row.split != "test"]
        classes: Sequence[str] = classes_of(pictures)
    elif layout == "splits":
        classes, pictures = list_splits(root, flat_classes, left_out)
    else:
        list_folder = list_flat if layout == "flat" else list_class_folders
        classes, pictures = list_folder(root, flat_classes, left_out)
    label_of = {name: label for label, name in enumerate(classes)}
    pictures.sort(key=lambda picture: label_of[picture.label])  # within a class, the order stays
    return Listing(layout, classes, pictures, left_out)


def list_unlabelled(root: Path) -> tuple[Listing, list[int] | list[str]]:
    """List the pictures to classify, and their ids: all of a folder, or those of a list of paths.

    An id is the file's name without suffix, or its path, if the files lie in several folders.
    """
    left_out: dict[str, str] = {}
    if root.is_file():
        rows = read_list(root, left_out, labelled=False)
        paths = [row.path for row in rows if row.split in ("", "test")]
    else:
        folders = split_folders(root)
        start = folders.get("test", "") if "train" in folders else ""
        paths = list(files_below(root, left_out, start))
    one_folder = len({os.path.dirname(path) for path in paths}) == 1
    path_of: dict[str, str] = {}
    for path in paths:
        name = printable(os.path.splitext(os.path.basename(path) if one_folder else path)[0])
        if path_of.setdefault(name, path) != path:
            left_out[path] = "another picture has the same name"
    ids = sorted_names(path_of)
    pictures = [Picture(path_of[name]) for name in ids]
    are_numbers = all(is_number(name) and str(int(name)) == name for name in ids)
    return Listing("", (), pictures, left_out), [int(n) for n in ids] if are_numbers else ids


def find_layout(root: Path, flat_classes: Sequence[str]) -> str:
    """Return the layout of a folder, or of a list, by looking at it.

    A folder `train` with pictures of any names directly in it is not a split, but a class.
    """
    if root.is_file():
        return "csv"
    parts = split_folders(root)
    if "train" in parts and contains_classes(root / parts["train"], flat_classes):
        return "splits"
    return contains_classes(root, flat_classes) or "flat"


def contains_classes(folder: Path, flat_classes: Sequence[str]) -> str:
    """Return "flat" or "folders" for a folder that has classes in this way, else ""."""
    pattern, found = flat_pattern(flat_classes), ""
    for entry in os.scandir(folder):
        if pattern.fullmatch(folded(entry.name)):
            return "flat"
        if not is_hidden(entry.name) and os.path.isdir(entry.path):
            found = "folders"
    return found


def list_flat(
    root: Path, classes: Sequence[str], left_out: dict[str, str], start: str = ""
) -> tuple[Sequence[str], list[Picture]]:
    """List the files of `root/start` that are named like `rose.12.jpg`, by class and number."""
    pattern, found = flat_pattern(classes), []
    label_of = {folded(name): label for label, name in enumerate(classes)}
    for entry in sorted_entries(root / start):
        path = join(start, entry.name)
        match = pattern.fullmatch(folded(entry.name))
        if not match:
            left_out[path] = f"its name is not like {flat_example(classes)}"
        elif not is_file(entry):
            left_out[path] = "it is not a file"
        else:
            found.append((label_of[match[1]], int(match[2]), path))
    return classes, [Picture(path, classes[label]) for label, _, path in sorted(found)]


def flat_pattern(classes: Sequence[str]) -> re.Pattern:
    names = "|".join(re.escape(folded(name)) for name in classes) or "(?!)"  # (?!) matches nothing
    return re.compile(rf"({names})\.(\d{{1,18}})({'|'.join(map(re.escape, SUFFIXES))})", re.A)


def flat_example(classes: Sequence[str]) -> str:
    return " or ".join(f"{folded(name)}.12.jpg" for name in classes)


def list_class_folders(
    root: Path, _classes: Sequence[str], left_out: dict[str, str], start: str = ""
) -> tuple[Sequence[str], list[Picture]]:
    """List `root/start`, where each folder is a class; its pictures may lie in deeper folders.

    If there is one folder, and it has folders, these are taken for the classes.
    """
    entries = sorted_entries(root / start)
    folders = [entry for entry in entries if os.path.isdir(entry.path)]
    if len(folders) == 1 and any(os.path.isdir(e.path) for e in sorted_entries(folders[0].path)):
        return list_class_folders(root, _classes, left_out, join(start, folders[0].name))
    # A link in a class folder must not lead to another class. Folders come before links to them.
    seen = {identity(root / start)}
    for entry in sorted(folders, key=os.DirEntry.is_symlink):
        if identity(entry.path) in seen:
            left_out[join(start, entry.name)] = LISTED_ALREADY
            folders.remove(entry)
        seen.add(identity(entry.path))
    pictures: list[Picture] = []
    for entry in entries:
        path, before = join(start, entry.name), len(pictures)
        if entry in folders:
            name = class_name(entry.name)
            pictures += [Picture(file, name) for file in files_below(root, left_out, path, seen)]
        if len(pictures) == before:
            reason = "there is no picture in it" if entry in folders else "it is in no class folder"
            left_out.setdefault(path, reason)
    return classes_of(pictures), pictures


def list_splits(
    root: Path, flat_classes: Sequence[str], left_out: dict[str, str]
) -> tuple[Sequence[str], list[Picture]]:
    """List a folder with the folders train and val, each of them flat or with class folders.

    Without a folder val, a share of train becomes val, as in the other layouts.
    """
    folders, found = split_folders(root), {}
    for split in ("train", "val"):
        if split in folders:
            flat = find_layout(root / folders[split], flat_classes) == "flat"
            list_folder = list_flat if flat else list_class_folders
            found[split] = list_folder(root, flat_classes, left_out, folders[split])
    classes, pictures = found["train"]
    if "val" not in found:
        return classes, pictures
    for entry in sorted_entries(root):
        if entry.name not in {*folders.values(), "rejected"}:  # prepare writes rejected/
            left_out[entry.name] = "it is beside the folders train and val"
    pictures = [picture._replace(split="train") for picture in pictures]
    for picture in found["val"][1]:
        if picture.label in classes:
            pictures.append(picture._replace(split="val"))
        else:
            left_out[picture.path] = f"train has no class {picture.label}"
    return classes, pictures


def split_folders(root: Path) -> dict[str, str]:
    """Return the folders of a set whose owner has split it, as {"train": "Train", "val": …}."""
    found: dict[str, str] = {}
    for entry in os.scandir(root):
        split = SPLIT_NAMES.get(entry.name.lower())
        if split and os.path.isdir(entry.path):
            found[split] = min(entry.name, found.get(split, entry.name))
    return found


def read_list(path: Path, left_out: dict[str, str], labelled: bool = True) -> list[Picture]:
    """Read a CSV file with a heading: path, label and, if wanted, split (train, val or test).

    Paths are absolute, or within the folder of the list. labelled: whether labels are needed.
    Raises ListError for a list that cannot be understood, and for a picture with two labels.
    """
    pictures: dict[str, Picture] = {}
    for number, row in csv_rows(path, needed=("path", "label") if labelled else ("path",)):
        name, label = within(path.parent, row["path"]), class_name(row["label"])
        split = SPLIT_NAMES.get(row["split"].lower(), "")
        if row["split"] and not split:
            raise ListError(f"{path}, line {number}: {row['split']} is not train, val or test")
        old = pictures.setdefault(name, Picture(name, label, split))
        if labelled and old.label != label:
            labels = f"{old.label} and {label}"
            raise ListError(f"{path}, line {number}: {name} has two labels, {labels}")
        if old.split != split:
            raise ListError(f"{path}, line {number}: {name} is in two splits")
        if not os.path.isfile(path.parent / name):
            left_out[name] = "there is no such file"
        elif labelled and not label and split != "test":
            left_out[name] = f"it has no label in line {number} of the list"
    for name in left_out:
        pictures.pop(name, None)
    splits = {picture.split for picture in pictures.values()}
    if "" in splits and len(splits) > 1:
        raise ListError(f"{path}: some lines have a split, others have none")
    return sorted(pictures.values())


def within(folder: Path, path: str) -> str:
    """Return a path of a list in one form, as seen from `folder`: split.csv has it like this."""
    if "\\" in path and not os.path.exists(folder / path):
        path = path.replace("\\", "/")  # the list was written on Windows
    if os.path.isabs(path) or "\\" in path or "./" in path or "//" in path:
        path = relative(folder / path, folder)
    return path


def relative(path: str | Path, folder: Path) -> str:
    """Return a path as seen from a folder, written alike on every system."""
    with suppress(ValueError):  # on Windows, the path may be on another drive
        path = os.path.relpath(path, folder)
    return Path(path).as_posix()


def csv_rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, {column: text}) of a CSV file; COLUMNS has the names of its columns."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            heading = file.readline()
            delimiter = max(",;\t", key=heading.count)
            cells = next(csv.reader([heading], delimiter=delimiter), [])
            names = [name.strip().lower() for name in cells]
            numbers = {}
            for column, known in COLUMNS.items():
                found = [number for number, name in enumerate(names) if name in known]
                if column in needed and not found:
                    columns = " and ".join(needed)
                    raise ListError(f"{path}: its first line has to name the columns {columns}")
                numbers[column] = found[0] if found else len(names)
            reader = csv.reader(file, delimiter=delimiter)
            for cells in reader:
                cells += [""] * (len(names) + 1 - len(cells))
                row = {column: cells[number].strip() for column, number in numbers.items()}
                if row["path"]:
                    yield reader.line_num + 1, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ListError(f"{path} is no CSV file in UTF-8: {error}") from error


def files_below(
    root: Path, left_out: dict[str, str], start: str, seen: set[tuple[int, int]] | None = None
) -> Iterator[str]:
    """Yield the paths, within root, of the picture files in `root/start` and in its folders.

    Links to folders are followed, but not to a folder in `seen`, which holds all that were listed.
    """
    seen = {identity(root / start)} if seen is None else seen
    for entry in sorted_entries(root / start):
        path = join(start, entry.name)
        if not entry.is_file(follow_symlinks=False) and os.path.isdir(entry.path):
            if identity(entry.path) in seen:
                left_out[path] = LISTED_ALREADY
                continue
            seen.add(identity(entry.path))
            yield from files_below(root, left_out, path, seen)
        elif not entry.name.lower().endswith(SUFFIXES):
            left_out[path] = f"its name does not end in {', '.join(SUFFIXES)}"
        elif is_file(entry):
            yield path
        else:
            left_out[path] = "it is not a file"


def identity(folder: str | Path) -> tuple[int, int]:
    """Return numbers that tell whether two paths lead to the same folder."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def join(folder: str, name: str) -> str:
    """Return a path within a data set, written alike on every system."""
    return f"{folder}/{name}" if folder else name


def sorted_entries(folder: Path) -> list[os.DirEntry]:
    """Return what is in a folder, by name, without hidden files and those of operating systems."""
    entries = [entry for entry in os.scandir(folder) if not is_hidden(entry.name)]
    return sorted(entries, key=lambda entry: entry.name)


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED


def is_file(entry: os.DirEntry) -> bool:
    # A link to itself makes entry.is_file() raise.
    return entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path)


def class_name(text: str) -> str:
    """Return the name of a class with each letter in its shortest encoding: macOS uses another."""
    return normalize("NFC", printable(text.strip()))


def folded(name: str) -> str:
    """Return a name as the names of files are compared: without case, in one encoding."""
    if name.isascii():  # the same, in a fifth of the time
        return name.lower()
    return normalize("NFC", normalize("NFC", name).casefold())


def sorted_names(names: Iterable[str]) -> list[str]:
    """Return the names in order; those that are numbers come first, in the order of numbers."""
    return sorted(names, key=lambda name: (0, int(name), name) if is_number(name) else (1, 0, name))


def is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) <= 18


def classes_of(pictures: Iterable[Picture]) -> list[str]:
    return sorted_names({picture.label for picture in pictures})
