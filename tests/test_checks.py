"""torcheck's documented behaviour, and one test for each of its faults that is mended."""

import copy
import gc
import io
import math
import pickle
import warnings
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.optim import lr_scheduler as schedules

from utils import checks


@pytest.fixture(autouse=True)
def _clean():
    torch.manual_seed(42)
    yield
    checks.unregister_all()
    checks.verbose_off()


class Net(nn.Module):
    """fc1, ReLU, fc2; `dead` leaves fc1 out of the graph, `end` acts on the logits (N, 2)."""

    def __init__(self, dead: bool = False, end=lambda logits: logits) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 5), nn.Linear(5, 2)
        self.dead, self.end = dead, end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.fc2(x if self.dead else self.fc1(x).relu()))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(4, 5)), torch.tensor([0, 1, 0, 1])).backward()
        optimizer.step()


def registered(model: nn.Module, **options) -> torch.optim.Optimizer:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = Adam(trainable, lr=1e-2)
    checks.register(optimizer, **options)
    return optimizer


def nan_of(logits: Tensor) -> Tensor:
    return (logits - logits.max()).sqrt()


# Disable, enable, verbose.


def test_disable_enable():
    model = Net(dead=True)
    optimizer = registered(model)
    checks.add_module_changing_check(model, "net")
    checks.add_module_output_range_check(model, (100, None), module_name="net")
    checks.disable()
    train(model, optimizer)
    with pytest.raises(KeyError):
        checks.disable_optimizers(optimizer)
    with pytest.raises(KeyError):
        checks.disable_modules(model)
    checks.enable(modules=[])
    with pytest.raises(RuntimeError, match=r"fc1\.weight should change\.\n.*fc1\.bias should"):
        train(model, optimizer)
    checks.enable_modules(model)
    with pytest.raises(RuntimeError, match=r"output should all > 100. Some are out of range"):
        train(model, optimizer)


def test_verbose():
    model = Net(dead=True)
    optimizer = registered(model)
    checks.add_tensor_changing_check(model.fc1.bias, "bias")
    assert not checks.is_verbose()
    checks.verbose_on()
    with pytest.raises(RuntimeError) as raised:
        train(model, optimizer)
    assert str(raised.value).endswith(f"bias should change.\nThe tensor is:\n{model.fc1.bias}\n")


# Outputs.


@pytest.mark.parametrize("negate", [False, True])
@pytest.mark.parametrize("bounded", [False, True])
def test_output_check(bounded, negate):
    model = Net(end=(lambda x: x.softmax(1)) if bounded else (lambda x: x * 1e3))
    checks.add_module_output_range_check(model, (0, 1), negate, "net")
    if bounded != negate:
        model(torch.randn(4, 5))
        return
    text = (
        "shouldn't all > 0 and < 1" if negate else "should all > 0 and < 1. Some are out of range"
    )
    with pytest.raises(RuntimeError) as raised:
        model(torch.randn(4, 5))
    assert str(raised.value) == f"Module net's output {text}"


def test_bounds_belong_to_the_range_and_either_may_be_missing():
    model = nn.Identity()
    checks.add_module_output_range_check(model, (0, 1))
    model(torch.tensor([0, 1]))
    checks.add_module_output_range_check(model, (None, 3))
    with pytest.raises(RuntimeError, match="Module's output should all < 3"):
        model(torch.tensor([4.0]))


@pytest.mark.parametrize(
    "output", [(torch.ones(1), torch.tensor([math.nan])), {"a": [torch.tensor([math.nan])]}]
)
def test_outputs_within_tuples_lists_and_dicts_are_checked(output):
    model = nn.Identity()
    checks.add_module_nan_check(model, "m")
    model({"step": torch.tensor([1]), "none": None})
    with pytest.raises(RuntimeError, match=r"Module m's output contains NaN."):
        model(output)


def test_outputs_are_not_checked_in_eval_mode():
    model = nn.Identity().eval()
    checks.add_module_output_range_check(model, (0, 1))
    model(torch.tensor([5.0]))
    with pytest.raises(RuntimeError):
        model.train()(torch.tensor([5.0]))


