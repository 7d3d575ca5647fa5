"""Faults that do harm, to judge `python main.py check`: python -m tests.diagnostics_zoo.

They come from published collections of real faults and from questions that people ask, and were
written without a look at the checks. Each has a sound twin. `--harm` trains both and writes
harm.csv: a fault counts if it costs at least 5 points of accuracy, or if the training fails.

Sources, by their short names:
    Humbatova 2020   Taxonomy of Real Faults in Deep Learning Systems, arXiv:1910.11015
    Islam 2019       A Comprehensive Study on Deep Learning Bug Characteristics, arXiv:1906.01388
    DeepCrime        Humbatova 2021, Mutation Testing of Deep Learning Systems Based on Real Faults
    DeepFD           Cao 2022, Automated Fault Diagnosis and Localization, arXiv:2205.01938
    DEFault          Jahan 2025, Improved Detection and Diagnosis of Faults, arXiv:2411.01137
    AutoTrainer      Zhang 2021, An Automatic DNN Training Problem Detection and Repair System
    NeuraLint        Nikanjam 2021, Automatic Fault Detection for Deep Learning, arXiv:2105.08095
    TheDeepChecker   Ben Braiek 2023, Testing Feedforward Neural Networks, arXiv:2204.00694
    Karpathy         A Recipe for Training Neural Networks, 2019, and the tweets of 2018
    forum            discuss.pytorch.org and Stack Overflow, asked again and again
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import utils  # noqa: F401  before torch, as in main.py

KINDS = {
    1: "information is lost on its way",
    2: "the signal does not get through",
    3: "scale at the end",
    4: "axes",
    5: "data",
    6: "the loop",
}
Edit = tuple[str, str, str]  # a file of the project, an old text, a new text


class Fault(NamedTuple):
    """A fault and the ways to plant it: one of model, files, dataset, options and edits."""

    name: str
    kind: int  # one of KINDS
    text: str  # what is wrong, in one line
    source: str
    sound: type  # a model without the fault
    model: type | None = None  # the model with the fault
    files: Callable[[Path], None] | None = None  # changes a folder of pictures
    dataset: type | None = None  # a data set class with the fault
    options: Mapping[str, Any] = {}  # of train and check
    edits: Sequence[Edit] = ()  # changes of a copy of the project
    false_figures: bool = False  # the harm is that val says something else than new pictures


def all_faults() -> list[Fault]:
    from . import models, pictures, training

    return [*models.FAULTS, *pictures.FAULTS, *training.FAULTS]
