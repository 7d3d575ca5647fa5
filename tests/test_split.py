"""The command split: copies are found, stay on one side, and split.csv says who is where."""

import csv
import io
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import main
from data import Pictures, read_image
from tests.drawings import DrawnTrees, draw, draw_set
from tests.helpers import PROJECT, as_words
from utils.options import UsageError
from utils.preparation.copies import SIDE, find_copies, thumbnail
from utils.preparation.inspection import TwoLabelsError

KINDS = ("encoded", "resized", "mirrored", "turned", "cut", "all of it")


def changed(
    image: Image.Image, kind: str, rng: random.Random, most_cut: float = 0.05
) -> Image.Image:
    """Return a copy of a picture: coded anew, resized, mirrored, turned or cut a little."""
    every = kind == "all of it"
    if kind == "cut" or every:
        share, (width, height) = rng.uniform(0.5, 1) * most_cut, image.size
        left, top = rng.uniform(0, share) * width, rng.uniform(0, share) * height
        right, bottom = left + width * (1 - share), top + height * (1 - share)
        image = image.crop((round(left), round(top), round(right), round(bottom)))
    if kind == "mirrored" or every:
        image = ImageOps.mirror(image)
    if kind == "turned" or every:
        image = image.rotate(rng.choice((90, 180, 270)), expand=True)
    if kind == "resized" or every:
        scale = rng.uniform(0.3, 1.4)
        image = image.resize((round(scale * image.width), round(scale * image.height)))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=rng.choice((25, 50, 90)))
    return Image.open(file)


def thumbnails(images: list[Image.Image]) -> np.ndarray:
    tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]
    return np.stack([thumbnail(tensor) for tensor in tensors])


def test_planted_copies_of_drawings_are_found_and_no_others():
    rng = random.Random(0)
    originals = [draw("fir", number) for number in range(300)]
    copies = [changed(originals[n], KINDS[n % len(KINDS)], rng, 0.1) for n in range(60)]
    found = find_copies(thumbnails(originals + copies))
    assert len(found) >= 59 and {pair[:2] for pair in found} <= {(n, 300 + n) for n in range(60)}
    for first, _, turned in found:
        assert turned == (KINDS[first % len(KINDS)] in ("mirrored", "turned", "all of it"))


def test_a_thumbnail_does_not_depend_on_the_size_of_the_picture():
    image = draw("oak", 1).resize((320, 256))
    small, large = thumbnails([image.resize((160, 128)), image.resize((1280, 1024))]).astype(int)
    assert small.shape == (3, SIDE, SIDE) and np.abs(small - large).mean() < 2


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_pictures_have_no_copies(count):
    images = [draw("fir", number) for number in range(count)]
    assert (
        find_copies(thumbnails(images) if images else np.empty((0, 3, SIDE, SIDE), np.uint8)) == []
    )


def test_plain_surfaces_are_no_copies_of_each_other():
    images = [Image.new("RGB", (90, 90), (shade, shade, 90)) for shade in range(0, 250, 25)]
    assert find_copies(thumbnails(images)) == []


def test_pictures_from_one_camera_are_no_copies_but_their_copies_are():
    scene = np.asarray(draw("fir", 0).resize((160, 120))).astype(int)
    rng, images = np.random.default_rng(0), []
    for number in range(60):
        frame = Image.fromarray(
            (scene + rng.normal(0, 4, scene.shape)).clip(0, 255).astype(np.uint8)
        )
        x, y = 10 + number * 13 % 110, 10 + number * 29 % 80
        frame.paste(tuple(rng.integers(0, 255, 3).tolist()), (x, y, x + 30, y + 30))
        images.append(frame)
    assert find_copies(thumbnails(images)) == []
    again = changed(images[7], "encoded", random.Random(0))
    assert find_copies(thumbnails([*images, again])) == [(7, 60, False)]


def test_copies_of_real_photos_are_found_and_distinct_photos_are_not(photos):
    paths = sorted((photos / "photos" / "train").iterdir())
    whole = np.stack([thumbnail(read_image(path, side=2 * SIDE)) for path in paths])
    assert len(whole) == 2000 and len(find_copies(whole)) <= 2
    rng, copies = random.Random(0), []
    for number in range(100):
        with Image.open(paths[20 * number]) as image:
            copies.append(changed(image.convert("RGB"), KINDS[number % len(KINDS)], rng))
    found = {pair[:2] for pair in find_copies(np.concatenate([whole, thumbnails(copies)]))}
    assert len(found & {(20 * n, 2000 + n) for n in range(100)}) >= 98
    assert len(found) <= 102


# The command.


@pytest.fixture
def flowers(tmp_path) -> Path:
    root = tmp_path / "flowers"
    for label, name in enumerate(("rose", "tulip")):
        (root / name).mkdir(parents=True)
        for number in range(20):
            draw(("fir", "oak")[label], number).save(root / name / f"{number}.png")
    return root


