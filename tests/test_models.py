"""Each model of models/: wired right, torchvision's numbers, weights from elsewhere."""

import copy
import math
import re
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import models
from config import DefaultConfig
from models.basic_module import BasicModule
from utils.checkpoint import CheckpointError, load_file, load_weights
from utils.options import imported_names

NAMES = imported_names("models")  # what --model takes
TORCHVISION = {"SqueezeNet": "squeezenet1_1", "ResNet34": "resnet34"}
HEAD = {
    "SqueezeNet": ["classifier.1.weight", "classifier.1.bias"],
    "ResNet34": ["fc.weight", "fc.bias"],
}
CALLS = {"SqueezeNet": lambda model, images: model.features(images), "ResNet34": nn.Module.__call__}


def make_model(name: str, num_classes: int = 2, seed: int = 0, **options) -> BasicModule:
    torch.manual_seed(seed)
    opt = DefaultConfig(model=name, **options)
    return models.new(opt, num_classes)


def theirs_of(name: str, num_classes: int = 2, seed: int = 3) -> nn.Module:
    """Make torchvision's model of random weights, biases and BatchNorm statistics."""
    torch.manual_seed(seed)
    model = torchvision.models.get_model(TORCHVISION[name], num_classes=num_classes)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("bias"):
                value.normal_(std=0.1)
            elif key.endswith("running_var"):
                value.uniform_(1, 3)
    return model.eval()


def noise(size: int = 2, side: int = 64) -> Tensor:
    return torch.randn(size, 3, side, side, generator=torch.Generator().manual_seed(1))


