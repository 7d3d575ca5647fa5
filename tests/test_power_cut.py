"""A power cut at any moment of a save leaves a run that comes to the same bits."""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import main
from tests.crash.__main__ import differences, same
from tests.helpers import SMALL
from tests.power_cut import Contents, build, record, replay, states
from utils import checkpoint, files, report, run_folder

OLD, NEW = b"old" * 50, b"new" * 60
EMPTY, HALF, ZEROS, LOST = b"", NEW[:90], bytes(180), None


def replaced(path: Path, data: bytes) -> None:
    files.replace_file(path, lambda file: file.write(data))


def in_place(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def renamed_unsynced(path: Path, data: bytes) -> None:
    path.with_name("new").write_bytes(data)
    os.replace(path.with_name("new"), path)
    files.sync_folder(path.parent)


def renamed_unflushed(path: Path, data: bytes) -> None:
    with open(path.with_name("new"), "wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    os.replace(path.with_name("new"), path)
    files.sync_folder(path.parent)


def renamed_after_removal(path: Path, data: bytes) -> None:
    in_place(path.with_name("new"), data)
    os.remove(path)
    os.rename(path.with_name("new"), path)
    files.sync_folder(path.parent)


def renamed_for_now(path: Path, data: bytes) -> None:
    in_place(path.with_name("new"), data)
    os.replace(path.with_name("new"), path)


@pytest.mark.parametrize(
    ("write", "meanwhile", "afterwards"),
    [
        (replaced, {OLD, NEW}, {NEW}),
        (in_place, {OLD, EMPTY, HALF, ZEROS, NEW}, {NEW}),
        (renamed_unsynced, {OLD, EMPTY, HALF, ZEROS, NEW}, {EMPTY, HALF, ZEROS, NEW}),
        (renamed_unflushed, {OLD, EMPTY, HALF, ZEROS, NEW}, {EMPTY, HALF, ZEROS, NEW}),
        (renamed_after_removal, {OLD, LOST, NEW}, {NEW}),
        (renamed_for_now, {OLD, NEW}, {OLD, NEW}),
    ],
)
def test_only_replace_file_leaves_the_old_or_the_new_file(write, meanwhile, afterwards, tmp_path):
    with record(tmp_path) as recording:
        replaced(tmp_path / "file", OLD)
        first = len(recording)
        write(tmp_path / "file", NEW)
        recording.note(tmp_path / "file")
    left = [(number, state.get("file")) for number, state in states(recording, first)]
    assert {data for _, data in left} == meanwhile
    assert {data for number, data in left if number == len(recording)} == afterwards


def test_an_operation_that_is_not_recorded_is_noticed(tmp_path):
    with pytest.raises(AssertionError, match="not recorded"), record(tmp_path):
        descriptor = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY)
        os.write(descriptor, b"unseen")
        os.close(descriptor)


def test_the_first_file_of_new_folders_outlives_a_power_cut(tmp_path):
    with record(tmp_path) as recording:
        replaced(tmp_path / "new" / "newer" / "file", NEW)
        recording.note(tmp_path / "new" / "newer" / "file")
    left = {state.get("new/newer/file") for n, state in states(recording, len(recording))}
    assert left == {NEW}


def test_a_damaged_file_never_takes_the_place_of_the_previous_one(tmp_path):
    path = tmp_path / "last.pth"
    with record(tmp_path) as recording:
        checkpoint.write(path, {"epoch": 1})
        checkpoint.write(path, {"epoch": 2}, keep_previous=True)
        in_place(path, path.read_bytes()[:-100])  # the disk fails
        first = len(recording)
        assert checkpoint.read_newest(path)["epoch"] == 1
        checkpoint.write(path, {"epoch": 3}, keep_previous=True)
    for index, (_, state) in enumerate(states(recording, first)):
        folder = tmp_path / str(index)
        build(state, folder)
        assert checkpoint.read_newest(folder / "last.pth")["epoch"] in (1, 3)


class SmallNet(nn.Module):
    """A model whose checkpoint has few bytes, with the moving buffers that BatchNorm has."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, kernel_size=8, stride=8),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Training:
    """A training that saves at each step, recorded; every state that a power cut leaves of it."""

    def __init__(self, pictures: Path, folder: Path) -> None:
        self.folder = folder
        (folder / "disk").mkdir()
        with pytest.MonkeyPatch.context() as patch, record(folder / "disk") as operations:
            replace_file = files.replace_file

            def replace_and_note(path: Path, *rest: Any) -> None:
                replace_file(path, *rest)
                operations.note(path)

            for module in (files, checkpoint):
                patch.setattr(module, "replace_file", replace_and_note)
            options = SMALL | {"batch_size": 8, "max_epoch": 3, "save_minutes": 1e-9}
            root = folder / "disk" / "runs"
            data = pictures / "train"
            self.run = main.train(
                model=SmallNet, train_data_root=data, checkpoint_root=root, **options
            )
        self.last = (self.run / "last.pth").relative_to(folder / "disk").as_posix()
        self.previous = files.previous(Path(self.last)).as_posix()
        self.states = list(states(operations))
        self.notes = [
            (number, one.path) for number, one in enumerate(operations) if one.kind == "note"
        ]
        self.versions: dict[str, list[bytes | None]] = {}  # of each saved file; first there is none
        for number, path in self.notes:
            version = replay(operations[:number])[path]
            self.versions.setdefault(path, [None]).append(version)
        self.saves = [None, *map(self.read, self.versions[self.last][1:])]

    def read(self, version: bytes) -> dict:
        (self.folder / "version.pth").write_bytes(version)
        return checkpoint.read(self.folder / "version.pth", digest_required=True)

    def allowed(self, path: str, moment: int) -> slice:
        """Return which versions may be there: what was saved last, and what is being saved."""
        done = [path for number, path in self.notes if number < moment].count(path)
        return slice(done, done + 2)

    def end_of_epoch(self, epochs: int) -> list[Contents]:
        """Return what cuts leave during the last save within an epoch and those at its end."""
        index = [(save["epoch"], save["step"]) for save in self.saves[1:]].index((epochs, 0))
        saved = [number for number, path in self.notes if path == self.last]
        return [
            state for moment, state in self.states if saved[index - 2] < moment <= saved[index] + 1
        ]

    def build(self, state: Contents) -> Path:
        """Make a disk with this state; return the run's folder."""
        shutil.rmtree(self.folder / "cut", ignore_errors=True)
        build(state, self.folder / "cut")
        return (self.folder / "cut" / self.last).parent


@pytest.fixture(scope="module")
def training(pictures, tmp_path_factory) -> Iterator[Training]:
    with pytest.MonkeyPatch.context() as patch:  # drawing curves takes most of the time
        patch.setattr(report, "render", lambda page: repr((page.state, page.history)))
        yield Training(pictures, tmp_path_factory.mktemp("training"))


def test_any_cut_leaves_what_was_saved_last_or_is_being_saved(training):
    assert len(training.states) > 2000
    looked_at = set()
    for moment, state in training.states:
        allowed = {path: training.allowed(path, moment) for path in training.versions}
        for path in set(allowed) - {training.last}:
            assert state.get(path) in training.versions[path][allowed[path]], (moment, path)
        # The rest depends on the two files of the state alone.
        saves = training.saves[allowed[training.last]]
        key = allowed[training.last].start, state.get(training.last), state.get(training.previous)
        if key not in looked_at:
            looked_at.add(key)
            run = training.build(state)
            if run_folder.newest_run(run.parent):
                newest = checkpoint.read_newest(run / "last.pth")
                assert any(same(newest, save) for save in saves if save), moment
            else:
                assert None in saves, moment
    assert len(looked_at) > 60


def test_a_run_resumed_after_a_cut_comes_to_the_same_bits(training):
    outcomes = {}  # (the save that is resumed, the names of all files): one of these states
    for state in training.end_of_epoch(2):
        newest = state.get(training.last) or state[training.previous]
        outcomes[newest, frozenset(state)] = state
    assert len(outcomes) > 10
    saved = [s for _, s in training.states if {training.last, training.previous} & s.keys()]
    for state in [*outcomes.values(), *random.Random(0).sample(saved, 12)]:
        run = training.build(state)
        main.train(resume=run, save_minutes=10)
        # TensorBoard's files are not flushed to the disk: a cut may take points of the curves.
        assert {*differences(training.run, run)} <= {"points of the curves"}
        assert not list(run.glob(".*.tmp"))
