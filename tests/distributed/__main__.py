"""Kill or signal one of two ranks at random moments: python -m tests.distributed --kills 30.

After a SIGKILL, torchrun starts the ranks again, and the run has to end with the bits of an
undisturbed run. After a SIGTERM, which comes once training has begun, both ranks have to end with
exit code 143 and one saved state, which --resume takes to the same end.
"""

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.crash.__main__ import same
from tests.drawings import draw_set
from tests.helpers import NOBODY
from utils import checkpoint

from . import Launch

OPTIONS = ["--dataset=Pictures", "--image-size=64", "--batch-size=8", "--max-epoch=2"]
OPTIONS += [f"--visdom-port={NOBODY}", "--num-workers=1", "--save-minutes=0.0001"]
STATE = ("model", "optimizer", "amp", "meters", "epoch", "step")


class Trials:
    """Trials of a run that ends undisturbed after `seconds`."""

    def __init__(self, folder: Path, seed: int, precision: str) -> None:
        self.folder, self.random = folder, random.Random(seed)
        draw_set(folder / "pictures", count=40)
        self.options = [*OPTIONS, f"--train-data-root={folder}/pictures/train"]
        self.options.append(f"--precision={precision}")
        started = time.monotonic()
        launch = self.launch("undisturbed")
        self.begins = self.wait_for_training(launch) - started
        assert launch.wait() == 0
        self.seconds = time.monotonic() - started
        self.reference = self.last("undisturbed")

    def launch(self, name: str, *more: str, restarts: int = 0) -> Launch:
        folder = self.folder / name
        words = ["train", *self.options, f"--checkpoint-root={folder}", *more]
        return Launch(2, *words, folder=folder, restarts=restarts)

    def last(self, name: str) -> dict:
        (path,) = (self.folder / name).glob("*/last.pth")  # one run, whatever has happened to it
        return checkpoint.read(path, digest_required=True)

    def wait_for_training(self, launch: Launch) -> float:
        while "options: " not in launch.text and launch.process.poll() is None:
            time.sleep(0.01)
        return time.monotonic()

    def disturb(self, launch: Launch, number: int, latest: float) -> str:
        """Send a signal to a rank after a random time of up to `latest` seconds; return which."""
        after = self.random.uniform(0, latest)
        end = time.monotonic() + after
        while time.monotonic() < end or len(launch.ranks()) < 2:
            if launch.process.poll() is not None:
                return "it had ended"
            time.sleep(0.01)
        rank, pid = self.random.choice([*launch.ranks().items()])
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return f"rank {rank} after {after:.2f} s"

    def kill(self, name: str) -> list[str]:
        launch = self.launch(name, restarts=3)
        moment = self.disturb(launch, signal.SIGKILL, self.seconds)
        if code := launch.wait():
            return [f"{moment}: exit code {code}"]
        return [*self.differences(name, moment), *(f"{pid} is left" for pid in launch.left())]

    def differences(self, name: str, moment: str) -> list[str]:
        found = self.last(name)
        return [f"{moment}: {key}" for key in STATE if not same(self.reference[key], found[key])]

    def terminate(self, name: str) -> list[str]:
        launch = self.launch(name)
        self.wait_for_training(launch)
        moment = self.disturb(launch, signal.SIGTERM, self.seconds - self.begins)
        faults, code = [], launch.wait()
        if code and "report    " not in launch.text:  # else the run had ended
            codes = re.findall(r"exitcode  : (-?\d+)", launch.text)
            faults += [f"{moment}: exit code {x}" for x in codes if x != "143"]
            self.last(name)  # raises an error if nothing is saved
        faults += [f"{pid} is left" for pid in launch.left()]
        if code := self.launch(name, "--resume").wait():
            return [*faults, f"{moment}: --resume has exit code {code}"]
        return faults + self.differences(name, moment)


def run_trials() -> int:
    """Run the trials that the command line asks for; return the number of failed ones."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--signals", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    wanted = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder), wanted.seed, wanted.precision)
        print(f"an undisturbed run of two ranks takes {trials.seconds:.1f} s", flush=True)
        jobs = [trials.kill] * wanted.kills + [trials.terminate] * wanted.signals
        for number, job in enumerate(jobs):
            if faults := job(f"trial{number}"):
                failed += 1
                print(f"{job.__name__} {number}: {'; '.join(faults)}", flush=True)
        print(f"{len(jobs) - failed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(min(run_trials(), 1))
