"""Faults of the loop: options, changes of a copy of the project, patches of a library."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from . import Edit, Fault
from .twins import DeepNet, PlainNet, ResNet, TorchViT

FAULTS: list[Fault] = []


def options(name: str, text: str, source: str, **options: Any) -> None:
    """Add a fault that lies in the options of train."""
    FAULTS.append(Fault(name, 6, text, source, PlainNet, options=options))


def edit(
    name: str, text: str, source: str, *edits: Edit, sound: type[nn.Module] = PlainNet, **more: Any
) -> None:
    """Add a fault that lies in the code of the project."""
    FAULTS.append(Fault(name, 6, text, source, sound, edits=edits, **more))


def patch(name: str, text: str, source: str, lines: Sequence[str], **more: Any) -> None:
    """Add a fault that main.py brings into a library when it starts."""
    first = "import fire\n"
    code = "\n".join(lines)
    edits: tuple[Edit, ...] = (("main.py", first, f"{first}{code}\n"),)
    FAULTS.append(Fault(name, 6, text, source, PlainNet, edits=edits, **more))


options("rate_of_3", "The learning rate is 3.", "DeepCrime: change learning rate", lr=3.0)
options("rate_of_1e-7", "The learning rate is 1e-7.", "DeepFD: wrong learning rate", lr=1e-7)
options(
    "clip_to_nothing",
    "Gradients are clipped to a norm of 1e-9.",
    "Humbatova 2020: wrong gradient clipping",
    clip_norm=1e-9,
)
options(
    "all_smoothed",
    "Label smoothing of 1: the same share for each class.",
    "Humbatova 2020: wrong hyperparameters",
    label_smoothing=1.0,
)
options(
    "focus_of_60",
    "Focal loss with an exponent of 60.",
    "Humbatova 2020: wrong loss function calculation",
    focal_gamma=60.0,
)
options(
    "one_batch_an_epoch",
    "The batch is larger than the data, so an epoch is one step.",
    "DeepCrime: change batch size",
    batch_size=4096,
)
edit(
    "decay_without_rate",
    "Weight decay is not multiplied by the learning rate.",
    "Humbatova 2020: wrong optimisation function",
    (
        "utils/muon.py",
        'weight.mul_(1 - group["lr"] * group["weight_decay"])',
        'weight.mul_(1 - group["weight_decay"])',
    ),
    sound=ResNet,
)
edit(
    "no_zero_grad",
    "Gradients of all steps add up: zero_grad is missing.",
    "Karpathy: zero_grad",
    ("utils/engine.py", "    optimizer.zero_grad()\n    parts", "    parts"),
    sound=DeepNet,
    options={"optimizer": "adamw"},
)
edit(
    "zeroed_before_the_step",
    "zero_grad stands between backward and step.",
    "forum: order of zero_grad, backward and step",
    (
        "utils/engine.py",
        "    amp.step(optimizer)  # calls",
        "    for weight in model.parameters():\n        weight.grad = None\n"
        "    amp.step(optimizer)  # calls",
    ),
)
edit(
    "no_eval_mode",
    "model.eval() is missing before validation, whose batches are sorted by class.",
    "Karpathy: train and eval mode",
    ("utils/engine.py", "    model.eval()\n", ""),
    false_figures=True,
)
edit(
    "training_in_eval_mode",
    "The model trains in eval mode, so BatchNorm never learns its statistics.",
    "Islam 2019: train and eval mode",
    ("main.py", "            model.train()\n", "            model.eval()\n"),
    sound=ResNet,
)
edit(
    "optimizer_of_a_copy",
    "The optimizer has the weights of a copy of the model.",
    "forum: optimizer created before the model was replaced",
    (
        "main.py",
        "    optimizer = recipe.build_optimizer(opt, model, body)\n",
        "    import copy\n\n"
        "    optimizer = recipe.build_optimizer(opt, copy.deepcopy(model), body)\n",
    ),
)
edit(
    "new_weights_each_epoch",
    "The model is initialised anew in each epoch.",
    "Humbatova 2020: multiple initialisations of CNN",
    (
        "main.py",
        "            # step 5: train\n",
        "            new = models.build(opt, num_classes)\n"
        "            model.load_state_dict(new.state_dict())\n",
    ),
    sound=ResNet,
)
edit(
    "loss_as_a_number",
    "The loss is wrapped in a new tensor, which has no history.",
    "forum: torch.tensor(loss.item(), requires_grad=True)",
    (
        "utils/engine.py",
        "        amp.scaler.scale(loss).backward()\n",
        "        loss = torch.tensor(loss.item(), requires_grad=True)\n"
        "        amp.scaler.scale(loss).backward()\n",
    ),
)
edit(
    "shuffled_images",
    "The images of a batch are shuffled, the labels are not.",
    "Humbatova 2020: wrong position of data shuffle operation",
    (
        "data/loader.py",
        "                if self.mix:\n",
        "                if self.sampler.shuffle:\n"
        "                    images = images[torch.randperm(len(images))]\n"
        "                if self.mix:\n",
    ),
)
edit(
    "sorted_batches",
    "Training pictures come in the order of their classes.",
    "Humbatova 2020: missing shuffle",
    ("data/build.py", '"shuffle": True', '"shuffle": False'),
)
edit(
    "schedule_ends_at_once",
    "The schedule counts an epoch as a whole run: the rate is 0 after the first.",
    "forum: scheduler.step() in the wrong loop",
    (
        "main.py",
        "progress = (epoch + step / len(train_loader)) / opt.max_epoch",
        "progress = min(1.0, epoch + step / len(train_loader))",
    ),
    sound=ResNet,
)
edit(
    "endless_warmup",
    "The epoch is forgotten in the schedule, so each epoch warms up and ends early.",
    "Humbatova 2020: wrong learning rate schedule",
    (
        "main.py",
        "progress = (epoch + step / len(train_loader)) / opt.max_epoch",
        "progress = step / len(train_loader) / opt.max_epoch / 10",
    ),
    sound=ResNet,
)
edit(
    "uphill",
    "The update is added to the weights, not subtracted.",
    "forum: sign of the loss",
    ("utils/muon.py", 'sub_(update, alpha=group["lr"])', 'add_(update, alpha=group["lr"])'),
)
edit(
    "biases_only",
    "The optimizer gets biases and norms only.",
    "forum: parameters missing in the optimizer",
    (
        "utils/recipe.py",
        '        {"params": matrices, "weight_decay": weight_decay},\n',
        "",
    ),
    sound=DeepNet,
)
edit(
    "head_only",
    "The optimizer gets the last two weights only.",
    "forum: model.fc.parameters() left from fine-tuning",
    (
        "utils/recipe.py",
        "    groups = decay_groups(rest, opt.weight_decay)",
        "    groups = decay_groups(rest[-2:], opt.weight_decay)",
    ),
    sound=DeepNet,
)
edit(
    "worst_epoch",
    "The epoch of the lowest accuracy is kept as the best.",
    "forum: ModelCheckpoint with mode='min' for an accuracy",
    (
        "utils/run.py",
        "is_best = metrics.is_best(self.opt.best_metric, history)",
        'is_best = row["val_accuracy"] <= min(row["val_accuracy"] for row in history)',
    ),
    sound=ResNet,
)
edit(
    "noise_on_the_gradients",
    "Noise of differential privacy is added to the gradients, 100 times too much.",
    "forum: Opacus' noise multiplier",
    (
        "utils/engine.py",
        "    amp.step(optimizer)  # calls",
        "    for weight in model.parameters():\n"
        "        weight.grad += 10 * torch.randn_like(weight)\n"
        "    amp.step(optimizer)  # calls",
    ),
)
edit(
    "average_with_the_start",
    "The weights are averaged with those of the start after each step.",
    "forum: exponential moving average copied back",
    (
        "main.py",
        "    meters = TrainMeters(",
        "    import copy\n\n    average = copy.deepcopy(model)\n    meters = TrainMeters(",
    ),
    (
        "main.py",
        "                meters.add(logits, labels, losses)\n",
        "                import torch\n\n"
        "                for old, weight in zip(average.parameters(), model.parameters()):\n"
        "                    weight.data.lerp_(old.data, 0.3)\n"
        "                meters.add(logits, labels, losses)\n",
    ),
)

patch(
    "likelihood_of_logits",
    "F.cross_entropy is replaced by nll_loss, which wants logarithms of probabilities.",
    "Humbatova 2020: wrong loss function; forum: NLLLoss without log_softmax",
    [
        "import torch.nn.functional as F",
        "F.cross_entropy = lambda x, labels, reduction='mean', **_: F.nll_loss(",
        "    x, labels, reduction=reduction",
        ")",
    ],
)
patch(
    "idle_adamw",
    "AdamW.step does nothing: a wrapper forgets to call the wrapped method.",
    "forum: an optimizer's step that is overridden",
    ["import torch", "torch.optim.AdamW.step = lambda self, closure=None: None"],
    options={"optimizer": "adamw"},
)
patch(
    "clip_sets_zero",
    "clip_grad_norm_ is replaced by a version that divides by the norm twice.",
    "Humbatova 2020: wrong gradient clipping",
    [
        "import torch",
        "def clip(weights, max_norm):",
        "    weights = [weight for weight in weights if weight.grad is not None]",
        "    norm = torch.stack([weight.grad.norm() for weight in weights]).norm()",
        "    for weight in weights:",
        "        weight.grad /= 1e8 * norm**2 + 1",
        "    return norm",
        "torch.nn.utils.clip_grad_norm_ = clip",
    ],
)
patch(
    "no_gradients",
    "Gradients were switched off for a measurement and not on again.",
    "forum: set_grad_enabled(False)",
    ["import torch", "torch.set_grad_enabled(False)"],
)
edit(
    "labels_of_the_last_batch",
    "Each batch is trained with the labels of the batch before.",
    "forum: prefetching of images and labels out of step",
    (
        "main.py",
        "                seed_everything(opt.seed, epoch, step)",
        "                before, last = labels, locals().get('before', labels)\n"
        "                labels = last[torch_arange(len(labels)) % len(last)]\n"
        "                seed_everything(opt.seed, epoch, step)",
    ),
    ("main.py", "import fire\n", "import fire\nfrom torch import arange as torch_arange\n"),
    sound=TorchViT,
)
