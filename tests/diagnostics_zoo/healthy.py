"""Run the checks of `check` on sound models, of which none may get a ✗.

    python -m tests.diagnostics_zoo.healthy                                # the checks of the model
    python -m tests.diagnostics_zoo.healthy resnet18 Mixer --checks=all    # with those of training
    python -m tests.diagnostics_zoo.healthy --only=few_units_are_dead,first_loss --max-cost=0.3

The models are those of healthy_models.py, and torchvision's, cheap ones first. Each ✗ and each !
is printed, and written to a CSV file. A model is not run again while the file has it for the same
checks, so that a killed run goes on where it stopped.
"""

import argparse
import csv
import gc
import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import data
from config import DefaultConfig
from models import from_torchvision
from tests.diagnostics_zoo.healthy_models import MODELS
from tests.drawings import draw_set
from utils import diagnostics
from utils.diagnostics import data as data_checks
from utils.diagnostics import learning, model

# NAME:SECONDS or NAME:SECONDS:SIZE. SECONDS: forward and backward of 8 pictures on one core.
# SIZE: the smallest side of a picture that the model takes; 64, the least of --image-size, if none.
TORCHVISION = """
    shufflenet_v2_x0_5:0.06 squeezenet1_1:0.07 shufflenet_v2_x1_0:0.09 squeezenet1_0:0.1
    regnet_x_400mf:0.1 shufflenet_v2_x1_5:0.1 regnet_x_800mf:0.1 mobilenet_v3_small:0.1
    mobilenet_v3_large:0.1 regnet_y_800mf:0.1 regnet_y_400mf:0.1 mnasnet1_3:0.2 mobilenet_v2:0.2
    mnasnet0_5:0.2 mnasnet0_75:0.2 googlenet:0.2 shufflenet_v2_x2_0:0.2 mnasnet1_0:0.2
    regnet_x_1_6gf:0.3 efficientnet_b0:0.3 alexnet:0.3 regnet_y_1_6gf:0.3 densenet121:0.3
    efficientnet_b1:0.3 efficientnet_b2:0.4 regnet_y_3_2gf:0.4 efficientnet_b3:0.4
    densenet169:0.5 efficientnet_v2_s:0.5 densenet201:0.5 resnet18:0.5 resnet34:0.5 vit_b_32:0.5
    regnet_x_3_2gf:0.5 inception_v3:0.6:80 efficientnet_b4:0.6 resnext50_32x4d:0.7 resnet101:0.7
    convnext_small:0.9 resnet50:0.9 regnet_x_8gf:0.9 efficientnet_v2_m:1.0 densenet161:1.0
    convnext_tiny:1.1 resnet152:1.2 regnet_x_16gf:1.2 efficientnet_b5:1.3 swin_v2_t:1.3
    vit_b_16:1.3 wide_resnet50_2:1.4 efficientnet_b6:1.4 swin_t:1.5 vgg11:1.5 vgg11_bn:1.5
    regnet_y_16gf:1.6 swin_v2_s:1.7 resnext101_64x4d:1.7 efficientnet_b7:1.8 regnet_y_8gf:1.8
    swin_s:1.9 vgg13:2.0 vgg13_bn:2.0 vgg16:2.2 vgg16_bn:2.2 convnext_base:2.3 swin_b:2.5
    vgg19:2.5 vgg19_bn:2.5 resnext101_32x8d:2.6 efficientnet_v2_l:2.6 vit_l_32:3
    wide_resnet101_2:3.6 swin_v2_b:3.8 regnet_x_32gf:4.5 convnext_large:5 regnet_y_32gf:5
    vit_l_16:5 maxvit_t:17.2:224
"""

# Run them by their names: a few copies of each need more than 20 GB of memory.
HUGE = "vit_h_14:15 regnet_y_128gf:30"

CHECKS = {"model": model.CHECKS, "learning": learning.CHECKS}
CHECKS["all"] = CHECKS["model"] + CHECKS["learning"]
COLUMNS = ("files", "checks", "model", "size", "seconds", "mark", "check", "seen")


@dataclass
class Sound:
    """A model that has no fault."""

    make_model: Callable[[int], nn.Module]
    size: int = 64
    cost: float = 0.0  # seconds of a step
    weights_loaded: bool = False


def all_models(size: int | None = None) -> dict[str, Sound]:
    """Return the models by their names. size: of the pictures, instead of the smallest possible."""
    found = {
        name: Sound(make, size or 64, weights_loaded=getattr(make, "weights_loaded", False))
        for name, make in MODELS.items()
    }
    for words in f"{TORCHVISION} {HUGE}".split():
        name, cost, smallest = f"{words}:64".split(":")[:3]
        side = size or int(smallest)
        make = partial(make_torchvision, name, side)
        found[name] = Sound(make, side, float(cost))
    return found


