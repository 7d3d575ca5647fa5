"""A worker of a study: it starts a process `main.py train` for each trial, and watches it.

A trial under way is RUNNING in the database. Its worker holds a lock in the trial's folder, and
notes the time in its attribute "seen". If that was long ago and the lock is free, the worker is
dead. Then another one takes the trial over, and `train --resume` goes on with its run.
"""

import math
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial
from optuna.trial import TrialState as State

from config import DefaultConfig
from utils import files, metrics, run_folder
from utils.seed import seed_of
from utils.signals import StopRequest

from .results import Results, as_words
from .study import SweepError, open_study

MAIN = Path(__file__).resolve().parents[2] / "main.py"
POLL = 0.5  # seconds between two looks at a run
MOST_KILLS = 3  # a trial whose process is killed so often, for example for its memory, has failed
FIRST_TRIALS = 3  # if all of these fail, the others will, too
say = partial(print, flush=True)


class Worker:
    """Works on the trials of a study until it has as many complete ones as --trials asks for."""

    def __init__(self, opt: Any, ranges: Mapping[str, Any]) -> None:
        self.opt, self.ranges = opt, ranges
        self.folder = Path(opt.checkpoint_root) / opt.study
        self.metric = f"val_{opt.best_metric}"
        self.better = metrics.METRICS[opt.best_metric][1]  # min or max
        self.options = {  # of every trial
            name: value
            for name, value in vars(opt).items()
            if name in DefaultConfig.hints().keys() - ranges.keys() - {"checkpoint_root", "config"}
            and value != getattr(DefaultConfig, name)
        }
        self.results = Results(self.folder, self.metric, self.better, ranges, self.options)
        self.stop = StopRequest(advice="; the same command goes on")
        self.study = open_study(opt, ranges, self.folder, self.better)

    def run(self) -> Path:
        """Work until enough trials are complete; return the folder of the best run."""
        was_idle = False
        with self.stop:
            while len(self.trials(State.COMPLETE)) < self.opt.trials:
                if claimed := self.claim():
                    trial, lock = claimed
                    # A machine that does not see the lock may have completed it in the meantime.
                    with lock, suppress(UpdateFinishedTrialError):
                        self.work(trial)
                    self.results.write_page(self.trials())
                else:
                    if not was_idle:
                        say("other workers are at the last trials: waiting for them")
                    time.sleep(POLL)
                was_idle = not claimed
                self.stop.raise_if_received()
        self.results.write_page(self.trials())
        return self.results.show(self.trials())

    def trials(self, *states: State) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    def is_abandoned(self, trial: FrozenTrial) -> bool:
        """Tell whether no worker has noted for a while that it is at a running trial."""
        begun = trial.datetime_start.timestamp() if trial.datetime_start else time.time()
        return time.time() - trial.user_attrs.get("seen", begun) > self.opt.dead_after

    def are_enough(self, before: float = math.inf) -> bool:
        """Tell whether the trials that are complete, or under way with a lower number, suffice."""
        running = [trial for trial in self.trials(State.RUNNING) if trial.number < before]
        busy = [trial for trial in running if not self.is_abandoned(trial)]
        return len(self.trials(State.COMPLETE)) + len(busy) >= self.opt.trials

    def claim(self) -> tuple[Trial, BinaryIO] | None:
        """Return a trial to work on and its lock; None if there is none for this worker."""
        if self.are_enough():
            return None
        for trial in self.trials(State.RUNNING):
            if self.is_abandoned(trial) and (claimed := self.take(trial.number)):
                return claimed
        return self.take(self.study.ask().number)

    def take(self, number: int) -> tuple[Trial, BinaryIO] | None:
        """Return a running trial and its lock, unless another worker has it."""
        folder = self.folder / f"trial-{number:04}"
        files.make_folder(folder)
        try:
            lock = run_folder.lock(folder, say)
        except OSError:
            return None
        found = self.trials()[number]  # as it is now
        is_new = "seen" not in found.user_attrs
        if found.state == State.RUNNING and (is_new or self.is_abandoned(found)):
            trial = Trial(self.study, found._trial_id)
            trial.set_user_attr("seen", time.time())
            if not self.are_enough(before=number):
                return trial, lock
            trial.set_user_attr("seen", 0.0)  # another worker has taken the last one just now
        lock.close()
        return None

    def work(self, trial: Trial) -> None:
        """Bring a trial to its end, or as far as a signal allows."""
        folder = self.folder / f"trial-{trial.number:04}"
        # By the number of the trial: workers with the same seed choose different values.
        seed = seed_of(self.opt.seed, "sweep", trial.number) % 2**32
        self.study.sampler = optuna.samplers.TPESampler(seed=seed)
        values = {name: range.choose(name, trial) for name, range in self.ranges.items()}
        say(f"{folder.name}: {shlex.join(as_words(values))}")
        if twins := [twin for twin in self.trials(State.COMPLETE) if twin.params == values]:
            trial.set_user_attr("note", f"same options as trial {twins[0].number}, so same result")
            self.study.tell(trial, twins[0].value)
            return
        while is_live(run_folder.newest_run(folder)) and self.stop.received is None:
            trial.set_user_attr("seen", time.time())  # it has outlived its worker: let it end
            time.sleep(POLL)
        options = self.options | values | {"checkpoint_root": folder, "resume": True}
        command = [sys.executable, str(MAIN), "train", *as_words(options)]
        with open(folder / "errors.txt", "w", encoding="utf-8") as errors:
            null = subprocess.DEVNULL
            process = subprocess.Popen(command, stdin=null, stdout=null, stderr=errors)
        pruned = self.watch(trial, process, values.get("max_epoch", self.opt.max_epoch))
        self.conclude(trial, process.wait(), pruned)

    def conclude(self, trial: Trial, code: int, pruned: bool) -> None:
        """Tell Optuna how the process of a trial has ended. SweepError if all trials fail."""
        folder = self.folder / f"trial-{trial.number:04}"
        history = self.history(folder)
        was_killed = not 0 <= code <= 128  # after a signal, `train` ends with 128 + its number
        kills = trial.user_attrs.get("kills", 0) + was_killed
        if code == 0 and history:
            value = self.better(history.values())
            self.study.tell(trial, value, skip_if_finished=True)
            best = self.results.ranked(self.trials())[0].value
            say(f"{folder.name}: {self.metric} {value:.4g}, best {best:.4g}")
        elif pruned:
            self.study.tell(trial, state=State.PRUNED, skip_if_finished=True)
            say(f"{folder.name}: pruned after {len(history)} epochs")
        elif self.stop.received is not None:
            trial.set_user_attr("seen", 0.0)  # any worker may go on with it at once
        elif was_killed and kills < MOST_KILLS:
            trial.set_user_attr("kills", kills)
            trial.set_user_attr("seen", 0.0)
            say(f"{folder.name}: killed; it goes on later")
        else:
            text = (folder / "errors.txt").read_text(encoding="utf-8", errors="replace")
            reason = text.rstrip().rpartition("\n")[2] or f"exit code {code}"
            trial.set_user_attr("note", reason)
            self.study.tell(trial, state=State.FAIL, skip_if_finished=True)
            say(f"{folder.name}: failed: {reason}")
            failed = len(self.trials(State.FAIL))
            if failed >= FIRST_TRIALS and not self.trials(State.COMPLETE, State.PRUNED):
                raise SweepError(f"the first {failed} trials have all failed: {reason}")

    def watch(self, trial: Trial, process: subprocess.Popen, last_epoch: int) -> bool:
        """Report each epoch to Optuna until the process ends; return whether it was pruned.

        A run is ended by SIGTERM if it is pruned or the worker has to end: it saves its state.
        """
        folder = self.folder / f"trial-{trial.number:04}"
        reported = len(self.trials()[trial.number].intermediate_values)
        pruned = False
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL)
                trial.set_user_attr("seen", time.time())
                history = self.history(folder)
                for epoch in range(reported + 1, len(history) + 1):
                    trial.report(history[epoch], epoch)
                if reported < len(history) < last_epoch and trial.should_prune():
                    # No more than --trials are pruned: a sweep comes to its end.
                    pruned = len(self.trials(State.PRUNED)) < self.opt.trials
                reported = max(reported, len(history))
                if pruned or self.stop.received is not None:
                    process.terminate()
        finally:
            if process.poll() is None:  # the database has failed
                process.terminate()
                process.wait()
        return pruned

    def history(self, folder: Path) -> dict[int, float]:
        """Return {epoch: value} of the metric, from the newest run in a trial's folder."""
        table = (run_folder.newest_run(folder) or folder) / "metrics.csv"
        rows = files.read_csv(table) if table.exists() else []
        return {int(row["epoch"]): float(row[self.metric]) for row in rows}


def is_live(run: Path | None) -> bool:
    """Tell whether a process is at work in the folder of a run."""
    try:
        if run:
            run_folder.lock(run, say).close()
    except OSError:
        return True
    return False
