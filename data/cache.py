"""Decoded pictures, kept for the next epoch: the same pixels, without the decoding."""

import hashlib
import multiprocessing
import os
import re
import shutil
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Read = Callable[[Path], Tensor]  # uint8 pictures (3, H, W)
SAMPLE = 200  # pictures whose size is looked at to tell how much memory all of them need


def no_cache(index: int, path: Path, read: Read) -> Tensor:
    """Return the picture at `path`."""
    return read(path)


class RamCache:
    """Pictures in memory that all loader processes share, as they come and while there is room.

    Some of the `count` pictures are looked at to tell how much memory they need. No more than half
    of what is free is taken.
    """

    def __init__(self, count: int, path: Callable[[int], Path], read: Read) -> None:
        some = range(0, count, max(1, count // SAMPLE))
        sizes = [sample_size(path(index), read) for index in some]
        need = max(1, int(1.1 * count * sum(sizes) / len(sizes)))
        size = min(need, free_memory() // 2)
        self.store = torch.empty(size, dtype=torch.uint8).share_memory_()
        self.start = torch.full((count,), -1, dtype=torch.int64).share_memory_()
        self.shape = torch.zeros(count, 2, dtype=torch.int32).share_memory_()
        self.used = multiprocessing.Value("q", 0)
        self.words = f"{size / 1e6:,.0f} MB of memory" + f" ({size / need:.0%})" * (size < need)

    def __call__(self, index: int, path: Path, read: Read) -> Tensor:
        """Return the picture at `path`, number `index`, and keep it."""
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
        self.start[index] = start  # last: from here on it counts
        return image


class DiskCache:
    """Pictures as one .npy file each under `root`, for later runs too.

    A file that was changed, replaced or moved is decoded anew. `kind` tells apart what the same
    file was decoded to. A full disk is no failure: the picture is then read as without a cache.
    """

    def __init__(self, root: Path, kind: str) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.kind = root, kind
        self.words = str(root)

    def __call__(self, index: int, path: Path, read: Read) -> Tensor:
        """Return the picture at `path` and keep it."""
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        key = repr((str(path.resolve()), stamp, self.kind))
        name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        kept = self.root / name[:2] / f"{name}.npy"
        with suppress(Exception), open(kept, "rb") as file:  # a damaged one raises anything
            pixels = np.load(file)
            if file.read() == checksum(pixels):  # else the machine went down while it was written
                return torch.from_numpy(pixels).permute(2, 0, 1)
        image = read(path)
        pixels = image.permute(1, 2, 0).numpy()
        temporary = kept.with_suffix(f".{os.getpid()}")
        try:
            kept.parent.mkdir(exist_ok=True)
            with open(temporary, "wb") as file:
                np.save(file, pixels)
                file.write(checksum(pixels))
            os.replace(temporary, kept)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        return image


def checksum(pixels: np.ndarray) -> bytes:
    return zlib.crc32(np.ascontiguousarray(pixels)).to_bytes(4, "little")


def sample_size(path: Path, read: Read) -> int:
    """Bytes of one decoded picture; 0 if it cannot be read."""
    try:
        return read(path).numel()
    except OSError:
        return 0


def free_memory(device: torch.device | None = None) -> int:
    """Bytes that are free on a device; without one, bytes that processes can share.

    In memory, that is the least of what the machine, this container and /dev/shm have left.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [4 << 30]  # where the system tells nothing
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits = [1024 * int(line.split()[1]) for line in lines if "MemAvailable" in line]
        limits += [] if device else [shutil.disk_usage("/dev/shm").free]
        group = Path("/sys/fs/cgroup")
        most = (group / "memory.max").read_text().strip()
        if most != "max":
            used = int((group / "memory.current").read_text())
            files = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.M)
            limits.append(int(most) - used + int(files[1]))  # files in memory make room when asked
    return max(0, min(limits))