def assert_same_state(model: nn.Module, expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(dict(model.state_dict()), dict(expected), rtol=0, atol=0)


@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.parametrize("name", TORCHVISION)
def test_parameters_are_as_many_as_torchvisions(name, num_classes):
    theirs = theirs_of(name, num_classes)
    count = sum(parameter.numel() for parameter in theirs.parameters())
    literal = {
        "SqueezeNet": 722_496 + 513 * num_classes,
        "ResNet34": 21_284_672 + 513 * num_classes,
    }
    assert make_model(name, num_classes).num_parameters == count == literal[name]


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_weights_compute_what_they_compute_there(name):
    theirs, ours, images = theirs_of(name), make_model(name).eval(), noise(side=70)
    load_weights(ours, theirs.state_dict(), source="elsewhere")
    with torch.no_grad():
        expected, found = CALLS[name](theirs, images), CALLS[name](ours, images)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # in another memory layout


@torch.no_grad()
def test_squeezenet_differs_from_torchvision_by_bypass_and_last_relu_alone():
    theirs, ours, images = theirs_of("SqueezeNet"), make_model("SqueezeNet").eval(), noise()
    load_weights(ours, theirs.state_dict(), source="elsewhere")
    with_bypass = copy.deepcopy(ours)
    with_bypass.set_extra_state(torch.tensor(True))
    assert not torch.allclose(with_bypass.features(images), theirs.features(images), rtol=0.1)
    torch.testing.assert_close(ours.features(images), theirs.features(images), rtol=1e-4, atol=1e-4)
    before_relu = theirs.classifier[1](theirs.features(images))
    torch.testing.assert_close(ours(images), before_relu.mean(dim=(2, 3)), rtol=1e-4, atol=1e-4)
    assert before_relu.min() < 0


@pytest.mark.parametrize("name", NAMES)
def test_the_first_loss_is_ln_k(name):
    for num_classes in (2, 10):
        model = make_model(name, num_classes).train()
        loss = F.cross_entropy(model(noise(8)), torch.arange(8) % num_classes)
        assert loss.item() == pytest.approx(math.log(num_classes), rel=0.2)


@pytest.mark.parametrize("side", [64, 65, 97, 160])
@pytest.mark.parametrize("name", NAMES)
def test_any_size_from_64_up_works_for_a_batch_of_one(name, side):
    logits = make_model(name).eval()(noise(1, side))
    assert logits.shape == (1, 2)
    assert logits.isfinite().all()


# Weights from elsewhere.


@pytest.mark.parametrize("wrapper", ["module", "model", "_orig_mod"])
def test_names_as_dataparallel_the_book_and_compile_write_them_are_taken(wrapper):
    theirs, ours = theirs_of("ResNet34"), make_model("ResNet34")
    state = {f"{wrapper}.{name}": value for name, value in theirs.state_dict().items()}
    load_weights(ours, state, source="elsewhere")
    assert_same_state(ours, theirs.state_dict())


def test_squeezenet_takes_a_file_of_the_book(tmp_path):
    theirs = theirs_of("SqueezeNet")
    state = {f"model.{name}": value for name, value in theirs.state_dict().items()}
    torch.save(state, tmp_path / "book.pth")
    ours = make_model("SqueezeNet").load(tmp_path / "book.pth")
    assert_same_state(ours, theirs.state_dict() | {"_extra_state": torch.tensor(False)})


def test_the_state_dict_keeps_whether_there_is_a_bypass():
    theirs, ours = theirs_of("SqueezeNet"), make_model("SqueezeNet").eval()
    ours.load_state_dict(theirs.state_dict())  # torch's own way, strictly
    again = make_model("SqueezeNet").eval()
    assert all(fire.bypass for fire in again.fires)
    again.load_state_dict(ours.state_dict())
    assert not any(fire.bypass for fire in again.fires)
    again.load_state_dict(make_model("SqueezeNet").state_dict())
    assert all(fire.bypass for fire in again.fires)


def test_a_file_from_before_batchnorm_counted_batches_loads():
    state = theirs_of("ResNet34").state_dict()
    old = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
    assert len(state) == 218 and len(old) == 182
    ours = make_model("ResNet34")
    load_weights(ours, old, source="elsewhere")
    assert_same_state(ours, state)


def other_shape() -> dict[str, Tensor]:
    return make_model("SqueezeNet").state_dict() | {"features.3.squeeze.bias": torch.zeros(17)}


def one_missing() -> dict[str, Tensor]:
    state = make_model("SqueezeNet").state_dict()
    del state["features.0.bias"]
    return state


@pytest.mark.parametrize(
    ("name", "make_state", "words"),
    [
        (
            "SqueezeNet",
            other_shape,
            [r"features.3.squeeze.bias is \(17,\) in the file, \(16,\) in the model;"],
        ),
        (
            "SqueezeNet",
            one_missing,
            [r"features.0.bias is missing in the file, \(64,\) in the model;"],
        ),
        (
            "SqueezeNet",
            lambda: make_model("SqueezeNet", 10).state_dict(),
            [r"classifier.1.weight is \(10, 512, 1, 1\) in the file, \(2, 512, 1, 1\)"],
        ),
        (
            "ResNet34",
            lambda: make_model("ResNet34", 10).state_dict(),
            [r"fc.weight is \(10, 512\) in the file, \(2, 512\) in the model \(and 1 more\)"],
        ),
        (
            "ResNet34",
            lambda: make_model("SqueezeNet").state_dict(),
            [r"conv1.weight is missing in the file, \(64, 3, 7, 7\) in the model \(and \d+ more\)"],
        ),
        (
            "SqueezeNet",
            lambda: {"epoch": 3, "features.0.bias": "no tensor"},
            [r"features.0.weight is missing in the file", r"more"],
        ),
    ],
    ids=["shape", "missing", "classes", "classes-resnet", "other-model", "no-tensors"],
)
def test_weights_that_do_not_fit_are_named_and_change_nothing(name, make_state, words, tmp_path):
    torch.save(make_state(), tmp_path / "wrong.pth")
    model = make_model(name, seed=4)
    before, logits = copy.deepcopy(model.state_dict()), model.eval()(noise())
    with pytest.raises(CheckpointError) as caught:
        model.load(tmp_path / "wrong.pth")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'wrong.pth'} does not fit {name}: ")
    assert "\n" not in message
    for word in words:
        assert re.search(word, message), message
    assert_same_state(model, before)
    assert torch.equal(model(noise()), logits)


