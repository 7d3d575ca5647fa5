"""The model in other programs, without torch, and compared with the original."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import data
import main
import models
from data.read_image import read_image, shrink
from models.basic_module import BasicModule
from tests.drawings import draw
from tests.helpers import PROJECT, SMALL
from utils import checkpoint, commands, files, run_folder
from utils.commands import export as room
from utils.exported import PrepareLikeVal
from utils.options import UsageError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
safetensors = pytest.importorskip("safetensors")
load_file = pytest.importorskip("safetensors.torch").load_file

QUIET = {"num_workers": 0, "use_gpu": False, "precision": "fp32"}
# Parts that may have been removed.
GUIDE = PROJECT / "docs/predicting.md"
needs_guide = pytest.mark.skipif(not GUIDE.exists(), reason="docs was removed")
needs_predict = pytest.mark.skipif(
    "predict" not in commands.names(), reason="the command predict was removed"
)


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory) -> Path:
    """Train for a moment."""
    options = SMALL | {"train_data_root": pictures / "train", "max_epoch": 3, "lr": 5e-3}
    return main.train(**options, checkpoint_root=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def exported(run) -> tuple[Path, str]:
    """Give the ONNX file of the run, and what the command has printed."""
    command = [sys.executable, "main.py", "export", f"--load-model-path={run}"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    return run / "best.onnx", done.stdout


def session_of(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_the_resize_in_the_graph_gives_the_pixels_that_val_sees():
    sizes = [(1, 1), (1, 90), (64, 64), (91, 300), (97, 131), (136, 137), (300, 401), (640, 480)]
    generator = torch.Generator().manual_seed(0)
    sizes += torch.randint(1, 700, (40, 2), generator=generator).tolist()
    for image_size in (64, 100):
        val = data.ImageDataset("val", image_size)
        prepare = PrepareLikeVal(image_size, val.side)
        for size in sizes:
            picture = torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator)
            wanted = val.transforms(shrink(picture, val.side)).float()
            wrong = (prepare(picture[None].float())[0] - wanted).abs()
            if min(size) < 4 * val.side:
                assert not wrong.any(), size
            else:  # float32 has no more than 24 bits for the sum of so many pixels
                assert wrong.max() <= 1 and wrong.mean() < 1e-3, size


def test_the_file_says_what_it_is_and_how_near_it_is(run, exported):
    path, text = exported
    (difference,) = re.findall(r"on 18 pictures of val, probabilities differ by (\S+) at", text)
    assert float(difference) <= 1e-4 and str(path) in text
    session = session_of(path)
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == (
        "pictures",
        "tensor(uint8)",
        ["N", "H", "W", 3],
    )
    assert (found.name, found.type, found.shape) == ("probabilities", "tensor(float)", ["N", 2])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == ["fir", "oak"]
    assert (facts["kind"], facts["image_size"], facts["mirror"]) == ("softmax", "64", "true")
    assert (facts["torch"], facts["model"]) == (torch.__version__, "SqueezeNet")
    assert facts.get("project") == run_folder.environment()["git_commit"]
    assert facts["checkpoint_sha256"] == files.digest_of(run / "best.pth")


def test_a_batch_gives_what_its_pictures_give(exported):
    session = session_of(exported[0])
    pictures = np.random.default_rng(0).integers(0, 256, (5, 120, 170, 3), dtype=np.uint8)
    single = [session.run(None, {"pictures": picture[None]})[0][0] for picture in pictures]
    (found,) = session.run(None, {"pictures": pictures})
    assert found.sum(axis=1) == pytest.approx(1) and found == pytest.approx(np.array(single), 1e-5)


def example(script: str, folder: Path, *paths: Path) -> list[list[str]]:
    """Run the guide's example where torch cannot be imported; return the cells of its lines."""
    (folder / "torch.py").write_text("raise ImportError('torch was imported')")
    (folder / "example.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "example.py", *map(str, paths)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def compare_with_predict(run: Path, folder: Path, *paths: Path) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(import json.+?)```", text, re.S)
    assert len([line for line in script.splitlines() if line.strip()]) <= 18
    found = example(script, folder, *paths)
    wanted = main.predict(*paths, load_model_path=run, **QUIET)
    assert [line[0] for line in found] == [row["path"] for row in wanted] == [*map(str, paths)]
    for (_, name, probability), row in zip(found, wanted, strict=True):
        assert name == row["class"]
        assert float(probability) == pytest.approx(row["probability"], abs=1.5e-4)  # 4 digits


