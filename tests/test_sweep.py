"""The sweep: ranges of options, and workers that share the trials of a study."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import main
from config import DefaultConfig
from tests.drawings import draw_set
from tests.helpers import (
    NOBODY,
    PROJECT,
    SMALL,
    as_words,
    children_of,
    linux_only,
    posix_only,
    wait_until,
)
from tests.test_report import Reader
from utils import checkpoint
from utils.commands import sweep
from utils.files import read_csv
from utils.options import UsageError

pytest.importorskip("optuna")
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState as State

RANGES = {"lr": "1e-4..1e-2", "batch_size": "4,8,64"}


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict:
    """Return options with which a trial takes seconds."""
    root = tmp_path_factory.mktemp("twenty")
    draw_set(root, count=20)
    del (small := dict(SMALL))["batch_size"]
    return small | {"train_data_root": root / "train", "max_epoch": 1}


def start(options: dict, output: Path) -> subprocess.Popen:
    command = [sys.executable, "main.py", "sweep", *as_words(options)]
    with open(output, "w") as file:
        return subprocess.Popen(command, cwd=PROJECT, stdout=file, stderr=subprocess.STDOUT)


def study_in(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder}/study.sqlite")


def new_study(folder: Path) -> optuna.Study:
    """Make a study that other trials than those of `sweep` have begun."""
    folder.mkdir(parents=True)
    storage = f"sqlite:///{folder}/study.sqlite"
    return optuna.create_study(study_name=folder.name, storage=storage, direction="maximize")


def runs_in(folder: Path, number: int) -> list[Path]:
    return [path.parent for path in folder.glob(f"trial-{number:04}/*/log.txt")]


@pytest.fixture(scope="module")
def shared(options, tmp_path_factory) -> dict:
    """Let two workers share a study; kill one of them, with its run, in the middle of a trial."""
    root = tmp_path_factory.mktemp("shared")
    given = options | RANGES | {"trials": 6, "checkpoint_root": root, "dead_after": 5}
    outputs = [root / f"{n}.txt" for n in (1, 2)]
    workers = [start(given, output) for output in outputs]
    folder = root / "sweep"

    def second_run() -> list[Path]:
        begun = re.findall(r"^trial-(\d+): --", outputs[0].read_text(), re.M)[1:]
        return [path for n in begun for path in folder.glob(f"trial-{n}/*/last.pth")]

    wait_until(second_run, seconds=300)
    (last,) = second_run()
    for pid in [*children_of(workers[0].pid), workers[0].pid]:
        os.kill(pid, 9)  # SIGKILL, a name that Windows lacks
    killed = int(last.parent.parent.name.removeprefix("trial-"))
    codes = [worker.wait() for worker in workers]
    text = outputs[1].read_text()
    return {"codes": codes, "folder": folder, "killed": killed, "given": given, "text": text}


@linux_only
def test_two_workers_complete_the_trials_of_a_study_though_one_is_killed(shared):
    assert shared["codes"] == [-signal.SIGKILL, 0]
    trials = study_in(shared["folder"]).trials
    assert [trial.state for trial in trials] == [State.COMPLETE] * 6
    for trial in trials:  # each has one run, which says the same
        (run,) = runs_in(shared["folder"], trial.number)
        assert [float(row["val_accuracy"]) for row in read_csv(run / "metrics.csv")] == trial.values
        assert 1e-4 <= trial.params["lr"] <= 1e-2 and trial.params["batch_size"] in (4, 8, 64)
        saved = checkpoint.read(run / "last.pth")
        assert {name: saved["options"][name] for name in RANGES} == trial.params
    assert len({trial.params["lr"] for trial in trials}) == 6  # though both have the same seed


@linux_only
def test_another_worker_goes_on_with_the_run_of_the_killed_one(shared):
    (run,) = runs_in(shared["folder"], shared["killed"])
    assert "goes on at epoch" in (run / "log.txt").read_text()
    assert f"trial-{shared['killed']:04}: val_accuracy" in shared["text"]


@linux_only
def test_the_defaults_come_first_so_the_best_is_as_good(shared):
    trials = study_in(shared["folder"]).trials
    defaults = {name: getattr(DefaultConfig, name) for name in RANGES}
    (first,) = [trial for trial in trials if trial.params == defaults]
    assert first.number <= 1 and max(trial.value for trial in trials) >= first.value


@linux_only
def test_the_end_shows_the_best_trials_and_the_command_that_repeats_the_best(shared):
    trials = study_in(shared["folder"]).trials
    best = max(trials, key=lambda trial: (trial.value, -trial.number))
    heading, first = re.search(r"^(trial .+)\n(.+)$", shared["text"], re.M).groups()
    assert heading.split() == ["trial", "val", "accuracy", "--batch-size", "--lr", "run"]
    (run,) = runs_in(shared["folder"], best.number)
    cells = [best.number, f"{best.value:.4f}", best.params["batch_size"]]
    assert first.split() == [*map(str, cells), f"{best.params['lr']:.4g}", str(run)]
    words = re.search(r"^this repeats the best: python main.py (.+)$", shared["text"], re.M)[1]
    assert words.startswith("train ") and f"--lr={best.params['lr']}" in words.split()
    assert "--checkpoint-root" not in words and "--max-epoch=1" in words.split()

    page = (shared["folder"] / "sweep.html").read_text()
    reader = Reader(page)
    values = {trial.number: trial.value for trial in trials}
    assert reader.dots["val accuracy by trial", "trial"] == [*values.items()]
    assert reader.dots["val accuracy by trial", "best so far"][-1][1] == best.value
    by_lr = [(trial.params["lr"], trial.value) for trial in trials]
    assert reader.dots["val accuracy by --lr", "trial"] == by_lr
    places = [
        (float([4, 8, 64].index(trial.params["batch_size"])), trial.value) for trial in trials
    ]
    assert reader.dots["val accuracy by --batch-size", "trial"] == places
    assert "<script" not in page and reader.rows[1][:2] == [str(best.number), f"{best.value:.4f}"]


@linux_only
def test_a_complete_study_is_shown_again_and_takes_no_other_options(shared, tmp_path):
    again = start(shared["given"], tmp_path / "again.txt")
    assert again.wait() == 0
    shown = shared["text"].partition("\n\n")[2]
    assert (tmp_path / "again.txt").read_text() == f"\n{shown}"
    other = start(shared["given"] | {"max_epoch": 2}, tmp_path / "other.txt")
    assert other.wait() == 2
    words = "the study sweep has --max-epoch=1, not 2: give the same, or another --study=NAME\n"
    assert (tmp_path / "other.txt").read_text() == words


@linux_only
def test_a_trial_outlives_its_process_and_its_worker(options, tmp_path):
    given = options | {"lr": "1e-4,2e-3", "max_epoch": 40, "trials": 1, "study": "my study"}
    given |= {"checkpoint_root": tmp_path}
    folder, output = tmp_path / "my study", tmp_path / "out.txt"
    worker = start(given, output)
    wait_until(lambda: [*folder.glob("trial-0000/*/last.pth")], seconds=300)
    (run,) = runs_in(folder, 0)
    for pid in children_of(worker.pid):  # as the system does when memory is short
        os.kill(pid, 9)  # SIGKILL, a name that Windows lacks
    wait_until(lambda: "goes on at epoch" in (run / "log.txt").read_text(), seconds=300)
    assert "trial-0000: killed; it goes on later\n" in output.read_text()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait() == 128 + signal.SIGTERM
    assert output.read_text().endswith("stopped by SIGTERM; the same command goes on\n")
    position = checkpoint.read(run / "last.pth")["epoch"]
    assert start(given, output).wait() == 0
    assert runs_in(folder, 0) == [run] and position < 40 == len(read_csv(run / "metrics.csv"))
    assert f"goes on at epoch {position + 1}" in (run / "log.txt").read_text()
    assert [trial.state for trial in study_in(folder).trials] == [State.COMPLETE]


@posix_only
def test_a_trial_that_is_worse_than_the_others_is_pruned_and_keeps_its_run(options, tmp_path):
    study = new_study(tmp_path / "sweep")
    known = {
        "params": {"lr": 1e-3},
        "distributions": {"lr": FloatDistribution(1e-4, 1e-2, log=True)},
    }
    steps = {epoch: 1.0 for epoch in range(1, 101)}
    for _ in range(5):
        study.add_trial(optuna.create_trial(**known, value=1.0, intermediate_values=steps))
    given = options | {"lr": RANGES["lr"], "max_epoch": 90, "trials": 6}
    worker = start(given | {"checkpoint_root": tmp_path}, tmp_path / "out.txt")
    wait_until(lambda: "pruned after" in (tmp_path / "out.txt").read_text() or worker.poll())
    worker.send_signal(signal.SIGTERM)
    assert worker.wait() == 128 + signal.SIGTERM
    trial = study_in(tmp_path / "sweep").trials[5]
    assert trial.state == State.PRUNED and 30 <= len(trial.intermediate_values) < 90
    (run,) = runs_in(tmp_path / "sweep", 5)
    assert 30 <= checkpoint.read(run / "last.pth")["epoch"] < 90  # --resume can go on with it


def test_equal_options_are_not_trained_twice(options, tmp_path):
    study = new_study(tmp_path / "sweep")
    for mirror, value in ((True, 0.75), (False, 0.5)):
        choices = {"mirror": CategoricalDistribution([True, False])}
        study.add_trial(
            optuna.create_trial(params={"mirror": mirror}, distributions=choices, value=value)
        )
    (tmp_path / "sweep/.sweep.html.tmp").mkdir()  # as if another worker were writing the page
    main.sweep(**options, mirror="true,false", trials=4, checkpoint_root=tmp_path)
    trials = study_in(tmp_path / "sweep").trials
    assert [trial.value for trial in trials] == [
        {True: 0.75, False: 0.5}[trial.params["mirror"]] for trial in trials
    ]
    assert not [*tmp_path.glob("sweep/trial-*/*/log.txt")]
    assert sorted(path.name for path in tmp_path.glob("sweep/*.html")) == ["sweep.html"]


def test_a_sweep_ends_if_its_first_trials_all_fail(options, tmp_path):
    given = options | {"lr": "1e-4..1e-2", "oversample": True, "balanced": True}
    worker = start(given | {"checkpoint_root": tmp_path}, tmp_path / "out.txt")
    assert worker.wait() == 1
    reason = "--oversample and --balanced do the same: leave out one of them"
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert [line for line in lines if " failed: " in line][:3] == [
        f"trial-{n:04}: failed: {reason}" for n in range(3)
    ]
    assert lines[-1].startswith(f"the first 3 trials have all failed: {reason}")
    trials = study_in(tmp_path / "sweep").trials
    assert [(trial.state, trial.user_attrs["note"]) for trial in trials] == [
        (State.FAIL, reason)
    ] * 3


@pytest.mark.parametrize(
    ("name", "text", "values", "is_interval", "is_logarithmic"),
    [
        ("lr", "1e-4..1e-2", [1e-4, 1e-2], True, True),
        ("lr", "0.001..0.005", [0.001, 0.005], True, False),
        ("dropout", "0..0.5", [0.0, 0.5], True, False),
        ("clip_norm", "0.1..1", [0.1, 1.0], True, True),
        ("batch_size", "16..64", [16, 64], True, False),
        ("batch_size", "16,32,64", [16, 32, 64], False, False),
        ("optimizer", "muon,adamw", ["muon", "adamw"], False, False),
        ("clip_norm", "none,1", [None, 1.0], False, False),
        ("mirror", "true,false", [True, False], False, False),
        ("model", "SqueezeNet,ResNet34", ["SqueezeNet", "ResNet34"], False, False),
        ("augment", "mixup,cutmix|none", ["mixup,cutmix", None], False, False),
        ("fold", "1/3|2/3|3/3", ["1/3", "2/3", "3/3"], False, False),
    ],
)
def test_a_range_has_the_type_of_its_option(name, text, values, is_interval, is_logarithmic):
    found = sweep.read_range(name, text)
    assert (found.values, found.is_interval) == (values, is_interval)
    assert list(map(type, found.values)) == list(map(type, values))
    assert found.is_logarithmic == is_logarithmic and str(found) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [("augment", "mixup,cutmix"), ("lr", "1e-3"), ("train_data_root", "../a,b"), ("trials", "1,2")],
)
def test_what_is_one_value_is_no_range(name, text):
    assert sweep.read_range(name, text) is None


def test_python_takes_values_and_ranges():
    opt = sweep.Options(lr="1e-4..1e-2", batch_size=8, mirror="true,false", trials=3)
    assert list(opt.ranges()) == ["lr", "mirror"] and opt.batch_size == 8
    assert {"lr", "batch_size", "mirror", "trials"} == opt.given
    with pytest.raises(UsageError, match="needs a range"):
        main.sweep(lr=1e-3)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--lr=0.01", "sweep needs a range: --lr=1e-4..1e-2 or --batch-size=16,32,64"),
        ("--lr=1e-2..1e-4", "--lr=1e-2..1e-4: the lower end comes first"),
        ("--lr=1e-4...1e-2", "--lr takes a number above 0, not '1e-4...1e-2'"),
        ("--lr=1e-4..x", "--lr takes a number above 0, not '1e-4..x'"),
        ("--lr=0..1", "--lr takes a number above 0, not '0'"),
        ("--batch-size=8..1e9..", "--batch-size takes a whole number"),
        ("--batch-size=16,8.5", "--batch-size takes a whole number from 1 up, not '8.5'"),
        ("--mirror=0..1", "--mirror=0..1: it takes no numbers"),
        ("--optimizer=muon,sgd", "--optimizer takes muon | adamw, not 'sgd'"),
        ("--model=SqueezeNet,ResNet", "--model=ResNet is not in models/; did you mean ResNet34?"),
        ("--augment=mixup|cut", "--augment takes"),
        ("--lr=1,2 --trials=1..3", "--trials takes a whole number from 1 up, not '1..3'"),
        ("--lr=1,2 --resume", "leave out --resume"),
        ("--best-metric=loss,f1", "--best-metric is the same for all trials"),
    ],
)
def test_wrong_usage_is_one_line(words, says, options):
    command = [sys.executable, "main.py", "sweep", *words.split()]
    command += [f"--train-data-root={options['train_data_root']}", f"--visdom-port={NOBODY}"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert done.stderr.startswith(says)


def test_without_optuna_it_says_what_to_install(options, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match="needs the package Optuna: pip install"):
        main.sweep(**options, lr="1e-4..1e-2", checkpoint_root=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_database_that_cannot_be_opened_is_one_line(options, tmp_path):
    place = {"storage": f"sqlite:///{tmp_path}/no/a.sqlite", "checkpoint_root": tmp_path}
    worker = start(options | place | {"lr": "1e-4..1e-2"}, tmp_path / "out.txt")
    assert worker.wait() == 1
    (line,) = (tmp_path / "out.txt").read_text().splitlines()
    assert line.startswith("--storage cannot be opened: ") and "unable to open" in line
