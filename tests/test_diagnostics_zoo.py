"""The checks find the faults of the zoo, name the cause, and raise no alarm on sound models.

Here the models alone are judged, by the checks of the model. The whole zoo takes half an hour:
`python -m tests.diagnostics_zoo` judges each fault by the command, `--harm` measures what it costs,
and `python -m tests.diagnostics_zoo.healthy` runs the sound models.
"""

import csv

import pytest

from tests.diagnostics_zoo import KINDS, all_faults
from tests.diagnostics_zoo.causes import CAUSES
from tests.diagnostics_zoo.healthy import Sound, check
from tests.diagnostics_zoo.healthy_models import MODELS
from tests.helpers import PROJECT
from utils.diagnostics import model

FAULTS = {fault.name: fault for fault in all_faults() if fault.model}
ONLY_DOUBTED = {"SlowNorm"}  # torchvision's mnasnet has an even lower momentum
SAMPLE = list(MODELS)[::5]  # all of them take a minute


def test_the_zoo_is_large_and_each_fault_does_harm():
    with open(PROJECT / "tests/diagnostics_zoo/harm.csv", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    names = [fault.name for fault in all_faults()]
    assert len(names) == len(set(names)) >= 60
    assert all(int(rows[name]["gap"]) >= 5 for name in names)
    assert {fault.kind for fault in all_faults()} == set(KINDS)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_named(name):
    findings = check(Sound(FAULTS[name].model), model.CHECKS, "muon", num_classes=2)
    marks = "!" if name in ONLY_DOUBTED else "✗"
    seen = [f"{finding.name}: {finding.seen}" for finding in findings if finding.mark in marks]
    assert any(CAUSES[name] in words for words in seen), seen


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SAMPLE)
def test_a_sound_model_is_not_wrong(name):
    loaded = getattr(MODELS[name], "weights_loaded", False)
    sound = Sound(MODELS[name], weights_loaded=loaded)
    findings = check(sound, model.CHECKS, "muon", num_classes=2)
    assert [finding for finding in findings if finding.mark == "✗"] == []
