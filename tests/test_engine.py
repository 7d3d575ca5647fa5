"""One training step and one evaluation pass, driven with models of a line or two."""

import ast
import copy
import inspect
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from config import DefaultConfig
from tests.helpers import linux_only
from utils import engine, recipe
from utils.device import Precision, has_native_bf16, set_up_device
from utils.guard import START_STEPS, guard_is_on
from utils.muon import SCALE, Muon

CPU = torch.device("cpu")
FP32 = Precision("fp32", CPU)
WEIGHT = torch.tensor([0.5, 2.0, 1.25])


def make_model(seed: int = 0) -> nn.Module:
    """Make a small model of three classes without BatchNorm, which splits of a batch would see."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def make_batch(size: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.arange(size) % 3


def build_optimizer(model: nn.Module, name: str = "muon", **options: float) -> Optimizer:
    return recipe.build_optimizer(DefaultConfig(optimizer=name, **options), model)


def weights_of(model: nn.Module) -> Tensor:
    return torch.concat([parameter.detach().flatten().clone() for parameter in model.parameters()])


def step(model: nn.Module, criterion=None, lr: float = 1.0, precision=FP32, batch=None, **options):
    """Do one step of plain SGD; return its logits, losses and how the weights moved."""
    before, (images, labels) = weights_of(model), batch or make_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    criterion = criterion or recipe.ClassificationLoss()
    logits, losses, _ = engine.train_step(
        model, images, labels, criterion, optimizer, precision, **options
    )
    return logits, losses, weights_of(model) - before


# The step.


def test_a_step_of_one_linear_layer_is_the_one_of_the_textbook():
    model, labels = nn.Linear(5, 3), torch.tensor([0, 2, 1, 2])
    images = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    expected = model(images).detach()
    errors = expected.softmax(dim=1) - F.one_hot(labels, 3)  # d loss / d logits, times N
    before = copy.deepcopy(model)
    logits, losses, _ = step(model, lr=0.5, batch=(images, labels))
    torch.testing.assert_close(logits, expected)  # before the update
    torch.testing.assert_close(losses, F.cross_entropy(expected, labels, reduction="none"))
    torch.testing.assert_close(model.weight, before.weight - 0.5 * errors.T @ images / 4)
    torch.testing.assert_close(model.bias, before.bias - 0.5 * errors.mean(dim=0))
    assert not logits.requires_grad and not losses.requires_grad


def test_a_step_does_not_see_the_gradients_of_the_one_before():
    model, other = make_model(), make_model()
    step(model)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(step(model)[2], step(other)[2])


CRITERIA = {
    "plain": recipe.ClassificationLoss(),
    "weighted": recipe.ClassificationLoss(WEIGHT),
    "smoothed": recipe.ClassificationLoss(label_smoothing=0.1),
    "focal": recipe.ClassificationLoss(gamma=2.0),
    "all": recipe.ClassificationLoss(WEIGHT, 0.1, 2.0),
}


@pytest.mark.parametrize("accumulate", [2, 3, 4, 7, 10, 16])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_accumulated_parts_make_the_step_of_the_whole_batch(criterion, accumulate):
    whole, parts = make_model(), make_model()
    for seed in range(3):
        batch = make_batch(10, seed)
        options = {"lr": 0.1, "batch": batch, "clip_norm": 1.0}
        logits, losses, moved = step(whole, CRITERIA[criterion], **options)
        logits2, losses2, moved2 = step(
            parts, CRITERIA[criterion], accumulate=accumulate, **options
        )
        assert moved.norm() > 0.01
        torch.testing.assert_close(moved2, moved, rtol=0, atol=1e-6)
        torch.testing.assert_close(logits2, logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(losses2, losses, rtol=0, atol=1e-5)
    torch.testing.assert_close(weights_of(parts), weights_of(whole), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("accumulate", "sizes"),
    [(4, [3, 3, 2, 2]), (5, [2] * 5), (7, [2] * 5), (10, [2] * 5), (100, [2] * 5)],
)
def test_accumulation_makes_equal_parts_and_none_of_a_single_picture(accumulate, sizes):
    found, model = [], make_model()
    model.register_forward_hook(lambda module, inputs, output: found.append(len(inputs[0])))
    step(model, accumulate=accumulate)
    assert found == sizes


def test_a_model_with_batch_norm_of_vectors_trains_in_parts():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    assert step(model, accumulate=9, batch=make_batch(9))[2].isfinite().all()


def test_a_last_batch_of_one_is_a_batch():
    logits, losses, moved = step(make_model(), batch=make_batch(1), accumulate=4)
    assert logits.shape == (1, 3) and losses.shape == (1,)
    assert moved.norm() > 0


@pytest.mark.parametrize("clip_norm", [0.001, 0.1])
def test_clipping_shortens_the_step_to_the_norm_and_keeps_its_direction(clip_norm):
    free, clipped = step(make_model())[2], step(make_model(), clip_norm=clip_norm)[2]
    assert free.norm() > 0.5
    assert clipped.norm().item() == pytest.approx(clip_norm, rel=1e-3)
    assert F.cosine_similarity(free, clipped, dim=0).item() == pytest.approx(1, abs=1e-4)


def test_a_short_gradient_is_not_clipped():
    torch.testing.assert_close(step(make_model(), clip_norm=1e3)[2], step(make_model())[2])


def scaled(scale: float) -> Precision:
    precision = Precision("fp32", CPU)
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return precision


@pytest.mark.parametrize("clip_norm", [None, 0.1, 10.0])
def test_clipping_comes_after_unscaling(clip_norm):
    plain = step(make_model(), clip_norm=clip_norm)[2]
    through = step(make_model(), clip_norm=clip_norm, precision=scaled(1024.0), accumulate=3)[2]
    assert plain.norm() > 0.09
    torch.testing.assert_close(through, plain, rtol=1e-4, atol=1e-6)


def test_a_step_whose_gradient_overflows_is_left_out_and_the_scale_goes_down():
    model, precision, (images, labels) = make_model(), scaled(2.0**120), make_batch()
    moved = step(model, precision=precision, batch=(1e9 * images, labels), clip_norm=1.0)[2]
    assert moved.eq(0).all()
    assert precision.scaler.get_scale() == 2.0**119


def test_a_frozen_layer_stays_and_the_others_learn():
    model = make_model()
    model[0].requires_grad_(False)
    frozen, free = weights_of(model[0]), weights_of(model[3])
    optimizer = build_optimizer(model, lr=0.1, weight_decay=0.5)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]  # frozen ones too
    for _ in range(3):
        engine.train_step(model, *make_batch(), CRITERIA["plain"], optimizer, FP32, clip_norm=1.0)
    assert torch.equal(weights_of(model[0]), frozen)
    assert (weights_of(model[3]) != free).all()


def test_the_engine_knows_neither_options_nor_models_nor_data():
    tree = ast.parse(inspect.getsource(engine))
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [
        a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names
    ]
    assert "torch.optim" in modules
    assert not {"config", "models", "data", "main"} & {name.split(".")[0] for name in modules}


def test_the_step_is_short_enough_to_be_read_at_once():
    (function,) = ast.parse(inspect.getsource(engine.train_step)).body
    assert len(ast.unparse(function.body).splitlines()) < 25


# The pass.


class Recorder(nn.Module):
    """Answer with what it sees; BatchNorm and dropout would change it in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(3, affine=False), nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.dropout(self.norm(images))


