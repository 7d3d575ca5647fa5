"""Train with and without each fault (--harm), or let `check` judge each: see --help."""

import argparse
import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import data
import main
import models
import utils  # noqa: F401  before torch, as in main.py
from config import DefaultConfig
from tests.drawings import draw_set
from tests.helpers import NOBODY, PROJECT, as_words
from utils import checkpoint, engine
from utils.device import set_up_device

from . import KINDS, Fault, all_faults
from .causes import CAUSES
from .twins import TWINS, PlainNet

HARM_FILE = Path(__file__).parent / "harm.csv"
COLUMNS = ["name", "kind", "sound", "with_fault", "reported", "gap"]
TRAINING: dict[str, Any] = {
    "dataset": "Pictures", "image_size": 64, "crop_scale": 0.8, "mirror": False, "cache": "ram",
    "batch_size": 32, "max_epoch": 6, "lr": 2e-3, "optimizer": "muon", "precision": "fp32",
    "num_workers": 0, "use_gpu": False, "visdom_port": NOBODY, "debug_file": None,
}  # fmt: skip


class Zoo:
    """The drawn pictures, and the results of sound twins, in a folder that may be deleted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pictures, self.new_pictures = folder / "pictures", folder / "new_pictures"
        for place, count, seed in ((self.pictures, 500, 0), (self.new_pictures, 800, 1)):
            if not place.exists():
                draw_set(folder / f"drawing{os.getpid()}", count, seed)
                with contextlib.suppress(OSError):  # another process has drawn them
                    (folder / f"drawing{os.getpid()}").rename(place)
        shutil.rmtree(folder / f"drawing{os.getpid()}", ignore_errors=True)

    def options(self, fault: Fault | None, sound: type = PlainNet) -> dict[str, Any]:
        """Return the options of train and check, for a fault or for a sound twin."""
        options = TRAINING | {
            "model": fault.model or fault.sound if fault else sound,
            "train_data_root": self.pictures / "train",
            "test_data_root": self.pictures / "test1",
            "checkpoint_root": self.folder / "runs",
        }
        if fault and fault.files:
            options["train_data_root"] = self.changed_pictures(fault)
        if fault and fault.dataset:
            options["dataset"] = fault.dataset
        return options | dict(fault.options if fault else {})

    def changed_pictures(self, fault: Fault) -> Path:
        place = self.folder / f"pictures_{fault.name}"
        if not place.exists():
            shutil.copytree(self.pictures / "train", place)
            fault.files(place)
        return place

    def changed_project(self, fault: Fault) -> Path:
        """Return a copy of the project with the fault, and with the models of this folder."""
        place = self.folder / f"project_{fault.name}"
        if place.exists():
            shutil.rmtree(place)
        left_out = shutil.ignore_patterns("demo", "cache", "__pycache__")
        for name in ("data", "models", "utils"):
            shutil.copytree(PROJECT / name, place / name, ignore=left_out)
        for name in ("main.py", "config.py"):
            shutil.copy(PROJECT / name, place)
        shutil.copy(Path(__file__).parent / "twins.py", place / "models")
        with open(place / "models/__init__.py", "a") as file:
            file.write(f"from .twins import {fault.sound.__name__}\n")
        for name, old, new in fault.edits:
            text = (place / name).read_text()
            assert text.count(old) == 1, (fault.name, name, old)
            (place / name).write_text(text.replace(old, new))
        return place

    def run_copy(self, fault: Fault, command: str, **more: Any) -> subprocess.CompletedProcess:
        """Run a command of the changed copy of the project."""
        options = self.options(fault) | more
        options["model"] = fault.sound.__name__
        return subprocess.run(
            [sys.executable, "main.py", command, *as_words(options)],
            cwd=self.changed_project(fault),
            capture_output=True,
            text=True,
        )

    def train(self, fault: Fault | None, sound: type, seed: int) -> tuple[float, float] | None:
        """Return the accuracy on new pictures, and the one that val reported; None: it failed."""
        options = self.options(fault, sound) | {"seed": seed}
        runs = self.folder / f"runs_{fault.name if fault else sound.__name__}"
        shutil.rmtree(runs, ignore_errors=True)
        try:
            if fault and fault.edits:
                done = self.run_copy(fault, "train", seed=seed, checkpoint_root=runs)
                if done.returncode:
                    print(f"    {done.stderr.splitlines()[-1:]}")
                    return None
            else:
                with quiet():
                    main.train(**options | {"checkpoint_root": runs})
            run = next(runs.iterdir())
            return self.accuracy(options, run), reported_accuracy(run)
        except Exception as error:
            print(f"    {type(error).__name__}: {str(error).splitlines()[:1]}")
            return None
        finally:
            shutil.rmtree(runs, ignore_errors=True)

    def remembered(self, without: Fault | None, sound: type, seed: int) -> tuple[float, float]:
        """Return the result of a sound training, from the folder if it was made before."""
        options = dict(without.options) if without else {}
        file = self.folder / f"{sound.__name__}_{seed}_{options or ''}.json"
        if not file.exists():
            result = self.train(without, sound, seed)
            assert result, f"the sound {sound.__name__} fails"
            file.write_text(json.dumps(result))
        return tuple(json.loads(file.read_text()))

    def accuracy(self, options: dict[str, Any], run: Path) -> float:
        """Return the accuracy of a run's best weights on new pictures, which are sound."""
        root = self.new_pictures / "train"
        saved = checkpoint.read(checkpoint.locate(run))
        opt = DefaultConfig(**options | {"train_data_root": root, "val_share": 1.0})
        device, amp = set_up_device(False, "fp32", False)
        with quiet():
            loader = data.build_loader(opt, "val", device)
            model = models.build(opt, len(saved["classes"]), load=False)
            checkpoint.load_weights(model, saved["model"], source=run)
            logits, _ = engine.evaluate(model, loader.epoch(), amp)
        kinds = [loader.dataset.path(index).parent.name for index in range(len(loader.dataset))]
        answers = [saved["classes"][number] for number in logits.argmax(dim=1).tolist()]
        return sum(map(str.__eq__, kinds, answers)) / len(kinds)

    def check(self, fault: Fault | None, sound: type) -> list[dict[str, str]]:
        """Return what `check` finds; one that crashes finds nothing."""
        output = io.StringIO()
        if fault and fault.edits:
            output.write(self.run_copy(fault, "check", json=True).stdout)
        else:
            with contextlib.suppress(Exception, SystemExit), quiet(output):
                main.check(**self.options(fault, sound) | {"json": True})
        text = output.getvalue()
        if "[" not in text:
            print("    check itself has failed")
            return []
        return json.loads(text[text.index("[") :])


