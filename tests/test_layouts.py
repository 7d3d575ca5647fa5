"""Pictures in folders, in a list, or split by their owner: no line of code has to be changed."""

import csv
import html
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data import Pictures
from data.listing import SUFFIXES, ListError, sorted_names
from data.split import HEADING, SplitError, SplitRow, write_rows
from tests.drawings import DrawnTrees, draw
from tests.helpers import PROJECT, SMALL, as_words, posix_only
from utils import commands
from utils.files import digest_of
from utils.options import UsageError

NAMES = [
    "Äpfel",
    "red rose",
    "玫瑰",
    "id",
    "label",
    "1",
    "10",
    "2",
    "a,b",
    "it's",
    "path",
    "Öl & co",
]
IN_ORDER = ["1", "2", "10", "a,b", "id", "it's", "label", "path", "red rose", "Äpfel", "Öl & co"]
IN_ORDER += ["玫瑰"]


@pytest.fixture(scope="module")
def twelve(tmp_path_factory) -> Path:
    """Draw 12 classes in `folders/`, the same in `list.csv`, and split by the user in `own/`."""
    root = tmp_path_factory.mktemp("twelve")
    rows = []
    for name in NAMES:
        for number in range(10):
            deeper = "some/deeper" if number % 3 == 0 else "."
            path = root / "folders" / name / deeper / f"picture {number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(name, number, NAMES).save(path)
            rows.append((path.relative_to(root).as_posix(), name))
            split = "train" if number < 6 else "valid" if number < 9 else "test"
            copy = root / "own" / split / name / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    with open(root / "list.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return root


def escape(text: str) -> str:
    return html.escape(text).replace("&#x27;", "&#39;")  # as jinja2 writes it


def run(command: str, **options) -> str:
    """Type a command; return what it prints."""
    words = [sys.executable, "main.py", command, *as_words(options)]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("layout", "train", "val"),
    [
        ("folders (a folder per class)", 7, 3),
        ("csv (a list of paths and labels)", 7, 3),
        ("splits (folders for train and val)", 6, 3),
    ],
)
def test_twelve_classes_are_trained_validated_and_tested(twelve, tmp_path, layout, train, val):
    root = twelve / {"f": "folders", "c": "list.csv", "s": "own"}[layout[0]]
    out = run("train", train_data_root=root, checkpoint_root=tmp_path, max_epoch=1, **SMALL)
    counts = ", ".join(f"{val} {name}" for name in IN_ORDER)
    assert f"val: {12 * val} pictures ({counts}) in {root}, layout {layout}\n" in out
    assert f"train: {12 * train} pictures (" in out and "left out" not in out
    (folder,) = tmp_path.glob("SqueezeNet_*")
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert all(escape(name) in report for name in NAMES)
    assert f"<h1>SqueezeNet on {root}</h1>\n\n<p>The weights of epoch 1 of 1" in report
    quiet = {name: SMALL[name] for name in ("use_gpu", "precision", "num_workers", "debug_file")}
    out = run("val", checkpoint_root=tmp_path, **quiet)
    table = out.partition("true class")[2].splitlines()[1:]
    assert [line.split("  ")[0] for line in table] == IN_ORDER
    result = tmp_path / "result.csv"
    options = {"test_data_root": twelve / "own", "result_file": result, **quiet}
    run("test", checkpoint_root=tmp_path, **options)
    with open(result, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", *(f"class {x}" if x == "id" else x for x in IN_ORDER)]
    assert [row.pop("id") for row in rows] == sorted_names(f"test/{x}/picture 9" for x in NAMES)
    for row in rows:
        assert sum(map(float, row.values())) == pytest.approx(1, abs=1e-5)


@pytest.mark.skipif("check" not in commands.names(), reason="the command check was removed")
def test_check_looks_at_folders_as_at_any_data_set(twelve, tmp_path):
    options = {"train_data_root": twelve / "own", "test_data_root": twelve / "own"}
    options |= {"image_size": 64, "use_gpu": False, "checkpoint_root": tmp_path, "json": True}
    options |= {"dataset": "Pictures", "batch_size": 8}
    findings = json.loads(run("check", **options))
    marks = {finding["name"]: finding["mark"] for finding in findings}
    assert set(marks.values()) <= {"✓", "–"} and marks["Pictures can be read"] == "✓"
    (test,) = [finding for finding in findings if finding["name"] == "The test folder is complete"]
    assert test["seen"] == "12 pictures, whose names are no numbers"


# Folders.


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def paths_of(dataset: Pictures) -> dict[str, str]:
    """Return {path: class} of a data set."""
    names = [name.decode() for name in dataset.names]
    return {name: dataset.classes[i] for name, i in zip(names, dataset.labels, strict=True)}


def all_of(root: Path, **options) -> Pictures:
    return Pictures(root, val_share=0, **options)


@posix_only
def test_what_is_no_picture_of_a_class_is_named(tmp_path):
    root = touch(tmp_path, "rose/1.JPG", "rose/a/b/2.webp", "rose/a/notes.txt", "tulip/1.gif")
    touch(root, "readme.md", "over.jpg", ".git/1.jpg", "__MACOSX/rose/1.jpg", "rose/.1.jpg")
    (root / "empty").mkdir()
    (root / "rose" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    dataset = all_of(root)
    assert paths_of(dataset) == {
        "rose/1.JPG": "rose",
        "rose/a/b/2.webp": "rose",
        "tulip/1.gif": "tulip",
    }
    assert dataset.rejected == {
        "empty": "there is no picture in it",
        "over.jpg": "it is in no class folder",
        "readme.md": "it is in no class folder",
        "rose/a/notes.txt": "its name does not end in .jpg, .jpeg, .png, .bmp, .webp, .gif",
        "rose/gone.jpg": "it is not a file",
    }


@posix_only
def test_links_are_followed_and_no_folder_is_listed_twice(tmp_path):
    root = touch(tmp_path / "set", "rose/1.jpg", "tulip/1.jpg")
    touch(tmp_path / "elsewhere", "more/2.jpg")
    (root / "rose" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "tulip" / "loop").symlink_to(root)
    (root / "tulip" / "self").symlink_to(root / "tulip" / "self")
    (tmp_path / "elsewhere" / "more" / "back").symlink_to(tmp_path / "elsewhere")
    (root / "rose" / "a").symlink_to(root / "tulip")  # comes first, and would make tulips roses
    (root / "Rose again").symlink_to(root / "rose")
    dataset = all_of(root)
    assert list(paths_of(dataset)) == ["rose/1.jpg", "rose/linked/more/2.jpg", "tulip/1.jpg"]
    links = ["Rose again", "rose/a", "rose/linked/more/back", "tulip/loop"]
    twice = dict.fromkeys(links, "this folder is listed already, by another name")
    assert dataset.rejected == twice | {
        "tulip/self": f"its name does not end in {', '.join(SUFFIXES)}"
    }


def test_a_folder_around_the_classes_is_looked_through(tmp_path):
    root = touch(tmp_path, "PetImages/Fir/1.jpg", "PetImages/Oak/1.jpg", "readme.txt")
    assert list(all_of(root).classes) == ["Fir", "Oak"]


def test_one_class_alone_is_refused(tmp_path):
    with pytest.raises(ListError, match="has one class only, rose: give it two"):
        all_of(touch(tmp_path, "rose/1.jpg", "rose/2.jpg"))


def test_the_layout_can_be_forced(tmp_path):
    root = touch(tmp_path, "fir.1.jpg", "oak.1.jpg", "rose/1.jpg", "tulip/1.jpg")
    assert DrawnTrees(root, val_share=0).class_counts == [1, 1]
    dataset = DrawnTrees(root, val_share=0, layout="folders")
    assert list(dataset.classes) == ["rose", "tulip"]
    assert dataset.rejected == dict.fromkeys(["fir.1.jpg", "oak.1.jpg"], "it is in no class folder")


def test_a_class_may_be_called_train_or_test(tmp_path):
    root = touch(tmp_path / "vehicles", "train/1.jpg", "boat/1.jpg", "test/1.jpg")
    assert list(all_of(root).classes) == ["boat", "test", "train"]
    root = touch(tmp_path / "other", "Training/a/1.jpg", "Training/b/1.jpg", "Testing/a/1.jpg")
    assert list(all_of(root).classes) == ["a", "b"]
    root = touch(
        tmp_path / "split", "train/a/1.jpg", "train/b/1.jpg", "rejected/1.jpg", "test/1.jpg"
    )
    assert list(all_of(root).classes) == ["a", "b"] and Pictures(
        root, mode="test"
    ).ids.tolist() == [1]


@pytest.mark.parametrize("layout", ["csv", "splits"])
def test_a_layout_that_does_not_fit_is_refused(tmp_path, layout):
    root = touch(tmp_path, "rose/1.jpg", "tulip/1.jpg")
    with pytest.raises(
        ListError, match=f"is not laid out as --layout={layout}: leave out --layout"
    ):
        Pictures(root, layout=layout)


def test_val_of_the_owner_has_no_other_classes_than_train(tmp_path):
    root = touch(
        tmp_path, "Train/rose/1.jpg", "Train/tulip/1.jpg", "val/rose/2.jpg", "val/lily/1.jpg"
    )
    touch(root, "notes/1.jpg")
    train, val = (Pictures(root, mode=mode) for mode in ("train", "val"))
    assert list(train.classes) == list(val.classes) == ["rose", "tulip"]
    assert paths_of(val) == {"val/rose/2.jpg": "rose"} and len(train) == 2
    assert train.rejected == {
        "val/lily/1.jpg": "train has no class lily",
        "notes": "it is beside the folders train and val",
    }
    with pytest.raises(UsageError, match=r"split into train and val already: leave out --fold=1/2"):
        Pictures(root, fold="1/2")


# Lists.


def write_list(root: Path, text: str, encoding: str = "utf-8") -> Path:
    touch(root, "a/1.jpg", "a/2.jpg", "a/3.jpg", "a/4.jpg")
    (root / "list.csv").write_bytes(text.encode(encoding))
    return root / "list.csv"


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na/1.jpg,x\na/2.jpg,y\n",
        "\ufefffile;class\r\na/1.jpg;x\r\n\r\na/2.jpg;y\r\n",
        "number\tTarget\tImage\n7\tx\ta/1.jpg\n8\ty \ta/2.jpg",
        'label,path\nx,"a/1.jpg"\ny,a/2.jpg\nx,./a/1.jpg\n',
        '"path","label"\n"a/1.jpg","x"\n"a/2.jpg","y"\n',
        "path,label\na\\1.jpg,x\na\\2.jpg,y\n",  # written on Windows
    ],
)
def test_lists_of_all_sorts_are_read(tmp_path, text):
    assert paths_of(all_of(write_list(tmp_path, text))) == {"a/1.jpg": "x", "a/2.jpg": "y"}