@pytest.mark.parametrize("kind, end", [("NaN", nan_of), ("inf", lambda logits: logits / 0)])
def test_param_and_output_check(kind, end):
    for model, bad in ((Net(), False), (Net(end=end), True)):
        optimizer = registered(model)
        getattr(checks, f"add_module_{kind.lower()}_check")(model, "net")
        if not bad:
            train(model, optimizer)
            continue
        with pytest.raises(RuntimeError, match=f"Module net's output contains {kind}"):
            train(model, optimizer)


# Tensors.


def test_param_check_wants_what_torcheck_wants():
    model = Net()
    with pytest.raises(RuntimeError, match=r"The tensor doesn't belong to any optimizer. Please"):
        checks.add_module_changing_check(model)
    optimizer = registered(model)
    with pytest.raises(RuntimeError, match=r"The optimizer has already been registered."):
        checks.register(optimizer)
    with pytest.raises(RuntimeError, match="doesn't belong"):
        checks.add_module_changing_check(Net())
    with pytest.raises(
        RuntimeError, match=r"Module should be nn.Module type, but is <class 'int'>"
    ):
        checks.add_module(3, changing=True)
    checks.add_tensor_nan_check(model.fc1.bias, "bias")
    with pytest.warns(UserWarning, match="^bias is renamed as Module net's fc1.bias$"):
        checks.add_tensor_inf_check(model.fc1.bias, "fc1.bias", "net")


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("changing", [False, True])
def test_param_check_of_changes(changing, dead):
    model = Net(dead=dead)
    optimizer = registered(model)
    checks.add_module(model.fc1, "fc1", changing=changing)
    if changing != dead:
        train(model, optimizer, 3)
        return
    with pytest.raises(RuntimeError) as raised:
        train(model, optimizer)
    text = "should change." if changing else "should not change."
    lines = [f"Module fc1's {name} {text}" for name in ("weight", "bias")]
    first = "The following errors are detected while training:"
    assert str(raised.value).splitlines() == [first, *lines]


def test_param_check_of_nan_and_inf():
    model = Net(end=nan_of)
    optimizer = registered(model)
    for name, parameter in model.named_parameters():
        checks.add_tensor(parameter, name, "net", check_nan=True, check_inf=True)
    with pytest.raises(RuntimeError, match=r"fc1\.bias contains NaN\.\n.*fc2\.weight contains NaN"):
        train(model, optimizer)


def test_a_huge_learning_rate_overflows_and_is_caught():
    model = Net()
    optimizer = SGD(model.parameters(), lr=1e38)
    checks.register(optimizer)
    checks.add_tensor_inf_check(model.fc2.bias, "fc2.bias", "net")
    model.fc2.bias.grad = torch.full((2,), 1e3)
    with pytest.raises(RuntimeError, match=r"Module net's fc2.bias contains inf."):
        optimizer.step()


def test_a_norm_that_overflows_is_no_inf():
    weight = nn.Parameter(torch.full((4,), 3e38))
    optimizer = registered(nn.ParameterList([weight]))
    checks.add_tensor(weight, "weight", check_inf=True, check_nan=True, changing=False)
    optimizer.step()


# torcheck's faults.


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(
    "build",
    [
        lambda optimizer: schedules.StepLR(optimizer, 1),
        lambda optimizer: schedules.OneCycleLR(optimizer, 0.1, total_steps=9),
        lambda optimizer: schedules.CosineAnnealingLR(optimizer, 9),
    ],
)
def test_schedulers_can_be_built_before_and_after(build, before):
    model = Net(dead=True)
    optimizer = Adam(model.parameters())
    with warnings.catch_warnings(action="error"):
        scheduler = build(optimizer) if before else None
        checks.register(optimizer)
        scheduler = scheduler or build(optimizer)
        train(model, optimizer)
        scheduler.step()
    checks.add_module_changing_check(model)
    with pytest.raises(RuntimeError, match="should change"):
        train(model, optimizer)


