"""Checkpoint files: always whole, never damaged unnoticed, never executing what is in them.

A file is the zip archive that torch.save writes, so torch.load reads it anywhere. The comment at
the end of the archive holds a SHA-256 of everything before the comment.
"""

import copy
import hashlib
import io
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils.files import previous, replace_file
from utils.notebook import OneLineError

DIGEST_MARK = b"sha256:"
COMMENT_SIZE = len(DIGEST_MARK) + 64  # the mark and 64 hexadecimal digits
# What a wrapper puts before a weight's name: DataParallel, torch.compile, the book's models …
WRAPPER = re.compile(r"^((module|model|net|backbone|_orig_mod)\.)+")


class CheckpointError(OneLineError, RuntimeError):
    """A checkpoint that cannot be used: one line that names the file and what to do."""


def write(path: str | Path, contents: Mapping[str, Any], keep_previous: bool = False) -> Path:
    """Write what `plain_copy` has returned; the file is whole at any moment (see replace_file)."""
    file = io.BytesIO()
    torch.save(contents, file)
    add_digest(file)
    # A damaged file must not take the place of a good previous one.
    keep_previous = keep_previous and is_whole(path)
    replace_file(path, lambda target: target.write(file.getbuffer()), keep_previous)
    return Path(path)


def is_whole(path: str | Path) -> bool:
    """Return whether the file has a digest that matches its contents."""
    try:
        compare_digest(Path(path), required=True)
    except (OSError, ValueError):
        return False
    return True


def add_digest(file: io.BytesIO) -> None:
    """Add a digest of the zip archive `file` as its comment."""
    # An archive without a comment ends with the length of the comment: two bytes of 0.
    file.seek(-2, os.SEEK_END)
    file.write(struct.pack("<H", COMMENT_SIZE))  # the length of the comment
    file.write(DIGEST_MARK + hashlib.sha256(file.getbuffer()).hexdigest().encode())


def plain_copy(value: Any, name: str = "checkpoint") -> Any:
    """Copy nested dicts and lists; tensors come to the CPU, NumPy's values become Python's.

    Raises TypeError, with its name, for a value that torch.load would not read back safely.
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        # copy.copy keeps `_metadata`, an attribute of state dicts.
        same = copy.copy(value) if isinstance(value, OrderedDict) else {}
        same.update(
            (plain_copy(key), plain_copy(item, f"{name}[{key!r}]")) for key, item in value.items()
        )
        return same
    if isinstance(value, list | tuple):
        items = [plain_copy(item, f"{name}[{number}]") for number, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if value is None or type(value) in (str, bool, int, float):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}; a checkpoint takes plain values only")


def read(path: str | Path, digest_required: bool = False) -> dict[str, Any]:
    """Read a checkpoint or a bare state dict onto the CPU; CheckpointError for anything else.

    digest_required: refuse a file without a digest, such as a bare state dict.
    """
    path = Path(path)
    try:
        compare_digest(path, digest_required)
        refuse_compressed(path)
        with warnings.catch_warnings(action="ignore"):  # torch's warnings of an odd file
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except Exception as error:  # a stranger's file can make a reader raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's message advises to run its code
            reason = "it is damaged, or holds more than tensors and plain values"
        raise CheckpointError(f"{path} is not a readable checkpoint: {reason}") from error
    if not isinstance(contents, dict):
        raise CheckpointError(f"{path} holds a {type(contents).__name__}, not a state dict")
    return contents


def compare_digest(path: Path, required: bool) -> None:
    """Raise ValueError if the digest does not match, or is missing although it is required."""
    left = path.stat().st_size - COMMENT_SIZE  # bytes of the content that are to be hashed
    with open(path, "rb") as file:
        file.seek(max(left, 0))
        mark, digest = file.read(len(DIGEST_MARK)), file.read()
        if mark != DIGEST_MARK and not required:
            return
        file.seek(0)
        hasher = hashlib.sha256()
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            hasher.update(block)
            left -= len(block)
    if mark != DIGEST_MARK:
        raise ValueError("it is damaged or not a run's checkpoint: it has no SHA-256 at its end")
    if digest != hasher.hexdigest().encode():
        raise ValueError("it is damaged, its contents do not match its SHA-256")


def refuse_compressed(path: Path) -> None:
    """Raise ValueError for a zip archive that would unpack to more than it takes on the disk."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type for entry in archive.infolist()):
                raise ValueError("it is compressed, which torch.save never does")


def read_newest(path: Path) -> dict[str, Any]:
    """Read a run's checkpoint, or the previous one if the newest is damaged or missing."""
    try:
        return read(path, digest_required=True)
    except CheckpointError as error:
        if not previous(path).exists():
            raise
        if path.exists():  # else a kill came between the two renamings, and nothing is wrong
            tqdm.write(f"{error}; going on from {previous(path).name}")
        return read(previous(path), digest_required=True)


def locate(path: str | Path) -> Path:
    """Return the checkpoint that a run's folder (its best, else its last) or a file stands for."""
    path = Path(path)
    if not path.is_dir():
        return path
    for name in ("best.pth", "last.pth"):
        if (path / name).exists():
            return path / name
    raise CheckpointError(f"{path} has neither best.pth nor last.pth in it")


def load_file(model: nn.Module, path: str | Path, head: Collection[str] = ()) -> bool:
    """Load the weights of a state dict or of a checkpoint that `train` has written.

    head, and what is returned: see load_weights.
    """
    contents = read(path)
    return load_weights(model, contents.get("model", contents), source=path, head=head)


def load_weights(
    model: nn.Module, state: Mapping[str, Tensor], source: str | Path, head: Collection[str] = ()
) -> bool:
    """Load all weights of a state dict, or raise CheckpointError and change nothing.

    source: where they come from, for the message. head: weights that may be different there, or
    missing; then all of them stay as they are, and False is returned.
    """
    own = model.state_dict()
    # The versions of the layers, which some of them need to load old files.
    metadata = getattr(state, "_metadata", None) or getattr(own, "_metadata", None)
    # torchvision's and other old files do not have the batch counters of BatchNorm.
    counters = {n: torch.zeros_like(v) for n, v in own.items() if n.endswith("_tracked")}
    names = {WRAPPER.sub("", name): name for name in own} | {name: name for name in own}
    state = counters | {names.get(n, names.get(WRAPPER.sub("", n), n)): v for n, v in state.items()}
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in own.items()}
    found = {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
    head_fits = all(found.get(name) == shapes[name] for name in head)
    if not head_fits:  # what else the file has belongs to its own head
        state = {n: v for n, v in state.items() if n in own} | {n: own[n] for n in head}
        found = {n: shape for n, shape in found.items() if n in own} | {n: shapes[n] for n in head}
    wrong = [
        f"{name} is {found.get(name, 'missing')} in the file, "
        f"{shapes.get(name, 'unknown')} in the model"
        for name in shapes | found
        if shapes.get(name) != found.get(name) and not name.endswith("_extra_state")
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{source} does not fit {type(model).__name__}: {wrong[0]}{more}; "
            "give the model and the classes it was saved with"
        )
    loaded: Any = OrderedDict(state)
    loaded._metadata = metadata
    model.load_state_dict(loaded)
    return head_fits
