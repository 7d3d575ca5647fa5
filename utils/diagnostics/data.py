"""Is the data sound? Each check takes a DataCase.

They look at the names of up to 100,000 files of a split, at the first bytes of 5,000, and at the
pixels of hundreds.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Subset

from data import ImageDataset, read_image
from data.loader import SampleError
from utils.files import digest_of
from utils.seed import seeded

from . import Doubt, NotChecked, Wrong, checks_in, some

MIN_COUNT = 15  # files of a class; with fewer, any property tells the classes apart by chance
NAMES, HEADERS, SAMPLES = 100_000, 5_000, 200  # how many of a split are looked at, at most
THUMBNAILS = {"train": 1500, "val": 600, "test": 300}
SIDE = 40  # pixels of a thumbnail


class Unusable(NotChecked, Wrong):
    """Another check says why the labels are unusable. The checks of the model need them, too."""


def spread(size: int, count: int) -> list[int]:
    """Return up to `count` of the indices 0 … size - 1, spread evenly."""
    return np.unique(np.linspace(0, size - 1, min(count, size)).astype(int)).tolist()


class Split:
    """A split of a data set, and up to 200 of its samples, spread evenly."""

    def __init__(self, name: str, dataset: ImageDataset, make_loader: Callable) -> None:
        """make_loader(dataset, workers) returns what training reads from."""
        self.name, self.dataset, self.make_loader = name, dataset, make_loader
        self.errors: dict[int, str] = {}  # of samples that cannot be read
        self.classes, self.indices = dataset.classes, spread(len(dataset), SAMPLES)

    @cached_property
    def labels(self) -> np.ndarray:
        labels = np.asarray(self.dataset.labels)
        numbers = labels.ndim == 1 and labels.dtype.kind in "iufb"
        Unusable.when(not numbers, f"`labels` are {labels.dtype} {labels.shape}")
        return labels.astype(int)

    @cached_property
    def counts(self) -> list[int]:
        return [int((self.labels == label).sum()) for label in range(len(self.classes))]

    def read(self, attempt: int = 0) -> list[tuple[int, Tensor, int]]:
        """Return (index, image, label) of the samples that can be read; note the other errors."""
        samples = []
        for index in self.indices if self.counts else ():
            try:
                with seeded("check", attempt, index):  # the same crops in each run
                    samples.append((index, *self.dataset[index]))
            except OSError as error:
                self.errors[index] = str(error)
        return samples

    samples = cached_property(read)

    def load(self, epoch: int = 0, workers: int = 0) -> tuple[Tensor, Tensor]:
        """Return the samples as training gets them: images (M, 3, H, W) and labels (M,)."""
        part: Any = Subset(self.dataset, self.indices if self.counts else [])
        part.mean, part.std = self.dataset.mean, self.dataset.std
        with self.make_loader(part, workers) as loader:
            try:
                batches = [*loader.epoch(epoch)]
            except (SampleError, OSError) as error:  # the code of the data set fails, or all files
                raise Wrong(str(error)) from error
            except TypeError as error:
                raise Unusable(f"the loader does not take the labels: {error}") from error
        Wrong.when(not batches, f"none of {len(part)} samples can be read")
        _, *parts = zip(*batches, strict=True)
        images, labels = (torch.concat(part).cpu() for part in parts)
        fit = labels.dtype == torch.int64 and labels.ndim == 1
        Unusable.when(not fit, f"labels are {labels.dtype} {tuple(labels.shape)}")
        return images, labels

    batch = cached_property(load)  # of the first epoch

    def path(self, index: int) -> Path:
        """Return the file of a sample. Raises NotChecked if the data set does not tell."""
        NotChecked.when(not hasattr(self.dataset, "path"), "the data set has no method `path`")
        return Path(self.dataset.path(index))

    @cached_property
    def paths(self) -> dict[int, Path]:
        return {index: self.path(index) for index in spread(len(self.dataset), NAMES)}

    @cached_property
    def headers(self) -> dict[int, dict[str, Any]]:
        """What the first bytes of files say, by index; {} for those that are no pictures."""
        headers: dict[int, dict[str, Any]] = {}
        for index in sorted({*spread(len(self.dataset), HEADERS), *self.indices}):
            headers[index], path = {}, self.path(index)
            with suppress(Exception), Image.open(path) as image:
                (width, height), tags = image.size, image.getexif()
                names = "width", "height", "width / height", "bytes", "type", "mode"
                facts = width, height, width / height, path.stat().st_size, image.format, image.mode
                headers[index] = dict(zip(names, facts, strict=True)) | {
                    "JPEG quality": sum(getattr(image, "quantization", {}).get(0, [0])),
                    "orientation tag": tags.get(274, 0),
                    "camera": str(tags.get(272, "")),
                }
        return headers

    @cached_property
    def thumbnails(self) -> dict[int, Tensor]:
        """Files as pictures (3, 40, 40), by index."""
        thumbnails = {}
        for index in sorted({*spread(len(self.dataset), THUMBNAILS[self.name]), *self.indices}):
            path = self.path(index)
            with suppress(Exception):  # a broken file, which another check reports
                picture = read_image(path, side=64).float()
                thumbnails[index] = F.adaptive_avg_pool2d(picture, SIDE)
        NotChecked.when(not thumbnails, f"no file of {self.name} can be read")
        return thumbnails

    @cached_property
    def pairs(self) -> list[tuple[int, Tensor, Tensor]]:
        """(index, image, thumbnail of its file) of the samples."""
        files = self.thumbnails
        return [(index, x, files[index]) for index, x, _ in self.samples if index in files]


@dataclass
class DataCase:
    """Both splits, how to open the test split, and the options of the training."""

    train: Split
    val: Split
    open_test: Callable[[], ImageDataset | None]  # None: there is no test folder
    options: Any = None

    def __post_init__(self) -> None:
        self.splits = self.train, self.val

    @cached_property
    def with_files(self) -> list[Split]:
        """Train, val and, if there is one, test; without those that do not tell their files."""
        splits = [*self.splits]
        with suppress(Exception):  # another check opens it, too
            if test := self.open_test():
                splits.append(Split("test", test, self.train.make_loader))
        return [split for split in splits if hasattr(split.dataset, "path")]

    @cached_property
    def copies(self) -> list[list[Path]]:
        """Groups of files that have the same bytes."""
        return files_by_content(p for split in self.with_files for p in split.paths.values())


def classes_are_balanced(case: DataCase) -> str:
    """Classes are balanced
    Why: a model that always answers with the most frequent class looks good and is useless.
    Do: add pictures of the rare classes, or train with --balanced; look at F1, not accuracy."""
    seen = {}
    for split in case.splits:
        classes = zip(split.counts, split.classes, strict=True)
        text = some((f"{count:,} {name}" for count, name in classes), 6)
        seen[split.name] = f"{split.name} has {text}"
        Wrong.when(len(split.counts) < 2 or min(split.counts) == 0, seen[split.name])
    train, val = (np.array(split.counts) for split in case.splits)
    is_rest = case.options and case.options.val_share > 0.5 and val.sum() > 9 * train.sum()
    Wrong.when(is_rest, f"{', '.join(seen.values())}: --val-share leaves little for train")
    expected = train * val.sum() / train.sum()
    lost = (expected >= 20) & (val < 0.1 * expected) & (val < 0.1 * val.mean())
    Wrong.when(lost.any(), f"{', '.join(seen.values())}: val lacks a class of train")
    always = train.max() / train.sum()
    ignored = case.options and not (case.options.balanced or case.options.oversample)
    answer = f"{seen['train']}: {always:.0%} are right if a model always gives the same answer"
    Wrong.when(ignored and always > 0.95, f"{answer}, which nothing corrects")
    for split in case.splits:
        Doubt.when(max(split.counts) >= 9 * min(split.counts), seen[split.name])
    return ", ".join(seen.values())


def pictures_can_be_read(case: DataCase) -> str:
    """Pictures can be read
    Why: pictures that cannot be read are left out, perhaps all pictures of one kind.
    Do: get the files named here again, or delete them."""
    total = sum(len(split.samples) + len(split.errors) for split in case.splits)
    errors = [error for split in case.splits for error in split.errors.values()]
    for split in case.splits:
        if hasattr(split.dataset, "path"):
            by_pillow = any(split.headers[index] for index, _, _ in split.samples)
            unknown = [i for i, header in split.headers.items() if by_pillow and not header]
            errors += [f"{split.path(i)} is no picture" for i in unknown if i not in split.errors]
            total += len(split.headers) - len(split.indices)
    rejected = getattr(case.train.dataset, "rejected", {})
    reasons = errors + [f"{name} ({reason})" for name, reason in rejected.items()]
    seen = f"{len(errors)} of {total} cannot: {some(reasons, 3)}"
    Wrong.when(len(errors) > 0.05 * total, seen)
    Doubt.when(reasons, seen)
    return f"{total} of {total}"


def samples_fit_the_loader(case: DataCase) -> str:
    """Samples are square uint8 images of one size
    Why: the loader stacks the samples into a batch and normalises them itself.
    Do: let the transforms end with uint8 (3, H, W), at one size for all."""
    images = [image for split in case.splits for _, image, _ in split.samples]
    Wrong.when(not images, "no sample can be read")
    seen = some({f"{image.dtype} {tuple(image.shape)}": None for image in images})
    size = images[0].shape[-1]
    fit = all(x.dtype == torch.uint8 and x.shape == (3, size, size) for x in images)
    Wrong.when(not fit, seen)
    different = len({image.numpy().tobytes() for image in images})
    Wrong.when(different < len(images) / 2, f"of {len(images)} samples only {different} differ")
    val = torch.stack([image for _, image, _ in case.val.samples] or images[:1]).float()
    same = (val.std(dim=0, correction=0).amax(dim=0) < 2).float().mean().item()
    large = len(val) >= MIN_COUNT and same > 0.75
    Wrong.when(large, f"{same:.0%} of the area is the same in all samples of val")
    return seen


def samples_show_their_files(case: DataCase) -> str:
    """Each sample shows its own file
    Why: a wrong index, crop, range, or order of axes or colours raises no error and spoils data.
    Do: read the file of the given index; turn (H, W, RGB) into (RGB, H, W) by permute, not view."""
    seen, orders = [], []
    for split in case.splits:
        NotChecked.when(len(split.pairs) < MIN_COUNT, "the pictures are too few")
        _, *parts = zip(*split.pairs, strict=True)
        samples, files = (torch.stack(part).float() for part in parts)
        compare_pixels(split)
        find_repeated_samples(split)
        # If crops of the files do not resemble their own file most, the files are too similar.
        crops = [file[:, n % 9 : n % 9 + 32, 5 * n % 9 :][..., :32] for n, file in enumerate(files)]
        similar = own_share(torch.stack(crops), files) < 0.6
        NotChecked.when(similar, "the pictures are too similar to each other")
        share = own_share(samples, files)
        seen.append(f"{share:.0%} in {split.name}")
        low = share < (0.28 if split.name == "train" else 0.5)  # by chance 0.15; crops differ more
        Wrong.when(low, f"only {seen[-1]} resemble their own file more than most other files")
        hues = np.stack([appearance(part)[:, 2].numpy() for part in (samples, files)])
        orders.append("BGR" if np.cov(hues)[0, 1] < -0.5 * hues[1].var() else "RGB")
    order = f"the colours are {orders[0]} in train, {orders[1]} in val, against the files"
    Wrong.when(orders[0] != orders[1], order)
    Doubt.when(orders[0] != "RGB", order)
    return f"{', '.join(seen)} resemble their own file most"


def compare_pixels(split: Split) -> None:
    """Raise Wrong if the pixels of samples change less, or much more, than those of their files."""
    few = [split.pairs[n] for n in spread(len(split.pairs), 24)]
    samples = torch.stack([image for _, image, _ in few]).float()
    size = samples.shape[-1]
    files = [scaled(read_image(split.path(index), side=size)[None], size) for index, *_ in few]
    change, steps = appearance(samples)[:, 3:].median(dim=0).values.tolist()
    expected, few_steps = appearance(torch.concat(files))[:, 3:].median(dim=0).values.tolist()
    seen = f"{split.name}: from pixel to pixel, values change by {change:.1f}"
    seen = f"{seen}, in the files by {expected:.1f}"
    Wrong.when(change < 0.35 * expected, seen)  # dark, blurred, or a tiny part of a picture
    Wrong.when(change > max(35, 3 * expected), f"{seen}: they are mostly noise")
    wrapped = steps > 0.02 + 5 * few_steps
    Wrong.when(wrapped, f"{seen}, and {steps:.1%} of all by more than 150, as if 255 + 1 were 0")


def find_repeated_samples(split: Split) -> None:
    """Raise Wrong if samples are equal although their files show different pictures."""
    first: dict[bytes, Tensor] = {}
    repeated = []
    for index, image, file in split.pairs:
        other = first.setdefault(image.numpy().tobytes(), file)
        if (other - file).abs().mean() > 8:  # of 255; files that show the same picture: below 3
            repeated.append(split.path(index).name)
    seen = f"{split.name}: {len(repeated)} of {len(split.pairs)} samples show another file"
    Wrong.when(len(repeated) > 0.05 * len(split.pairs), f"{seen}: {some(repeated)}")


def scaled(pictures: Tensor, side: int) -> Tensor:
    return F.interpolate(pictures.float(), (side, side), mode="bicubic", antialias=True)


def cells_of(pictures: Tensor, side: int) -> Tensor:
    """Return the brightness of pictures (M, 3, H, W) in side x side parts (M, side * side)."""
    return F.adaptive_avg_pool2d(pictures.mean(dim=1), side).flatten(1)


def own_share(samples: Tensor, files: Tensor) -> float:
    """Return the share of samples that resemble their own file more than 85 % of all files."""
    parts = [samples, files, files.flip(3)]  # (M, 3, H, W)
    parts = [cells_of(part, 16) for part in parts]
    samples, *both = (F.normalize(part - part.mean(dim=0)) for part in parts)
    similarity = torch.maximum(*(samples @ part.T for part in both))
    rank = (similarity.diag()[:, None] > similarity).float().mean(dim=1)
    return (rank > 0.85).float().mean().item()


def pictures_are_large_enough(case: DataCase) -> str:
    """Pictures are large enough for --image-size
    Why: an enlarged picture shows no more detail, and costs as much time as a sharp one.
    Do: use a smaller --image-size."""
    headers = filter(None, case.train.headers.values())
    sides = sorted(min(facts["width"], facts["height"]) for facts in headers)
    NotChecked.when(not sides, "no file can be opened as a picture")
    median, size = sides[len(sides) // 2], case.train.batch[0].shape[-1]
    seen = f"shorter sides {sides[0]} … {median} … {sides[-1]} for {size} pixels"
    Doubt.when(median < size / 2, seen)  # CIFAR and MNIST are enlarged for large models
    files = torch.stack([*case.train.thumbnails.values()])
    parts = [files - scaled(scaled(files, side), SIDE) for side in (10, 16)]
    lost = [part.square().mean(dim=(1, 2, 3)) / (files.var(dim=(1, 2, 3)) + 1) for part in parts]
    fine, finer = (share.median().item() for share in lost)
    small = f"10 x 10 pixels tell all but {fine:.1%} of a file (of sharp pictures, all but 10 %)"
    # Pictures that are smooth by nature lose detail slowly, enlarged ones all at once.
    Wrong.when(median > 40 and fine < 0.015 and fine > 6 * finer, small)
    return seen


def labels_are_in_range(case: DataCase) -> str:
    """Labels are integers from 0 to K - 1
    Why: the loss uses a label as an index; a wrong one is an error or trains the wrong class.
    Do: number the classes in the data set's __init__, and return int."""
    for split in case.splits:
        try:
            labels, count, size = split.batch[1], len(split.labels), len(split.dataset)
        except Unusable as error:
            raise Wrong(str(error)) from error
        Wrong.when(size != count, f"{count:,} labels for {size:,} samples")
        seen = f"{labels.min()} … {labels.max()} for {len(split.counts)} classes"
        Wrong.when(labels.min() < 0 or labels.max() >= len(split.counts), seen)
        kind = np.asarray(split.dataset.labels).dtype
        Doubt.when(kind.kind not in "iu", f"{seen}; `labels` are {kind}")
    return seen