def test_a_changing_check_can_follow_a_nan_check():
    model = Net(dead=True)
    optimizer = registered(model)
    checks.add_tensor_nan_check(model.fc1.bias, "bias")
    train(model, optimizer)
    checks.add_tensor_changing_check(model.fc1.bias, "bias")
    with pytest.raises(RuntimeError, match=r"bias should change."):
        train(model, optimizer)


@pytest.mark.parametrize("how", ["deepcopy", "copy", "pickle", "torch.save"])
def test_a_copied_model_runs_its_own_weights_unchecked(how):
    model = nn.Sequential(nn.Linear(5, 2))
    checks.add_module_output_range_check(model, (1e3, None))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twin = {
        "deepcopy": copy.deepcopy,
        "copy": copy.copy,
        "pickle": lambda model: pickle.loads(pickle.dumps(model)),
        "torch.save": lambda model: torch.load(file, weights_only=False),
    }[how](model)
    twin._modules = {"0": nn.Linear(5, 2, bias=False)}
    nn.init.zeros_(twin[0].weight)
    assert twin(torch.randn(4, 5)).abs().sum() == 0
    with pytest.raises(RuntimeError, match="should all > 1000"):
        model(torch.randn(4, 5))


def test_frozen_layers_outside_the_optimizer_are_checked():
    model = Net()
    model.fc1.requires_grad_(False)
    with pytest.raises(RuntimeError, match="doesn't belong"):
        checks.add_module_unchanging_check(model.fc1)
    optimizer = registered(model)
    checks.add_module_unchanging_check(model.fc1, "fc1")
    train(model, optimizer)
    model.fc1.weight.data[0, 0] += 1e-7  # past the version counter, too small for the norm
    with pytest.raises(RuntimeError, match=r"Module fc1's weight should not change."):
        train(model, optimizer)


def test_a_group_at_learning_rate_zero_need_not_change():
    model = Net()
    groups = [{"params": model.fc1.parameters(), "lr": 0.0}, {"params": model.fc2.parameters()}]
    optimizer = SGD(groups, lr=0.1)
    checks.register(optimizer)
    checks.add_module_changing_check(model)
    train(model, optimizer)
    optimizer.param_groups[0]["lr"], model.dead = 0.1, True
    with pytest.raises(RuntimeError, match=r"fc1\.weight should change"):
        train(model, optimizer)


def test_nan_that_stays_nan_is_no_change():
    weight = nn.Parameter(torch.full((3,), math.nan))
    optimizer = registered(nn.ParameterList([weight]))
    checks.add_tensor_changing_check(weight, "weight")
    with pytest.raises(RuntimeError, match=r"weight should change."):
        optimizer.step()


def test_a_weight_that_stops_changing_is_told():
    model = Net()
    optimizer = registered(model)
    checks.add_module_changing_check(model)
    train(model, optimizer)
    model.dead = True
    with pytest.raises(RuntimeError, match=r"fc1\.weight should change"):
        train(model, optimizer, 1)


def test_a_change_too_small_for_the_norm_is_seen():
    weight = nn.Parameter(torch.tensor([1e4, 1.0]))
    optimizer = SGD([weight], lr=1.0)
    checks.register(optimizer)
    checks.add_tensor_changing_check(weight, "weight")
    for _ in range(3):
        weight.grad = torch.tensor([0.0, 1e-6])
        optimizer.step()


def test_gradients_and_buffers_are_checked():
    model = nn.Sequential(nn.Linear(5, 2), nn.BatchNorm1d(2))
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))  # inf by design
    optimizer = registered(model)
    checks.add_module(model, "m", check_nan=True, check_inf=True)
    train(model, optimizer)
    optimizer.param_groups[0]["lr"] = 0.0
    model[0].weight.grad[0, 0] = math.inf
    model[1].running_mean[0] = math.nan
    with pytest.raises(RuntimeError) as raised:
        optimizer.step()
    text = str(raised.value)
    assert "Module m's 0.weight.grad contains inf." in text
    assert "Module m's 1.running_mean contains NaN." in text and "mask" not in text


