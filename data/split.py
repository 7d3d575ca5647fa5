"""Which split a picture belongs to: what split.csv or the data say, or else a hash of its path."""

import csv
import hashlib
import io
import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from utils.files import digest_of, write_bytes
from utils.options import UsageError

from .listing import Picture
from .read_image import printable

HEADING = ["path", "class", "split", "size", "sha256", "group"]  # the first line of split.csv
HASHED = 64  # how many pictures are compared with their sha256 when a data set is opened


class SplitRow(NamedTuple):
    """A line of split.csv."""

    path: str  # from the folder of split.csv
    label: str  # the name of the class
    split: str  # train, val or test
    size: str  # bytes
    sha256: str  # of the bytes
    group: str  # pictures of one group, as copies of each other, belong into one split


class SplitError(ValueError):
    """A split.csv that cannot be used: one line that says where and why."""


def splits_of(
    root: Path, pictures: Sequence[Picture], val_share: float, fold: str | None, verify: bool
) -> tuple[list[str], Path | None]:
    """Return the split of each picture, and the split.csv that was used, if there is one.

    verify: compare the pictures with split.csv; raises SplitError if they differ. Raises UsageError
    for a fold of a data set that its owner has split, and that has no split.csv.
    """
    if val_share in (0, 1) and not fold:  # all pictures are train, or val: no file can say more
        return ["val" if val_share else "train"] * len(pictures), None
    file, prefix = find_split_file(root)
    if file:
        splits, groups = read_split_file(file, prefix, pictures, verify)
        if fold:
            drawn = by_hash(pictures, val_share, fold, groups)
            both = zip(splits, drawn, strict=True)
            return ["test" if known == "test" else new for known, new in both], file
        pairs = zip(splits, pictures, strict=True)
        return [split or split_of_new(picture, val_share) for split, picture in pairs], file
    if any(picture.split for picture in pictures):
        if fold:
            raise UsageError(f"{root} is split into train and val already: leave out --fold={fold}")
        return [picture.split for picture in pictures], None
    return by_hash(pictures, val_share, fold), None


def by_hash(
    pictures: Sequence[Picture],
    val_share: float,
    fold: str | None = None,
    groups: Mapping[int, str] | None = None,
) -> list[str]:
    """Return "train" or "val" for each picture: in each class, the lowest hashes are val.

    fold: with "2/5", the second fifth of the hashes is val. groups: the name of a picture's group,
    by its index; a group has one hash.
    """
    start, end = 0.0, val_share
    if fold:
        number, count = map(int, fold.split("/"))
        start, end = (number - 1) / count, number / count
    keys = [picture.path for picture in pictures]
    for index, group in (groups or {}).items():
        keys[index] = group
    keys_of_class = defaultdict(set)
    for key, picture in zip(keys, pictures, strict=True):
        keys_of_class[picture.label].add(key)
    val: set[str] = set()
    for class_keys in keys_of_class.values():
        in_order = sorted(class_keys, key=hash_of)
        val.update(in_order[round(start * len(in_order)) : round(end * len(in_order))])
    return ["val" if key in val else "train" for key in keys]


def split_of_new(picture: Picture, val_share: float) -> str:
    """Return the split of a picture that split.csv does not know; no other picture matters."""
    if picture.split:
        return picture.split
    return "val" if int.from_bytes(hash_of(picture.path), "big") < val_share * 2**128 else "train"


def hash_of(path: str) -> bytes:
    return hashlib.md5(os.fsencode(path)).digest()


def find_split_file(root: Path) -> tuple[Path | None, str]:
    """Return the split.csv in the folder of a data set, or the one beside it that concerns it.

    The text is what its paths begin with: "train/" if it lies beside the folder train.
    """
    folder = Path(os.path.abspath(root.parent if root.is_file() else root))
    for place, prefix in ((folder, ""), (folder.parent, f"{folder.name}/")):
        file = place / "split.csv"
        if not file.is_file() or (prefix and not has_our_heading(file)):
            continue
        if any(row.path.startswith(prefix) for row in read_rows(file)):
            return file, prefix
    return None, ""


def has_our_heading(file: Path) -> bool:
    with open(file, encoding="utf-8", errors="surrogateescape") as lines:
        return lines.readline().rstrip("\r\n") == ",".join(HEADING)


def read_rows(file: Path) -> Iterator[SplitRow]:
    """Yield the rows of a split.csv. A path may have bytes that are not UTF-8."""
    with open(file, encoding="utf-8", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines)
        if next(reader, None) != HEADING:
            heading = ",".join(HEADING)
            raise SplitError(f"{file}: the first line has to be {heading}; rename a file of yours")
        for cells in reader:
            if len(cells) != len(HEADING) or cells[2] not in ("train", "val", "test"):
                raise SplitError(f"{file}, line {reader.line_num}: this is no row of a split")
            yield SplitRow._make(cells)


def write_rows(file: Path, rows: Sequence[SplitRow]) -> None:
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(HEADING)
    table.writerows(rows)
    write_bytes(file, text.getvalue().encode("utf-8", errors="surrogateescape"))


def read_split_file(
    file: Path, prefix: str, pictures: Sequence[Picture], verify: bool
) -> tuple[list[str], dict[int, str]]:
    """Return the split of each picture, "" if the file does not have it, and groups by index."""
    index_of = {picture.path: index for index, picture in enumerate(pictures)}
    step, folder = math.ceil(len(pictures) / HASHED) or 1, str(file.parent)
    splits, groups = [""] * len(pictures), {}
    for row in read_rows(file):
        index = index_of.get(row.path.removeprefix(prefix)) if row.path.startswith(prefix) else None
        if index is None:
            continue
        if verify and (what := difference(row, pictures[index], folder, index % step == 0)):
            advice = "get the old picture again, or delete the line"
            raise SplitError(f"{file} has another {what} for {printable(row.path)}: {advice}")
        splits[index] = sys.intern(row.split)  # one text for a million pictures
        if row.group:
            groups[index] = row.group
    return splits, groups


def difference(row: SplitRow, picture: Picture, folder: str, hashed: bool) -> str:
    """Return in what a picture differs from its row: class, size or content; "" if in nothing."""
    if row.label != picture.label:
        return f"class ({row.label}, not {picture.label})"
    path = f"{folder}/{row.path}"  # Path and os.path.join take longer, for a million pictures
    if row.size != str(os.stat(path).st_size):
        return "size"
    return "content" if hashed and row.sha256 != digest_of(path) else ""