def labels_stay_with_their_pictures(case: DataCase) -> str:
    """A picture always has the same label
    Why: a label that changes, or belongs to the next picture, cannot be learned.
    Do: read picture and label by the same index, and shuffle in the sampler only."""
    for split in case.splits:
        Unusable.when(not split.batch, "there are no labels")
        first = {index: int(label) for index, _, label in split.samples}
        second = {index: int(label) for index, _, label in split.read(attempt=1)}
        changed = sum(first.get(index, label) != label for index, label in second.items())
        Wrong.when(changed, f"{changed} of {len(first)} labels differ when they are read again")
        other = [index for index, label in first.items() if label != split.labels[index]]
        Wrong.when(other, f"samples {some(other)} have other labels than in `labels`")
        told = labels_told_by_names(split) if hasattr(split.dataset, "path") else {}
        wrong = [split.paths[i].name for i, label in told.items() if label != split.labels[i]]
        seen = f"{len(wrong):,} of {len(told):,} file names in {split.name} contradict the labels"
        verdict = Wrong if len(wrong) > 0.01 * len(told) else Doubt  # perhaps put right by hand
        verdict.when(wrong, f"{seen}: {some(wrong)}")
    return "in train and val"


def labels_told_by_names(split: Split) -> dict[int, int]:
    """Return the labels of files named like rose.12.jpg or rose/12.jpg, by index."""
    words = [re.sub(r"[\W_]", "", name.lower()) for name in split.classes]
    label_of = {  # the letters A and a are two classes, but the folders Fir and fir are one
        word: label for label, word in enumerate(words) if len(word) > 1 and not word.isdigit()
    }
    told: dict[int, int] = {}
    for index, path in split.paths.items():
        for name in (path.parent.name, re.split(r"[.\d]", path.name)[0]):
            word = re.sub(r"[\W_]", "", name.lower())
            if word in label_of:
                told[index] = label_of[word]
    return told if len({*told.values()}) > 1 else {}