def test_unregister_leaves_no_hook_and_no_check():
    model = Net(dead=True)
    optimizer = registered(model)
    checks.add_module(model, changing=True, check_nan=True)
    assert model._forward_hooks and optimizer._optimizer_step_post_hooks
    checks.unregister(model, optimizer)
    assert not model._forward_hooks and not optimizer._optimizer_step_post_hooks
    checks.register(optimizer)
    train(model, optimizer)
    checks.unregister_all()
    assert not optimizer._optimizer_step_post_hooks


def test_dropped_models_are_freed():
    model = Net()
    optimizer = registered(model)
    checks.add_module(model, changing=True, check_nan=True)
    train(model, optimizer)
    gone = [weakref.ref(model), weakref.ref(optimizer), weakref.ref(model.fc1.weight)]
    del model, optimizer
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3
    assert not len(checks.registry.tensors) and not len(checks.registry.hooks)


def test_every_nth_step_only():
    model = Net(dead=True)
    optimizer = registered(model, every=3)
    checks.add_module_changing_check(model)
    train(model, optimizer, 2)
    with pytest.raises(RuntimeError, match="should change"):
        train(model, optimizer, 1)


def test_a_step_that_the_scaler_skips_is_not_looked_at():
    model = Net(end=lambda logits: logits * math.inf)
    optimizer = Adam(model.parameters(), fused=True)  # its step runs, and changes nothing
    scaler = torch.amp.GradScaler("cpu")
    checks.register(optimizer)
    for name, parameter in model.named_parameters():
        checks.add_tensor(parameter, name, changing=True, check_nan=True, check_inf=True)
    scaler.scale(model(torch.randn(4, 5)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    with pytest.raises(RuntimeError, match=r"fc2\.weight.grad contains"):
        optimizer.step()


def test_one_wait_for_the_device_a_step(monkeypatch):
    model = Net()
    model.fc1.requires_grad_(False)
    optimizer = registered(model)
    checks.add_module(model.fc1, changing=False, check_nan=True)
    checks.add_module(model.fc2, changing=True, check_nan=True, check_inf=True)
    train(model, optimizer, 1)  # the first look has no norm to compare with
    waits = []

    def counted(name):
        original = getattr(Tensor, name)
        return lambda *args: waits.append(name) or original(*args)

    for name in ("tolist", "__bool__", "__float__"):
        monkeypatch.setattr(Tensor, name, counted(name))
    checks.registry.look_at_tensors(SGD([torch.zeros(1)], lr=0.1))  # has the frozen ones only
    assert waits == ["tolist"]
    for parameter in model.fc2.parameters():
        parameter.data += 1
    checks.registry.look_at_tensors(optimizer)
    assert waits == ["tolist"] * 2


@pytest.mark.parametrize("wrap", ["compile", "autocast", "ddp"])
def test_compiled_autocast_and_distributed_modules_are_checked(wrap, tmp_path):
    model = Net(end=lambda logits: logits + 0)
    optimizer = registered(model)
    checks.add_module(model, "net", changing=True, check_nan=True, check_inf=True)
    checks.add_module_output_range_check(model.fc2, (-1e3, 1e3), module_name="fc2")
    wrapped = model
    if wrap == "compile":
        wrapped = torch.compile(model, backend="eager")
    if wrap == "ddp":
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
        )
        wrapped = nn.parallel.DistributedDataParallel(model)
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=wrap == "autocast"):
            train(wrapped, optimizer)
            with pytest.raises(RuntimeError, match="Module fc2's output should all > -1000"):
                wrapped(torch.full((4, 5), 1e9))
            with pytest.raises(RuntimeError, match="Module fc2's output"):
                wrapped(torch.full((4, 5), math.nan))
    finally:
        if wrap == "ddp":
            torch.distributed.destroy_process_group()
    model.fc1.weight.data.fill_(math.nan)
    with pytest.raises(RuntimeError, match=r"Module net's fc1\.weight contains NaN"):
        optimizer.step()
