"""The commands train, val and test, run as a user runs them, on pictures made in seconds."""

import csv
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import config
import data
import main
import models
from tests.helpers import (
    PROJECT,
    SMALL,
    TOLERANCE,
    as_words,
    assert_same_weights,
    children_of,
    is_alive,
    linux_only,
    posix_only,
    steps_made,
    wait_until,
)
from utils import checkpoint, metrics, run_folder
from utils.failures import one_line_failures
from utils.seed import seed_everything
from utils.signals import Stopped


@pytest.fixture(scope="session")
def plain(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs by itself: the folder."""
    root = tmp_path_factory.mktemp("plain")
    return train(pictures, root, max_epoch=2, env="1e3")


def train(pictures: Path, root: Path, **options) -> Path:
    paths = {"train_data_root": pictures / "train", "checkpoint_root": root}
    return main.train(**SMALL | paths | options)


def metrics_of(run: Path) -> list[dict[str, float]]:
    with open(run / "metrics.csv", newline="") as file:
        return [{name: float(v) for name, v in row.items()} for row in csv.DictReader(file)]


def read_result(path: str | Path) -> dict[int, float]:
    header, *lines = Path(path).read_text().splitlines()
    assert header == "id,label"
    pairs = [line.split(",") for line in lines]
    assert len({name for name, _ in pairs}) == len(pairs)
    return {int(name): float(label) for name, label in pairs}


def copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


# What a run leaves behind.


def test_a_run_folder_holds_everything_about_the_run(plain, pictures):
    assert plain.name.startswith("SqueezeNet_20") and len(plain.name) == len("SqueezeNet_") + 15
    names = {path.name for path in plain.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert len(events) == 1 and not [name for name in names if name.endswith(".tmp")]
    assert names - events == {
        *("config.json", "environment.json", "metrics.csv", "log.txt"),
        *("last.pth", "last.previous.pth", "best.pth", "report.html", "autograd.svg", ".lock"),
    }
    options = json.loads((plain / "config.json").read_text())
    assert options == config.DefaultConfig(**options).state_dict()
    assert (options["env"], options["batch_size"], options["max_epoch"]) == ("1e3", 16, 2)
    assert options["train_data_root"] == str(pictures / "train")
    environment = json.loads((plain / "environment.json").read_text())
    assert environment["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert environment["command"] == sys.argv
    assert environment["cores"] == os.cpu_count()


def test_metrics_have_a_row_an_epoch_and_the_log_tells_of_each(plain):
    rows = metrics_of(plain)
    assert [row["epoch"] for row in rows] == [1, 2]
    names = ["epoch", "lr", "train_objective", "train_loss", "train_accuracy"]
    assert list(rows[0]) == names + [f"val_{name}" for name in metrics.METRICS]
    assert rows == [pytest.approx(row) for row in checkpoint.read(plain / "last.pth")["history"]]
    log = (plain / "log.txt").read_text()
    for row in rows:  # without train_objective, which is train_loss here
        train = f"loss {row['train_loss']:.4g}, accuracy {row['train_accuracy']:.4g}"
        named = [(name.replace("_", " "), row[f"val_{name}"]) for name in metrics.METRICS]
        val = ", ".join(f"{name} {value:.4g}" for name, value in named)
        line = f"epoch {row['epoch']:.0f}/2, lr {row['lr']:.4g}; train: {train}; val: {val}; "
        assert re.search(re.escape(line) + r"[\d,]+ pictures/s, \d+% data wait\n", log)
    assert re.search(
        "^.{20}options: .*--train-data-root=.* --max-epoch=2 --batch-size=16 ", log, re.M
    )
    assert "train: 42 pictures (21 fir, 21 oak)" in log
    assert "val: 18 pictures (9 fir, 9 oak)" in log


def test_the_report_is_one_file_with_its_pictures_inside(plain):
    page = (plain / "report.html").read_text()
    best = max(row["val_accuracy"] for row in metrics_of(plain))
    assert f"{best:.2%} of 18 pictures" in page
    assert page.count('src="data:image/') == page.count("<img") >= 2
    assert "http:" not in page and "https:" not in page
    assert '<td>batch_size<td>16 <span class="faint">(default 64)</span>' in page


def test_tensorboard_reads_the_curves_of_the_run(plain):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(plain), size_guidance={"histograms": 0}).Reload()
    rows = metrics_of(plain)
    per_step = ("loss", "lr", "gradient_norm", "images_per_second", "data_wait")
    for name in per_step:
        points = events.Scalars(f"step/{name}")
        assert all(point.value >= 0 for point in points)
        assert [point.step for point in points] == [1, 2, 4, 5]  # the last of an epoch is not shown
    names = [name for name in rows[0] if name not in ("epoch", "lr", "train_objective")]
    for split, _, name in (name.partition("_") for name in names):
        points = events.Scalars(f"{name}/{split}")
        assert [point.step for point in points] == [3, 6]
        values = [row[f"{split}_{name}"] for row in rows]
        assert [point.value for point in points] == pytest.approx(values)
    final = [f"final/{name}" for name in metrics.METRICS]
    assert len(events.Tags()["scalars"]) == len(per_step) + len(names) + len(final)
    assert [point.step for name in final for point in events.Scalars(name)] == [7] * len(final)
    # What is no curve.
    tags = events.Tags()
    assert tags["graph"] and len(events.Graph().node) > 50
    pictures = ["first train batch", "first val batch", "confusion", "mistakes"]
    assert set(tags["images"]) <= {*pictures} and {*pictures[:3]} <= set(tags["images"])
    for name in tags["images"]:
        for event in events.Images(name):
            image = Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")
            assert image.size == (event.width, event.height)
            assert np.asarray(image).std() > 10
    assert [event.step for event in events.Images("confusion")] == [3, 6]
    groups = ["picture sizes/width", "picture sizes/height"]
    groups += [f"confidence/{name}" for name in ("all", "right", "wrong")]
    groups += ["probability/fir", "probability/oak"]
    assert set(tags["histograms"]) == {*groups}
    for event in events.Histograms("confidence/all"):
        assert event.histogram_value.num == sum(event.histogram_value.bucket) == 18
    texts = {"options/text_summary", "classes/text_summary", "custom_scalars__config__"}
    assert set(tags["tensors"]) == texts
    (table,) = events.Tensors("classes/text_summary")
    assert "| fir | 21 | 9 |" in table.tensor_proto.string_val[0].decode()


# A run is a function of its options.


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on few cores
@pytest.mark.parametrize("workers", [1, 4])
def test_same_options_make_the_same_weights_with_any_number_of_workers(
    plain, pictures, tmp_path, workers
):
    torch.manual_seed(workers)
    again = train(pictures, tmp_path, max_epoch=2, num_workers=workers)
    assert_same_weights(plain, again)


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_same_options_make_the_same_weights_with_any_cache(plain, pictures, tmp_path, cache):
    folder = tmp_path / "cache"
    options = {"cache": cache, "cache_root": folder, "num_workers": 2}
    again = train(pictures, tmp_path, max_epoch=2, **options)
    assert_same_weights(plain, again)


@posix_only
@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_a_run_that_ends_in_its_second_epoch_goes_on_to_the_same_bits_with_any_cache(
    plain, pictures, tmp_path, monkeypatch, cache
):
    options = {"cache": cache, "cache_root": tmp_path / "cache", "max_epoch": 2}
    steps = iter([False, False, False, False, True, False])

    def end(_: str | None) -> None:
        if next(steps):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(main, "pause_if_asked", end)
    with pytest.raises(Stopped):
        train(pictures, tmp_path / "cut", **options)
    monkeypatch.undo()
    cut = train(pictures, tmp_path / "cut", resume=True, **options)
    assert_same_weights(plain, cut)


def test_a_run_in_between_with_other_options_does_not_change_the_next(plain, pictures, tmp_path):
    other = train(pictures, tmp_path, max_epoch=2, seed=5, lr=0.1, dropout=0, schedule="plateau")
    again = train(pictures, tmp_path, max_epoch=2)
    assert_same_weights(plain, again)
    with pytest.raises(AssertionError):
        assert_same_weights(plain, other)


def test_two_runs_that_start_in_one_second_get_two_folders(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.time, "strftime", lambda form: "20260102_030405")
    names = [train(pictures, tmp_path, max_epoch=1).name for _ in range(2)]
    assert names == ["SqueezeNet_20260102_030405", "SqueezeNet_20260102_030405_2"]
    assert all((tmp_path / name / "last.pth").exists() for name in names)


def test_the_train_loss_is_the_mean_over_pictures_whatever_the_batch_sizes(pictures, tmp_path):
    frozen = {"lr": 1e-30, "dropout": 0, "label_smoothing": 0.2, "crop_scale": 0.5}
    frozen["precision"] = "fp32"  # to compare exactly
    run = train(pictures, tmp_path, max_epoch=1, batch_size=20, **frozen)
    row = metrics_of(run)[0]

    seed_everything(0, "weights")
    model = models.SqueezeNet(num_classes=2, dropout=0)
    dataset = data.Pictures(pictures / "train", mode="train", image_size=64, crop_scale=0.5)
    losses, objective, right = [], [], 0
    with torch.no_grad():
        for _, images, labels in data.Loader(dataset, 20, 0, shuffle=True).epoch(0):
            logits = model(images)
            losses.append(F.cross_entropy(logits, labels, reduction="none"))
            smooth = F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.2)
            objective.append(smooth)
            right += int((logits.argmax(1) == labels).sum())
    assert [len(part) for part in losses] == [20, 20, 2]
    of_pictures, of_batches = torch.concat(losses).mean().item(), sum(p.mean() for p in losses) / 3
    assert row["train_loss"] == pytest.approx(of_pictures, abs=1e-5)
    assert abs(of_pictures - of_batches) > 1e-4  # so that the line above can fail
    assert row["train_objective"] == pytest.approx(torch.concat(objective).mean().item(), abs=1e-5)
    assert row["train_accuracy"] == right / 42


def test_from_main_import_train_returns_the_folder_and_leaves_options_alone(pictures, tmp_path):
    before = dict(vars(config.DefaultConfig))
    run = train(pictures, tmp_path, max_epoch=1, lr="1e-3")
    assert run.parent == tmp_path and run.is_dir()
    assert dict(vars(config.DefaultConfig)) == before
    assert json.loads((run / "config.json").read_text())["lr"] == 0.001


@pytest.mark.parametrize(
    ("options", "steps"),
    [({"batch_size": 1000}, 1), ({"batch_size": 41}, 1), ({"batch_size": 41, "accumulate": 8}, 1)],
    ids=["larger than the set", "a batch of 41 and one more", "the same in eight parts"],
)
def test_any_batch_size_trains(pictures, tmp_path, options, steps):
    run = train(pictures, tmp_path, max_epoch=1, **options)
    state = checkpoint.read(run / "last.pth")
    assert steps_made(state) == steps
    assert all(value.isfinite().all() for value in state["model"].values())


def test_the_plateau_schedule_lowers_the_rate_when_the_val_loss_has_not_fallen(
    pictures, tmp_path, monkeypatch
):
    margins = iter([1.0, 2.0, 2.0, 3.0, 1.0, 1.0, 1.0])  # surer each time = a lower loss

    def evaluate(*parts, **more):
        margin = next(margins, 1.0)
        return torch.tensor([[margin, 0.0], [0.0, margin]]), torch.tensor([0, 1])

    monkeypatch.setattr(main.engine, "evaluate", evaluate)
    monkeypatch.setattr(main.Run, "write_report", lambda *parts: None)
    options = {"schedule": "plateau", "warmup": 0, "lr": 0.001, "lr_decay": 0.1, "batch_size": 42}
    run = train(pictures, tmp_path, max_epoch=6, **options)
    rates = [row["lr"] for row in metrics_of(run)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5])
    saved = checkpoint.read(run / "last.pth")
    assert steps_made(saved) == 6  # one optimizer all the way
    assert saved["optimizer"]["param_groups"][0]["lr"] == pytest.approx(1e-5)


# val and test.


def test_val_finds_what_train_wrote_of_its_best_epoch(plain, pictures):
    rows = metrics_of(plain)
    best = checkpoint.read(plain / "best.pth")["history"][-1]
    summary = main.val(load_model_path=plain, mirror=False, **machine())
    assert summary["accuracy"] == best["val_accuracy"] == max(r["val_accuracy"] for r in rows)
    assert summary["loss"] == pytest.approx(best["val_loss"], abs=1e-6)
    assert summary["count"] == 18 and [sum(row) for row in summary["confusion"]] == [9, 9]


def machine() -> dict:
    return {name: SMALL[name] for name in ("use_gpu", "num_workers", "debug_file", "precision")}


def by_hand(model: torch.nn.Module, path: Path, size: int, mean: list, std: list) -> float:
    """P(second class) of one picture, with nothing of the project but the model."""
    image: Image.Image = Image.open(path)
    enough = round(2**0.5 * size)
    image.draft(None, (enough, enough))
    image = image.convert("RGB")
    if min(image.size) >= 1.5 * enough:  # what is kept of a picture
        factor = enough / min(image.size)
        size_kept = round(factor * image.width), round(factor * image.height)
        image = image.resize(size_kept, Image.Resampling.BILINEAR)
    side = round(0.875 * min(image.size))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = torch.tensor(list(image.tobytes())).view(size, size, 3) / 255
    pixels = (pixels - torch.tensor(mean)) / torch.tensor(std)
    images = pixels.permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = (model.eval()(images) + model(images.flip(3))) / 2
    return logits.exp()[0, 1].item() / logits.exp().sum().item()


def test_test_writes_the_probability_of_the_second_class_in_numeric_order(
    plain, pictures, tmp_path, capsys
):
    folder = tmp_path / "test1"
    folder.mkdir()
    numbers = {1: 10, 2: 2, 3: 100, 4: 9, 5: 1, 6: 20}  # in the order of names: 1 10 100 2 20 9
    for old, new in numbers.items():
        shutil.copy(pictures / "test1" / f"{old}.jpg", folder / f"{new}.jpg")
    (folder / "11.jpg").write_bytes(b"not a picture")
    result = main.test(
        load_model_path=plain,
        test_data_root=folder,
        result_file=tmp_path / "new" / "r.csv",
        **machine(),
    )
    found = read_result(result)
    assert result == tmp_path / "new" / "r.csv"
    assert list(found) == [1, 2, 9, 10, 11, 20, 100]
    model = models.SqueezeNet(num_classes=2).load(plain / "best.pth")
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    for number in numbers.values():
        expected = by_hand(model, folder / f"{number}.jpg", 64, mean, std)
        assert found[number] == pytest.approx(expected, abs=TOLERANCE)
    assert found[11] == 0.5
    assert f"{folder / '11.jpg'} is left out: " in capsys.readouterr().out
    assert len({f"{label:.6f}" for label in found.values()}) > 2  # they do differ


def test_val_and_test_normalise_and_scale_as_the_checkpoint_says(plain, pictures, tmp_path):
    contents = checkpoint.read(plain / "best.pth")
    contents |= {"mean": [0.2, 0.3, 0.4], "std": [0.5, 0.6, 0.7]}
    contents["options"]["image_size"] = 80
    path = checkpoint.write(tmp_path / "other.pth", contents)
    result = main.test(
        load_model_path=path,
        test_data_root=pictures / "test1",
        result_file=tmp_path / "r.csv",
        **machine(),
    )
    model = models.SqueezeNet(num_classes=2).load(path)
    expected = by_hand(model, pictures / "test1" / "1.jpg", 80, contents["mean"], contents["std"])
    assert read_result(result)[1] == pytest.approx(expected, abs=TOLERANCE)
    usual = main.val(load_model_path=plain, **machine())["loss"]
    assert abs(main.val(load_model_path=path, **machine())["loss"] - usual) > 1e-4


def test_test_needs_nothing_but_the_checkpoint_of_another_model(pictures, tmp_path, command):
    done = command(
        "train",
        "--model=ResNet34",
        "--env=1e3",
        "--max-epoch=1",
        "--batch-size=41",  # and batch norm meets a last batch of one
        f"--train-data-root={pictures / 'train'}",
        f"--checkpoint-root={tmp_path / 'runs'}",
    )
    assert done.code == 0, done.err
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "config.json").read_text())["env"] == "1e3"
    result = main.test(
        load_model_path=run,
        test_data_root=pictures / "test1",
        result_file=tmp_path / "r.csv",
        **machine(),
    )
    model = models.ResNet34(num_classes=2).load(run / "best.pth")
    shutil.rmtree(run)  # half a gigabyte
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    found = read_result(result)
    assert list(found) == [1, 2, 3, 4, 5, 6]
    for number in (1, 6):
        expected = by_hand(model, pictures / "test1" / f"{number}.jpg", 64, mean, std)
        assert found[number] == pytest.approx(expected, abs=TOLERANCE)


def test_a_bare_state_dict_serves_with_its_model_and_image_size_given(
    plain, pictures, tmp_path, command
):
    model = models.SqueezeNet(num_classes=2).load(plain / "best.pth")
    bare = model.save(tmp_path / "bare.pth")
    results = []
    for path in (bare, plain):
        done = command(
            "test",
            f"--load-model-path={path}",
            "--model=SqueezeNet",
            "--image-size=64",
            f"--test-data-root={pictures / 'test1'}",
            f"--result-file={tmp_path / 'r.csv'}",
        )
        assert done.code == 0 and "6 rows are in" in done.out, done.err
        results.append((tmp_path / "r.csv").read_text())
    assert results[0] == results[1]


def test_without_a_path_val_takes_the_newest_run(plain, pictures, tmp_path, command):
    empty = command("val", f"--checkpoint-root={tmp_path}")
    assert empty.code == 1 and f"there is no run in {tmp_path} yet" in empty.err
    done = command("val", f"--checkpoint-root={plain.parent}")
    assert done.code == 0 and f"checkpoint {plain / 'best.pth'}" in done.out
    assert "accuracy" in done.out and "of 18 pictures" in done.out


# Broken pictures.


def test_broken_pictures_are_named_and_training_goes_on(pictures, tmp_path):
    folder = copy_of(pictures / "train", tmp_path / "train")
    kinds = {mode: data.Pictures(folder, mode=mode) for mode in ("train", "val")}
    names = [kinds["train"].names[3].decode(), kinds["val"].names[5].decode()]
    (folder / names[0]).write_bytes(b"<html>")
    (folder / names[1]).write_bytes((folder / names[1]).read_bytes()[:2000])
    run = train(folder.parent, tmp_path / "runs", max_epoch=2)
    log = (run / "log.txt").read_text()
    assert log.count("is left out: ") == 2
    for name in names:
        assert log.count(f"{folder / name} is left out: ") == 1
    assert steps_made(checkpoint.read(run / "last.pth")) == 6
    assert "of 17 pictures" in (run / "report.html").read_text()


@pytest.mark.parametrize("option", ["skip", "stop"])
def test_more_broken_pictures_than_a_few_end_the_run_which_can_go_on(option, pictures, tmp_path):
    folder = copy_of(pictures / "train", tmp_path / "train")
    paths = [data.Pictures(folder, mode="train").path(index) for index in range(2)]
    whole = {path: path.read_bytes() for path in paths[: 1 + (option == "skip")]}
    for path in whole:
        path.write_bytes(b"<html>")
    with pytest.raises(data.UnreadableImage) as caught:
        train(folder.parent, tmp_path / "runs", max_epoch=1, on_bad_image=option)
    counts = f"{len(whole)} of 42 pictures cannot be read: {paths[0]} is left out: "
    assert str(caught.value).startswith(counts) and "`prepare --source=…`" in str(caught.value)
    for path, content in whole.items():
        path.write_bytes(content)
    (run,) = (tmp_path / "runs").iterdir()
    assert main.train(resume=str(run), allow_changes=True) == run  # other files than before
    if option == "stop":  # no step was made without the picture
        undisturbed = train(pictures, tmp_path / "other", max_epoch=1)
        saved = [checkpoint.read(folder / "last.pth")["model"] for folder in (run, undisturbed)]
        assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_a_folder_of_nothing_but_broken_pictures_ends_in_one_line(tmp_path, command):
    folder = tmp_path / "train"
    for kind in ("fir", "oak"):
        (folder / kind).mkdir(parents=True)
        for number in range(4):
            (folder / kind / f"{number}.jpg").write_bytes(b"GIF89a")
    done = command("train", f"--train-data-root={folder}", f"--checkpoint-root={tmp_path / 'r'}")
    assert done.code == 1 and len(done.err.splitlines()) == 1
    assert "not one picture could be read" in done.err


# Checkpoints that are none, and other failures: one line, exit code 1.


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def bad_checkpoint(kind: str, folder: Path, marker: Path) -> Path:
    path = folder / f"{kind}.pth"
    if kind == "page":
        path.write_text("<!doctype html><title>404: not found</title>")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind == "noise":
        path.write_bytes(torch.randint(256, (4096,), dtype=torch.uint8).numpy().tobytes())
    elif kind == "cut":
        models.SqueezeNet(num_classes=2).save(path)
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "classes":
        models.SqueezeNet(num_classes=3).save(path)
    elif kind == "other-classes":
        model = models.SqueezeNet(num_classes=2)
        contents = {"model": model.state_dict(), "classes": ["ant", "bee", "fly"]}
        checkpoint.write(path, contents)
    elif kind == "architecture":
        torch.save({"model": {"conv1.weight": torch.zeros(64, 3, 7, 7)}}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(marker)))
    elif kind == "archive":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", pickle.dumps({"model": Bomb(marker)}, protocol=2))
            file.writestr("archive/version", "3\n")
            file.writestr("archive/byteorder", "little")
    elif kind == "entries":
        with zipfile.ZipFile(path, "w") as file:
            for number in range(10_000):
                file.writestr(f"archive/data/{number}", "x")
    elif kind == "compressed":  # a gigabyte of zeros in a megabyte
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("archive/data/0", bytes(1 << 30))
    elif kind == "promise":  # a tensor of 256 GB in a file of 13 kB
        torch.save({"w": torch.arange(3000)}, path)
        with zipfile.ZipFile(path) as file:
            parts = {name: file.read(name) for name in file.namelist()}
        with zipfile.ZipFile(path, "w") as file:
            for name, part in parts.items():
                huge = b"\x8a\x05\x00\x00\x00\x00\x10"
                file.writestr(name, part.replace(b"M\xb8\x0b", huge) if ".pkl" in name else part)
    return path


KINDS = """
    page empty folder noise cut list classes other-classes architecture pickle archive entries
    compressed promise
"""


@pytest.mark.parametrize("kind", KINDS.split())
def test_a_wrong_checkpoint_is_one_line_that_names_it(kind, pictures, tmp_path, command):
    marker = tmp_path / "marker"
    path = bad_checkpoint(kind, tmp_path, marker)
    done = command(
        "test",
        f"--load-model-path={path}",
        f"--test-data-root={pictures / 'test1'}",
        f"--result-file={tmp_path / 'r.csv'}",
    )
    assert done.code == 1 and not done.warnings
    assert len(done.err.splitlines()) == 1 and str(path) in done.err and len(done.err) < 600
    assert not marker.exists() and not (tmp_path / "r.csv").exists()
    assert kind != "compressed" or "it is compressed" in done.err  # noticed before it was unpacked


@pytest.mark.parametrize("kind", ["pickle", "archive"])
def test_the_bombs_of_these_tests_would_go_off(kind, tmp_path):
    path = bad_checkpoint(kind, tmp_path, tmp_path / "marker")
    if kind == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert (tmp_path / "marker").exists()


def test_train_refuses_a_wrong_checkpoint_in_one_line_too(pictures, tmp_path, command):
    path = bad_checkpoint("architecture", tmp_path, tmp_path / "marker")
    done = command(
        "train",
        f"--load-model-path={path}",
        f"--train-data-root={pictures / 'train'}",
        f"--checkpoint-root={tmp_path / 'runs'}",
    )
    assert done.code == 1 and len(done.err.splitlines()) == 1
    assert f"{path} does not fit SqueezeNet: features.0.weight is missing" in done.err


def test_a_bug_in_a_model_is_one_line_with_its_place_or_the_whole_traceback(
    pictures, tmp_path, monkeypatch, command
):
    def forward(self, images):
        return self.features(images).sum(dim="no such axis")  # this line is the bug

    monkeypatch.setattr(models.SqueezeNet, "forward", forward)
    words = ["train", f"--train-data-root={pictures / 'train'}", f"--checkpoint-root={tmp_path}"]
    done = command(*words)
    place = f"tests{os.sep}test_train.py:{forward.__code__.co_firstlineno + 1}"
    assert done.code == 1 and len(done.err.splitlines()) == 1
    assert place in done.err and "Error: " in done.err and "--traceback" in done.err
    with pytest.raises(Exception, match="sum"):
        command(*words, "--traceback")


def test_pretrained_weights_without_a_network_are_one_line(
    pictures, tmp_path, monkeypatch, command
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(models.SqueezeNet, "pretrained_url", "http://127.0.0.1:1/weights-12ab.pth")
    done = command(
        "train",
        "--pretrained",
        f"--train-data-root={pictures / 'train'}",
        f"--checkpoint-root={tmp_path / 'runs'}",
    )
    line = done.err.splitlines()[-1]
    assert done.code == 1 and "Traceback" not in done.err
    assert line.startswith("cannot download http://127.0.0.1:1/weights-12ab.pth (")
    assert f"put that file into {tmp_path / 'hub' / 'checkpoints'} and run again" in line


def test_an_interrupted_command_ends_with_130():
    with pytest.raises(SystemExit) as end, one_line_failures(show_traceback=False):
        raise KeyboardInterrupt
    assert end.value.code == 130


@linux_only
def test_ctrl_c_ends_a_training_at_once_with_its_workers_and_says_one_line(pictures, tmp_path):
    words = as_words(SMALL | {"num_workers": 2, "max_epoch": 1000})
    words += [f"--train-data-root={pictures / 'train'}", f"--checkpoint-root={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, PROJECT / "main.py", "train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(lambda: list(tmp_path.glob("*/last.pth")))
        workers = children_of(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers as well
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert (
        err.splitlines()[-1] == "stopped by SIGINT; --resume goes on"
        and "Traceback" not in out + err
    )
    assert len(workers) >= 2
    wait_until(lambda: not any(map(is_alive, workers)))
    (run,) = tmp_path.iterdir()
    assert checkpoint.read(run / "last.pth")["history"][0]["epoch"] == 1


# The commands as a user types them, each in a process of its own.


def test_a_failure_shows_its_traceback_only_with_the_option(pictures, tmp_path):
    path = bad_checkpoint("page", tmp_path, tmp_path / "marker")
    command = [sys.executable, PROJECT / "main.py", "test", f"--load-model-path={path}"]
    command += [f"--test-data-root={pictures / 'test1'}", "--num-workers=0", "--traceback"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert f"CheckpointError: {path} is not a readable checkpoint: " in done.stderr.splitlines()[-1]


def test_a_training_loads_neither_torchs_compiler_nor_torchvision(pictures, tmp_path):
    """They take seconds at each start."""
    options = SMALL | {"max_epoch": 1, "train_data_root": str(pictures / "train")}
    lines = f"import sys, main; main.train(**{options | {'checkpoint_root': str(tmp_path)}})"
    slow = ("torch._dynamo", "torch._inductor", "torchvision", "visdom")
    lines += f"; print('loaded', [name for name in {slow} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.stdout.endswith("loaded []\n"), done.stdout + done.stderr
