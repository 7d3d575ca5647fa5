"""Say whether data, model and training are sound, and what to do about it."""

import inspect
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from config import DefaultConfig
from utils.diagnostics import Check, Finding, Wrong, run_check


class Options(DefaultConfig):
    """What `check` takes in addition to the options of `train`."""

    required_path = "train_data_root"

    json: bool = False  # print the findings as JSON, for programs


# A rehearsal of `train`: two short epochs, without what only a long run needs.
REHEARSAL: dict = {"max_epoch": 2, "batch_size": 8, "accumulate": 1, "num_workers": 0}
REHEARSAL |= {"resume": False, "cache": "none", "visdom_port": 1, "debug_file": None}
REHEARSAL |= {"mirror": False, "calibrate": False}


def run(opt: Options, train: Callable) -> list:
    """Run all checks; print and return what they find.

    train: the command, which is rehearsed with the same options on a few samples.
    """
    import tempfile
    from dataclasses import replace

    import data
    import models
    from utils import recipe
    from utils.device import Precision, set_up_device
    from utils.diagnostics import data as data_checks
    from utils.diagnostics import learning as learning_checks
    from utils.diagnostics import model as model_checks
    from utils.options import UsageError, find_class

    given = {name: getattr(opt, name) for name in opt.given if hasattr(DefaultConfig, name)}
    device, amp = set_up_device(opt.use_gpu, opt.precision, opt.deterministic)
    if amp.name == "fp16":  # its scaler skips the first steps, which would look like a fault
        amp, given["precision"] = Precision("fp32", device), "fp32"

    def make_loader(part: data.ImageDataset, workers: int) -> data.Loader:
        return data.Loader(part, 8, workers, seed=opt.seed)

    def open_test() -> data.ImageDataset | None:
        return data.open_split(opt, "test") if Path(opt.test_data_root).exists() else None

    def rehearse() -> list:
        few = few_samples_of(find_class(data, opt.dataset))
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            train(**{**given, **REHEARSAL, "dataset": few, "checkpoint_root": folder})
        return few.seen

    with Findings(opt.json) as findings:
        # step 1: the data
        splits = [
            data_checks.Split(mode, data.open_split(opt, mode), make_loader)
            for mode in ("train", "val")
        ]
        if splits[0].dataset.multi_label:
            raise UsageError("check knows data with one label for each picture only")
        findings.add(data_checks.CHECKS, data_checks.DataCase(splits[0], splits[1], open_test, opt))

        # step 2: the model, on the CPU
        images, labels = splits[0].batch
        case = model_checks.ModelCase(
            make_model=lambda num_classes: models.new(opt, num_classes),
            images=images,
            labels=labels,
            classes=list(splits[0].classes),
            options=opt,
            weights_loaded=bool(opt.pretrained or opt.load_model_path),
        )
        findings.add(model_checks.CHECKS, case)

        # step 3: how it learns, on the device; dropout would only hide whether it can
        opt.dropout = 0.0
        case = replace(
            case,
            make_model=lambda num_classes: models.new(opt, num_classes).to(device),
            images=images.to(device),
            labels=labels.to(device),
            criterion=recipe.build_criterion(opt, splits[0].dataset).to(device),
            amp=amp,
            rehearse=rehearse,
            train_size=len(splits[0].dataset),
            folder=Path(opt.checkpoint_root),
        )
        findings.add(learning_checks.CHECKS, case)
    return findings


class Findings(list[Finding]):
    """What the checks found: printed as they come, or all at the end as JSON.

    `with Findings() as findings:` is printed also if the checks cannot go on.
    """

    def __init__(self, as_json: bool = False) -> None:
        super().__init__()
        self.as_json, self.started = as_json, time.monotonic()

    @property
    def exit_code(self) -> int:
        """The exit code of the command: 1 if something is wrong."""
        return int(any(finding.mark == "✗" for finding in self))

    def add(self, checks: Iterable[Check], case: Any) -> None:
        for check in checks:
            self.append(run_check(check, case))
            if not self.as_json:
                mark, name, seen, why, do = self[-1]
                advice = f"\n    why: {why}\n    do:  {do}" if mark in "!✗" else ""
                print(f"{mark} {name}: {seen}{advice}", flush=True)

    def __enter__(self) -> "Findings":
        return self

    def __exit__(self, _type: Any, error: BaseException | None, _trace: Any) -> bool:
        rows = [finding._asdict() for finding in self]
        count = Counter(finding.mark for finding in self)
        marks = f"{count['✓']} ✓, {count['!']} !, {count['✗']} ✗, {count['–']} – (not checked)"
        line = f"{marks} in {time.monotonic() - self.started:.0f} s"
        print(json.dumps(rows, ensure_ascii=False) if self.as_json else line)
        return isinstance(error, Wrong)  # a finding says already that no sample can be read


def few_samples_of(dataset_class: Callable, size: int = 20) -> Any:
    """Return a class of data sets that has only `size` samples of each split, of all classes.

    Its attribute `seen` is a list of the pictures and labels that were read from the train split.
    """
    import numpy as np
    import torch

    from utils.diagnostics.model import one_class_after_another

    class FewSamples:
        __signature__ = inspect.signature(dataset_class)  # data.build_loader asks for it
        seen: ClassVar[list] = []

        def __init__(self, root: str, mode: str, **options: Any) -> None:
            self.whole, self.mode = dataset_class(root, mode=mode, **options), mode
            labels = np.asarray(self.whole.labels)
            rows = one_class_after_another(torch.as_tensor(labels), size)
            self.indices = sorted(rows.tolist())
            self.labels = labels[self.indices]

        def __len__(self) -> int:
            return len(self.indices)

        def __getitem__(self, index: int) -> Any:
            sample = self.whole[self.indices[index]]
            if self.mode == "train":
                self.seen.append(sample)
            return sample

        def __getattr__(self, name: str) -> Any:
            return getattr(self.whole, name)

    return FewSamples
