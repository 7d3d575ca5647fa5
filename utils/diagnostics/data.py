"""Is the data sound? Each check takes a DataCase.

They look at the names and the first bytes of all files, and at a few hundred samples.
"""

import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
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
from torch.utils.data import Subset

from data import ImageDataset, read_image
from data.loader import SampleError
from utils.files import digest_of
from utils.seed import seeded

from . import Doubt, NotChecked, Wrong, checks_in, some
from .model import one_class_after_another

MIN_COUNT = 15  # files of a class; with fewer, any property tells the classes apart by chance


class Split:
    """A split of a data set, and up to 200 of its samples, spread evenly."""

    def __init__(self, name: str, dataset: ImageDataset, make_loader: Callable) -> None:
        """make_loader(dataset, workers) returns what training reads from."""
        self.name, self.dataset, self.make_loader = name, dataset, make_loader
        self.classes, self.labels = dataset.classes, np.asarray(dataset.labels)
        self.counts = [int((self.labels == label).sum()) for label in range(len(self.classes))]
        self.errors: dict[int, str] = {}  # of samples that cannot be read
        self.indices = np.unique(np.linspace(0, len(dataset) - 1, 200).astype(int)).tolist()

    def read(self, attempt: int = 0) -> list[tuple[int, Tensor, int]]:
        """Return (index, image, label) of the samples that can be read; note the other errors."""
        samples = []
        for index in self.indices:
            try:
                with seeded("check", attempt, index):  # the same crops in each run
                    samples.append((index, *self.dataset[index]))
            except OSError as error:
                self.errors[index] = str(error)
        return samples

    samples = cached_property(read)

    def load(self, epoch: int = 0, workers: int = 0) -> tuple[Tensor, Tensor]:
        """Return the samples as training gets them: images (M, 3, H, W) and labels (M,)."""
        part: Any = Subset(self.dataset, self.indices)
        part.mean, part.std = self.dataset.mean, self.dataset.std
        with self.make_loader(part, workers) as loader:
            try:
                batches = [*loader.epoch(epoch)]
            except SampleError as error:  # the code of the data set fails
                raise Wrong(str(error)) from error
        Wrong.when(not batches, f"none of {len(part)} samples can be read")
        _, images, labels = zip(*batches, strict=True)
        return torch.concat(images).cpu(), torch.concat(labels).cpu()

    batch = cached_property(load)  # of the first epoch

    @cached_property
    def paths(self) -> list[Path]:
        """The file of each sample. Raises NotChecked if the data set does not tell."""
        NotChecked.when(not hasattr(self.dataset, "path"), "the data set has no method `path`")
        return [Path(self.dataset.path(index)) for index in range(len(self.dataset))]

    @cached_property
    def headers(self) -> dict[int, dict[str, Any]]:
        """What the first bytes of all files say, by index. Those that are no pictures lack."""
        headers = {}
        for index, path in enumerate(self.paths):
            with suppress(Exception), Image.open(path) as image:
                facts = {"width": image.width, "height": image.height, "mode": image.mode}
                facts |= {"type": image.format, "bytes": path.stat().st_size}
                headers[index] = facts | {"label": int(self.labels[index])}
        return headers

    @cached_property
    def files(self) -> dict[int, dict[str, Any]]:
        """Facts about the files of the samples, by index."""
        files, headers = {}, self.headers
        for index in self.indices:
            with suppress(Exception):  # a broken file, which another check reports
                facts, picture = headers[index], read_image(self.paths[index], side=64)
                top, left = (side // 10 for side in picture.shape[1:])
                middle = picture[:, top : picture.shape[1] - top, left : picture.shape[2] - left]
                facts |= {"picture": thumbnail(picture), "middle": thumbnail(middle)}
                facts["grey"] = facts["picture"].mean(axis=2)
                files[index] = facts | {"brightness": facts["grey"].mean()}
        return files


@dataclass
class DataCase:
    """Both splits, and how to open the test split."""

    train: Split
    val: Split
    open_test: Callable[[], ImageDataset | None]  # None: there is no test folder

    def __post_init__(self) -> None:
        self.splits = self.train, self.val

    @cached_property
    def copies(self) -> list[list[Path]]:
        """Groups of files that have the same bytes."""
        return files_by_content([*self.train.paths, *self.val.paths])


def thumbnail(picture: Tensor) -> np.ndarray:
    """Return a picture (3, H, W) as 16 x 16 pixels: (16, 16, RGB)."""
    return F.adaptive_avg_pool2d(picture.float(), 16).permute(1, 2, 0).numpy()


def few_samples_of(dataset_class: Callable[..., ImageDataset], size: int = 24) -> type[Subset]:
    """Return a class of data sets that has only `size` samples of each split, of all classes."""

    class FewSamples(Subset):
        __signature__ = inspect.signature(dataset_class)  # data.build_loader asks for it

        def __init__(self, root: str, mode: str, **options: Any) -> None:
            whole = dataset_class(root, mode=mode, **options)
            rows = one_class_after_another(torch.as_tensor(np.asarray(whole.labels)), size)
            super().__init__(whole, sorted(rows.tolist()))
            self.labels = np.asarray(whole.labels)[self.indices]

        def __getattr__(self, name: str) -> Any:
            return getattr(self.dataset, name)

    return FewSamples


def classes_are_balanced(case: DataCase) -> str:
    """Classes are balanced
    Why: a model that always answers with the most frequent class looks good and is useless.
    Do: add pictures of the rare classes, or train with --balanced; look at F1, not accuracy."""
    for split in case.splits:
        classes = zip(split.counts, split.classes, strict=True)
        seen = f"{split.name} has {some((f'{count:,} {name}' for count, name in classes), 6)}"
        Wrong.when(min(split.counts) == 0 or len(split.counts) < 2, seen)
        Doubt.when(max(split.counts) >= 9 * min(split.counts), seen)
    return f"{len(case.train.labels):,} in train, {seen}"


def pictures_can_be_read(case: DataCase) -> str:
    """Pictures can be read
    Why: pictures that cannot be read are left out, perhaps all pictures of one kind.
    Do: get the files named here again, or delete them."""
    total = sum(len(split.samples) + len(split.errors) for split in case.splits)
    errors = [error for split in case.splits for error in split.errors.values()]
    for split in case.splits:
        if hasattr(split.dataset, "path"):
            unknown = {*range(len(split.paths))} - {*split.headers} - {*split.errors}
            errors += [f"{split.paths[index]} is no picture" for index in sorted(unknown)]
            total += len(split.paths) - len(split.indices)
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
    return seen


def samples_show_their_files(case: DataCase) -> str:
    """Each sample shows its own file
    Why: a wrong index, or a wrong order of axes or colours, raises no error and spoils the data.
    Do: read the file of the given index; turn (H, W, RGB) into (RGB, H, W) by permute, not view."""
    seen = []
    for split in case.splits:
        pairs = [(thumbnail(x), split.files[i]) for i, x, _ in split.samples if i in split.files]
        samples = np.array([sample for sample, _ in pairs])  # (M, 16, 16, RGB)
        files = np.array([facts["picture"] for _, facts in pairs])
        # If a crop of a file does not resemble its own file most, the files are too similar.
        middles = np.array([facts["middle"] for _, facts in pairs])
        similar = len(pairs) < MIN_COUNT or own_share(middles, files) < 0.8
        NotChecked.when(similar, "the pictures are too few, or too similar to each other")
        share = own_share(samples, files)
        seen.append(f"{share:.0%} in {split.name}")
        low = share < (0.28 if split.name == "train" else 0.5)  # by chance 0.15; crops differ more
        Wrong.when(low, f"only {seen[-1]} resemble their own file more than most other files")
        red_minus_blue = [part[..., 0] - part[..., 2] for part in (samples, files)]
        swapped = np.median(correlations(*red_minus_blue).diagonal()) < -0.5
        Doubt.when(swapped, f"red and blue are swapped in {split.name}")
    return f"{', '.join(seen)} resemble their own file most"


def own_share(samples: np.ndarray, files: np.ndarray) -> float:
    """Return the share of samples that resemble their own file more than 85 % of all files."""
    similarity = correlations(samples.mean(axis=3), files.mean(axis=3))
    return ((similarity.diagonal()[:, None] > similarity).mean(axis=1) > 0.85).mean()


def correlations(samples: np.ndarray, files: np.ndarray) -> np.ndarray:
    """Return (M, M): the correlation of each sample with each file, or its mirror if higher."""
    parts = [samples, files, files[:, :, ::-1]]  # (M, 16, 16) each
    parts = [(part - part.mean(axis=0)).reshape(len(part), -1) for part in parts]
    samples, *both = (part / (np.linalg.norm(part, axis=1, keepdims=True) + 1e-9) for part in parts)
    return np.maximum(*(samples @ part.T for part in both))


def pictures_are_large_enough(case: DataCase) -> str:
    """Pictures are large enough for --image-size
    Why: an enlarged picture shows no more detail, and costs as much time as a sharp one.
    Do: use a smaller --image-size."""
    sides = sorted(min(facts["width"], facts["height"]) for facts in case.train.headers.values())
    NotChecked.when(not sides, "no file can be opened as a picture")
    median, size = sides[len(sides) // 2], case.train.batch[0].shape[-1]
    seen = f"shorter sides {sides[0]} … {median} … {sides[-1]} for {size} pixels"
    Doubt.when(median < size / 2, seen)
    return seen


def labels_are_in_range(case: DataCase) -> str:
    """Labels are integers from 0 to K - 1
    Why: the loss uses a label as an index; a wrong one is an error or trains the wrong class.
    Do: number the classes in the data set's __init__, and return int."""
    for split in case.splits:
        labels, size = split.batch[1], len(split.dataset)
        Wrong.when(size != len(split.labels), f"{len(split.labels):,} labels for {size:,} samples")
        Wrong.when(labels.dtype != torch.int64, f"labels are {labels.dtype}")
        seen = f"{labels.min()} … {labels.max()} for {len(split.classes)} classes"
        Wrong.when(labels.min() < 0 or labels.max() >= len(split.classes), seen)
    return seen


def labels_stay_with_their_pictures(case: DataCase) -> str:
    """A picture always has the same label
    Why: a label that changes, or belongs to the next picture, cannot be learned.
    Do: read picture and label by the same index, and shuffle in the sampler only."""
    for split in case.splits:
        first = {index: int(label) for index, _, label in split.samples}
        second = {index: int(label) for index, _, label in split.read(attempt=1)}
        changed = sum(first.get(index, label) != label for index, label in second.items())
        Wrong.when(changed, f"{changed} of {len(first)} labels differ when they are read again")
        other = [index for index, label in first.items() if label != split.labels[index]]
        Wrong.when(other, f"samples {some(other)} have other labels than in `labels`")
        names = {i: split.paths[i].name.lower() for i in first if hasattr(split.dataset, "path")}
        contradicted = [
            name
            for index, name in names.items()
            for label, class_name in enumerate(split.classes)
            if name.startswith(f"{class_name.lower()}.") and label != first[index]
        ]
        Wrong.when(contradicted, f"the file names contradict the labels: {some(contradicted)}")
    return "in train and val"


def splits_share_no_picture(case: DataCase) -> str:
    """Train and val share no picture
    Why: a model knows the pictures it was trained on, so val looks better than it is.
    Do: delete one picture of each pair."""
    total, pairs = len(case.val.labels), []
    if hasattr(case.train.dataset, "path"):
        train, val = set(case.train.paths), set(case.val.paths)
        shared = {path for group in case.copies if train & {*group} for path in group}
        copies = sorted(path.name for path in shared & val)
        pairs = [f"{one} ~ {other}" for one, other in look_alikes(case) if other not in copies]
    else:
        images = [{x.numpy().tobytes() for _, x, _ in split.samples} for split in case.splits]
        copies = ["a sample"] * len(images[0] & images[1])
        reason = f"without a method `path` only {len(images[1])} samples can be compared"
        NotChecked.when(not copies, reason)
    seen = f"{len(copies):,} of val's {total:,}" + (f": {some(copies)}" if copies else "")
    Wrong.when(len(copies) > 0.01 * total + 1, seen)
    Doubt.when(pairs, f"{seen}; these look the same: {some(pairs)}")
    Doubt.when(len(copies) > 0.002 * total, seen)  # fewer change accuracy less than chance does
    return seen


def no_file_is_a_copy(case: DataCase) -> str:
    """No file is a copy of another
    Why: copies count double, and copies with different labels contradict each other.
    Do: delete all but one."""
    labels: dict[Path, int] = {}
    for split in case.splits:
        labels |= dict(zip(split.paths, split.labels.tolist(), strict=False))
    contradictory = [group for group in case.copies if len({labels[p] for p in group}) > 1]
    names = [" = ".join(path.name for path in group) for group in contradictory]
    Wrong.when(names, f"{some(names)} have different labels")
    copies = sum(len(group) - 1 for group in case.copies)
    seen = f"{copies:,} copies among {len(labels):,} files"
    Doubt.when(copies > 0.01 * len(labels), seen)
    return seen


def files_by_content(paths: Iterable[Path]) -> list[list[Path]]:
    """Return the groups of files with the same bytes. Only files of the same size are read."""
    by_size, by_digest = defaultdict(list), defaultdict(list)
    for path in paths:
        with suppress(OSError):  # another check reports files that cannot be read
            by_size[path.stat().st_size].append(path)
    for path in (path for group in by_size.values() if len(group) > 1 for path in group):
        with suppress(OSError):
            by_digest[digest_of(path)].append(path)
    return [group for group in by_digest.values() if len(group) > 1]


def look_alikes(case: DataCase) -> list[tuple[str, str]]:
    """Return names of train and val that are one picture in two encodings, perhaps mirrored."""
    if not (case.train.files and case.val.files):
        return []
    train, val = (np.stack([f["grey"] for f in split.files.values()]) for split in case.splits)
    names = [[split.paths[index].name for index in split.files] for split in case.splits]
    views = val, val[:, :, ::-1]
    gaps = np.minimum(*(np.abs(train[:, None] - view).mean(axis=(2, 3)) for view in views))
    contrast = np.abs(train - train.mean(axis=0)).mean(axis=(1, 2))  # low for a fixed camera
    pairs = np.argwhere(gaps < np.minimum(2, 0.1 * contrast)[:, None])
    return [(names[0][i], names[1][j]) for i, j in pairs]


def images_are_normalised(case: DataCase) -> str:
    """Images are normalised
    Why: networks are initialised for values with a mean near 0 and a standard deviation near 1.
    Do: scale to 0 … 1, then subtract the mean and divide by the standard deviation, once."""
    images = case.train.batch[0].float()
    mean, std = images.mean().item(), images.std().item()
    seen = f"{images.min():.2f} … {images.max():.2f}, mean {mean:.2f}, deviation {std:.2f}"
    finite = images.isfinite().all()
    Wrong.when(not finite or images.min() >= 0 or not 0.1 < std < 5 or abs(mean) > 3, seen)
    Doubt.when(abs(mean) > 1.5 or std < 0.3 or std > 2.5, seen)
    train, val = (appearance(split.batch[0].float()) for split in case.splits)
    for number, name in enumerate(("brightness", "contrast", "red minus blue")):
        a, b = train[:, number], val[:, number]
        gap, noise = (a.mean() - b.mean()).abs(), (a.var() / len(a) + b.var() / len(b)).sqrt()
        if gap > 8 * noise + 0.1:
            highest = [split.batch[0].max() for split in case.splits]
            severity = Wrong if gap > 0.5 and abs(highest[0] - highest[1]) > 0.5 else Doubt
            raise severity(f"{name} is {a.mean():.2f} in train and {b.mean():.2f} in val")
    return seen


def appearance(images: Tensor) -> Tensor:
    """Return brightness, contrast and red minus blue of each image: (N, 3, H, W) to (N, 3)."""
    red, _, blue = images.mean(dim=(2, 3)).unbind(dim=1)
    return torch.stack([images.mean(dim=(1, 2, 3)), images.std(dim=(1, 2, 3)), red - blue], dim=1)


def only_train_is_augmented(case: DataCase) -> str:
    """Train is augmented, val is not
    Why: the model soon memorises fixed pictures; random changes make the figures of val random.
    Do: give random transforms to the train split only."""
    same = torch.equal(case.val.batch[0], case.val.load(epoch=1)[0])
    Wrong.when(not same, "val pictures differ from one epoch to the next")
    first, second = case.train.batch[0], case.train.load(epoch=1)[0]
    changed = (first != second).flatten(1).any(dim=1).float().mean().item()
    seen = f"{changed:.0%} of the train pictures change with the epoch, no val picture does"
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
    """Size, brightness and file type do not reveal the class
    Why: a model learns such a shortcut instead of what the pictures show.
    Do: get all classes from the same source, or save them in the same form."""
    files = [*case.train.files.values()]
    labels = np.array([facts["label"] for facts in files])
    counts = Counter(labels.tolist())
    few = len(counts) < 2 or max(counts.values()) < MIN_COUNT
    NotChecked.when(few, "there are too few files")
    scores = {}
    for name in ("width", "height", "bytes", "brightness", "mode", "type"):
        known = files if name == "brightness" else [*case.train.headers.values()]
        _, ranks = np.unique([facts[name] for facts in known], return_inverse=True)
        scores[name] = best_threshold(ranks, np.array([facts["label"] for facts in known]))
    best = max(scores, key=scores.__getitem__)
    seen = f"{best} alone has a balanced accuracy of {scores[best]:.0%}"
    may_be_the_subject = best in ("bytes", "brightness")
    Wrong.when(scores[best] >= 0.9 and not may_be_the_subject, seen)
    Doubt.when(scores[best] >= 0.8, seen)
    grey = np.stack([facts["grey"] for facts in files])  # (M, 16, 16)
    spots = {place: best_threshold(grey[:, *place], labels) for place in np.ndindex(16, 16)}
    y, x = max(spots, key=spots.__getitem__)  # of a mark, or a date, in the pictures of one class
    where = f"{y / 16:.0%} from the top and {x / 16:.0%} from the left"
    spot = f"one spot, {where}, has a balanced accuracy of {spots[y, x]:.0%}"
    Doubt.when(spots[y, x] >= 0.9, spot)
    return seen


def best_threshold(values: np.ndarray, labels: np.ndarray) -> float:
    """Return the best balanced accuracy of one threshold, over each class against the rest."""
    best = 0.5
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
    test = case.open_test()
    if test is None:
        raise NotChecked("there is no test folder")
    if test.ids is None:
        raise NotChecked("the data set has no `ids`")
    try:
        ids = sorted(int(number) for number in test.ids)
    except ValueError:
        return f"{len(test.ids):,} pictures, whose names are no numbers"
    in_a_row = ids[-1] < 2 * len(ids)  # numbered from 1 on
    missing = sorted({*range(1, ids[-1] + 1)} - {*ids}) if in_a_row else []
    seen = f"{len(ids):,} pictures up to number {ids[-1]:,}"
    Doubt.when(missing, f"{seen} without {some(missing)}")
    return seen


CHECKS = checks_in(globals())
