"""The results of a study: the best trials, the command that repeats the best, and a page."""

import itertools
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from utils import chart, files, metrics, report, run_folder
from utils.options import flag


@dataclass
class Results:
    """Shows the trials of a study."""

    folder: Path  # of the study
    metric: str  # its name in metrics.csv
    better: Callable  # min or max
    ranges: Mapping[str, Any]
    options: Mapping[str, Any]  # those that all trials have in common

    def ranked(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the complete trials, the best one first."""
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        sign = -1 if self.better is max else 1
        return sorted(complete, key=lambda trial: (sign * value_of(trial), trial.number))

    def folder_of(self, trial: FrozenTrial) -> Path:
        """Return the folder of a trial's run, or that of the trial if the run is elsewhere."""
        folder = self.folder / f"trial-{trial.number:04}"
        return run_folder.newest_run(folder) or folder

    def rows(self, trials: Sequence[FrozenTrial]) -> list[list[str]]:
        """Return a heading, and a row for each trial: value, options, run."""
        rows = [["trial", self.metric.replace("_", " "), *map(flag, self.ranges), "run"]]
        for trial in trials:
            state = trial.state.name.lower()
            value = f"{trial.value:.4f}" if state == "complete" else state
            options = [trial.params.get(name, "") for name in self.ranges]
            cells = [f"{x:.4g}" if isinstance(x, float) else str(x) for x in options]
            note = trial.user_attrs.get("note", self.folder_of(trial))
            rows.append([str(trial.number), value, *cells, str(note)])
        return rows

    def best_command(self, best: FrozenTrial) -> str:
        words = as_words({**self.options, **best.params})
        return shlex.join(["python", "main.py", "train", *words])

    def show(self, trials: Sequence[FrozenTrial]) -> Path:
        """Print the best trials, and the command of the best; return the folder of its run."""
        best = self.ranked(trials)[:10]
        rows = self.rows(best)
        print("", *metrics.aligned(rows, left=(len(rows[0]) - 1,)), "", sep="\n")
        print(f"this repeats the best: {self.best_command(best[0])}")
        print(f"all trials, and what each option does, are in {self.folder / 'sweep.html'}")
        return self.folder_of(best[0])

    def write_page(self, trials: Sequence[FrozenTrial]) -> None:
        """Write sweep.html into the folder of the study."""
        ranked = self.ranked(trials)
        if not ranked:
            return
        complete = [trial for trial in trials if trial in ranked]
        best = itertools.accumulate(map(value_of, complete), self.better)
        lines = {
            "best so far": [(trial.number, x) for trial, x in zip(complete, best, strict=True)],
            "trial": [(trial.number, value_of(trial)) for trial in complete],
        }
        dots = {"trial": [0.05] * len(complete)}  # which no line connects
        name = self.metric.replace("_", " ")
        curves = {"trial": chart.line_chart(f"{name} by trial", lines, "trial", sizes=dots)}
        for option, range in self.ranges.items():
            points = [(range.place(trial.params[option]), value_of(trial)) for trial in complete]
            title, axis = f"{name} by {flag(option)}", range.axis()
            drawing = chart.line_chart(title, {"trial": points}, flag(option), sizes=dots, **axis)
            curves[flag(option)] = drawing
        page = report.template("sweep.html", Path(__file__).parent).render(
            title=f"{self.folder.name}: {len(complete)} complete trials",
            metric=name,
            command=self.best_command(ranked[0]),
            curves=curves,
            rows=self.rows([*ranked, *(trial for trial in trials if trial not in ranked)]),
        )
        # Each worker by way of a file of its own: two may write at the same moment.
        own = self.folder / f"sweep.{os.getpid()}.html"
        files.write_text(own, page)
        own.replace(self.folder / "sweep.html")


def value_of(trial: FrozenTrial) -> float:
    """Return the value of a complete trial."""
    assert trial.value is not None
    return trial.value


def as_words(options: Mapping[str, Any]) -> list[str]:
    return [f"{flag(name)}={value}" for name, value in options.items()]
