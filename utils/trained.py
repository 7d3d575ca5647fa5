"""Open what a run has learnt, for the commands that use it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

import data
from utils import checkpoint, distributed, run_folder
from utils.checkpoint import CheckpointError
from utils.device import Precision, set_up_device
from utils.options import find_class

if TYPE_CHECKING:
    from config import DefaultConfig

Config = TypeVar("Config", bound="DefaultConfig")

# What a checkpoint tells unless it is given on the command line.
SPLIT_OPTIONS = {"layout", "val_share", "fold"}
REMEMBERED = {"model", "dataset", "image_size", "mirror", "train_data_root"} | SPLIT_OPTIONS


def open_checkpoint(opt: Config) -> tuple[Config, Mapping[str, Any], torch.device, Precision]:
    """Return the options, the contents of the checkpoint, the device and the precision.

    The checkpoint is the one that --load-model-path names, or that of the newest run. What it knows
    (model, image size …) need not be given. The contents are {} for a bare state dict, which has
    weights only.
    """
    distributed.start(opt.use_gpu)
    path = opt.load_model_path or distributed.from_first(run_folder.newest_run, opt.checkpoint_root)
    if not path:
        raise FileNotFoundError(
            f"there is no run in {opt.checkpoint_root} yet; train, or give --load-model-path=PATH"
        )
    path = checkpoint.locate(path)
    contents = distributed.from_first(checkpoint.read, path)
    saved = contents if "classes" in contents else {}
    wanted = REMEMBERED - (SPLIT_OPTIONS if "train_data_root" in opt.given else set())
    known = {name: x for name, x in saved.get("options", {}).items() if name in wanted}
    given = {name: getattr(opt, name) for name in opt.given}
    opt = type(opt)(**{**known, **given, "load_model_path": path})
    print(f"checkpoint {path}")
    device, amp = set_up_device(opt.use_gpu, opt.precision, opt.deterministic)
    return opt, saved, device, amp


class Task(NamedTuple):
    """What goes into a trained model, and what its logits mean."""

    mean: Sequence[float]  # of the normalisation
    std: Sequence[float]
    classes: Sequence[str]
    multi_label: bool
    temperature: float  # logits are divided by it

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities (N, K) that logits (N, K) stand for."""
        logits = logits / self.temperature
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=1)


def task_of(opt: "DefaultConfig", saved: Mapping[str, Any]) -> Task:
    """Return the task of a checkpoint that `open_checkpoint` has opened.

    A bare state dict does not tell its classes. Then those of --dataset are taken; CheckpointError
    if that class names none.
    """
    known = find_class(data, opt.dataset)
    classes = saved.get("classes") or getattr(known, "classes", ())
    if not classes:
        raise CheckpointError(
            f"{opt.load_model_path} has weights only, and {opt.dataset} does not name its classes: "
            "give --dataset=CLASS, a class of data/ that does"
        )
    mean, std = saved.get("mean", known.mean), saved.get("std", known.std)
    return Task(mean, std, list(classes), known.multi_label, saved.get("temperature", 1.0))