def test_a_list_may_say_the_split_and_have_absolute_paths(tmp_path):
    path = tmp_path / "a" / "3.jpg"
    text = f"path,label,split\na/1.jpg,x,train\na/2.jpg,y,Training\n{path},x,valid\na/4.jpg,,test\n"
    root = write_list(tmp_path, text)
    assert paths_of(Pictures(root)) == {"a/1.jpg": "x", "a/2.jpg": "y"}
    assert paths_of(Pictures(root, mode="val")) == {"a/3.jpg": "x"}
    assert Pictures(root, mode="test").ids.tolist() == [4]


def test_lines_without_file_or_label_are_left_out_by_name(tmp_path):
    root = write_list(tmp_path, "path,label\na/1.jpg,x\na/2.jpg,y\na/9.jpg,x\na/3.jpg,\na/4.jpg\n")
    dataset = all_of(root)
    assert len(dataset) == 2
    assert dataset.rejected == {
        "a/9.jpg": "there is no such file",
        "a/3.jpg": "it has no label in line 5 of the list",
        "a/4.jpg": "it has no label in line 6 of the list",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,label\na/1.jpg,x\n", "its first line has to name the columns path and label"),
        ("", "its first line has to name the columns path and label"),
        ("path,label\na/1.jpg,x\na/1.jpg,y\n", "line 3: a/1.jpg has two labels, x and y"),
        ("path,label,split\na/1.jpg,x,val\na/1.jpg,x,train\n", "line 3: a/1.jpg is in two splits"),
        ("path,label,split\na/1.jpg,x,hold\n", "line 2: hold is not train, val or test"),
        ("path,label,split\na/1.jpg,x,val\na/2.jpg,y,\n", "some lines have a split, others have"),
    ],
)
def test_a_list_that_cannot_be_understood_is_refused_in_one_line(tmp_path, text, words):
    root = write_list(tmp_path, text)
    with pytest.raises(ListError) as caught:
        Pictures(root)
    assert str(caught.value).startswith(str(root)) and words in str(caught.value)