@needs_guide
@needs_predict
def test_the_example_gives_the_answers_of_predict_without_torch(run, exported, tmp_path):
    shutil.copy(exported[0], tmp_path / "model.onnx")
    paths = []
    for number, size in enumerate([(50, 70), (64, 64), (300, 200), (700, 500), (1000, 1200)]):
        paths.append(tmp_path / f"{number}.{'png' if number == 2 else 'jpg'}")
        draw("oak", number).resize(size).save(paths[-1])
    compare_with_predict(run, tmp_path, *paths)


@needs_guide
@needs_predict
def test_on_real_photos_the_example_gives_the_answers_of_predict(run, exported, photos, tmp_path):
    shutil.copy(exported[0], tmp_path / "model.onnx")
    paths = [photos / f"photos/test1/{number}.jpg" for number in range(1, 41)]
    compare_with_predict(
        run, tmp_path, *paths, *photos.glob("odd/*.90016.jpg")
    )  # that lies on its side


class Tiny(BasicModule):
    """The README's model. fault: what it adds to the logits where it is exported."""

    fault = 0.0

    def __init__(self, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(16, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        images = images + torch.linspace(-2, 2, images.shape[3])  # its mirror image is another
        logits = self.head(self.body(images)) * 3
        if torch.compiler.is_exporting():
            logits = logits + self.fault * torch.arange(logits.shape[1])
        return logits


class Gone(data.ImageDataset):
    """A data set whose files are not on this machine."""

    def __init__(self, root: str, mode: str, image_size: int) -> None:
        raise FileNotFoundError(f"{root} is not here")


class Five(Gone):
    classes = ("a", "b", "c", "d", "e")


class Colors(Gone, data.MultiLabelDataset):
    classes = ("red", "green", "blue")


@pytest.fixture
def weights(tmp_path) -> Path:
    """Give the checkpoint of a Tiny with new weights, without a run."""
    torch.manual_seed(1)
    facts = {"classes": ["red", "green", "blue"], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    contents = {"model": Tiny(3, 0.5).state_dict(), **facts, "temperature": 0.5, "options": {}}
    return checkpoint.write(tmp_path / "tiny.pth", contents)


def options_for(weights: Path, **more: object) -> dict[str, object]:
    gone = {"train_data_root": "gone", "image_size": 64}
    return QUIET | gone | {"load_model_path": weights, "model": Tiny} | more


@needs_predict
@pytest.mark.parametrize(("dataset", "mirror"), [("Pictures", True), (Colors, False)])
@pytest.mark.parametrize("form", ["onnx", "program", "safetensors"])
def test_every_format_gives_the_answers_of_predict(
    weights, dataset, mirror, form, tmp_path, capsys
):
    options = options_for(weights, dataset=dataset, mirror=mirror)
    path = main.export(**options, format=form)
    assert path == weights.with_suffix(room.SUFFIXES[form])
    assert "on 32 drawn pictures, probabilities differ by" in capsys.readouterr().out
    facts, classify = opened(path, form)
    assert json.loads(facts["classes"]) == ["red", "green", "blue"]
    assert facts["kind"] == ("sigmoid" if dataset is Colors else "softmax")
    assert (json.loads(facts["temperature"]), json.loads(facts["mirror"])) == (0.5, mirror)
    photo = tmp_path / "photo.png"
    draw("fir", 1).save(photo)
    (row,) = main.predict(photo, **options)
    found = classify(read_image(photo).permute(1, 2, 0)[None])
    assert found[0].tolist() == pytest.approx([*row["probabilities"].values()], abs=1e-5)
    assert max(found[0]) - min(found[0]) > 0.1


def opened(path: Path, form: str) -> tuple[dict[str, str], object]:
    """Return the metadata of a file and a function that classifies by it."""
    if form == "onnx":
        session = session_of(path)
        facts = session.get_modelmeta().custom_metadata_map
        return facts, lambda x: torch.tensor(session.run(None, {"pictures": x.numpy()})[0])
    if form == "program":
        extra = {"facts.json": ""}
        program = torch.export.load(path, extra_files=extra).module()
        return json.loads(extra["facts.json"]), program
    with safetensors.safe_open(path, "pt") as file:
        facts = file.metadata()
    model = Tiny(3, 0.0).eval()
    model.load_state_dict(load_file(path))

    def classify(pictures: Tensor) -> Tensor:
        val = data.ImageDataset("val", json.loads(facts["image_size"]))
        image = val.transforms(shrink(pictures[0].permute(2, 0, 1), val.side))[None].float() / 255
        mean, std = (torch.tensor(json.loads(facts[n])).view(3, 1, 1) for n in ("mean", "std"))
        images = (image - mean) / std
        logits = model(images)
        if facts["mirror"] == "true":
            logits = (logits + model(images.flip(3))) / 2
        logits = logits / float(facts["temperature"])
        return logits.sigmoid() if facts["kind"] == "sigmoid" else logits.softmax(1)

    return facts, torch.no_grad()(classify)


@pytest.mark.parametrize("name", ["SqueezeNet", "ResNet34"])
def test_our_models_without_the_resize_take_prepared_pictures(name, tmp_path, capsys):
    torch.manual_seed(0)
    model = getattr(models, name)(num_classes=5)
    head = [layer for layer in model.modules() if getattr(layer, "bias", None) is not None][-1]
    nn.init.normal_(head.bias)  # else all classes are alike
    path = main.export(
        load_model_path=model.save(tmp_path / "w.pth"),
        **QUIET | {"model": name, "image_size": 64, "train_data_root": "gone"},
        **{"dataset": Five, "resize": False, "export_file": tmp_path / "m.onnx"},
    )
    session = session_of(path)
    assert session.get_inputs()[0].shape == ["N", 64, 64, 3]
    (found,) = session.run(None, {"pictures": np.zeros((3, 64, 64, 3), dtype=np.uint8)})
    assert found.shape == (3, 5) and found.max() - found.min() > 0.1
    assert "decode_side" not in session.get_modelmeta().custom_metadata_map


@pytest.mark.parametrize("fault", [0.01, float("nan")])
def test_an_export_that_is_not_like_the_original_leaves_the_old_file(weights, fault, monkeypatch):
    monkeypatch.setattr(Tiny, "fault", fault)
    weights.with_suffix(".pt2").write_text("old")
    files_before = sorted(weights.parent.iterdir())
    with pytest.raises(room.ExportError, match="no file is written: on 32 drawn pictures, prob"):
        main.export(**options_for(weights, format="program"))
    assert weights.with_suffix(".pt2").read_text() == "old"
    assert sorted(weights.parent.iterdir()) == files_before


class Choosy(Tiny):
    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits if logits.sum() > 0 else -logits


class Rigid(Tiny):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).view(2, -1)


@pytest.mark.parametrize(("model", "says"), [(Choosy, "data-dependent"), (Rigid, r"\(N\)")])
def test_a_model_that_is_no_graph_costs_one_line(weights, model, says, capfd):
    options = options_for(weights, model=model, resize=False, format="program")
    with pytest.raises(room.ExportError, match=f"{model.__name__} is no graph .*{says}") as error:
        main.export(**options)
    assert "\n" not in str(error.value) and capfd.readouterr().err == ""


def test_a_missing_package_is_one_line_that_says_how_to_install_it(weights, monkeypatch):
    monkeypatch.setattr(room, "find_spec", lambda name: name != "onnxscript" or None)
    advice = "needs onnxscript: python -m pip install onnx onnxscript onnxruntime"
    with pytest.raises(room.ExportError, match=f"--format=onnx {advice}"):
        main.export(**options_for(weights))


def test_wrong_usage_is_refused(weights, tmp_path):
    with pytest.raises(UsageError, match=f"--export-file={tmp_path} is a folder"):
        main.export(**options_for(weights, export_file=tmp_path))
    with pytest.raises(UsageError, match="--format takes onnx"):
        main.export(**options_for(weights, format="tflite"))