def labels_mean_the_same_in_val(case: DataCase) -> str:
    """Labels mean the same in train and val
    Why: if classes are numbered in another order, val says the opposite of what was learned.
    Do: give both splits the same list of classes, and look at some pictures of both."""
    seen = {}
    for split in case.splits:
        NotChecked.when(split not in case.with_files, "the data set has no method `path`")
        seen[split] = quick_features([*split.thumbnails.values()])
    train, val = ((x, torch.as_tensor(s.labels[[*s.thumbnails]])) for s, x in seen.items())
    half = torch.arange(len(train[0])) % 2 == 0
    sizes = int(half.sum()), len(val[0])
    NotChecked.when(min(sizes) < 50, "there are too few files")
    within = quick_accuracy(*(part[half] for part in train), *(part[~half] for part in train))
    across, chance = quick_accuracy(*train, *val), 1 / len(case.train.classes)
    noise = [4 * (chance * (1 - chance) / size) ** 0.5 for size in sizes]
    words = f"a quick model is right for {across:.0%} in val, for {within:.0%} in train"
    learns, opposite = within > chance + noise[0], across < chance - noise[1]
    Wrong.when(learns and opposite, f"{words}: val has other labels")
    Doubt.when(learns and across < chance, words)
    Doubt.when(sizes[0] >= 300 and not learns, f"{words}, which is no more than by chance")
    return words