def test_a_list_in_another_encoding_is_refused(tmp_path):
    root = write_list(tmp_path, "path,label\na/1.jpg,Äpfel\n", encoding="latin-1")
    with pytest.raises(ListError, match=r"list\.csv is no CSV file in UTF-8: "):
        Pictures(root)


def test_other_labels_in_a_list_change_the_fingerprint(tmp_path):
    seen = set()
    for labels in ("xy", "yx"):
        text = f"path,label\na/1.jpg,{labels[0]}\na/2.jpg,{labels[1]}\n"
        seen.add(all_of(write_list(tmp_path, text)).fingerprint)
    assert len(seen) == 2


# Splits.


@pytest.fixture
def flowers(tmp_path) -> Path:
    root = tmp_path / "flowers"
    for name, count in (("rose", 30), ("tulip", 20)):
        for number in range(count):
            touch(root, f"{name}/{number}.jpg").joinpath(f"{name}/{number}.jpg").write_text(
                f"{name} {number}"
            )
    return root


def test_val_share_is_the_share_of_each_class(flowers):
    assert Pictures(flowers, mode="val", val_share=0.1).class_counts == [3, 2]
    assert Pictures(flowers, mode="train", val_share=0.1).class_counts == [27, 18]
    assert Pictures(flowers, mode="val", val_share=1).class_counts == [30, 20]


