"""Kill or signal runs at random moments, resume them, and compare the end with an undisturbed run.

python -m tests.crash --kills 200 --signals 100 --seed 0 --precision bf16

Each trial is one run of `python main.py train` on a few drawn pictures. Its process is forked from
this one, so that the packages need not be loaded anew each time; the moment of the kill is uniform
over the whole of what comes after. Loader processes are 0 or 2, and change on the way.
"""

import argparse
import os
import random
import re
import runpy
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main  # loads all packages, which the forked processes then have
from tests.drawings import draw_set
from utils import checkpoint
from utils.signals import SIGNALS, end_workers, exit_on_signals

KILL = 9  # SIGKILL, which Windows lacks
OPTIONS = ["--dataset=Pictures", "--image-size=64", "--batch-size=8", "--max-epoch=2"]
OPTIONS += ["--visdom-port=1"]
# The part of report.html that does not depend on the options alone: time, machine, folder.
MACHINE = re.compile(r'<section id="machine">.*</section>', re.S)
STATE = ("model", "optimizer", "amp", "meters", "history", "epoch", "step", "vis")


class Outcome:
    """What a process of `python main.py …` came to: exit code (-9 when killed) and seconds."""

    def __init__(self, code: int, seconds: float, group: int) -> None:
        self.code, self.seconds, self.group = code, seconds, group

    def has_orphans(self, patience: float = 10) -> bool:
        """Whether a process of its group is left; workers notice a killed parent in 5 s."""
        if sys.platform == "win32":
            return False
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            try:
                os.killpg(self.group, 0)
            except ProcessLookupError:
                return False
            time.sleep(0.05)
        return True


def run(
    root: Path, *options: str, number: int = 0, after: float = 1e9, group: bool = False
) -> Outcome:
    """Run `train` in a forked process; send it, or its group, a signal after some seconds."""
    if sys.platform == "win32":
        raise OSError("Windows has no fork")
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgrp()
        exit_on_signals()  # as main.py does first of all; the clock starts here
        os.write(tell, b"!")
        sys.argv = ["main.py", "train", f"--checkpoint-root={root}", *OPTIONS, *options]
        with open(root.parent / "output.txt", "a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        code: Any = 0
        try:
            runpy.run_path(main.__file__, run_name="__main__")
        except SystemExit as exit_:
            code = exit_.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        end_workers()  # os._exit does not
        os._exit(code)
    os.read(ready, 1)
    os.close(ready)
    os.close(tell)
    started = time.monotonic()
    status = None
    while status is None:
        done, found = os.waitpid(pid, os.WNOHANG)
        if done:
            status = found
        elif number and time.monotonic() - started > after:
            (os.killpg if group else os.kill)(pid, number)
            number = 0
        else:
            time.sleep(0.001)
    return Outcome(os.waitstatus_to_exitcode(status), time.monotonic() - started, pid)


def finished_run(root: Path) -> Path:
    """Find the run under `root` that got to its end."""
    return max(root.glob("*/last.pth"), key=lambda path: path.stat().st_mtime).parent


def differences(first: Path, second: Path) -> Iterator[str]:
    """Name what is not equal, bit for bit, in the folders of two finished runs."""
    for name in ("metrics.csv", "report.html"):
        texts = [MACHINE.sub("", (folder / name).read_text()) for folder in (first, second)]
        if texts[0] != texts[1]:
            yield name
    if points(first) != points(second):
        yield "points of the curves"
    for name in ("last.pth", "best.pth"):
        one, other = (
            checkpoint.read(folder / name, digest_required=True) for folder in (first, second)
        )
        for key in STATE:
            if not same(one[key], other[key]):
                yield f"{name}: {key}"


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the points of each curve that does not depend on time."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = set(events.Tags()["scalars"]) - {"step/images_per_second", "step/data_wait"}
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)  # nan is nan


class Trials:
    """Runs trials against one undisturbed run and counts those that came to the same end."""

    def __init__(self, folder: Path, pictures: Path, seed: int, precision: str) -> None:
        self.folder, self.random = folder, random.Random(seed)
        # Saves at every step.
        self.options = [f"--precision={precision}", "--save-minutes=0.0001"]
        self.options.append(f"--train-data-root={pictures}")
        undisturbed = run(folder / "undisturbed", *self.options, "--num-workers=2")
        self.seconds = undisturbed.seconds
        self.reference = finished_run(folder / "undisturbed")
        self.latencies: list[float] = []  # seconds from a signal to the exit

    def trial(self, number: int, signal_number: int, group: bool = False) -> list[str]:
        """Disturb one run, resume it to its end, and list what is wrong."""
        root = self.folder / f"trial{number}"
        root.mkdir()
        workers = [0, 2] if number % 2 else [2, 0]
        after = self.random.uniform(0, self.seconds)
        first = run(
            root,
            *self.options,
            f"--num-workers={workers[0]}",
            number=signal_number,
            after=after,
            group=group,
        )
        faults = []
        expected = -KILL if signal_number == KILL else 128 + signal_number
        if first.code not in (0, expected):
            faults.append(f"exit code {first.code} after {after:.2f} s, not {expected}")
        if signal_number != KILL and first.code:
            self.latencies.append(first.seconds - after)
        if signal_number != KILL and first.has_orphans():
            faults.append("orphans")
        given = () if finds_run(root) else self.options
        second = run(root, "--resume", *given, f"--num-workers={workers[1]}")
        if second.code:
            return [*faults, f"resume ended with {second.code} after {after:.2f} s"]
        finished = finished_run(root)
        faults += differences(self.reference, finished)
        faults += [f"left behind: {path.name}" for path in finished.glob(".*.tmp")]
        shutil.rmtree(root)
        return faults


def finds_run(root: Path) -> bool:
    return any(root.glob("*/last*.pth"))


def run_trials() -> int:
    """Run the trials that the command line asks for; return the number of failed ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--signals", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    wanted = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    torch.set_num_threads(1)  # a process that has run threads cannot be forked safely
    failed = 0
    with tempfile.TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        draw_set(Path(folder) / "pictures", count=40)
        pictures = Path(folder) / "pictures" / "train"
        trials = Trials(Path(folder), pictures, wanted.seed, wanted.precision)
        print(f"an undisturbed run takes {trials.seconds:.1f} s")
        jobs = [("SIGKILL", KILL, False)] * wanted.kills
        for index in range(wanted.signals):
            number = SIGNALS[index % len(SIGNALS)]
            jobs.append((signal.Signals(number).name, number, index % 8 >= 4))
        for index, (name, number, group) in enumerate(jobs):
            faults = trials.trial(index, number, group)
            failed += bool(faults)
            if faults:
                print(f"{name} {index}: {'; '.join(faults)}", flush=True)
        print(f"{len(jobs) - failed} passed, {failed} failed")
        if trials.latencies:
            middle, longest = statistics.median(trials.latencies), max(trials.latencies)
            print(f"from signal to exit: median {middle:.2f} s, longest {longest:.2f} s")
    return failed


if __name__ == "__main__":
    sys.exit(min(run_trials(), 1))