def make_torchvision(name: str, size: int, num_classes: int) -> nn.Module:
    return from_torchvision.make(name, num_classes, size).to(memory_format=torch.channels_last)


@cache
def drawn_pictures(
    size: int, num_classes: int
) -> tuple[DefaultConfig, Sequence[str], Tensor, Tensor]:
    """Return options, classes, images (120, 3, size, size) and labels (120,) of drawn pictures."""
    with tempfile.TemporaryDirectory() as folder:
        kinds = [f"star{number:03}" for number in range(num_classes)]
        draw_set(Path(folder) / "data", count=172, kinds=kinds)
        root = f"{folder}/data/train"
        opt = DefaultConfig(dataset="Pictures", train_data_root=root, image_size=max(size, 64))
        opt.image_size = size
        split = data_checks.Split(
            "train",
            data.open_split(opt, "train"),
            lambda part, workers: data.Loader(part, 8, workers, seed=0),
        )
        return opt, split.classes, *split.batch


def check(
    sound: Sound, checks: Iterable[diagnostics.Check], optimizer: Any, num_classes: int
) -> list[diagnostics.Finding]:
    """Return what the checks find in a model, as `python main.py check` would."""
    opt, classes, images, labels = drawn_pictures(sound.size, num_classes)
    opt.optimizer = optimizer
    case = model.ModelCase(
        make_model=sound.make_model,
        images=images,
        labels=labels,
        classes=list(classes),
        options=opt,
        weights_loaded=sound.weights_loaded,
    )
    return [diagnostics.run_check(each, case) for each in checks]


def digest() -> str:
    """Return a short word for the files that decide what is found."""
    here = Path(__file__).parent
    folder = Path(diagnostics.__file__).parent
    files = [*sorted(folder.glob("*.py")), here / "healthy_models.py"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the checks on sound models.")
    parser.add_argument("names", nargs="*", help="some of the models; none: all but the huge ones")
    parser.add_argument("--checks", choices=CHECKS, default="model")
    parser.add_argument("--only", default="", help="some of the checks, by their functions' names")
    parser.add_argument("--size", type=int, help="of the pictures, instead of the smallest")
    parser.add_argument("--classes", type=int, default=2, help="how many there are")
    parser.add_argument("--max-cost", type=float, default=1e9, help="seconds of a step")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--csv", type=Path, default=Path(tempfile.gettempdir()) / "healthy.csv")
    parser.add_argument("--list", action="store_true", help="name the models and their costs")
    args = parser.parse_args()
    models = all_models(args.size)
    if args.list:
        print(*(f"{s.cost:6} s  {s.size:4}  {name}" for name, s in models.items()), sep="\n")
        return 0
    names = args.names or [name for name in models if f"{name}:" not in HUGE]
    names = [name for name in names if models[name].cost <= args.max_cost]
    only = args.only.split(",") if args.only else []
    every = CHECKS["all" if only else args.checks]
    checks = [each for each in every if not only or each.__name__ in only]
    key = (digest(), f"{args.only or args.checks} {args.optimizer} {args.classes}")
    if not args.csv.exists():
        args.csv.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    with open(args.csv, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["files"], row["checks"]) == key]
    results: list[dict] = []
    for name in names:
        sound = models[name]
        known = [r for r in rows if r["model"] == name and r["size"] == str(sound.size)]
        if not known:
            start = time.monotonic()
            findings = check(sound, checks, args.optimizer, args.classes)
            gc.collect()
            same = dict(zip(COLUMNS, (*key, name, sound.size), strict=False))
            same["seconds"] = f"{time.monotonic() - start:.1f}"
            known = [
                same | {"mark": f.mark, "check": f.name, "seen": f.seen}
                for f in findings
                if f.mark in "✗!"
            ] or [same | {"mark": "✓"}]
            with open(args.csv, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, COLUMNS).writerows(known)
        results += known
        marks = [f"\n    {r['mark']} {r['check']}: {r['seen']}" for r in known if r.get("check")]
        seconds = known[0]["seconds"]
        print(f"{name} ({sound.size} pixels, {seconds} s){''.join(marks)}", flush=True)
    count = Counter(row["mark"] for row in results)
    wrong = sorted({row["model"] for row in results if row["mark"] == "✗"})
    print(f"{len(names)} models: {count['✗']} ✗ in {len(wrong)} of them, {count['!']} !")
    for (mark, name), number in Counter((r["mark"], r.get("check")) for r in results).most_common():
        print(f"    {number} × {mark} {name}" if mark != "✓" else f"    {number} without a finding")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