@contextlib.contextmanager
def quiet(output: io.StringIO | None = None) -> Iterator[None]:
    with (
        contextlib.redirect_stdout(output or io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield


def reported_accuracy(run: Path) -> float:
    """Return the val accuracy of the epoch that was kept."""
    with open(run / "metrics.csv", newline="") as file:
        return max(float(row["val_accuracy"]) for row in csv.DictReader(file))


def measure_harm(zoo: Zoo, faults: list[Fault]) -> None:
    """Train with and without each fault; write harm.csv. A small gap is measured a second time."""
    for fault in faults:
        results = []
        for seed in (0, 1):
            without = fault._replace(edits=(), model=None) if fault.edits else None
            sound = zoo.remembered(without, fault.sound, seed)
            results.append((sound, zoo.train(fault, fault.sound, seed)))
            if gap_of(fault, results) >= 0.15:
                break
        gap = gap_of(fault, results)
        row = [
            fault.name,
            fault.kind,
            f"{mean(sound[0] for sound, _ in results):.3f}",
            *(
                "failed" if None in faulty else f"{mean(faulty):.3f}"
                for faulty in zip(*(pair or (None, None) for _, pair in results), strict=True)
            ),
            f"{100 * gap:.0f}",
        ]
        print(*row, "" if gap >= 0.05 else "  NO HARM", flush=True)
        write_row(row)


def gap_of(fault: Fault, results: list) -> float:
    """Return how much worse the fault makes the accuracy, or the figures, in 0 … 1."""
    if any(faulty is None for _, faulty in results):
        return 1.0
    if fault.false_figures:
        wrong = [(f[1] - f[0]) - (s[1] - s[0]) for s, f in results]
        return abs(mean(wrong))
    return mean(sound[0] - faulty[0] for sound, faulty in results)


def mean(numbers: Any) -> float:
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def read_harm() -> dict[str, dict[str, str]]:
    if not HARM_FILE.exists():
        return {}
    with open(HARM_FILE, newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def write_row(row: list) -> None:
    """Put a row into harm.csv, in the order of the faults."""
    rows = read_harm() | {row[0]: dict(zip(COLUMNS, row, strict=True))}
    order = [fault.name for fault in all_faults()]
    with open(HARM_FILE, "w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows[name] for name in order if name in rows)


def judge(zoo: Zoo, faults: list[Fault]) -> None:
    """Print what `check` says of each fault, and how many it finds and names of each kind."""
    harm = read_harm()
    found, named, total = Counter[int](), Counter[int](), Counter[int]()
    for fault in faults:
        findings = zoo.check(fault, fault.sound)
        wrong = [f"{f['name']}: {f['seen']}" for f in findings if f["mark"] == "✗"]
        is_named = any(CAUSES.get(fault.name, "?") in words for words in wrong)
        found[fault.kind] += bool(wrong)
        named[fault.kind] += is_named
        total[fault.kind] += 1
        verdict = "named" if is_named else "found" if wrong else "MISSED"
        gap = harm.get(fault.name, {}).get("gap", "?")
        print(f"{fault.name} (kind {fault.kind}, harm {gap}): {verdict}")
        show(findings)
    print(f"{'kind':40} faults  found  named")
    for kind, count in sorted(total.items()):
        print(f"{kind} {KINDS[kind]:38} {count:6} {found[kind]:6} {named[kind]:6}")
    print(f"{'all':40} {total.total():6} {found.total():6} {named.total():6}")


def judge_sound(zoo: Zoo, names: list[str]) -> None:
    """Print every ✗ and ! on a sound twin."""
    for twin in TWINS:
        if not names or twin.__name__ in names:
            print(twin.__name__)
            show(zoo.check(None, twin))


def show(findings: list[dict[str, str]]) -> None:
    for finding in findings:
        if finding["mark"] in "✗!":
            print("   ", finding["mark"], finding["name"], "|", finding["seen"], flush=True)


parser = argparse.ArgumentParser(prog="python -m tests.diagnostics_zoo", description=__doc__)
parser.add_argument("--harm", action="store_true", help="train with and without; write harm.csv")
parser.add_argument("--sound", action="store_true", help="let check judge the sound twins")
parser.add_argument("--only", nargs="+", default=[], help="names of faults, or of twins")
parser.add_argument("--kind", type=int, choices=KINDS)
parser.add_argument("--folder", default=Path(tempfile.gettempdir()) / "diagnostics_zoo", type=Path)

if __name__ == "__main__":
    given = parser.parse_args()
    zoo = Zoo(given.folder)
    chosen = [
        fault
        for fault in all_faults()
        if (not given.only or fault.name in given.only) and given.kind in (None, fault.kind)
    ]
    if given.sound:
        judge_sound(zoo, given.only)
    else:
        (measure_harm if given.harm else judge)(zoo, chosen)
