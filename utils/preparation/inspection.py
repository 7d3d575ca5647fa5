"""Look at all pictures of a data set, find copies, and write split.csv and split.html."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from data.listing import Picture, list_labelled, list_unlabelled, relative
from data.read_image import printable
from data.split import (
    SplitRow,
    by_hash,
    find_split_file,
    read_rows,
    read_split_file,
    split_of_new,
    write_rows,
)
from utils.files import write_text
from utils.report import image_url, template

from .copies import SIDE, find_copies
from .look import Facts, look_at_all

PAIRS_SHOWN = 300  # in split.html


class TwoLabelsError(ValueError):
    """A picture that is there twice, with two labels."""


@dataclass
class Inspection:
    """The pictures of a data set, labelled ones first, and what was seen of them."""

    folder: Path  # of split.csv
    prefix: str  # of the paths of labelled pictures: "train/" if `folder` is around theirs
    pictures: list[Picture]  # paths within `folder`; those to classify have no label
    old_splits: list[str]  # from an older split.csv; "" for a new picture
    facts: list[Facts]
    pairs: list[tuple[int, int, bool]]  # copies, by their numbers, and whether one is turned
    left_out: dict[str, str]  # path within its root: why it is no picture of the data set

    def unreadable(self) -> dict[int, str]:
        return {number: facts.reason for number, facts in enumerate(self.facts) if facts.reason}

    def contradictions(self) -> dict[int, str]:
        """Return the pictures that have another label than their copies, with words on both.

        Turned and mirrored copies do not count: they may be left and right, or 6 and 9.
        """
        found: dict[int, str] = {}
        for *pair, turned in self.pairs:
            first, second = (self.pictures[number] for number in pair)
            if first.label and second.label and first.label != second.label and not turned:
                one, other = (f"{printable(p.path)} ({p.label})" for p in (first, second))
                found |= dict.fromkeys(pair, f"{one} and {other} are the same picture")
        return found

    def splits(self, val_share: float) -> list[str]:
        """Return the split of each picture: copies in one, those of an older split.csv as there."""
        groups = self.groups()
        labelled = [picture for picture in self.pictures if picture.label]
        if any(self.old_splits) or any(picture.split for picture in labelled):
            pairs = zip(self.old_splits, self.unprefixed(labelled), strict=True)
            splits = [old or split_of_new(picture, val_share) for old, picture in pairs]
        else:
            splits = by_hash(self.unprefixed(labelled), val_share, groups=groups)
        members = defaultdict(list)
        for number, group in groups.items():
            members[group].append(number)
        for numbers in members.values():
            old = [number for number in numbers if self.old_splits[number]]
            votes = Counter(splits[number] for number in old or numbers)
            chosen = max(votes, key=lambda split: (votes[split], split == "train"))
            for number in numbers:
                splits[number] = self.old_splits[number] or chosen
        return splits + ["test"] * (len(self.pictures) - len(labelled))

    def unprefixed(self, pictures: Sequence[Picture]) -> list[Picture]:
        """Return pictures with the paths by which they are split where there is no split.csv."""
        return [
            picture._replace(path=picture.path.removeprefix(self.prefix)) for picture in pictures
        ]

    def without(self, numbers: Collection[int]) -> "Inspection":
        """Return the same without some of the pictures."""
        kept = [n for n in range(len(self.pictures)) if n not in numbers]
        new = {old: number for number, old in enumerate(kept)}
        return replace(
            self,
            pictures=[self.pictures[n] for n in kept],
            old_splits=[self.old_splits[n] for n in kept if n < len(self.old_splits)],
            facts=[self.facts[n] for n in kept],
            pairs=[(new[a], new[b], t) for a, b, t in self.pairs if a in new and b in new],
        )

    def groups(self) -> dict[int, str]:
        """Return the group of each picture that has copies of its class: the first path of them."""
        first = list(range(len(self.pictures)))

        def root(number: int) -> int:
            while first[number] != number:
                number = first[number]
            return number

        for *pair, _ in self.pairs:
            one, other = (self.pictures[number].label for number in pair)
            if one and one == other:
                low, high = sorted(map(root, pair))
                first[high] = low
        roots = [root(number) for number in range(len(first))]
        sizes = Counter(roots)
        return {n: self.pictures[r].path for n, r in enumerate(roots) if sizes[r] > 1}

    def write(self, val_share: float) -> str:
        """Write split.csv; return in words what it says."""
        splits, groups = self.splits(val_share), self.groups()
        rows = [
            SplitRow(p.path, p.label, split, str(f.size), f.sha256, groups.get(number, ""))
            for number, (p, split, f) in enumerate(
                zip(self.pictures, splits, self.facts, strict=True)
            )
            # Pictures to classify that lie elsewhere were only compared.
            if not f.reason and (p.label or not (p.path.startswith("..") or os.path.isabs(p.path)))
        ]
        file, known = self.folder / "split.csv", {picture.path for picture in self.pictures}
        if file.exists():  # pictures that are not there now keep their rows
            rows += [row for row in read_rows(file) if row.path not in known]
        write_rows(file, rows)
        counts = Counter(row.split for row in rows)
        words = ", ".join(f"{counts[split]:,} {split}" for split in ("train", "val", "test"))
        across = sum(splits[first] != splits[second] for first, second, _ in self.pairs)
        left = f", {across:,} of them in two splits" if across else ""
        return f"split.csv: {words}; {len(self.pairs):,} pairs of copies{left}"

    def write_page(self, val_share: float) -> None:
        """Write split.html, the pairs of copies with thumbnails; red ones first."""
        splits = self.splits(val_share)
        rows: list[dict] = []
        for *pair, _ in self.pairs:
            facts = {(splits[n], self.pictures[n].label) for n in pair}
            rows.append({"red": len(facts) > 1, "pair": pair})
        rows = sorted(rows, key=lambda row: not row["red"])[:PAIRS_SHOWN]
        for row in rows:
            row["sides"] = [
                (
                    self.thumbnail(n),
                    printable(self.pictures[n].path),
                    self.pictures[n].label,
                    splits[n],
                )
                for n in row["pair"]
            ]
        page = template("split.html", Path(__file__).parent)
        title = f"Copies in {printable(self.folder)}"
        text = page.render(title=title, rows=rows, count=len(self.pairs))
        write_text(self.folder / "split.html", text)

    def thumbnail(self, number: int) -> str:
        """Return the address of a picture's thumbnail, which contains it."""
        pixels = np.frombuffer(self.facts[number].thumbnail, np.uint8).reshape(3, SIDE, SIDE)
        return image_url(pixels.transpose(1, 2, 0), "png")