@pytest.mark.parametrize("name", TORCHVISION)
def test_pretrained_weights_replace_all_but_the_head(name, monkeypatch):
    theirs, asked = theirs_of(name, num_classes=1000), {}

    def download(url, **options):
        asked.update(options, url=url)
        state = theirs.state_dict()  # the real files do not count batches
        return {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    ours = make_model(name, num_classes=5)
    before = copy.deepcopy(ours.state_dict())
    ours.load_pretrained(HEAD[name])
    state = ours.state_dict()
    assert not state.pop("_extra_state", False)  # SqueezeNet: torchvision's has no bypass
    for key, value in state.items():
        expected = before if key.startswith(("classifier.", "fc.")) else theirs.state_dict()
        assert torch.equal(value, expected[key]), key
    weights = torchvision.models.get_model_weights(TORCHVISION[name]).IMAGENET1K_V1
    assert asked["url"] == weights.url
    assert asked["weights_only"] and asked["check_hash"]


@pytest.mark.parametrize("error", [URLError("no route"), ConnectionResetError("reset")])
@pytest.mark.parametrize("name", TORCHVISION)
def test_without_a_network_pretrained_names_the_file_and_its_folder(
    name, error, monkeypatch, tmp_path
):
    def download(*args, **options):
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)  # torch's own part stays real
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = make_model(name)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError) as caught:
        model.load_pretrained(HEAD[name])
    message, file = str(caught.value), model.pretrained_url.rpartition("/")[2]
    assert "\n" not in message
    assert file in message and re.fullmatch(r"\w+-[0-9a-f]{8}\.pth", file)
    assert str(tmp_path / "hub" / "checkpoints") in message
    assert_same_state(model, before)


@pytest.mark.parametrize("name", TORCHVISION)
def test_pretrained_weights_put_by_hand_into_that_folder_are_used(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    ours, theirs = make_model(name), theirs_of(name, num_classes=1000)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(theirs.state_dict(), folder / ours.pretrained_url.rpartition("/")[2])
    ours.load_pretrained(HEAD[name])
    first = next(iter(theirs.state_dict()))
    assert torch.equal(ours.state_dict()[first], theirs.state_dict()[first])


# Saving.


def test_saved_files_are_named_by_class_and_time_and_never_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: form.replace("%", ""))  # one second
    saved = [make_model("SqueezeNet", seed=seed) for seed in range(3)]
    paths = [model.save() for model in saved]
    assert len({*paths}) == 3
    for model, path in zip(saved, paths, strict=True):
        assert path.parent.resolve() == (tmp_path / "checkpoints").resolve()
        assert_same_state(make_model("SqueezeNet", seed=9).load(path), model.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_files_name_is_legal_on_windows(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = make_model(name).save()
    assert re.fullmatch(rf"{name}_\d{{4}}_\d\d_\d\d_\d\d\.pth", path.name)
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no temporary file


def test_a_saved_file_is_a_bare_state_dict_that_torch_reads_safely(tmp_path):
    model = make_model("SqueezeNet")
    state = torch.load(model.save(tmp_path / "a" / "b.pth"), weights_only=True)
    assert_same_state(model, state)


# A class of one's own.


class PlainModule(nn.Module):
    """A model without BasicModule and without dropout."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.mean(dim=(2, 3)))


def test_a_plain_module_given_as_a_class_is_built_saved_and_loaded(tmp_path):
    opt = DefaultConfig(model=PlainModule)
    assert opt.model == "PlainModule"
    model, other = models.build(opt, 3), models.new(opt, 3)
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    load_file(other, tmp_path / "plain.pth")
    assert_same_state(other, model.state_dict())
    with pytest.raises(CheckpointError, match=r"plain.pth does not fit PlainModule: head.weight"):
        load_file(models.new(opt, 4), tmp_path / "plain.pth")


def test_the_seed_decides_the_new_weights_and_a_resumed_run_loads_no_file(tmp_path):
    opt = DefaultConfig(model=PlainModule, seed=3, load_model_path=None)
    one, other = models.build(opt, 2), models.build(opt, 2)
    assert_same_state(one, other.state_dict())
    opt.load_model_path = str(tmp_path / "gone.pth")
    assert_same_state(models.build(opt, 2, load=False), one.state_dict())
    with pytest.raises(CheckpointError, match=r"gone\.pth does not exist"):
        models.build(opt, 2)