def test_each_picture_is_in_val_of_one_fold(flowers):
    seen: list[str] = []
    for number in range(1, 5):
        train, val = (Pictures(flowers, mode=m, fold=f"{number}/4") for m in ("train", "val"))
        assert val.class_counts[1] == 5 and val.class_counts[0] in (7, 8)
        assert not {*paths_of(train)} & {*paths_of(val)} and len(train) + len(val) == 50
        seen += paths_of(val)
    assert sorted(seen) == sorted(paths_of(all_of(flowers)))


def write_split(root: Path, place: Path, **changes) -> Path:
    """Write split.csv for all pictures of root: the even ones are train, the odd ones val."""
    rows = []
    for path, label in paths_of(all_of(root)).items():
        file = root / path
        split = ("train", "val")[int(file.stem) % 2]
        name = os.path.relpath(file, place)
        row = SplitRow(name, label, split, str(file.stat().st_size), digest_of(file), "")
        rows.append(row._replace(**changes.get(path, {})) if path in changes else row)
    write_rows(place / "split.csv", rows)
    return place / "split.csv"


@pytest.mark.parametrize("beside", [False, True])
def test_split_csv_wins_and_new_pictures_move_no_old_one(flowers, beside):
    file = write_split(flowers, flowers.parent if beside else flowers)
    assert file.read_text().splitlines()[0] == ",".join(HEADING)

    def val() -> set[str]:
        dataset = Pictures(flowers, mode="val")
        assert dataset.describe().endswith(f", split by {file}") and not dataset.rejected
        return {*paths_of(dataset)}

    old = val()
    assert len(old) == 25 and all(int(Path(path).stem) % 2 for path in old)
    touch(flowers, *(f"rose/{number}.jpg" for number in range(100, 300)))
    new = val()
    assert old < new and 40 <= len(new - old) <= 80  # 0.3 of 200
    touch(flowers, *(f"tulip/{number}.jpg" for number in range(100, 300)))
    assert new < val()


