"""Starting from weights that are there already: torchvision's, or those of another task."""

from pathlib import Path

import pytest
import torch
import torchvision

import main
import models
from config import DefaultConfig
from tests.drawings import draw
from tests.helpers import SMALL, as_words, assert_same_weights
from utils import checkpoint

RESNET = "torchvision/resnet18"
HEAD = {"fc.weight", "fc.bias"}


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory) -> Path:
    """Put a weights file where torch keeps what it has downloaded; no test has a network."""
    home = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None)
    for name, buffer in model.named_buffers():  # as if it had been trained
        if name.endswith("running_mean"):
            buffer.normal_(std=0.01)
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    path = home / "hub" / "checkpoints" / url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    torch.save(model.state_dict(), path)
    return home


@pytest.fixture
def pretrained(torch_home, monkeypatch) -> dict[str, torch.Tensor]:
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    (path,) = (torch_home / "hub" / "checkpoints").iterdir()
    return torch.load(path)


@pytest.fixture(scope="module")
def three_kinds(tmp_path_factory) -> Path:
    root, kinds = tmp_path_factory.mktemp("kinds"), ("daisy", "rose", "tulip")
    for kind in kinds:
        (root / kind).mkdir()
        for number in range(10):
            draw(kind, number, kinds).save(root / kind / f"{number}.jpg")
    return root


def train(pictures: Path, root: Path, **options) -> Path:
    given = {"train_data_root": pictures / "train", "checkpoint_root": root, "model": RESNET}
    return main.train(**SMALL | {"limit_batches": 2} | given | options)


def weights_of(run: Path, name: str = "last.pth") -> dict[str, torch.Tensor]:
    return checkpoint.read(run / name)["model"]


# A model of torchvision by its name.


def test_a_model_of_torchvision_goes_through_all_commands(command, pictures, tmp_path):
    paths = {"train_data_root": pictures / "train", "test_data_root": pictures / "test1"}
    paths |= {"checkpoint_root": tmp_path / "runs", "result_file": tmp_path / "result.csv"}
    model = "--model=torchvision/mobilenet_v3_small"
    done = command("train", *as_words(paths), model, "--max-epoch=1", "--limit-batches=2")
    assert done.code == 0, done.err
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("mobilenet_v3_small_")
    theirs = torchvision.models.mobilenet_v3_small(num_classes=2).state_dict()
    ours = weights_of(run)
    assert {n: x.shape for n, x in ours.items()} == {n: x.shape for n, x in theirs.items()}
    assert command("val", *as_words(paths)).code == 0  # the checkpoint knows the model
    assert command("test", *as_words(paths)).code == 0
    assert len((tmp_path / "result.csv").read_text().splitlines()) == 7


@pytest.mark.parametrize(
    ("name", "hint"),
    [("resnet18", RESNET), ("torchvision/resnet19", RESNET), ("Resnet34", "ResNet34")],
)
def test_a_wrong_model_name_gets_the_nearest(command, name, hint):
    done = command("train", f"--model={name}")
    assert done.code == 2
    assert f"did you mean {hint}?" in done.err