def batches_of(images: Tensor, labels: Tensor, size: int):
    parts = zip(images.split(size), labels.split(size), strict=True)
    return [(number, *part) for number, part in enumerate(parts)]


@pytest.mark.parametrize("training", [True, False])
def test_an_evaluation_leaves_the_model_as_it_was_and_ends_with_a_batch_of_one(training):
    model = Recorder().train(training)
    images, labels = torch.randn(7, 3), torch.arange(7)
    before = copy.deepcopy(model.state_dict())
    logits, found = engine.evaluate(model, batches_of(images, labels, 3), FP32)
    assert {part.training for part in model.modules()} == {training}
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    torch.testing.assert_close(logits, images, rtol=1e-4, atol=1e-4)  # mean 0, variance 1 so far
    assert found.tolist() == [*range(7)]
    assert logits.dtype == torch.float32 and not logits.requires_grad


def test_with_mirror_the_logits_are_the_mean_over_a_picture_and_its_mirror_image():
    class Left(nn.Module):
        """Says what the left column shows."""

        def forward(self, images: Tensor) -> Tensor:
            return images[:, :, :, 0].mean(dim=2)

    images = torch.zeros(1, 3, 4, 4)
    images[..., 0], images[..., 3] = 1.0, 3.0
    for mirror, expected in ((False, 1.0), (True, 2.0)):
        logits, _ = engine.evaluate(Left(), [(0, images, torch.zeros(1))], FP32, mirror)
        assert logits.tolist() == [[expected] * 3]


