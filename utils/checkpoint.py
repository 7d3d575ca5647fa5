"""Checkpoint files: whole or not there, never executing what is in them."""

import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used: one line that names the file and what to do."""


def write(path: str | Path, contents: Mapping[str, Any]) -> Path:
    """Write tensors and plain values to `path` so that a kill leaves the old file or the new one.

    A temporary file beside it is flushed to the disk and then takes its place.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(dict(contents), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def read(path: str | Path) -> dict[str, Any]:
    """Read what `write` wrote, onto the CPU; CheckpointError for anything else."""
    path = Path(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # torch wonders aloud at an odd file
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except Exception as error:  # a damaged file may break the reader anywhere
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to run its code
            reason = "it is damaged, or holds more than tensors and plain values"
        raise CheckpointError(f"{path} is not a readable checkpoint: {reason}") from error
    if not isinstance(contents, Mapping):
        raise CheckpointError(f"{path} holds a {type(contents).__name__}, not a state dict")
    return dict(contents)


def save(path: str | Path, **objects: Any) -> Path:
    """Write the objects under their names; those with a `state_dict` are asked for it."""
    contents = {n: o.state_dict() if hasattr(o, "state_dict") else o for n, o in objects.items()}
    return write(path, contents)


def locate(path: str | Path) -> Path:
    """Find the checkpoint meant by a run folder (its best, else its last) or by a file."""
    path = Path(path)
    if not path.is_dir():
        return path
    for name in ("best.pth", "last.pth"):
        if (path / name).exists():
            return path / name
    raise CheckpointError(f"{path} has neither best.pth nor last.pth in it")
