"""The checks of the data find faults of whole classes, splits and transforms, and no others."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from config import DefaultConfig
from data import Pictures
from data.transforms import RandomCropAndFlip, resize
from tests.drawings import draw, draw_set
from tests.test_diagnostics import alarms, data_case
from utils.diagnostics import data as check_data


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """200 pictures in train/fir and train/oak, 20 in test1."""
    root = tmp_path_factory.mktemp("drawn")
    draw_set(root, count=200)
    return root


def mark_of(check: Callable, case: check_data.DataCase) -> str:
    found = alarms([check], case)
    return found[check.__name__].mark if found else "✓"


def change_class(drawn: Path, root: Path, change: Callable, **how) -> Path:
    """Copy the pictures; change those of one class."""
    for path in (drawn / "train").rglob("*.jpg"):
        picture = Image.open(path)
        (root / path.parent.name).mkdir(exist_ok=True)
        if path.name.startswith("oak"):
            change(picture).save(root / path.parent.name / path.name, **{"quality": 90, **how})
        else:
            picture.save(root / path.parent.name / path.name, quality=90)
    return root


def enlarged(picture):
    return picture.reduce(4).resize(picture.size)


def tagged():
    tags = Image.Exif()
    tags[274], tags[272] = 1, "a camera"
    return tags


@pytest.mark.parametrize(
    ("change", "how", "mark"),
    [
        (lambda picture: picture.convert("L"), {}, "✗"),
        (lambda picture: picture.convert("L").convert("RGB"), {}, "✗"),
        (enlarged, {}, "✗"),
        (lambda picture: picture.filter(ImageFilter.GaussianBlur(2)), {}, "✗"),
        (lambda picture: ImageOps.expand(picture, 9, "black"), {}, "✗"),
        (lambda picture: picture, {"quality": 60}, "✗"),
        (lambda picture: picture, {"exif": tagged()}, "✗"),
        (lambda picture: picture.resize((200, 160)), {}, "✗"),
        (
            lambda picture: Image.merge(
                "RGB", [*picture.split()[:2], Image.new("L", picture.size)]
            ),
            {},
            "!",
        ),
        (lambda picture: ImageEnhance.Brightness(picture).enhance(0.4), {}, "!"),
        (lambda picture: picture, {}, "✓"),
    ],
)
def test_a_class_from_another_source_is_found(change, how, mark, drawn, tmp_path):
    root = change_class(drawn, tmp_path, change, **how)
    assert mark_of(check_data.no_shortcut, data_case(root, Pictures)) == mark


def scene(number: int) -> Image.Image:
    """Return a picture that is bright above, with a dark ground."""
    rng = np.random.default_rng(number)
    picture = Image.new("RGB", (80, 60), tuple(rng.integers(120, 250, size=3).tolist()))
    canvas = ImageDraw.Draw(picture)
    canvas.rectangle(
        (0, int(rng.integers(20, 50)), 80, 60), tuple(rng.integers(0, 120, 3).tolist())
    )
    return picture


@pytest.mark.parametrize(("fault", "mark"), [("on its side", "✗"), ("square", "!"), ("", "✓")])
def test_a_class_that_lies_on_its_side_is_found(fault, mark, tmp_path):
    for number in range(160):
        kind = ("fir", "oak")[number % 2]
        picture = scene(number)
        picture = picture.resize((60, 60)) if fault == "square" else picture
        picture = picture.resize((60, 80)) if number % 8 < 2 and fault != "square" else picture
        picture = picture.rotate(90, expand=True) if fault and kind == "oak" else picture
        (tmp_path / kind).mkdir(exist_ok=True)
        picture.save(tmp_path / kind / f"{number}.png")
    assert mark_of(check_data.no_shortcut, data_case(tmp_path, Pictures)) == mark


CLOTHES = {
    "none": lambda picture: picture,
    "smaller": lambda picture: picture.reduce(2),
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.3),
    "grey": lambda picture: picture.convert("L"),
    "cropped": lambda picture: ImageOps.crop(picture, 8),
    "mirrored": ImageOps.mirror,
    "turned": lambda picture: picture.rotate(90, expand=True),
}


def change_some(paths: list[Path], change: Callable, folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, path in enumerate(paths):
        change(Image.open(path)).save(folder / f"{number}.jpg", quality=80)


@pytest.mark.parametrize("change", CLOTHES)
def test_a_val_split_that_is_train_in_other_clothes_is_found(change, drawn, tmp_path):
    for kind in ("fir", "oak"):
        paths = sorted((drawn / "train" / kind).iterdir())[:40]
        shutil.copytree(drawn / "train" / kind, tmp_path / "train" / kind)
        change_some(paths, CLOTHES[change], tmp_path / "val" / kind)
    assert mark_of(check_data.splits_share_no_picture, data_case(tmp_path, Pictures)) == "✗"


@pytest.mark.parametrize("change", [None, "none", "turned"])
def test_a_test_folder_of_train_pictures_is_found(change, drawn, tmp_path):
    paths = sorted((drawn / "train").rglob("*.jpg"))[::5]
    if change:
        change_some(paths, CLOTHES[change], tmp_path / "test")
    else:
        (tmp_path / "test").mkdir()
        for path in paths:
            shutil.copy(path, tmp_path / "test")
    case = data_case(drawn / "train", Pictures, test=tmp_path / "test")
    assert mark_of(check_data.splits_share_no_picture, case) == "✗"
    case = data_case(drawn / "train", Pictures, test=drawn / "test1")
    assert mark_of(check_data.splits_share_no_picture, case) == "✓"


def test_pictures_of_a_fixed_camera_are_no_copies(tmp_path):
    background = draw("fir", 1).resize((160, 160))
    rng = np.random.default_rng(0)
    for kind in ("car", "dog"):
        (tmp_path / kind).mkdir()
        for number in range(60):
            picture, (x, y) = background.copy(), rng.integers(10, 140, size=2).tolist()
            shape = getattr(ImageDraw.Draw(picture), "rectangle" if kind == "car" else "ellipse")
            shape((x, y, x + 15, y + 15), tuple(rng.integers(0, 256, size=3).tolist()))
            noisy = np.asarray(picture) + rng.normal(0, 3, (160, 160, 3))
            noisy = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
            noisy.save(tmp_path / kind / f"{number}.jpg")
    assert alarms(check_data.CHECKS, data_case(tmp_path, Pictures), "!✗") == {}


class ChangesLabels(Pictures):
    def __init__(self, root, mode, **more):
        super().__init__(root, mode=mode, **more)
        self.labels = self.change(self.labels)


@pytest.mark.parametrize(
    "change",
    [
        lambda labels: np.eye(2)[labels],
        lambda labels: np.array(["fir", "oak"])[labels],
        lambda labels: [{"label": label} for label in labels],
    ],
)
def test_labels_of_another_type_are_one_clear_fault(change, drawn):
    kind = type("Labels", (ChangesLabels,), {"change": staticmethod(change)})
    found = alarms(check_data.CHECKS, data_case(drawn / "train", kind), "✗")
    assert found.keys() == {"labels_are_in_range"}


@pytest.mark.parametrize(
    "label", [float, bool, str, lambda label: np.eye(2)[label], lambda label: torch.tensor([label])]
)
def test_samples_with_labels_of_another_type_are_one_clear_fault(label, drawn):
    class Labels(Pictures):
        def __getitem__(self, index):
            image, number = super().__getitem__(index)
            return image, label(number)

    found = alarms(check_data.CHECKS, data_case(drawn / "train", Labels), "✗")
    assert found.keys() == {"labels_are_in_range"}


def flip_a_third(labels):
    return np.where(np.arange(len(labels)) % 3 == 0, 1 - labels, labels)


def follow_the_order(labels):
    return np.arange(len(labels)) % 2


@pytest.mark.parametrize("names", ["flat", "folders"])
@pytest.mark.parametrize("change", [flip_a_third, follow_the_order])
def test_labels_that_contradict_the_names_are_found(change, names, drawn, tmp_path):
    root = drawn / "train"
    for number, path in enumerate(root.rglob("*.jpg")):
        name = path.name if names == "flat" else f"{path.parent.name}/{number}.jpg"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / name)
    facts = {"change": staticmethod(change), "classes": ("fir", "oak")}
    case = data_case(tmp_path, type("Labels", (ChangesLabels,), facts))
    assert mark_of(check_data.labels_stay_with_their_pictures, case) == "✗"


def show_a_corner(image):
    return resize(image[:, :12, :12], 32, 32)


BOTH, VAL, TRAIN = ("train", "val"), ("val",), ("train",)


@pytest.mark.parametrize(
    ("change", "modes", "mark"),
    [
        (show_a_corner, BOTH, "✗"),
        (show_a_corner, VAL, "✗"),
        (lambda image: image.flip(0), TRAIN, "✗"),
        (lambda image: image.flip(0), VAL, "✗"),
        (lambda image: image.flip(0), BOTH, "!"),
        (lambda image: 2 * image, BOTH, "✗"),  # 256 becomes 0
        (lambda image: image // 16, BOTH, "✗"),
        (lambda image: resize(resize(image, 3, 3), 32, 32), BOTH, "✗"),
        (lambda image: image, BOTH, "✓"),
    ],
)
def test_a_transform_that_destroys_is_found(change, modes, mark, drawn):
    class Changes(Pictures):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return change(image) if self.mode in modes else image, label

    case = data_case(drawn / "train", Changes)
    assert mark_of(check_data.samples_show_their_files, case) == mark


def test_crops_of_a_small_part_are_found(drawn):
    class ShowsLittle(Pictures):
        def __init__(self, root, mode, image_size):
            super().__init__(root, mode=mode, image_size=image_size)
            if mode == "train":
                self.transforms = lambda picture: RandomCropAndFlip(32, 0.03)(
                    picture, [0, *torch.rand(4).tolist()]
                )

    case = data_case(drawn / "train", ShowsLittle)
    assert mark_of(check_data.samples_show_their_files, case) == "✗"


def test_strong_noise_in_train_is_found(drawn):
    class IsNoisy(Pictures):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            noise = np.random.default_rng(index).normal(0, 80, image.shape)
            noisy = (image + torch.from_numpy(noise)).clamp(0, 255).to(torch.uint8)
            return noisy if self.mode == "train" else image, label

    found = alarms([check_data.samples_show_their_files], data_case(drawn / "train", IsNoisy))
    assert "mostly noise" in found["samples_show_their_files"].seen


def test_samples_of_other_files_are_found(drawn):
    class ReadsSomeTwice(Pictures):
        def read(self, index):
            return super().read(index - 1 if index % 5 == 4 else index)

    case = data_case(drawn / "train", ReadsSomeTwice)
    found = alarms([check_data.samples_show_their_files], case)
    assert "show another file" in found["samples_show_their_files"].seen


@pytest.mark.parametrize(("side", "mark"), [(9, "✗"), (24, "✓")])
def test_pictures_enlarged_from_thumbnails_are_found(side, mark, drawn, tmp_path):
    for path in (drawn / "train").rglob("*.jpg"):
        picture = Image.open(path)
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        small = picture.resize((side, side))
        small.resize(picture.size).save(tmp_path / path.parent.name / path.name)
    assert mark_of(check_data.pictures_are_large_enough, data_case(tmp_path, Pictures)) == mark


@pytest.mark.parametrize(
    ("options", "mark"),
    [(None, "!"), (DefaultConfig(), "✗"), (DefaultConfig(balanced=True), "!")],
)
def test_a_class_that_is_nearly_all_is_wrong_unless_balanced(options, mark, drawn, tmp_path):
    for path in (drawn / "train").rglob("*.jpg"):
        if path.name.startswith("fir") or int(path.name.split(".")[1]) < 4:
            (tmp_path / path.parent.name).mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / path.parent.name)
    case = data_case(tmp_path, Pictures)
    case.options = options
    assert mark_of(check_data.classes_are_balanced, case) == mark


@pytest.mark.parametrize(("left", "mark"), [(1, "✗"), (40, "✓")])
def test_a_val_split_that_lacks_a_class_is_found(left, mark, drawn, tmp_path):
    for kind in ("fir", "oak"):
        paths = sorted((drawn / "train" / kind).iterdir())
        count = left if kind == "fir" else 40
        for split, part in (("train", paths[count:]), ("val", paths[:count])):
            (tmp_path / split / kind).mkdir(parents=True)
            for path in part:
                shutil.copy(path, tmp_path / split / kind)
    assert mark_of(check_data.classes_are_balanced, data_case(tmp_path, Pictures)) == mark


@pytest.mark.parametrize("count", [10, 30])
def test_few_pictures_raise_no_alarm(count, tmp_path):
    draw_set(tmp_path, count=count, kinds="abcde" if count == 30 else ("fir", "oak"))
    case = data_case(tmp_path / "train", Pictures, test=tmp_path / "test1")
    assert alarms(check_data.CHECKS, case, "✗") == {}


@pytest.mark.parametrize(("fault", "mark"), [("swapped", "✗"), ("mixed", "!"), ("", "✓")])
def test_labels_that_mean_something_else_in_val_are_found(fault, mark, tmp_path):
    draw_set(tmp_path / "drawn", count=1000 if fault == "mixed" else 300)
    for number, path in enumerate(sorted((tmp_path / "drawn/train").rglob("*.jpg"))):
        split = ("train", "val")[number % 4 == 0]
        kinds = ["fir", "oak"]
        kind = kinds[kinds.index(path.parent.name) ^ (fault == "swapped" and split == "val")]
        kind = kinds[number // 2 % 2] if fault == "mixed" else kind
        (tmp_path / "set" / split / kind).mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / "set" / split / kind / f"{number}.jpg")
    case = data_case(tmp_path / "set", Pictures)
    assert mark_of(check_data.labels_mean_the_same_in_val, case) == mark


def test_a_val_split_without_contrast_is_found(drawn):
    class Fades(Pictures):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return 120 + image // 16 if self.mode == "val" else image, label

    assert mark_of(check_data.images_are_normalised, data_case(drawn / "train", Fades)) == "✗"


def test_pictures_of_which_only_the_top_differs_are_found(drawn):
    class ShowsTheTop(Pictures):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            image[:, 6:] = 128
            return image, label

    case = data_case(drawn / "train", ShowsTheTop)
    assert mark_of(check_data.samples_fit_the_loader, case) == "✗"


@pytest.mark.parametrize(
    ("check", "options", "mark"),
    [
        (check_data.classes_are_balanced, {"val_share": 0.96}, "✗"),
        (check_data.classes_are_balanced, {"val_share": 0.7}, "✓"),
        (check_data.only_train_is_augmented, {"crop_scale": 0.001}, "✗"),
        (check_data.only_train_is_augmented, {"crop_scale": 0.08}, "✓"),
    ],
)
def test_options_that_spoil_the_splits_are_found(check, options, mark, drawn):
    def open_split(root, mode, image_size):
        return Pictures(root, mode=mode, image_size=image_size, **options)

    case = data_case(drawn / "train", open_split)
    case.options = DefaultConfig(**options)
    assert mark_of(check, case) == mark


def test_files_that_only_the_data_set_can_read_are_sound(drawn, tmp_path):
    class ReadsArrays(Pictures):
        def path(self, index):
            return tmp_path / f"{super().path(index).stem}.npy"

        def read(self, index):
            return torch.from_numpy(np.load(self.path(index)))

    for path in (drawn / "train").rglob("*.jpg"):
        np.save(tmp_path / f"{path.stem}.npy", np.asarray(Image.open(path)).transpose(2, 0, 1))
    found = alarms(check_data.CHECKS, data_case(drawn / "train", ReadsArrays), "!✗")
    assert found == {}


def test_classes_whose_names_differ_in_case_alone_contradict_no_label(drawn, tmp_path):
    for folder, kind in (("A", "fir"), ("a", "oak")):
        shutil.copytree(drawn / "train" / kind, tmp_path / folder)
    case = data_case(tmp_path, Pictures)
    assert mark_of(check_data.labels_stay_with_their_pictures, case) == "✓"