def split(root: Path, tmp_path: Path, **options) -> str:
    """Type the command; return what it prints."""
    options |= {"train_data_root": root, "dataset": "Pictures", "cache_root": tmp_path / "cache"}
    words = [sys.executable, "main.py", "split", *as_words(options)]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(root: Path) -> dict[str, dict[str, str]]:
    with open(root / "split.csv", newline="", encoding="utf-8") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def splits_of(root: Path) -> dict[str, str]:
    return {path: row["split"] for path, row in rows_of(root).items()}


def by_the_data_set(root: Path, data_set: type[Pictures] = Pictures) -> dict[str, str]:
    return {
        name.decode(): mode for mode in ("train", "val") for name in data_set(root, mode=mode).names
    }


def test_without_copies_the_split_is_that_of_the_hash_rule(flowers, tmp_path):
    before, fingerprint = by_the_data_set(flowers), Pictures(flowers).fingerprint
    out = split(flowers, tmp_path)
    assert out == f"{flowers}: split.csv: 28 train, 12 val, 0 test; 0 pairs of copies\n"
    assert splits_of(flowers) == before == by_the_data_set(flowers)
    assert Pictures(flowers).fingerprint == fingerprint  # a run may go on
    assert "split by" in Pictures(flowers).describe()


def test_the_split_of_a_folder_without_class_folders_stays_what_it_was(tmp_path):
    draw_set(tmp_path / "flat", flat=True)
    root, cache = tmp_path / "flat" / "train", tmp_path / "cache"
    before = by_the_data_set(root, DrawnTrees)
    main.split(train_data_root=root, dataset=DrawnTrees, cache_root=cache)
    assert len(rows_of(root)) == 60 and by_the_data_set(root, DrawnTrees) == before