def test_an_evaluation_takes_a_generator_of_single_pictures():
    batches = ((n, torch.full((1, 3), float(n)), torch.tensor([n])) for n in range(3))
    logits, labels = engine.evaluate(nn.Identity(), batches, FP32)
    assert logits.tolist() == [[0.0] * 3, [1.0] * 3, [2.0] * 3]
    assert labels.tolist() == [0, 1, 2]


def test_an_evaluation_of_nothing_says_so():
    with pytest.raises(ValueError, match="no picture"):
        engine.evaluate(nn.Linear(3, 2), [], FP32)


# The loss.


def make_logits(size: int = 12) -> tuple[Tensor, Tensor]:
    return 3 * torch.randn(size, 3, generator=torch.Generator().manual_seed(0)), torch.arange(
        size
    ) % 3


def test_the_loss_is_one_value_a_picture_and_weighs_exactly():
    logits, labels = make_logits()
    losses = recipe.ClassificationLoss(WEIGHT)(logits, labels)
    assert losses.shape == (12,)
    expected = F.cross_entropy(logits, labels, WEIGHT, reduction="sum")
    torch.testing.assert_close(losses.sum(), expected)
    # torch divides by the weights of the pictures, so its mean says something else
    assert losses.mean() != pytest.approx(F.cross_entropy(logits, labels, WEIGHT).item(), rel=0.01)


def test_smoothing_is_torchs_and_a_class_weight_multiplies_it():
    logits, labels = make_logits()
    smooth = F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(recipe.ClassificationLoss(None, 0.1)(logits, labels), smooth)
    weighted = recipe.ClassificationLoss(WEIGHT, 0.1)(logits, labels)
    torch.testing.assert_close(weighted, smooth * WEIGHT[labels])


def test_focal_loss_with_gamma_0_is_cross_entropy_and_gamma_2_that_of_the_paper():
    logits, labels = make_logits()
    plain = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(recipe.ClassificationLoss(gamma=0.0)(logits, labels), plain)
    sure = torch.tensor([[0.9, 0.1], [0.4, 0.6]]).log()  # P(true) = 0.9 and 0.4
    losses = recipe.ClassificationLoss(gamma=2.0)(sure, torch.tensor([0, 0]))
    expected = torch.tensor([-(0.1**2) * math.log(0.9), -(0.6**2) * math.log(0.4)])
    torch.testing.assert_close(losses, expected)


def test_the_loss_of_bfloat16_logits_is_computed_in_float32():
    logits, labels = torch.tensor([[8.0, 0.0]], dtype=torch.bfloat16), torch.tensor([0])
    losses = recipe.ClassificationLoss()(logits, labels)
    assert losses.dtype == torch.float32
    assert losses.item() == pytest.approx(math.log1p(math.exp(-8)), rel=1e-3)