def inspect_pictures(
    root: Path,
    folder: Path,
    layout: str,
    flat_classes: Sequence[str],
    test_root: Path | None,
    memory: Path,
    after_each: Callable[[], object] = lambda: None,
) -> Inspection:
    """Look at the pictures of `root`, and at those to classify in `test_root`.

    folder: where split.csv is or will be: `root`, or the folder around it. memory: a file that
    keeps what was seen. Raises what `look_at_all` and `read_split_file` raise.
    """
    listing = list_labelled(root, layout, flat_classes)
    if not listing.pictures:
        raise FileNotFoundError(f"{printable(root)} has no picture of a class")
    left_out = dict(listing.left_out)
    file, start = find_split_file(root)
    old_splits = [""] * len(listing.pictures)
    if file:
        old_splits, _ = read_split_file(file, start, listing.pictures, verify=True)
    base = root.parent if root.is_file() else root
    above = relative(base, folder)
    pictures = [within(folder, base, picture) for picture in listing.pictures]
    if test_root:
        tests, _ = list_unlabelled(test_root)
        base = test_root.parent if test_root.is_file() else test_root
        pictures += [within(folder, base, picture) for picture in tests.pictures]
        left_out |= tests.left_out
    facts = look_at_all([folder / p.path for p in pictures], memory, after_each)
    readable = [number for number, fact in enumerate(facts) if not fact.reason]
    pixels = np.frombuffer(bytearray().join(facts[n].thumbnail for n in readable), np.uint8)
    near = find_copies(pixels.reshape(-1, 3, SIDE, SIDE), after_each)
    pairs = {(readable[first], readable[second]): turned for first, second, turned in near}
    same_bytes = defaultdict(list)
    for number in readable:
        same_bytes[facts[number].sha256].append(number)
    for numbers in same_bytes.values():
        pairs |= dict.fromkeys(pairwise(numbers), False)
    prefix = "" if above == "." else f"{above}/"
    copies = sorted((*pair, turned) for pair, turned in pairs.items())
    return Inspection(folder, prefix, pictures, old_splits, facts, copies, left_out)


def within(folder: Path, base: Path, picture: Picture) -> Picture:
    """Return a picture whose path is within `base` with its path within `folder`."""
    return picture._replace(path=relative(base / picture.path, folder))
