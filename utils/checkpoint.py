"""Checkpoint files: whole or not there, never silently damaged, never executing what is in them.

A file is what torch.save writes, so that torch.load reads it anywhere, with a SHA-256 of all of it
in the archive's comment. The one before is kept beside it.
"""

import copy
import hashlib
import io
import os
import pickle
import struct
import time
import warnings
import zipfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

MARK = b"sha256:"
SEAL_SIZE = len(MARK) + 64  # the mark and 64 hexadecimal digits


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used: one line that names the file and what to do."""


def write(path: str | Path, contents: Mapping[str, Any], keep_previous: bool = False) -> Path:
    """Write tensors and plain values so that a kill at any moment leaves a whole file.

    A temporary file beside it is flushed to the disk and then takes its place; `keep_previous`
    leaves the file that was there before as `previous(path)`. An OSError leaves all as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(seal(contents).getbuffer())
            file.flush()
            os.fsync(file.fileno())
        if keep_previous and path.exists():
            os.replace(path, previous(path))
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def previous(path: Path) -> Path:
    """Where the file that `path` replaced is kept: last.pth has last.previous.pth."""
    return path.with_suffix(f".previous{path.suffix}")


def seal(contents: Mapping[str, Any]) -> io.BytesIO:
    """Serialize, with the digest as the comment that ends a zip archive."""
    file = io.BytesIO()
    torch.save(dict(contents), file)
    file.seek(-2, os.SEEK_END)
    file.write(struct.pack("<H", SEAL_SIZE))  # the comment's length
    file.write(MARK + hashlib.sha256(file.getbuffer()).hexdigest().encode())
    return file


def sync_folder(folder: Path) -> None:
    """Make the renaming itself outlive a power cut (Windows has no such call, nor the need)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read(path: str | Path, sealed: bool = False) -> dict[str, Any]:
    """Read a checkpoint or a bare state dict onto the CPU; CheckpointError for anything else.

    sealed: refuse a file without a digest, such as a bare state dict.
    """
    path = Path(path)
    try:
        check_seal(path, sealed)
        check_archive(path)
        with warnings.catch_warnings(action="ignore"):  # torch wonders aloud at an odd file
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except Exception as error:  # whatever the bytes of a stranger's file make a reader raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to run its code
            reason = "it is damaged, or holds more than tensors and plain values"
        raise CheckpointError(f"{path} is not a readable checkpoint: {reason}") from error
    if not isinstance(contents, Mapping):
        raise CheckpointError(f"{path} holds a {type(contents).__name__}, not a state dict")
    return dict(contents)


def check_seal(path: Path, sealed: bool) -> None:
    """Compare the file with its digest, if it has one; ValueError if they differ."""
    body = path.stat().st_size - SEAL_SIZE
    with open(path, "rb") as file:
        file.seek(max(body, 0))
        mark, digest = file.read(len(MARK)), file.read()
        if mark != MARK and not sealed:
            return
        file.seek(0)
        hasher = hashlib.sha256()
        while body > 0 and (block := file.read(min(body, 1 << 20))):
            hasher.update(block)
            body -= len(block)
    if mark != MARK or digest != hasher.hexdigest().encode():
        raise ValueError("it is damaged, its contents do not match its SHA-256")


def check_archive(path: Path) -> None:
    """ValueError for a zip archive that would unpack to more than it takes on the disk."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type for entry in archive.infolist()):
                raise ValueError("it is compressed, as torch.save never does it")


def read_newest(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a run, or the one before where the newest is damaged or missing."""
    try:
        return read(path, sealed=True)
    except CheckpointError as error:
        if not previous(path).exists():
            raise
        if path.exists():  # else a kill came between the two renamings, and nothing is wrong
            tqdm.write(f"{error}; going on from {previous(path).name}")
        return read(previous(path), sealed=True)


def locate(path: str | Path) -> Path:
    """Find the checkpoint meant by a run folder (its best, else its last) or by a file."""
    path = Path(path)
    if not path.is_dir():
        return path
    for name in ("best.pth", "last.pth"):
        if (path / name).exists():
            return path / name
    raise CheckpointError(f"{path} has neither best.pth nor last.pth in it")


class Keeper:
    """Keeps a run's last.pth: `with Keeper(...) as keeper:` around the loops.

    `reached` tells it where the run is; there it saves every `minutes`, and on the way out when a
    signal or another exception ends the run, unless the weights have been touched since: from the
    middle of a step there is no going on. The loop waits for a copy in memory, a thread for the
    disk; a disk that refuses costs a warning, not the run.
    """

    def __init__(
        self,
        path: Path,
        live: Mapping[str, Any],
        facts: Mapping[str, Any],
        minutes: float,
        stop: Any,
        disk: Any,
    ) -> None:
        self.path, self.live, self.facts, self.seconds = path, live, facts, 60 * minutes
        self.stop, self.disk = stop, disk
        self.place: dict[str, Any] = {}
        self.saved_at = time.monotonic()
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.writing: Future = self.thread.submit(int)

    def restore(self, saved: Mapping[str, Any]) -> tuple[int, int, list]:
        """Put the live objects where `saved` has them: epoch, step and history to go on with."""
        if saved:
            for name, item in self.live.items():
                if saved[name]:  # a scaler that had nothing to do has nothing to tell
                    item.load_state_dict(saved[name])
        place = {"epoch": 0, "step": 0, "history": []}
        place = {name: saved.get(name, value) for name, value in place.items()}
        self.reached(**place)
        return tuple(place.values())

    def reached(self, *files: Path, **place: Any) -> None:
        """Note the place, save it to `files` or when it is due, and raise Stopped if asked to."""
        self.place, self.touched = place, self._touches()
        if files or time.monotonic() - self.saved_at > self.seconds:
            self.save(*files or [self.path])
        self.stop.check()

    def save(self, *paths: Path) -> None:
        """Copy the live objects, by their `state_dict` where they have one, and the place."""
        contents = {
            name: copied(item.state_dict() if hasattr(item, "state_dict") else item)
            for name, item in {**self.live, **self.facts, **self.place}.items()
        }
        self.wait()
        self.writing = self.thread.submit(self._write, contents, paths)
        self.saved_at = time.monotonic()

    def wait(self) -> None:
        """Until what is saved is on the disk."""
        self.writing.result()

    def _write(self, contents: Mapping[str, Any], paths: tuple[Path, ...]) -> None:
        for path in paths:
            with self.disk(path):
                write(path, contents, keep_previous=path == self.path)

    def _touches(self) -> int:
        """Count the writes to all parameters and buffers so far."""
        model = self.live["model"]
        return sum(tensor._version for tensor in [*model.parameters(), *model.buffers()])

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind and self.place and self.touched == self._touches():
            self.save(self.path)
        self.wait()
        self.thread.shutdown()


def copied(item: Any) -> Any:
    """Copy to the CPU what a state dict is made of: tensors, alone or in dicts and lists."""
    if isinstance(item, Tensor):
        return item.detach().to("cpu", copy=True)
    if isinstance(item, dict):
        same = copy.copy(item)  # with the layers' versions, which a state dict has as attribute
        same.update((name, copied(value)) for name, value in item.items())
        return same
    return [copied(value) for value in item] if isinstance(item, list) else item
