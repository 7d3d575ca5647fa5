"""Speed as ratios: each row's two sides are measured in turn, several times, in one run.

python -m tests.benchmarks --data path/to/train --model SqueezeNet --size 224 --rounds 5
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import main
import models
from config import DefaultConfig
from data import Loader, open_split
from data.build import keep_pictures
from data.loader import core_count
from data.read_image import decode_any
from utils import engine, recipe
from utils.device import set_up_device
from utils.watch import Watch

try:
    from tests.visdom_server import visdom_server
except ImportError:  # visdom was removed: its row measures TensorBoard's files alone
    visdom_server = partial(nullcontext, 1)  # type: ignore[assignment]  # no server is there

WARM_UP = 6  # steps before the clock starts: workers start, memory is laid out


# Another program that computes on all cores, with the settings that OpenMP has by itself.
RIVAL = """
import torch
matrix = torch.randn(1024, 1024)
print("ready", flush=True)
while True:
    matrix @ matrix
"""


@contextmanager
def rival(nice: int) -> Iterator[None]:
    """Let another program compute beside this one, with a priority of `nice`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_"))}
    command = ["nice", "-n", str(nice), sys.executable, "-c", RIVAL]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()


class Enough(Exception):
    """Ends a training that has been watched for long enough."""


class Bench:
    """Measures in pictures a second, each side by a method of no arguments."""

    port: int  # of a visdom server

    def __init__(self, wanted: argparse.Namespace) -> None:
        self.root, self.name, self.size = wanted.data, wanted.model, wanted.size
        self.steps, self.batch = wanted.steps, wanted.batch
        self.folder = tempfile.TemporaryDirectory()
        device, self.amp = set_up_device(use_gpu=True, precision="auto", deterministic=False)
        self.model = getattr(models, self.name)(num_classes=2)
        self.model.to(device, memory_format=torch.channels_last)
        images = torch.randn(self.batch, 3, self.size, self.size, device=device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.arange(self.batch, device=device) % 2
        opt = DefaultConfig(train_data_root=self.root, image_size=self.size)
        self.train_data, self.val_data = open_split(opt, "train"), open_split(opt, "val")
        kept_data = open_split(opt, "val")
        keep_pictures(kept_data, "ram", Path())
        case = {"batch_size": self.batch, "device": device}
        self.loaders = {
            "train": Loader(self.train_data, shuffle=True, **case),
            "val": Loader(self.val_data, **case),
            "later val": Loader(kept_data, **case),
        }

    def train(self, skip: int = 0, **options: Any) -> float:
        """The steady state of the command `train`, after `skip` steps."""
        times: list[float] = []

        def note(debug_file: str | None) -> None:
            times.append(time.perf_counter())
            if len(times) > skip + WARM_UP + self.steps:
                raise Enough

        ours, main.pause_if_asked = main.pause_if_asked, note
        defaults = {"visdom_port": 1, "print_freq": 10**6, "save_minutes": 10**6, "checks": "off"}
        try:
            with suppress(Enough), open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                self.train_once(**defaults | options)
        finally:
            main.pause_if_asked = ours
        return self.rate(times[skip:])

    def train_once(self, **options: Any) -> None:
        main.train(
            train_data_root=self.root,
            checkpoint_root=self.folder.name,
            model=self.name,
            image_size=self.size,
            batch_size=self.batch,
            **options,
        )

    def whole_runs(self, silent: bool) -> float:
        """A whole training of 12 epochs, val and report included; silent: nothing is shown."""
        names = ["start", "batch", "step", "epoch", "pictures", "examples", "page", "looks", "end"]
        kept = {name: getattr(Watch, name) for name in names}
        if silent:
            for name in names:
                setattr(Watch, name, lambda *_, **__: "")
        started = time.perf_counter()
        try:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                self.train_once(max_epoch=12, visdom_port=self.port)
        finally:
            for name, part in kept.items():
                setattr(Watch, name, part)
        return 12 * len(self.train_data) / (time.perf_counter() - started)

    def train_from_memory(self) -> float:
        """The second epoch, whose pictures are in memory."""
        return self.train(skip=len(self.loaders["train"]))

    def train_beside(self, nice: int) -> float:
        """The second epoch while another program computes on the same cores."""
        with rival(nice):
            return self.train_from_memory()

    def other(self, *module: str) -> float:
        """Another loop, its own way, in a process of its own."""
        case = [self.name, self.root, self.size, self.batch, WARM_UP + self.steps + 1]
        command = [sys.executable, "-m", *module, *map(str, case)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        return self.rate([float(line) for line in done.stdout.split("\n") if line[:1].isdigit()])

    def ranks(self, count: int) -> float:
        """The second epoch by some ranks of torchrun, each with one thread."""
        case = [self.root, self.name, self.size, self.batch, self.steps]
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"]
        command += ["-m", "tests.benchmarks.ranks", *map(str, case)]
        # Without the settings of this process, which would bind both ranks to the first core.
        others = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_"))}
        one_thread = others | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=one_thread)
        if done.returncode:
            sys.exit(done.stderr)
        return float(done.stdout.split()[-1])

    def bare_step(self) -> float:
        """The same step on one batch that lies in memory, and nothing else."""
        self.model.train()
        optimizer = recipe.build_optimizer(DefaultConfig(lr=1e-4), self.model)
        criterion = recipe.ClassificationLoss()

        def step() -> Tensor:
            optimizer.zero_grad()
            with self.amp.autocast:
                loss = criterion(self.model(self.images), self.labels).mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return self.repeat(step)

    @torch.inference_mode()
    def bare_forward(self) -> float:
        """The model alone on one batch that lies in memory."""
        self.model.eval()
        with self.amp.autocast:
            return self.repeat(lambda: self.model(self.images))

    def evaluate(self, loader: str) -> float:
        """A pass over val."""
        return self.through(loader, partial(engine.evaluate, self.model, amp=self.amp))

    def pipeline(self) -> float:
        """Training batches without a model; pictures a second and core."""
        return self.through("train", lambda batches: deque(batches, 0)) / min(core_count(), 8)

    def cached_pipeline(self) -> float:
        """The same from pictures in memory; it takes one core."""
        return self.through("later val", lambda batches: deque(batches, 0))

    def decode(self) -> float:
        """Files decoded by Pillow, one after another."""
        indices = range(min(200, len(self.train_data)))
        started = time.perf_counter()
        for index in indices:
            decode_any(self.train_data.path(index), self.train_data.side)
        return len(indices) / (time.perf_counter() - started)

    def through(self, name: str, use: Callable) -> float:
        loader = self.loaders[name]
        use(loader.epoch(0))  # the processes run, and a cache is full
        batches = loader.epoch(1)
        next(batches)
        started = time.perf_counter()
        use(batches)
        seconds = time.perf_counter() - started
        loader.__exit__()
        return (len(loader.samples) - self.batch) / seconds

    def repeat(self, step: Callable[[], Tensor]) -> float:
        times = []
        for _ in range(WARM_UP + self.steps + 1):
            step().sum().item()  # waits for the device
            times.append(time.perf_counter())
        return self.rate(times)

    def rate(self, times: list[float]) -> float:
        steps = len(times) - 1 - WARM_UP
        return self.batch * steps / (times[-1] - times[WARM_UP])


def peak_memory() -> float:
    """Peak resident memory of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000


def run_benchmarks() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/demo/train"))
    parser.add_argument("--model", default="SqueezeNet")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--peers", action="store_true", help="Lightning and fastai too")
    wanted = parser.parse_args()
    bench = Bench(wanted)
    with visdom_server() as port:
        bench.port = port
        book = partial(bench.other, "tests.benchmarks.book")
        viewers = partial(bench.train, visdom_port=port, print_freq=1)
        rows: list[tuple[str, Callable, Callable]] = [
            ("first epoch / bare step", bench.train, bench.bare_step),
            ("second epoch / bare step", bench.train_from_memory, bench.bare_step),
            ("second epoch / the book's loop", bench.train_from_memory, book),
            ("first val pass / bare forward", partial(bench.evaluate, "val"), bench.bare_forward),
            ("later ones / bare forward", partial(bench.evaluate, "later val"), bench.bare_forward),
            ("pipeline on one core / Pillow alone", bench.pipeline, bench.decode),
            ("pipeline from memory / Pillow alone", bench.cached_pipeline, bench.decode),
            ("beside a rival / alone", partial(bench.train_beside, 0), bench.train_from_memory),
            (
                "beside one at nice 10 / alone",
                partial(bench.train_beside, 10),
                bench.train_from_memory,
            ),
            ("viewers at every step / none", viewers, bench.train),
            (
                "12 epochs, all shown / nothing",
                partial(bench.whole_runs, False),
                partial(bench.whole_runs, True),
            ),
            ("checks at every step / off", partial(bench.train, checks="always"), bench.train),
            ("a save at every step / none", partial(bench.train, save_minutes=1e-9), bench.train),
        ]
        if not torch.cuda.is_available():
            two, one = partial(bench.ranks, 2), partial(bench.ranks, 1)
            rows.append(("two ranks of a thread / one", two, one))
        for peer in ("lightning", "fastai") if wanted.peers else ():
            loop = partial(bench.other, "tests.benchmarks.peers", peer)
            rows.append((f"train / {peer}", bench.train, loop))
        print(f"{bench.name} at {bench.size} px in {bench.amp.name}, medians of {wanted.rounds}")
        print(f"{'':38}{'ratio':>8}{'(lowest … highest)':>22}{'images/s':>18}")
        for name, side, other in rows:
            if wanted.only in name:
                pairs = [(side(), other()) for _ in range(wanted.rounds)]
                ratios = sorted(one / two for one, two in pairs)
                one, two = (statistics.median(values) for values in zip(*pairs, strict=True))
                spread = f"({ratios[0]:.2f} … {ratios[-1]:.2f})"
                print(
                    f"{name:38}{statistics.median(ratios):8.2f}{spread:>22}{one:9.0f} :{two:7.0f}"
                )
    print(f"peak memory of the training process {peak_memory():,.0f} MB")


if __name__ == "__main__":
    run_benchmarks()