def quick_features(thumbnails: Sequence[Tensor]) -> Tensor:
    """Return colours and edges of 8 x 8 parts of pictures, as rows (M, 320)."""
    pictures = torch.stack([*thumbnails])
    grey = pictures.mean(dim=1, keepdim=True)
    parts = pictures, *(grey.diff(dim=dim).abs() for dim in (2, 3))
    return torch.concat([F.adaptive_avg_pool2d(part, 8).flatten(1) for part in parts], dim=1)


def quick_accuracy(rows: Tensor, labels: Tensor, new_rows: Tensor, new_labels: Tensor) -> float:
    """Return the balanced accuracy on new rows of a ridge regression of the labels."""
    mean, std = rows.mean(dim=0), rows.std(dim=0) + 1e-6
    rows, new_rows = (rows - mean) / std, (new_rows - mean) / std
    truth = F.one_hot(labels).float()
    weights = torch.linalg.solve(
        rows.T @ rows + len(rows) * torch.eye(rows.shape[1]), rows.T @ (truth - truth.mean(dim=0))
    )
    predictions = (new_rows @ weights).argmax(dim=1)
    right = [(predictions[new_labels == k] == k).float().mean() for k in new_labels.unique()]
    return torch.stack(right).mean().item()


def splits_share_no_picture(case: DataCase) -> str:
    """Train, val and test share no picture
    Why: a model knows the pictures it was trained on, so val and test look better than they are.
    Do: delete one picture of each pair; split first, and make copies of the train pictures only."""
    if case.train not in case.with_files:
        images = [{x.numpy().tobytes() for _, x, _ in split.samples} for split in case.splits]
        same = len(images[0] & images[1])
        Wrong.when(same > 0.01 * len(images[1]) + 1, f"{same} samples are in both")
        raise NotChecked(f"without a method `path` only {len(images[1])} samples can be compared")
    train = {*case.train.paths.values()}
    known = train.union(*(group for group in case.copies if train & {*group}))
    share = len(case.train.thumbnails) / len(case.train.dataset)  # of train that is compared
    texts, doubtful = [], False
    for split in case.with_files[1:]:
        copies = sorted(path.name for path in known & {*split.paths.values()})
        pairs = [(one, two) for one, two in look_alikes(case.train, split) if two not in copies]
        total, compared = len(split.paths), len(split.thumbnails)
        seen = f"{len(copies):,} of {split.name}'s {total:,}" + f": {some(copies)}" * bool(copies)
        Wrong.when(len(copies) > 0.01 * total + 1, seen)
        names = some(map(" ~ ".join, pairs))
        seen += f"; {len(pairs)} of {compared} look the same: {names}" * bool(pairs)
        Wrong.when(len(pairs) > max(4, 0.2 * share * compared), seen)
        # Fewer copies change accuracy less than chance does.
        doubtful |= bool(pairs) or len(copies) > 0.002 * total
        texts.append(seen)
    Doubt.when(doubtful, ", ".join(texts))
    return ", ".join(texts)


