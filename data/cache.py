"""Caches of decoded pictures, which later epochs need not decode again; and the free memory."""

import hashlib
import multiprocessing
import os
import shutil
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Read = Callable[[Path], Tensor]  # uint8 pictures (3, H, W)
CGROUP_FILES = {  # of Linux's control groups, version 1 and 2: limit, use, part that can be freed
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    "": ("memory.max", "memory.current", "inactive_file"),
}


def no_cache(index: int, path: Path, read: Read) -> Tensor:
    """Return the picture at `path`."""
    return read(path)


class RamCache:
    """Pictures in memory that all loader processes share: at most half of the free memory."""

    def __init__(self, count: int, path: Callable[[int], Path], read: Read) -> None:
        sizes = []
        for index in range(0, count, max(1, count // 200)):
            with suppress(OSError):
                sizes.append(read(path(index)).numel())
        need = max(1, int(1.1 * count * sum(sizes) / max(1, len(sizes))))
        size = min(need, free_memory() // 2)
        self.store = torch.empty(size, dtype=torch.uint8).share_memory_()
        self.start = torch.full((count,), -1, dtype=torch.int64).share_memory_()
        self.shape = torch.zeros(count, 2, dtype=torch.int32).share_memory_()
        self.used = multiprocessing.Value("q", 0)
        share = f" ({size / need:.0%} of them)" if size < need else ""
        self.description = f"{size / 1e6:,.0f} MB of memory{share}"

    def __call__(self, index: int, path: Path, read: Read) -> Tensor:
        """Return the picture at `path`, whose index is `index`, and store it."""
        start = int(self.start[index])
        if start >= 0:
            height, width = self.shape[index].tolist()
            pixels = self.store[start : start + 3 * height * width].view(height, width, 3)
            return pixels.permute(2, 0, 1).clone()  # transforms may change it
        image = read(path)
        pixels = image.permute(1, 2, 0)
        with self.used.get_lock():
            start = self.used.value
            if start + pixels.numel() > len(self.store):
                return image
            self.used.value += pixels.numel()
        self.store[start : start + pixels.numel()] = pixels.flatten()
        self.shape[index] = torch.tensor(pixels.shape[:2])
        self.start[index] = start  # last, because it marks the picture as stored
        return image


class DiskCache:
    """Pictures as one .npy file each under `root`, for later runs too; a full disk is no failure.

    A file that has changed is decoded again; `decoder` tells how, and if it changes all are.
    """

    def __init__(self, root: Path, decoder: str) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.decoder = root, decoder
        self.description = str(root)

    def __call__(self, index: int, path: Path, read: Read) -> Tensor:
        """Return the picture at `path` and store it."""
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        key = repr((str(path.resolve()), stamp, self.decoder))
        name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        stored = self.root / name[:2] / f"{name}.npy"
        with suppress(Exception), open(stored, "rb") as file:  # a damaged one raises any exception
            pixels = np.load(file)
            if file.read() == checksum(pixels):  # else a power cut has interrupted its writing
                return torch.from_numpy(pixels).permute(2, 0, 1)
        image = read(path)
        pixels = image.permute(1, 2, 0).numpy()
        temporary = stored.with_suffix(f".{os.getpid()}")
        try:
            stored.parent.mkdir(exist_ok=True)
            with open(temporary, "wb") as file:
                np.save(file, pixels)
                file.write(checksum(pixels))
            os.replace(temporary, stored)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        return image


def checksum(pixels: np.ndarray) -> bytes:
    return zlib.crc32(np.ascontiguousarray(pixels)).to_bytes(4, "little")


def free_memory(device: torch.device | None = None, root: Path = Path("/")) -> int:
    """Return the free bytes of a device; without one, of memory that processes can share.

    In memory, the machine, /dev/shm and each control group of this process have a limit.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = free_in_cgroups(root)
    with suppress(OSError):
        lines = (root / "proc/meminfo").read_text().splitlines()
        limits += [1024 * int(line.split()[1]) for line in lines if "MemAvailable" in line]
        limits += [] if device else [shutil.disk_usage(root / "dev/shm").free]
    return max(0, min(limits, default=4 << 30))  # 4 GiB if the system says nothing


def free_in_cgroups(root: Path) -> list[int]:
    """Return the bytes left in the control group of this process and in all groups around it."""
    found = []
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for version in {*controllers.split(",")} & {*CGROUP_FILES}:
                limit, used, freeable = CGROUP_FILES[version]
                group = root / "sys/fs/cgroup" / version / path.strip("/")
                for folder in (group, *group.parents):  # those above the root have no such files
                    with suppress(OSError, ValueError):  # "max" is no number: no limit
                        left, less = (int((folder / name).read_text()) for name in (limit, used))
                        stat = (folder / "memory.stat").read_text().split()
                        found.append(left - less + int(stat[stat.index(freeable) + 1]))
    return found