def test_balanced_weights_let_every_class_count_as_much():
    counts = [30, 10, 2]
    weights = recipe.balanced_weights(counts)
    assert weights.tolist() == pytest.approx([42 / 90, 42 / 30, 7.0])
    assert (weights * torch.tensor(counts)).tolist() == pytest.approx([14.0] * 3)
    assert recipe.balanced_weights([5, 0]).isfinite().all()


# Optimizer and learning rate.


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_weight_decay_shrinks_filters_and_matrices_but_not_biases_and_norms(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(model, name, lr=0.1, weight_decay=0.5).step()
    decayed = {"0.weight", "3.weight"}
    assert len(before) == 6
    for name, parameter in model.named_parameters():
        share = 1 - 0.1 * 0.5 if name in decayed else 1.0
        torch.testing.assert_close(parameter.detach(), share * before[name])


def steps_of(optimizer: Optimizer, weight: Tensor, gradients: list[Tensor]) -> list[Tensor]:
    """Return the weight after each step; before it stands its gradient."""
    seen = []
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        seen.append(weight.detach().clone())
    return seen


@pytest.mark.parametrize("shape", [(24, 7), (5, 40), (16, 3, 3, 3), (6, 20, 1, 1)])
def test_muon_makes_the_steps_of_torchs_muon_with_filters_as_rows(shape):
    torch.manual_seed(1)
    start, gradients = torch.randn(shape), list(torch.randn(6, *shape))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.flatten(1).clone())
    reference = torch.optim.Muon([theirs], lr=0.1, momentum=0.95, weight_decay=0.03, ns_steps=3)
    expected = steps_of(reference, theirs, [gradient.flatten(1) for gradient in gradients])
    optimizer = Muon([ours], lr=0.1 / SCALE, momentum=0.95, weight_decay=0.03 * SCALE)
    seen = steps_of(optimizer, ours, gradients)
    for a, b in zip(seen, expected, strict=True):
        torch.testing.assert_close(a.flatten(1), b, rtol=0, atol=3e-3)  # torch's is in bfloat16
    assert (seen[-1] - start).abs().mean() > 0.01


def test_muon_makes_the_steps_of_adamw_for_biases_and_norms():
    torch.manual_seed(1)
    start, gradients = torch.randn(50), [*torch.randn(5, 50), torch.zeros(50), torch.randn(50)]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    options = {"lr": 0.03, "betas": (0.9, 0.99), "weight_decay": 0.1}
    expected = steps_of(torch.optim.AdamW([theirs], **options), theirs, gradients)
    seen = steps_of(Muon([ours], **options), ours, gradients)
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e12])
def test_a_step_of_muon_has_the_same_length_whatever_the_scale_of_the_gradient(scale):
    torch.manual_seed(1)
    weight = nn.Parameter(torch.zeros(32, 64))
    (moved,) = steps_of(Muon([weight], lr=0.5), weight, [scale * torch.randn(32, 64)])
    size = moved.square().mean().sqrt().item()
    assert size == pytest.approx(0.5 * SCALE / 64**0.5, rel=0.2)


def lr_shares(schedule: str, warmup: float, *progress: float) -> list[float]:
    opt = DefaultConfig(lr=1.0, schedule=schedule, warmup=warmup, lr_decay=0.5)
    return [recipe.learning_rate(opt, place, []) for place in progress]


PERCENT = [step / 100 for step in range(101)]


def test_one_cycle_starts_low_peaks_after_the_warm_up_and_ends_at_zero():
    shares = lr_shares("one_cycle", 0.2, *PERCENT)
    assert shares[0] == pytest.approx(0.04)
    assert max(shares) == shares[20] == 1.0
    assert shares[60] == pytest.approx(0.5)
    assert shares[100] == pytest.approx(0.0, abs=1e-12)
    assert shares[:21] == sorted({*shares[:21]})
    assert shares[20:] == sorted({*shares[20:]}, reverse=True)


def test_plateau_warms_up_and_stays():
    shares = lr_shares("plateau", 0.2, *PERCENT)
    assert shares[0] == pytest.approx(0.04)
    assert shares[:21] == sorted({*shares[:21]})
    assert set(shares[20:]) == {1.0}


