"""Make the model that the options ask for."""

import inspect
from typing import Any

import torch
from torch import nn

import models
from utils import checkpoint
from utils.options import find_class
from utils.seed import seed_everything


def build(opt: Any, num_classes: int, load: bool = True) -> nn.Module:
    """Return the model of the options: with the weights that they name, if any, else new ones.

    load: False for a run that goes on, whose checkpoint has the weights.
    """
    seed_everything(opt.seed, "weights")
    model = new(opt, num_classes)
    if load and opt.load_model_path:
        checkpoint.load_file(model, checkpoint.locate(opt.load_model_path))
    elif load and opt.pretrained:
        model.load_pretrained()
    return model


def new(opt: Any, num_classes: int) -> nn.Module:
    """Return the model of the options with new weights."""
    model_class = find_class(models, opt.model)
    arguments = {"num_classes": num_classes, "dropout": opt.dropout}
    if "dropout" not in inspect.signature(model_class).parameters:
        del arguments["dropout"]
    return model_class(**arguments).to(memory_format=torch.channels_last)
