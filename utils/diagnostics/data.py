"""Is the data sound? Each check takes a Case: the splits, and a few hundred of their pictures."""

import hashlib
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset

from utils.seed import seeded

from . import Doubt, Wrong, some

LEAST = 15  # pictures of a class from which a rule can be told from chance


@dataclass
class Case:
    """Both splits and how training loads them; `loader(dataset, workers)` makes a Loader."""

    train: Dataset
    val: Dataset
    test: Callable[[], Dataset | None]  # opens the test split, if there is one
    loader: Callable[[Dataset, int], Any]
    most: int = 200  # pictures of a split to look at

    def few(self, split: Dataset) -> list[int]:
        """Indices spread evenly over a split."""
        return np.linspace(0, len(split) - 1, min(self.most, len(split))).astype(int).tolist()

    def samples(self, split: Dataset) -> Iterator[tuple[Tensor, int]]:
        """Those of the pictures that can be read."""
        for index in self.few(split):
            with suppress(OSError):
                yield split[index]

    def load(self, split: Dataset, epoch: int = 0, workers: int = 0) -> tuple[Tensor, Tensor]:
        """What training gets of those pictures: images (M, 3, H, W) and labels (M,)."""
        part = Few(split, self.few(split))
        with self.loader(part, workers) as loader:
            batches = [*loader.epoch(epoch)]
        if not batches:
            raise Wrong(f"not one of {len(part)} pictures could be read")
        _, images, labels = zip(*batches, strict=True)
        return torch.cat(images).cpu(), torch.cat(labels).cpu()

    @cached_property
    def train_batch(self) -> tuple[Tensor, Tensor]:
        return self.load(self.train)

    @cached_property
    def val_batch(self) -> tuple[Tensor, Tensor]:
        return self.load(self.val)

    @cached_property
    def files(self) -> dict[str, list[Path]]:
        """The files of each split, where the data set knows them."""
        if not hasattr(self.train, "path"):
            return {}
        splits = {"train": self.train, "val": self.val}
        return {name: [*map(split.path, range(len(split)))] for name, split in splits.items()}

    @cached_property
    def copies(self) -> list[list[Path]]:
        """Groups of files that have the same bytes."""
        return by_content([path for paths in self.files.values() for path in paths])

    def copy(self, folder: Path) -> bool:
        """Copy up to 12 training files of each class into `folder`, if there are so many."""
        files, labels = self.files.get("train", []), np.asarray(self.train.labels)
        size = max(4, min(12, 240 // self.train.num_classes))
        if not files or min(self.train.class_counts) < size:
            return False
        root = os.path.commonpath([path.parent for path in files])
        for kind in range(self.train.num_classes):
            for index in np.flatnonzero(labels == kind)[:size]:
                target = folder / files[index].relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(files[index], target)
        return True

    @cached_property
    def facts(self) -> list[dict[str, Any]]:
        """What is known of some training files without decoding them."""
        rows = []
        for index in self.few(self.train) if self.files else []:
            path, row = self.files["train"][index], {"label": int(self.train.labels[index])}
            try:
                with Image.open(path) as image:
                    row |= {"width": image.width, "height": image.height, "mode": image.mode}
                    row |= {"type": image.format, "bytes": path.stat().st_size}
                    grey = np.asarray(image.convert("L").resize((16, 16)), dtype=float)
                row |= {"brightness": grey.mean(), "grey": grey}
            except Exception:  # of a broken file, which has a check of its own
                continue
            rows.append(row)
        return rows


class Few(Subset):
    """A part of a data set with all that the loader asks of it."""

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not made yet
            raise AttributeError(name)
        return getattr(self.dataset, name)


def classes_are_balanced(case: Case) -> str:
    """Every class has its share

    Why: a model that always answers with the commonest class looks good and knows nothing.
    Do: add pictures of the rare classes, or train with --balanced; look at F1, not accuracy.
    """
    for name, split in (("train", case.train), ("val", case.val)):
        counts = dict(zip(split.classes, split.class_counts, strict=True))
        seen = f"{name} has " + ", ".join(f"{n:,} {kind}" for kind, n in counts.items())
        if min(counts.values()) == 0 or len(counts) < 2:
            raise Wrong(seen)
        if max(counts.values()) >= 9 * min(counts.values()):
            raise Doubt(f"{seen}: always saying {max(counts, key=counts.get)} is mostly right")
    return f"{len(case.train):,} in train, {seen}"


def pictures_can_be_read(case: Case) -> str:
    """Pictures can be read

    Why: what cannot be read is left out, and with it perhaps a whole kind of picture.
    Do: get the files named here once more, or delete them.
    """
    failed = []
    for split in (case.train, case.val):
        for index in case.few(split):
            try:
                split[index]
            except OSError as error:
                failed.append(str(error))
    looked = len(case.few(case.train)) + len(case.few(case.val))
    rejected = getattr(case.train, "rejected", {})
    if len(failed) > 0.05 * looked:
        raise Wrong(f"{len(failed)} of {looked} cannot: {some(failed, 2)}")
    if failed or rejected:
        words = [f"{name} ({reason})" for name, reason in rejected.items()]
        raise Doubt(f"{len(failed)} of {looked} cannot, {some(failed + words, 3)}")
    return f"{looked} of {looked}"


def samples_fit_the_loader(case: Case) -> str:
    """A sample is a square uint8 picture

    Why: the loader stacks samples, and normalises them itself.
    Do: let the transforms end with uint8 (3, H, W), at one size for all.
    """
    samples = [sample for split in (case.train, case.val) for sample in case.samples(split)]
    if not samples:
        raise Wrong("there is none that can be read")
    shapes = {tuple(image.shape) for image, _ in samples}
    kind = samples[0][0].dtype
    if kind != torch.uint8:
        raise Wrong(f"pictures are {kind}")
    if len(shapes) > 1 or not all(shape == (3, shape[-1], shape[-1]) for shape in shapes):
        raise Wrong(f"pictures have the shapes {some(sorted(shapes))}")
    different = len({image.numpy().tobytes() for image, _ in samples})
    if different < len(samples) / 2:
        raise Wrong(f"of {len(samples)} samples only {different} differ")
    return f"uint8 {shapes.pop()}"


def samples_show_their_files(case: Case) -> str:
    """A sample shows the file it belongs to

    Why: a wrong index, or a wrong order of axes or colours, goes unnoticed and is learned from.
    Do: read the file of that index; turn (H, W, RGB) into (RGB, H, W) by permute, not by view.
    """
    seen = []
    for name, split in (("train", case.train), ("val", case.val)):
        samples, files, cut = thumbnails(case, split)
        if len(files) < LEAST or own_share(cut, files) < 0.8:
            return "the pictures are too few, or too alike, to tell"
        share = own_share(samples, files)
        seen.append(f"{share:.0%} in {name}")
        if share < (0.28 if name == "train" else 0.5):  # by chance 0.15; crops are less like it
            raise Wrong(f"only {seen[-1]} are more like their own file than like most others")
        colours = [picture[..., 0] - picture[..., 2] for picture in (samples, files)]
        if np.median(alike(*colours).diagonal()) < -0.5:
            raise Doubt(f"red and blue are swapped in {name}")
    return f"{', '.join(seen)} are most like their own"


def thumbnails(case: Case, split: Dataset, most: int = 60) -> list[np.ndarray]:
    """Some samples, the files they belong to, and the middle of these: (M, 12, 12, RGB) each."""
    rows = []
    for index in case.few(split)[:: max(1, min(case.most, len(split)) // most)]:
        try:
            picture = split.read(split.path(index)).float()
            with seeded("check", index):
                sample = split[index][0].float()
        except Exception:  # a file that cannot be read, or a data set without files
            continue
        top, left = (length // 10 for length in picture.shape[1:])
        middle = picture[:, top : picture.shape[1] - top, left : picture.shape[2] - left]
        views = (F.adaptive_avg_pool2d(view, 12) for view in (sample, picture, middle))
        rows.append([view.permute(1, 2, 0).numpy() for view in views])
    return [np.array(column) for column in zip(*rows, strict=True)] or [np.empty(0)] * 3


def own_share(samples: np.ndarray, files: np.ndarray) -> float:
    """Share of the samples whose own file is more like them than 85 % of all files, in grey."""
    likeness = alike(samples.mean(axis=3), files.mean(axis=3))
    return ((likeness.diagonal()[:, None] > likeness).mean(axis=1) > 0.85).mean()


def alike(samples: np.ndarray, files: np.ndarray) -> np.ndarray:
    """Correlation of each sample with each file, or with its mirror image if that is higher."""
    parts = [samples, files, files[:, :, ::-1]]  # (M, 12, 12) each
    parts = [(part - part.mean(axis=0)).reshape(len(part), -1) for part in parts]
    samples, *both = (part / (np.linalg.norm(part, axis=1, keepdims=True) + 1e-9) for part in parts)
    return np.maximum(*(samples @ part.T for part in both))


def pictures_are_large_enough(case: Case) -> str:
    """Pictures have the size that is asked for

    Why: a picture that is blown up has no more to see, and costs as much as a sharp one.
    Do: take a smaller --image-size.
    """
    if not case.facts:
        return "no files to look at"
    sides = sorted(min(row["width"], row["height"]) for row in case.facts)
    middle, size = sides[len(sides) // 2], case.train_batch[0].shape[-1]
    modes = ", ".join(f"{n} {mode}" for mode, n in Counter(r["mode"] for r in case.facts).items())
    seen = f"shorter sides {sides[0]} … {middle} … {sides[-1]} for {size} pixels; {modes}"
    if middle < size / 2:
        raise Doubt(seen)
    return seen


def labels_are_in_range(case: Case) -> str:
    """Labels are whole numbers from 0 to K - 1

    Why: the loss takes them for indices; a wrong one ends the run or trains the wrong class.
    Do: number the classes in the data set's __init__, and return int.
    """
    for split, (_, labels) in ((case.train, case.train_batch), (case.val, case.val_batch)):
        if len(split) != len(split.labels):
            raise Wrong(
                f"there are {len(split.labels):,}, and the data set's length {len(split):,}"
            )
        if labels.dtype != torch.int64:
            raise Wrong(f"they are {labels.dtype}")
        if labels.min() < 0 or labels.max() >= split.num_classes:
            raise Wrong(f"{labels.min()} … {labels.max()} for {split.num_classes} classes")
    return f"0 … {case.train.num_classes - 1}"


def labels_stay_with_their_pictures(case: Case) -> str:
    """A picture has the same label each time

    Why: a label that changes, or belongs to the next picture, cannot be learned.
    Do: take picture and label by one index, and shuffle in the sampler alone.
    """
    for split in (case.train, case.val):
        indices = case.few(split)
        first, again = ([int(label) for _, label in case.samples(split)] for _ in range(2))
        if first != again:
            changed = sum(one != other for one, other in zip(first, again, strict=True))
            raise Wrong(f"{changed} of {len(first)} labels differ when they are read again")
        if len(first) == len(indices) and first != [int(split.labels[i]) for i in indices]:
            raise Wrong("samples have other labels than the data set's `labels`")
        if hasattr(split, "path"):
            kinds = [kind.lower() for kind in split.classes]
            against = []
            for index in indices:
                name = split.path(index).name.lower()
                told = [k for k, kind in enumerate(kinds) if name.startswith(f"{kind}.")]
                against += [name] if told not in ([], [int(split.labels[index])]) else []
            if against:
                raise Wrong(f"{some(against)} have labels that their names deny")
    return "in train and val"


def splits_share_no_picture(case: Case) -> str:
    """No picture is in train and val

    Why: a picture that was trained on makes val too good to be true.
    Do: delete one of each pair.
    """
    copies, pairs = [], []
    if case.files:
        train, val = (set(case.files[name]) for name in ("train", "val"))
        for group in case.copies:
            if train & set(group):
                copies += [path.name for path in group if path in val]
        pairs = [f"{one.name} ~ {other.name}" for one, other in look_alikes(case)]
        pairs = [pair for pair in pairs if pair.split(" ~ ")[1] not in copies]
    else:
        one, other = (
            {image.numpy().tobytes() for image, _ in case.samples(split)}
            for split in (case.train, case.val)
        )
        copies = ["a sample"] * len(one & other)
    seen = f"{len(copies):,} of val's {len(case.val):,}"
    seen += f": {some(sorted(copies))}" if copies else ""
    if len(copies) > 0.01 * len(case.val) + 1:
        raise Wrong(seen)
    if pairs:
        raise Doubt(f"{seen}; and these look like it: {some(pairs)}")
    if len(copies) > 0.002 * len(case.val):  # fewer are far below what chance does to an accuracy
        raise Doubt(seen)
    return seen


def few_pictures_are_twice_there(case: Case) -> str:
    """No picture is there twice

    Why: copies count double, and copies with different labels contradict each other.
    Do: delete all but one.
    """
    label = {}
    for name, split in (("train", case.train), ("val", case.val)):
        paths = case.files.get(name, [])
        label |= {path: int(split.labels[index]) for index, path in enumerate(paths)}
    torn = [group for group in case.copies if len({label[path] for path in group}) > 1]
    if torn:
        raise Wrong(f"{some(' = '.join(p.name for p in g) for g in torn)} have different labels")
    copies = sum(len(group) - 1 for group in case.copies)
    if copies > 0.01 * len(label):
        raise Doubt(f"{copies:,} copies among {len(label):,} files")
    return f"{copies:,} copies among {len(label):,} files"


def by_content(paths: Sequence[Path]) -> list[list[Path]]:
    """Group the files that have the same bytes; only files of one length are read."""
    groups = paths
    for key in (lambda path: path.stat().st_size, lambda path: digest(path)):
        found = defaultdict(list)
        for path in groups:
            try:
                found[key(path)].append(path)
            except OSError:  # it has a check of its own
                continue
        same = [group for group in found.values() if len(group) > 1]
        groups = [path for group in same for path in group]
    return same


def digest(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def look_alikes(case: Case) -> list[tuple[Path, Path]]:
    """Find pairs of train and val that are one picture in two encodings, among some of them."""
    thumbs = {}
    for split in (case.train, case.val):
        for index in case.few(split):
            try:
                picture = split.read(split.path(index)).float()
            except Exception:  # a file that cannot be read, or a data set that reads otherwise
                continue
            grey = F.adaptive_avg_pool2d(picture, 16).mean(dim=0)
            thumbs[split.path(index)] = grey.ravel().numpy()
    paths = {name: [p for p in files if p in thumbs] for name, files in case.files.items()}
    if not all(paths.values()):
        return []
    one, other = (np.stack([thumbs[p] for p in paths[name]]) for name in ("train", "val"))
    usual = one.mean(axis=0)  # of a fixed camera, say
    mirrored = other.reshape(-1, 16, 16)[:, :, ::-1].reshape(len(other), -1)
    gaps = np.minimum(*(np.abs(one[:, None] - b[None]).mean(axis=2) for b in (other, mirrored)))
    near = gaps < np.minimum(2, 0.1 * np.abs(one - usual).mean(axis=1))[:, None]
    return [(paths["train"][i], paths["val"][j]) for i, j in np.argwhere(near)]


def values_lie_around_zero(case: Case) -> str:
    """Pictures are normalised

    Why: networks are initialised for values around 0 with a spread of about 1.
    Do: scale to 0 … 1, then subtract the mean and divide by the standard deviation, once.
    """
    images = case.train_batch[0].float()
    mean, std = images.mean().item(), images.std().item()
    seen = f"{images.min():.2f} … {images.max():.2f}, mean {mean:.2f}, deviation {std:.2f}"
    if not images.isfinite().all():
        raise Wrong("some values are not finite")
    if images.min() >= 0 or std < 0.1 or std > 5 or abs(mean) > 3:
        raise Wrong(seen)
    if abs(mean) > 1.5 or std < 0.3 or std > 2.5:
        raise Doubt(seen)
    one, other = (looks(batch[0].float()) for batch in (case.train_batch, case.val_batch))
    for number, name in enumerate(("brightness", "contrast", "red above blue")):
        a, b = one[:, number], other[:, number]
        gap, noise = (a.mean() - b.mean()).abs(), (a.var() / len(a) + b.var() / len(b)).sqrt()
        if gap > 8 * noise + 0.1:
            ends = [batch[0].max() for batch in (case.train_batch, case.val_batch)]
            kind = Wrong if gap > 0.5 and abs(ends[0] - ends[1]) > 0.5 else Doubt
            raise kind(f"{name} is {a.mean():.2f} in train and {b.mean():.2f} in val")
    return seen


def looks(images: Tensor) -> Tensor:
    """Brightness, contrast and red above blue of each picture: (N, 3, H, W) to (N, 3)."""
    red, _, blue = images.mean(dim=(2, 3)).unbind(dim=1)
    return torch.stack([images.mean(dim=(1, 2, 3)), images.std(dim=(1, 2, 3)), red - blue], dim=1)


def only_train_is_augmented(case: Case) -> str:
    """Train is augmented, val is not

    Why: a fixed picture is soon learned by heart; a val picture that changes measures chance.
    Do: give random transforms to the train split alone.
    """
    if not torch.equal(case.val_batch[0], case.load(case.val, epoch=1)[0]):
        raise Wrong("val pictures differ from one epoch to the next")
    first, again = case.train_batch[0], case.load(case.train, epoch=1)[0]
    changed = (first != again).flatten(1).any(dim=1).float().mean().item()
    if changed < 0.5:
        raise Doubt(f"{changed:.0%} of the train pictures change from one epoch to the next")
    return f"{changed:.0%} of the train pictures change, no val picture does"


def workers_agree(case: Case) -> str:
    """Any number of loader processes gives the same

    Why: random states that each process copies give the same "random" crops again and again.
    Do: draw random numbers by torch, random or numpy.random, and keep no generator of your own.
    """
    for split, alone in ((case.train, case.train_batch), (case.val, case.val_batch)):
        several = case.load(split, workers=2)
        if not all(map(torch.equal, alone, several)):
            raise Wrong(f"two processes load other {getattr(split, 'mode', '')} pictures than none")
    return "0 and 2 agree in each bit"


def no_shortcut(case: Case) -> str:
    """Nothing but the picture tells the class

    Why: a class that is told by size, brightness or file type is learned by that alone.
    Do: get all classes from the same source, or save them in the same form.
    """
    labels = np.array([row["label"] for row in case.facts])
    counts = Counter(labels.tolist())
    if len(counts) < 2 or max(counts.values()) < LEAST:
        return "too few files to tell"
    found = {}
    for name in ("width", "height", "bytes", "brightness", "mode", "type"):
        values = [row[name] for row in case.facts]
        if isinstance(values[0], str):
            values = [sorted(set(values)).index(value) for value in values]
        found[name] = best_threshold(np.array(values, dtype=float), labels)
    best = max(found, key=found.get)
    seen = f"{best} alone is right {found[best]:.0%} of the time, classes counted alike"
    if found[best] >= 0.9 and best not in ("bytes", "brightness"):  # which may be the subject
        raise Wrong(seen)
    if found[best] >= 0.8:
        raise Doubt(seen)
    grey = np.stack([row["grey"] for row in case.facts])  # (M, 16, 16)
    spots = {place: best_threshold(grey[:, *place], labels) for place in np.ndindex(16, 16)}
    place = max(spots, key=spots.get)
    if spots[place] >= 0.9:  # a mark, or a date, in the pictures of one class
        where = f"{place[0] / 16:.0%} from the top and {place[1] / 16:.0%} from the left"
        raise Doubt(f"one spot, {where}, is right {spots[place]:.0%} of the time")
    return seen


def best_threshold(values: np.ndarray, labels: np.ndarray) -> float:
    """The best balanced accuracy, over each class against the rest, of one threshold."""
    best = 0.5
    for kind, count in Counter(labels.tolist()).items():
        if min(count, len(labels) - count) < LEAST:
            continue  # a few are easily told by chance
        order = np.argsort(values, kind="stable")
        is_kind, ends = labels[order] == kind, np.diff(values[order], append=np.inf) > 0
        below = is_kind.cumsum() / max(1, is_kind.sum())
        others = (~is_kind).cumsum() / max(1, (~is_kind).sum())
        score = (below + 1 - others)[ends] / 2
        best = max(best, score.max(), 1 - score.min())
    return float(best)


def test_ids_are_complete(case: Case) -> str:
    """The test folder is complete

    Why: an answer for each picture is asked for, and a missing one counts as wrong.
    Do: unpack the archive of test pictures again.
    """
    test = case.test()
    if test is None:
        return "there is no test folder"
    ids = sorted(int(label) for label in test.labels)
    gap = ids[-1] - len(ids)
    if 0 < gap < len(ids):
        missing = sorted(set(range(1, ids[-1] + 1)) - set(ids))
        raise Doubt(f"{len(ids):,} pictures up to number {ids[-1]:,} without {some(missing)}")
    return f"{len(ids):,} pictures" + ", not numbered in a row" * (gap > 0)


CHECKS = [
    classes_are_balanced,
    pictures_can_be_read,
    samples_fit_the_loader,
    samples_show_their_files,
    pictures_are_large_enough,
    labels_are_in_range,
    labels_stay_with_their_pictures,
    splits_share_no_picture,
    few_pictures_are_twice_there,
    values_lie_around_zero,
    only_train_is_augmented,
    workers_agree,
    no_shortcut,
    test_ids_are_complete,
]