def test_plateau_is_lowered_after_each_epoch_without_a_lower_val_loss():
    opt = DefaultConfig(lr=0.8, schedule="plateau", warmup=0.0, lr_decay=0.5)
    history = [{"val_loss": loss} for loss in (3.0, 2.0, 2.0, 2.5, 1.0)]
    rates = [recipe.learning_rate(opt, 0.5, history[:epochs]) for epochs in range(6)]
    assert rates == [0.8, 0.8, 0.8, 0.4, 0.2, 0.2]


@pytest.mark.parametrize("schedule", ["one_cycle", "plateau"])
def test_a_run_may_be_all_warm_up_or_without(schedule):
    assert lr_shares(schedule, 0.0, 0.0) == [1.0]
    assert lr_shares(schedule, 1.0, 0.5) == pytest.approx([0.52])


def test_the_learning_rate_is_set_for_every_group_times_its_factor():
    optimizer = build_optimizer(make_model(), lr=0.1, weight_decay=0.1)
    optimizer.param_groups[1]["lr_factor"] = 0.1
    recipe.set_lr(optimizer, 0.025)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.025, 0.0025])


def test_a_layer_that_is_frozen_at_the_start_learns_once_it_is_unfrozen():
    model = make_model()
    model[0].requires_grad_(False)
    optimizer = build_optimizer(model, lr=0.1, weight_decay=0.5)
    frozen = weights_of(model[0])
    engine.train_step(model, *make_batch(), CRITERIA["plain"], optimizer, FP32)
    assert torch.equal(weights_of(model[0]), frozen)
    model[0].requires_grad_(True)
    engine.train_step(model, *make_batch(), CRITERIA["plain"], optimizer, FP32)
    assert (weights_of(model[0]) != frozen).all()


# The guard.


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda model, images: model[0].weight.data.fill_(math.nan), "0.weight is not finite"),
        (lambda model, images: images[3, 0, 0, 0].fill_(math.inf), "a picture is not finite"),
        (
            lambda model, images: model[0].weight.data.fill_(3e38),
            "the output of 0 is not finite",
        ),
    ],
)
def test_an_update_that_is_not_finite_is_not_made_and_its_origin_is_named(spoil, words):
    model, (images, labels) = make_model(), make_batch()
    spoil(model, images)
    before, optimizer = weights_of(model), build_optimizer(model, lr=0.1, weight_decay=0.1)
    precision = Precision("fp32", CPU)
    with pytest.raises(engine.NotFinite, match=words):
        engine.train_step(
            model, images, labels, CRITERIA["all"], optimizer, precision, accumulate=2
        )
    assert torch.equal(weights_of(model).nan_to_num(7.0), before.nan_to_num(7.0))
    assert precision.updates == 0 and not optimizer.state


