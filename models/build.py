"""Make the model that the options ask for."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import models
from config import DefaultConfig
from utils import checkpoint, synchronize
from utils.options import UsageError, find_class
from utils.seed import seed_everything

from . import from_torchvision
from .basic_module import BasicModule


def build(
    opt: DefaultConfig, num_classes: int, load: bool = True, log: Callable[[str], Any] | None = None
) -> BasicModule:
    """Return the model of the options: with the weights that they name, if any, else new ones.

    load: False for a run that goes on, whose checkpoint has the weights. log: given for training,
    where weights of other classes are welcome: the head, which does not fit, stays new.
    """
    seed_everything(opt.seed, "weights")
    model = new(opt, num_classes)
    if load and opt.load_model_path:
        head = head_names(opt, num_classes) if log else ()
        path = checkpoint.locate(opt.load_model_path)
        if not checkpoint.load_file(model, path, head) and log:
            log(f"{path} has other classes: the head, {', '.join(head)}, is new")
    elif load and opt.pretrained:
        model.load_pretrained(head_names(opt, num_classes))
    if log:
        synchronize.batch_norm(model, opt, log)
    if opt.compile:
        model.compile()  # when it is called for the first time
    return model


def new(opt: DefaultConfig, num_classes: int) -> BasicModule:
    """Return the model of the options with new weights."""
    _, slash, name = opt.model.partition("/")
    if slash:
        model = from_torchvision.make(name, num_classes, opt.image_size)
    else:
        model_class = find_class(models, opt.model)
        arguments = {"num_classes": num_classes, "dropout": opt.dropout}
        if "dropout" not in inspect.signature(model_class).parameters:
            del arguments["dropout"]
        model = model_class(**arguments)
    return model.to(memory_format=torch.channels_last)


def body_weights(opt: DefaultConfig, model: nn.Module, num_classes: int) -> list[nn.Parameter]:
    """Return the weights that --freeze and --backbone-lr are about; [] if neither is given.

    They are those that learn, apart from the head's. Raises UsageError for a model without a head.
    """
    if not opt.freeze and opt.backbone_lr == 1:
        return []
    head = head_names(opt, num_classes)
    if not head:
        raise UsageError(f"{opt.model} has no weight whose shape depends on the number of classes")
    named = model.named_parameters()
    return [weight for name, weight in named if name not in head and weight.requires_grad]


def head_names(opt: DefaultConfig, num_classes: int) -> list[str]:
    """Return the names of the head's weights: those whose shape depends on the number of classes.

    Two models are compared that have shapes but no numbers, which takes no time and no memory.
    """
    with torch.device("meta"):
        one, other = (new(opt, count).state_dict() for count in (num_classes, num_classes + 1))
    return [name for name, weight in one.items() if weight.shape != other[name].shape]