@pytest.mark.parametrize("name", ["googlenet", "vit_b_16", "densenet121", "squeezenet1_0"])
def test_odd_models_of_torchvision_give_logits_of_our_size(name):
    opt = DefaultConfig(model=f"torchvision/{name}", image_size=64)
    model = models.build(opt, 3)
    assert model.train()(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    assert model.num_parameters > 1e5


# Their ImageNet weights.


def test_pretrained_weights_are_taken_but_for_the_head(pretrained):
    opt = DefaultConfig(model=RESNET, pretrained=True)
    state = models.build(opt, 3).state_dict()
    assert state["fc.weight"].shape == (3, 512)
    for name in state.keys() - HEAD:
        assert torch.equal(state[name], pretrained[name]), name


def test_a_frozen_body_keeps_its_weights_and_its_statistics(pretrained, pictures, tmp_path):
    run = train(pictures, tmp_path, pretrained=True, freeze=1, max_epoch=1)
    state = weights_of(run)
    for name in state.keys() - HEAD:
        assert torch.equal(state[name], pretrained[name]), name
    new = models.build(DefaultConfig(model=RESNET, pretrained=True), 2).state_dict()
    for name in HEAD:
        assert not torch.equal(state[name], new[name]), name


def test_after_its_frozen_epochs_the_body_learns_as_in_a_resumed_run(
    pretrained, pictures, tmp_path
):
    options = {"pretrained": True, "freeze": 1, "backbone_lr": 0.1, "schedule": "plateau"}
    straight = train(pictures, tmp_path / "a", max_epoch=2, **options)
    state = weights_of(straight)
    learnt = [
        name for name in state.keys() - HEAD if not torch.equal(state[name], pretrained[name])
    ]
    assert set(learnt) == state.keys() - HEAD
    cut = train(pictures, tmp_path / "b", max_epoch=1, **options)
    resume = {"resume": str(cut), "max_epoch": 2, "allow_changes": True}
    assert_same_weights(straight, train(pictures, tmp_path / "b", **options | resume))


def test_the_body_learns_at_a_share_of_the_rate(pictures, tmp_path):
    run = train(pictures, tmp_path, backbone_lr=0.1, max_epoch=1)
    groups = checkpoint.read(run / "last.pth")["optimizer"]["param_groups"]
    head, _, body, _ = (group["lr"] for group in groups)
    assert head > 0 and body == pytest.approx(0.1 * head)
    sizes = [len(group["params"]) for group in groups]
    assert sizes[:2] == [1, 1] and sum(sizes) == 62  # all weights of resnet18, the head's first


def test_weights_that_the_author_froze_stay_frozen(pictures, tmp_path):
    class Frozen(models.SqueezeNet):
        def __init__(self, num_classes: int) -> None:
            super().__init__(num_classes)
            self.features[0].requires_grad_(False)

    run = train(pictures, tmp_path, model=Frozen, freeze=1, max_epoch=2)
    new = models.build(DefaultConfig(model=Frozen), 2).state_dict()["features.0.weight"]
    assert torch.equal(weights_of(run)["features.0.weight"], new)


def test_a_model_without_a_head_cannot_be_frozen(command):
    class OneClass(models.SqueezeNet):
        def __init__(self, num_classes: int) -> None:
            super().__init__(2)

    opt = DefaultConfig(model=OneClass, freeze=1)
    with pytest.raises(ValueError, match="depends on the number of classes"):
        models.body_weights(opt, models.build(opt, 2), 2)


# Weights of one's own.


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_the_body_of_another_task_is_taken_and_the_head_is_new(
    pictures, three_kinds, tmp_path, prefix, capsys
):
    first = train(pictures, tmp_path / "first", max_epoch=1)
    file = tmp_path / "weights.pth"
    torch.save({f"{prefix}{name}": value for name, value in weights_of(first).items()}, file)
    options = {"train_data_root": three_kinds, "load_model_path": file, "freeze": 1}
    second = train(pictures, tmp_path / "second", max_epoch=1, **options)
    assert f"{file} has other classes: the head, fc.weight, fc.bias, is new" in (
        capsys.readouterr().out
    )
    old, new = weights_of(first), weights_of(second)
    assert new["fc.weight"].shape == (3, 512)
    for name in old.keys() - HEAD:
        assert torch.equal(old[name], new[name]), name


def test_the_same_classes_keep_the_head(pictures, tmp_path):
    first = train(pictures, tmp_path / "first", max_epoch=1)
    opt = DefaultConfig(model=RESNET, load_model_path=first)
    model = models.build(opt, 2, log=print)
    assert torch.equal(model.fc.weight, checkpoint.read(first / "best.pth")["model"]["fc.weight"])


def test_weights_of_another_body_are_refused_as_before(pictures, tmp_path, command):
    run = train(pictures, tmp_path, max_epoch=1)
    done = command("train", f"--load-model-path={run}", f"--train-data-root={pictures / 'train'}")
    assert done.code == 1
    assert "does not fit SqueezeNet" in done.err and "features.0.weight" in done.err


def test_val_takes_no_weights_of_other_classes(pictures, three_kinds, tmp_path, command):
    run = train(pictures, tmp_path, max_epoch=1)
    torch.save(weights_of(run), tmp_path / "bare.pth")
    words = [f"--train-data-root={three_kinds}", f"--model={RESNET}"]
    done = command("val", f"--load-model-path={tmp_path / 'bare.pth'}", *words)
    assert done.code == 1
    assert "fc.weight is (2, 512) in the file, (3, 512) in the model" in done.err