def no_file_is_a_copy(case: DataCase) -> str:
    """No file is a copy of another
    Why: copies count double, and copies with different labels contradict each other.
    Do: delete all but one."""
    labels: dict[Path, int] = {}
    for split in case.splits:
        labels |= {path: int(split.labels[index]) for index, path in split.paths.items()}
    groups = [[path for path in group if path in labels] for group in case.copies]
    contradictory = [group for group in groups if len({labels[p] for p in group}) > 1]
    names = [" = ".join(path.name for path in group) for group in contradictory]
    Wrong.when(names, f"{some(names)} have different labels")
    copies = sum(len(group) - 1 for group in groups if group)
    seen = f"{copies:,} copies among {len(labels):,} files"
    Doubt.when(copies > 0.01 * len(labels), seen)
    return seen


def files_by_content(paths: Iterable[Path]) -> list[list[Path]]:
    """Return the groups of files with the same bytes. Only files of the same size are read."""
    by_size, by_digest = defaultdict(list), defaultdict(list)
    for path in paths:
        with suppress(OSError):  # another check reports files that cannot be read
            by_size[path.stat().st_size].append(path)
    same_size = [path for group in by_size.values() if len(group) > 1 for path in group]
    for n in spread(len(same_size), NAMES // 3):
        with suppress(OSError):
            by_digest[digest_of(same_size[n])].append(same_size[n])
    return [group for group in by_digest.values() if len(group) > 1]


def look_alikes(train: Split, split: Split) -> list[tuple[str, str]]:
    """Return names of files that show one picture, perhaps in another light, turned or cropped.

    The best match has to be far better than the tenth: pictures of a fixed camera are all alike.
    """
    known, new = (torch.stack([*part.thumbnails.values()]) for part in (train, split))
    views = [as_rows(new.flip([3] * flip).rot90(n, (2, 3))) for flip in (0, 1) for n in range(4)]
    best = torch.full((len(new), len(known)), -1.0)
    cuts = slice(0, 40), slice(2, 38), slice(4, 40), slice(0, 36)
    for rows, columns in product(cuts, cuts):
        part = as_rows(known[:, :, rows, columns]).T
        for view in views:
            best = torch.maximum(best, view @ part)
    gaps, order = (1 - best).sort(dim=1)
    clear = (gaps[:, 0] < 0.07) & (gaps[:, 0] < 0.25 * gaps[:, min(9, len(known) // 2)])
    indices = [*train.thumbnails], [*split.thumbnails]
    pairs = [(indices[0][order[n, 0]], indices[1][n]) for n in clear.nonzero().flatten().tolist()]
    return [(train.path(one).name, split.path(two).name) for one, two in pairs]


def as_rows(pictures: Tensor) -> Tensor:
    """Return pictures (M, 3, H, W) as rows (M, 64) of length 1, without light and contrast."""
    cells = cells_of(pictures, 8)
    cells = cells - cells.mean(dim=0)  # without what a fixed camera always shows
    cells = cells - cells.mean(dim=1, keepdim=True)
    return cells / (cells.norm(dim=1, keepdim=True) + 3)


def images_are_normalised(case: DataCase) -> str:
    """Images are normalised
    Why: networks are initialised for values with a mean near 0 and a standard deviation near 1.
    Do: scale to 0 … 1, then subtract the mean and divide by the standard deviation, once."""
    images = case.train.batch[0].float()
    mean, std = images.mean().item(), images.std().item()
    seen = f"{images.min():.2f} … {images.max():.2f}, mean {mean:.2f}, deviation {std:.2f}"
    sound = images.min() < 0 and images.max() - images.min() > 0.5 and 0.1 < std < 5
    Wrong.when(not images.isfinite().all() or not sound or abs(mean) > 3, seen)
    Doubt.when(abs(mean) > 1.5 or std < 0.3 or std > 2.5, seen)
    train, val = (appearance(split.batch[0].float()) for split in case.splits)
    contrasts = [train[:, 1].mean(), val[:, 1].mean()]
    differ = max(contrasts) > 4 * min(contrasts)
    Wrong.when(differ, "contrast is {:.2f} in train and {:.2f} in val".format(*contrasts))
    for number, name in enumerate(("brightness", "contrast", "red minus blue")):
        a, b = train[:, number], val[:, number]
        gap, noise = (a.mean() - b.mean()).abs(), (a.var() / len(a) + b.var() / len(b)).sqrt()
        if gap > 8 * noise + 0.1:
            highest = [split.batch[0].max() for split in case.splits]
            verdict = Wrong if gap > 0.5 and abs(highest[0] - highest[1]) > 0.5 else Doubt
            raise verdict(f"{name} is {a.mean():.2f} in train and {b.mean():.2f} in val")
    return seen


def appearance(images: Tensor) -> Tensor:
    """Return of each image (N, 3, H, W) five numbers (N, 5).

    Brightness, contrast, red minus blue, and from a pixel to the next: the mean change, and the
    share of changes by more than 150.
    """
    red, _, blue = images.mean(dim=(2, 3)).unbind(dim=1)
    means, contrast = images.mean(dim=(1, 2, 3)), images.std(dim=(1, 2, 3))
    down_and_right = (images.diff(dim=dim).abs().flatten(1) for dim in (2, 3))
    changes = torch.concat([*down_and_right], dim=1)
    change, steps = 2 * changes.mean(dim=1), 2 * (changes > 150).float().mean(dim=1)
    return torch.stack([means, contrast, red - blue, change, steps], dim=1)


def only_train_is_augmented(case: DataCase) -> str:
    """Train is augmented, val is not
    Why: the model soon memorises fixed pictures; random changes make the figures of val random.
    Do: give random transforms to the train split only."""
    same = torch.equal(case.val.batch[0], case.val.load(epoch=1)[0])
    Wrong.when(not same, "val pictures differ from one epoch to the next")
    first, second = case.train.batch[0], case.train.load(epoch=1)[0]
    changed = (first != second).flatten(1).any(dim=1).float().mean().item()
    seen = f"{changed:.0%} of the train pictures change with the epoch, no val picture does"
    if case.options and (scale := case.options.crop_scale) < 0.01:
        raise Wrong(f"{seen}; --crop-scale lets a crop show as little as {scale:.1%} of a picture")
    Doubt.when(changed < 0.5, seen)
    return seen


def workers_agree(case: DataCase) -> str:
    """The number of loader processes does not change the batches
    Why: processes that copy a random state all draw the same "random" crops.
    Do: draw random numbers from torch, random or numpy.random, not from a generator you keep."""
    for split in case.splits:
        same = all(map(torch.equal, split.batch, split.load(workers=2)))
        Wrong.when(not same, f"two processes load other {split.name} pictures than none")
    return "0 and 2 processes load the same bits"


def no_shortcut(case: DataCase) -> str:
    """Size, source and brightness do not reveal the class
    Why: a model learns such a shortcut instead of what the pictures show.
    Do: get all classes from the same source, or save them in the same form."""
    train = case.train
    headers = {index: facts for index, facts in train.headers.items() if facts}
    counts = Counter(train.labels[[*headers]].tolist())
    few = len(counts) < 2 or max(counts.values()) < MIN_COUNT
    NotChecked.when(few, "there are too few files")
    known = [index for index in train.indices if index in train.thumbnails]
    measured = {index: measure(read_image(train.path(index), side=256)) for index in known}
    scores = {
        name: best_threshold([facts[name] for facts in table.values()], train.labels[[*table]])
        for table in (headers, measured)
        for name in next(iter(table.values()))
    }
    scores["grey or colour"] = min(scores.pop("no colour"), scores.pop("colour"))
    may_be_the_subject = {"bytes", "brightness", "red / green", "blue / green"}
    may_be_the_subject |= {name for name in scores if "spot" in name}
    seen = "{} alone has a balanced accuracy of {:.0%}"
    best = max(sorted(scores.keys() - may_be_the_subject), key=scores.__getitem__)
    Wrong.when(scores[best] >= 0.9, seen.format(best, scores[best]))
    find_a_class_on_its_side(case)
    # A property of the whole picture shows in its spots, too.
    best = max(sorted(scores), key=lambda name: scores[name] - 0.05 * ("spot" in name))
    seen = seen.format(best, scores[best])
    Doubt.when(scores[best] >= 0.85, seen)
    return seen


def measure(picture: Tensor) -> dict[str, float]:
    """Return what tells how a picture (3, H, W) was made, rather than what it shows."""
    times = -(-24 // min(picture.shape[1:]))  # a tiny picture is enlarged
    grey = picture.double().mean(dim=0).repeat_interleave(times, 0).repeat_interleave(times, 1)
    grey = grey[: len(grey) // 24 * 24, : grey.shape[1] // 24 * 24]
    squares = [F.avg_pool2d(grey[None], side).square() for side in (1, 2, 4)]
    power = [F.adaptive_avg_pool2d(square, 6) for square in squares]  # in 6 x 6 parts
    fine = ((power[0] - power[1] + 0.1) / (power[1] - power[2] + 0.1)).median().log().item()
    steps = grey.diff(dim=1).abs().mean(dim=0) + 0.5
    blocks = (steps[7::8].mean() / steps.mean()).log().item()
    edges = grey[0], grey[-1], grey[:, 0], grey[:, -1]
    cells = F.adaptive_avg_pool2d(picture.float(), 8)
    colour = (cells.amax(dim=0) - cells.amin(dim=0) > 8).float().mean().item()  # share of cells
    red, green, blue = (cells.mean(dim=(1, 2)) + 4).tolist()
    spots = F.adaptive_avg_pool2d(grey[None], 16).flatten().tolist()  # of a mark, or a date
    return {f"the spot {n // 16}, {n % 16} of 16 x 16": spot for n, spot in enumerate(spots)} | {
        "brightness": grey.mean().item(),
        "red / green": red / green,
        "blue / green": blue / green,
        "no colour": colour < 0.02,
        "colour": colour > 0.25,
        "black bars": sum(edge.mean().item() < 8 for edge in edges),
        # Beyond these limits, a picture was enlarged or blurred, or was a JPEG of low quality.
        "fine detail": min(fine, -0.9),
        "8 x 8 blocks": max(blocks, 0.4),
    }


def find_a_class_on_its_side(case: DataCase) -> None:
    """Raise Wrong or Doubt if one class lies on its side and the others stand upright.

    Upright pictures differ from themselves upside down, but not from their mirror images.
    """
    train = case.train
    signs: dict[str, list[float]] = {}
    for label, name in enumerate(train.classes):
        chosen = [index for index in train.thumbnails if train.labels[index] == label]
        if len(chosen) >= 50:
            pictures = torch.stack([train.thumbnails[index] for index in chosen])
            ratios = [train.headers.get(index, {}).get("width / height", 1) for index in chosen]
            wide = sum(ratio > 1 for ratio in ratios) / len(ratios)
            signs[name] = [*(told_from_flipped(pictures, axis) for axis in (2, 3)), wide]
    for name in signs if len(signs) > 1 else ():
        upright, lying, wide = signs[name]
        rest = np.mean([facts for other, facts in signs.items() if other != name], axis=0)
        if min(lying, rest[0]) > 4 and max(upright, rest[1]) < 3:
            seen = f"pictures of {name} seem to lie on their side: {wide:.0%} are wider than high"
            verdict = Wrong if abs(wide - rest[2]) > 0.25 else Doubt
            raise verdict(f"{seen}, of the others {rest[2]:.0%}")


def told_from_flipped(pictures: Tensor, axis: int) -> float:
    """Return how surely pictures can be told from flipped ones: standard deviations of chance."""
    grey = pictures.mean(dim=1, keepdim=True)
    parts = pictures, *(4 * grey.diff(dim=dim).abs() for dim in (2, 3))
    rows = F.normalize(torch.concat([(x - x.flip(axis)).flatten(1) for x in parts], dim=1))
    right = ((rows @ rows.T).fill_diagonal_(0).sum(dim=1) > 0).sum().item()  # by all the others
    return (2 * right - len(rows)) / len(rows) ** 0.5


def best_threshold(facts: Any, labels: np.ndarray) -> float:
    """Return the best balanced accuracy of one threshold, over each class against the rest."""
    best, (_, values) = 0.5, np.unique(facts, return_inverse=True)
    for label, count in Counter(labels.tolist()).items():
        if min(count, len(labels) - count) < MIN_COUNT:
            continue
        order = np.argsort(values, kind="stable")
        is_label, ends = labels[order] == label, np.diff(values[order], append=np.inf) > 0
        below, others = is_label.cumsum() / count, (~is_label).cumsum() / (len(labels) - count)
        score = (below + 1 - others)[ends] / 2
        best = max(best, score.max(), 1 - score.min())
    return float(best)


def test_folder_is_complete(case: DataCase) -> str:
    """The test folder is complete
    Why: an answer for each picture is expected, and a missing one counts as wrong.
    Do: unpack the archive of test pictures again."""
    names = getattr(case.open_test(), "ids", None)
    if names is None:
        raise NotChecked("there is no test folder, or the data set has no `ids`")
    ids = sorted(int(name) for name in names if str(name).isdigit())
    if not ids:
        return f"{len(names):,} pictures, whose names are no numbers"
    in_a_row = ids[-1] < 2 * len(ids)  # numbered from 1 on
    missing = sorted({*range(1, ids[-1] + 1)} - {*ids}) if in_a_row else []
    seen = f"{len(ids):,} pictures up to number {ids[-1]:,}"
    Doubt.when(missing, f"{seen} without {some(missing)}")
    return seen


CHECKS = checks_in(globals())