class TakesRootOfZero(nn.Module):
    """Its outputs are finite, the gradient of its weight is not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.mean(dim=(2, 3))) + (0 * self.linear.weight[0]).sqrt()


class IsInfinite(recipe.ClassificationLoss):
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().forward(logits, labels) / 0


@pytest.mark.parametrize(
    ("model", "criterion", "words"),
    [
        (TakesRootOfZero(), CRITERIA["plain"], "the gradient of linear.weight is not finite"),
        (make_model(), IsInfinite(), "the loss is not finite"),  # of the criterion that is in use
    ],
)
def test_a_gradient_or_a_loss_that_is_not_finite_is_told_from_an_output(model, criterion, words):
    with pytest.raises(engine.NotFinite, match=words):
        step(model, criterion)


def test_without_the_guard_the_update_is_made():
    model = TakesRootOfZero()
    step(model, guard=False)
    assert model.linear.weight.isnan().any()


def test_a_step_leaves_no_hook_and_the_guard_changes_no_bit():
    guarded, free = make_model(), make_model()
    assert torch.equal(step(guarded, guard=True)[2], step(free, guard=False)[2])
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in guarded.modules())


@pytest.mark.parametrize(
    ("checks", "guarded"), [("off", 0), ("start", START_STEPS), ("always", 1000)]
)
def test_the_option_checks_guards_no_step_the_first_ones_or_all(checks, guarded):
    assert sum(guard_is_on(checks, steps) for steps in range(1000)) == guarded


# Precision and device.


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_precision_is_that_of_the_forward_pass_and_weights_stay_float32(name, dtype):
    precision, model, seen = Precision(name, CPU), make_model(), []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    precision.scaler = torch.amp.GradScaler("cpu", 1024.0, enabled=precision.scaler.is_enabled())
    exact = step(make_model())[2]
    _, losses, moved = step(model, precision=precision)
    assert precision.name == name and seen == [dtype]
    assert losses.dtype == torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert precision.scaler.is_enabled() == (name == "fp16")
    assert (moved - exact).norm() < 0.02 * exact.norm()
    assert torch.equal(moved, exact) == (name == "fp32")
    logits, _ = engine.evaluate(model, [(0, *make_batch())], precision)
    assert logits.dtype == torch.float32 and seen[-1] == dtype


@pytest.mark.parametrize(("native", "name"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bfloat16_where_the_processor_has_it(native, name, monkeypatch):
    monkeypatch.setattr("utils.device.has_native_bf16", lambda device: native)
    precision = Precision("auto", CPU)
    assert precision.name == name
    assert precision.autocast._enabled == native and not precision.scaler.is_enabled()


def test_only_instructions_for_bfloat16_make_it_native(monkeypatch):
    for found, native in (
        ({"amx_bf16": True}, True),
        ({"avx512_bf16": False, "avx2": True}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found, raising=False)
        assert has_native_bf16(CPU) == native


def chosen(use_gpu: bool) -> torch.device:
    return set_up_device(use_gpu, "fp32", deterministic=False)[0]


def test_the_cpu_is_used_where_no_accelerator_is_wanted_or_found(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert chosen(True) == chosen(False) == CPU
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: gpu)
    assert chosen(True) == gpu
    assert chosen(False) == CPU


def test_deterministic_algorithms_are_on_where_asked_for():
    try:
        set_up_device(False, "fp32", deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        set_up_device(False, "fp32", deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()


@linux_only
@pytest.mark.parametrize("given", [{}, {"OMP_NUM_THREADS": "2"}])
def test_the_threads_of_a_step_are_bound_and_what_the_program_starts_is_not(given):
    """If the user says nothing about OpenMP. A training binds the main thread as well."""
    code = """
import os, subprocess, sys
from utils.device import OWN_CORE, set_up_device, use_cores
import torch
set_up_device(use_gpu=False, precision="fp32", deterministic=False)
matrix = torch.ones(999, 999)
matrix @ matrix
print(*sorted(len(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")))
use_cores(OWN_CORE)
print(len(os.sched_getaffinity(0)))
"""
    cores = len(os.sched_getaffinity(0))
    folder = Path(engine.__file__).parent.parent
    unset = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**unset, **given},
    )
    threads, own = done.stdout.splitlines()
    threads = [int(count) for count in threads.split()]
    assert threads[-1] == cores  # the main thread
    if given:
        assert {*threads} == {cores} and int(own) == cores
    elif cores > 1:
        assert threads[0] < cores and int(own) < cores


@linux_only
def test_a_cpu_keeps_the_memory_of_a_step_and_takes_tiny_numbers_for_zero():
    code = """
import resource, torch
from utils.device import set_up_device
set_up_device(use_gpu=False, precision="fp32", deterministic=False)
print((torch.full((8,), 1e-30) * 1e-10).sum().item())
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(1 << 26)
before = pages()
for _ in range(4):
    torch.ones(1 << 26)  # 256 MB
print(pages() - before)
"""
    folder = Path(engine.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    total, faults = done.stdout.split()
    assert float(total) == 0
    if platform.libc_ver()[0] == "glibc":
        assert int(faults) < 100_000  # 262,144 pages of 4 KB if they went back each time