def test_split_csv_is_compared_with_the_pictures(flowers):
    file = write_split(flowers, flowers)
    (flowers / "rose" / "7.jpg").write_text("rose 8")
    with pytest.raises(SplitError, match=r"split\.csv has another content for rose/7\.jpg: get"):
        Pictures(flowers)
    (flowers / "rose" / "7.jpg").write_text("another size")
    with pytest.raises(SplitError, match=r"has another size for rose/7\.jpg"):
        Pictures(flowers)
    (flowers / "rose" / "7.jpg").unlink()
    assert len(Pictures(flowers, mode="val")) == 24
    rows = file.read_text().replace("rose/8.jpg,rose,train", "rose/8.jpg,tulip,train")
    file.write_text(rows)
    with pytest.raises(SplitError, match=r"another class \(tulip, not rose\) for rose/8.jpg"):
        Pictures(flowers)
    file.write_text(rows.replace(",val,", ",value,"))
    with pytest.raises(SplitError, match="line 3: this is no row of a split"):
        Pictures(flowers)
    file.write_text("path\n")
    with pytest.raises(SplitError, match="the first line has to be path,class,split,size,sha256"):
        Pictures(flowers)
    shutil.move(file, flowers.parent / "split.csv")  # a file of somebody else's in the parent
    assert Pictures(flowers).split_file is None


def test_folds_keep_the_groups_of_split_csv_together(flowers):
    group = {f"rose/{number}.jpg": {"group": "rose/0.jpg"} for number in range(12)}
    group["tulip/3.jpg"] = {"split": "test"}
    write_split(flowers, flowers, **group)
    sizes = []
    for number in range(1, 6):
        val = {*paths_of(Pictures(flowers, mode="val", fold=f"{number}/5"))}
        assert len(val & {*group}) in (0, 12) and "tulip/3.jpg" not in val
        sizes.append(len(val & {*group}))
    assert sorted(sizes) == [0, 0, 0, 0, 12]


@posix_only
def test_names_that_are_not_utf_8_are_kept_in_split_csv(flowers):
    name = os.fsencode(flowers) + b"/rose/caf\xe9.jpg"
    try:
        open(name, "wb").close()
    except OSError:
        pytest.skip("this file system takes no such name")
    row = SplitRow("rose/" + os.fsdecode(b"caf\xe9.jpg"), "rose", "val", "0", digest_of(name), "")
    write_rows(flowers / "split.csv", [row])
    val = Pictures(flowers, mode="val")
    assert b"rose/caf\xe9.jpg" in val.names.tolist()
    assert b"rose/caf\xe9.jpg" not in Pictures(flowers).names.tolist()


def test_val_measures_other_data_as_they_are(twelve, tmp_path):
    options = {"train_data_root": twelve / "list.csv", "layout": "csv", "fold": "2/5"}
    run("train", checkpoint_root=tmp_path, max_epoch=1, **options, **SMALL)
    quiet = {name: SMALL[name] for name in ("use_gpu", "precision", "num_workers", "debug_file")}
    held_out = {"train_data_root": twelve / "folders", "val_share": 1}
    assert "val: 120 pictures" in run("val", checkpoint_root=tmp_path, **held_out, **quiet)
    assert "val: 24 pictures" in (out := run("val", checkpoint_root=tmp_path, **quiet))
    assert "not those of the training" not in out
    for change in ({"fold": "3/5"}, {"val_share": 1, "fold": "None"}):
        out = run("val", checkpoint_root=tmp_path, **change, **quiet)
        assert "the pictures are not those of the training" in out