def test_copies_come_to_one_side_and_the_page_shows_them(flowers, tmp_path):
    before, rng = by_the_data_set(flowers), random.Random(1)
    copied = {}
    for number, kind in enumerate(KINDS):
        old, new = f"rose/{number}.png", f"rose/copy {number}.jpg"
        with Image.open(flowers / old) as image:
            changed(image, kind, rng).save(flowers / new)
        copied[old] = new
    shutil.copy(flowers / "tulip" / "3.png", flowers / "tulip" / "33.png")
    copied["tulip/3.png"] = "tulip/33.png"
    out = split(flowers, tmp_path)
    assert out.endswith("7 pairs of copies\n")
    rows = rows_of(flowers)
    for old, new in copied.items():
        assert rows[old]["split"] == rows[new]["split"] and rows[old]["group"] == rows[new]["group"]
    assert sum(row["group"] == "" for row in rows.values()) == 40 - 7
    page = (flowers / "split.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == 14
    assert all(name in page for pair in copied.items() for name in pair)
    assert set(before.values()) == {"train", "val"}


def test_new_pictures_move_no_old_one_and_copies_go_to_their_originals(flowers, tmp_path):
    split(flowers, tmp_path)
    before, rng = splits_of(flowers), random.Random(2)
    for number in range(10):
        with Image.open(flowers / "tulip" / f"{number}.png") as image:
            changed(image, KINDS[number % 6], rng).save(flowers / "tulip" / f"new {number}.jpg")
        draw("fir", 500 + number).save(flowers / "rose" / f"new {number}.png")
    split(flowers, tmp_path)
    after = splits_of(flowers)
    assert {path: after[path] for path in before} == before and len(after) == 60
    for number in range(10):
        assert after[f"tulip/new {number}.jpg"] == before[f"tulip/{number}.png"]


def test_copies_across_the_owners_own_split_come_to_one_side(flowers, tmp_path):
    root = tmp_path / "own"
    for name in ("rose", "tulip"):
        for number in range(20):
            part = root / ("val" if number < 6 else "train") / name
            part.mkdir(parents=True, exist_ok=True)
            shutil.copy(flowers / name / f"{number}.png", part)
    with Image.open(root / "train" / "rose" / "9.png") as image:
        changed(image, "mirrored", random.Random(0)).save(root / "val" / "rose" / "9.jpg")
    assert split(root, tmp_path).endswith("29 train, 12 val, 0 test; 1 pairs of copies\n")
    assert splits_of(root)["val/rose/9.jpg"] == "train"
    assert Pictures(root, mode="val").class_counts == [6, 6]


def test_one_picture_with_two_labels_is_an_error_that_names_both(flowers, tmp_path, capsys):
    with Image.open(flowers / "rose" / "4.png") as image:
        changed(image, "resized", random.Random(0)).save(flowers / "tulip" / "44.jpg")
    with pytest.raises(TwoLabelsError) as caught:
        main.split(train_data_root=flowers, dataset="Pictures", cache_root=tmp_path / "cache")
    words = "rose/4.png (rose) and tulip/44.jpg (tulip) are the same picture: see "
    assert str(caught.value).startswith(words)
    assert not (flowers / "split.csv").exists()
    assert (flowers / "split.html").read_text(encoding="utf-8").count('class="across"') == 1


def test_copies_between_test_and_train_are_told(flowers, tmp_path):
    (tmp_path / "test").mkdir()
    shutil.copy(flowers / "rose" / "1.png", tmp_path / "test" / "1.png")
    draw("fir", 900).save(tmp_path / "test" / "2.png")
    out = split(flowers, tmp_path, test_data_root=tmp_path / "test")
    assert out.endswith("0 test; 1 pairs of copies, 1 of them in two splits\n")
    assert "../test/1.png" not in splits_of(flowers)
    assert "../test/1.png" in (flowers / "split.html").read_text(encoding="utf-8")


def test_broken_pictures_are_named_and_not_in_split_csv(flowers, tmp_path):
    (flowers / "rose" / "5.png").write_bytes((flowers / "rose" / "5.png").read_bytes()[:999])
    (flowers / "notes.txt").write_text("no picture")
    out = split(flowers, tmp_path)
    assert re.search(r"no row: rose/5\.png \(.*truncated.*\)\n", out)
    assert "no row: notes.txt (it is in no class folder)\n" in out
    assert "rose/5.png" not in splits_of(flowers) and len(splits_of(flowers)) == 39


def test_what_was_seen_is_not_looked_at_again(flowers, tmp_path, monkeypatch):
    split(flowers, tmp_path)
    draw("fir", 700).save(flowers / "rose" / "70.png")
    jobs, looked = [], "utils.preparation.look.run_all"
    monkeypatch.setattr(
        looked, lambda function, given, *_: jobs.extend(given) or map(function, given)
    )
    main.split(train_data_root=flowers, dataset="Pictures", cache_root=tmp_path / "cache")
    assert jobs == [str(flowers / "rose" / "70.png")]


def test_a_part_of_the_folder_does_not_cost_the_other_rows(flowers, tmp_path):
    split(flowers, tmp_path)
    before = rows_of(flowers)
    shutil.move(flowers / "rose", tmp_path / "rose")  # as a disk that is not there for a while
    draw("fir", 800).save(flowers / "tulip" / "80.png")
    (flowers / "lily").mkdir()
    draw("oak", 801).save(flowers / "lily" / "81.png")
    split(flowers, tmp_path)
    after = rows_of(flowers)
    assert {path: after[path] for path in before} == before and len(after) == 42
    with pytest.raises(FileNotFoundError, match="has no picture of a class"):
        main.split(
            train_data_root=flowers / "lily", dataset="Pictures", cache_root=tmp_path / "cache"
        )


def test_mirror_images_may_be_two_classes(tmp_path):
    root = tmp_path / "arrows"
    for number in range(12):
        arrow = draw("fir", number)
        for name, image in (("left", arrow), ("right", ImageOps.mirror(arrow))):
            (root / name).mkdir(parents=True, exist_ok=True)
            image.save(root / name / f"{number}.png")
    assert split(root, tmp_path).count("12 pairs of copies") == 1
    assert set(splits_of(root).values()) == {"train", "val"} and len(splits_of(root)) == 24


@pytest.mark.parametrize("form", ["absolute", "dotted", "elsewhere"])
def test_the_split_of_a_list_is_found_again_however_its_paths_are_written(flowers, tmp_path, form):
    place = tmp_path / "lists" if form == "elsewhere" else flowers
    place.mkdir(exist_ok=True)
    start = {"absolute": f"{flowers}/", "dotted": "./", "elsewhere": "../flowers/"}[form]
    lines = [f"{start}{p.parent.name}/{p.name},{p.parent.name}" for p in flowers.rglob("*.png")]
    (place / "list.csv").write_text("\n".join(["path,label", *lines]))
    shutil.copy(flowers / "rose" / "0.png", flowers / "rose" / "copy.png")
    with (place / "list.csv").open("a") as file:
        file.write(f"\n{start}rose/copy.png,rose\n")
    assert "1 pairs of copies" in split(place / "list.csv", tmp_path)
    found = by_the_data_set(place / "list.csv")
    assert found == splits_of(place) and len(found) == 41
    names = [name for name in found if name.endswith(("rose/0.png", "rose/copy.png"))]
    assert found[names[0]] == found[names[1]]


def test_all_pictures_can_be_measured_in_spite_of_split_csv(flowers, tmp_path):
    split(flowers, tmp_path)
    assert Pictures(flowers, mode="val", val_share=1).class_counts == [20, 20]


def test_a_data_set_with_its_own_split_is_refused(flowers, tmp_path):
    class Own(torch.utils.data.Dataset):
        pass

    with pytest.raises(UsageError, match=r"split\.csv is for Pictures"):
        main.split(train_data_root=flowers, dataset=Own, cache_root=tmp_path / "cache")
