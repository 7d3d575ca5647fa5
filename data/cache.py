"""Decoded pictures in one file, in memory or on the disk, which later epochs need not decode."""

import io
import math
import os
import zlib
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CGROUP_FILES = {  # of Linux's control groups, version 1 and 2: limit, use, part that can be freed
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    "": ("memory.max", "memory.current", "inactive_file"),
}
MAX_BYTES = 16  # of a picture, times side ** 2; a larger picture is not kept
PAGE = 4096  # bytes; the part of a place in the file that a picture does not fill takes no memory


class PictureFile:
    """A file with a place for each picture, which the loader processes read and write together.

    It begins with a row (stamp, checksum, height, width) for each picture; height 0 means that it
    is not stored. A picture is taken from the file if its stamp is the one asked for and its
    checksum is right: another stamp means that its source has changed, another checksum that a
    power cut has interrupted the writing. A full disk is no failure: pictures are decoded again.
    """

    def __init__(self, count: int, side: int, path: Path | None = None) -> None:
        """path: None for a file in memory, which is gone when this process has ended or died."""
        self.count, self.on_disk = count, path is not None
        self.rows_size = PAGE * math.ceil(32 * count / PAGE)
        self.place_size = PAGE * math.ceil(MAX_BYTES * side**2 / PAGE)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        elif hasattr(os, "memfd_create"):  # Linux, whose containers may have little shared memory
            self.memory = open(os.memfd_create("pictures"), "r+b")  # noqa: SIM115 (kept open)
            path = Path(f"/proc/{os.getpid()}/fd/{self.memory.fileno()}")
        self.path = path
        size = self.rows_size + count * self.place_size
        if path:
            os.truncate(path, max(size, os.path.getsize(path)))
        else:  # macOS, Windows: memory that torch shares with the processes it is sent to
            self.shared = torch.UntypedStorage._new_shared(size)

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs: it opens the file itself."""
        names = "count", "on_disk", "rows_size", "place_size", "path", "shared"
        return {name: vars(self)[name] for name in names if name in vars(self)}

    @cached_property
    def file(self) -> io.FileIO | None:
        return open(self.path, "r+b", buffering=0) if self.path else None

    @cached_property
    def contents(self) -> Tensor:
        """All bytes, one memory for all processes."""
        if self.path:
            return torch.from_numpy(np.memmap(self.path, np.uint8, "r+"))
        return torch.empty(0, dtype=torch.uint8).set_(self.shared)

    @cached_property
    def rows(self) -> np.ndarray:
        """(count, 4) of int64."""
        return self.contents[: 32 * self.count].numpy().view(np.int64).reshape(-1, 4)

    @cached_property
    def pixels(self) -> Tensor:
        return self.contents[self.rows_size :]

    @cached_property
    def verified(self) -> np.ndarray:
        """Whose checksum this process has compared: bool (count,)."""
        return np.zeros(self.count, dtype=bool)

    def read(self, index: int, stamp: int = 0) -> Tensor | None:
        """Return picture `index`, uint8 (3, H, W), or None. It must not be changed in place."""
        known, checksum, height, width = self.rows[index].tolist()
        if not height or known != stamp:
            return None
        start = index * self.place_size
        pixels = self.pixels[start : start + 3 * height * width]
        if not self.verified[index]:
            if zlib.crc32(pixels.numpy().data) != checksum:
                return None
            self.verified[index] = True
        return pixels.view(height, width, 3).permute(2, 0, 1)

    def write(self, index: int, picture: Tensor, stamp: int = 0) -> None:
        """Store a picture (3, H, W), if it fits in its place."""
        pixels = picture.permute(1, 2, 0).contiguous().numpy()
        if pixels.nbytes > self.place_size:
            return
        row = np.array([stamp, zlib.crc32(pixels.data), *pixels.shape[:2]], dtype=np.int64)
        with suppress(OSError):
            if self.put(pixels, self.rows_size + index * self.place_size):
                self.put(row, 32 * index)  # last, for it marks it as stored

    def put(self, array: np.ndarray, start: int) -> bool:
        """Write some bytes; return whether all are written. OSError for a full disk."""
        if self.file and hasattr(os, "pwrite"):
            # Not by `contents`, where a full disk would kill the process.
            return os.pwrite(self.file.fileno(), array.data, start) == array.nbytes
        contents = torch.from_numpy(array.view(np.uint8).ravel())
        self.contents[start : start + array.nbytes] = contents
        return True

    def stored(self) -> Tensor:
        """Return which pictures are stored: bool (count,)."""
        return torch.from_numpy(self.rows[:, 2] > 0)


def free_memory(root: Path = Path("/")) -> int:
    """Return the free bytes of memory, of the machine and of each control group around us."""
    limits = free_in_cgroups(root)
    with suppress(OSError):
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
        limits += [1024 * int(line.split()[1]) for line in lines if "MemAvailable" in line]
    return max(0, min(limits, default=4 << 30))  # 4 GiB if the system says nothing


def free_in_cgroups(root: Path) -> list[int]:
    """Return the bytes left in the control group of this process and in all groups around it."""
    found = []
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            for version in {*controllers.split(",")} & {*CGROUP_FILES}:
                limit_file, used_file, freeable = CGROUP_FILES[version]
                group = root / "sys/fs/cgroup" / version / path.strip("/")
                for folder in (group, *group.parents):  # those above the root have no such files
                    with suppress(OSError, ValueError):  # "max" is no number: no limit
                        limit = int((folder / limit_file).read_text(encoding="utf-8"))
                        used = int((folder / used_file).read_text(encoding="utf-8"))
                        stat = (folder / "memory.stat").read_text(encoding="utf-8").split()
                        found.append(limit - used + int(stat[stat.index(freeable) + 1]))
    return found
