"""Try values of options in many runs: --lr=1e-4..1e-2 --batch-size=16,32,64."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import DefaultConfig
from utils.options import PositiveInt, UsageError, flag

# Trials are compared by one metric, go on by themselves, and have folders of their own.
NO_RANGE = {"best_metric", "checkpoint_root", "resume", "allow_changes"}


@dataclass(frozen=True)
class Range:
    """The values of an option that the trials choose from."""

    text: str  # as it was written
    values: Sequence[Any]  # all of them; of an interval, its two ends
    is_interval: bool = False

    def __str__(self) -> str:
        return self.text

    @property
    def is_logarithmic(self) -> bool:
        """Whether 0.1 … 1 is as large a part of the interval as 1 … 10."""
        return self.is_interval and self.values[1] >= 10 * self.values[0] > 0

    def holds(self, value: Any) -> bool:
        if self.is_interval and value is not None:
            return self.values[0] <= value <= self.values[1]
        return value in self.values

    def choose(self, name: str, trial: Any) -> Any:
        """Return the value that Optuna chooses for a trial."""
        if not self.is_interval:
            return trial.suggest_categorical(name, self.values)
        is_whole = isinstance(self.values[0], int)
        suggest = trial.suggest_int if is_whole else trial.suggest_float
        return suggest(name, *self.values, log=self.is_logarithmic)

    def axis(self) -> dict[str, Any]:
        """Return how a chart shows these values."""
        if self.is_interval:
            return {"x_limits": self.values, "x_log": self.is_logarithmic}
        return {"x_names": [str(value) for value in self.values]}

    def place(self, value: Any) -> float:
        """Return where a chart shows a value."""
        return value if self.is_interval else self.values.index(value)


class Options(DefaultConfig):
    """What `sweep` takes in addition to the options of `train`; those may be ranges here."""

    required_path = "train_data_root"

    trials: PositiveInt = 20  # complete trials that the study shall have
    study: str = "sweep"  # name of the study and of its folder in --checkpoint-root
    storage: str | None = None  # URL of a database; None: an SQLite file in the study's folder
    dead_after: PositiveInt = 60  # seconds without a sign after which a worker counts as killed

    def __init__(self, **given: Any) -> None:
        ranges = {name: read_range(name.replace("-", "_"), value) for name, value in given.items()}
        super().__init__(**{name: value for name, value in given.items() if not ranges[name]})
        ranges = {name.replace("-", "_"): found for name, found in ranges.items() if found}
        vars(self).update(ranges)
        self.given |= ranges.keys()

    def validate(self) -> None:
        ranges = self.ranges()
        if self.resume or self.dry_run:
            wrong = "--resume" if self.resume else "--dry-run"
            raise UsageError(f"leave out {wrong}: a study goes on by itself, and keeps its runs")
        if not ranges:
            raise UsageError("sweep needs a range: --lr=1e-4..1e-2 or --batch-size=16,32,64")
        for name in NO_RANGE & ranges.keys():
            raise UsageError(f"{flag(name)} is the same for all trials of a study: give one value")

    def ranges(self) -> dict[str, Range]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Range)}


def read_range(name: str, value: Any) -> Range | None:
    """Return the range that a value stands for; None for a single value, right or wrong.

    What is one right value is no range: `--augment=mixup,cutmix` names two that are used together.
    With | between them, values are always alternatives.
    """
    text = str(value)
    if name not in DefaultConfig.hints():
        return None
    if "|" in text:
        return Range(text, read_values(name, text.split("|")))
    with suppress(UsageError):
        DefaultConfig(**{name: value})
        return None
    low, dots, high = text.partition("..")
    if dots and is_number(low) and is_number(high) and "..." not in text:
        ends = read_values(name, [low, high])
        if not all(type(end) in (int, float) for end in ends):
            raise UsageError(f"{flag(name)}={text}: it takes no numbers")
        if ends[0] >= ends[1]:
            raise UsageError(f"{flag(name)}={text}: the lower end comes first")
        return Range(text, ends, is_interval=True)
    return Range(text, read_values(name, text.split(","))) if "," in text else None


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def read_values(name: str, texts: Sequence[str]) -> list[Any]:
    """Return texts as values of an option; UsageError if it does not take one of them."""
    return [getattr(DefaultConfig(**{name: text}), name) for text in texts]


class MissingPackage(ImportError):
    """A package that only this command needs."""


def run(opt: Options) -> Path:
    """Complete the trials of a study; return the folder of the best one.

    Workers that are started with the same command share the study, on one machine or on several.
    """
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        raise MissingPackage("sweep needs the package Optuna: pip install optuna") from None
    from utils.sweeping.worker import Worker

    return Worker(opt, opt.ranges()).run()
