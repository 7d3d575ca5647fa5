"""Record what a program does to the files of a folder; build what a power cut may leave of them.

`record` notes the operations, `states` yields every state that a cut may leave of the folder, and
`build` makes one of them on the disk. What is assumed of the file system stands at `Disk`.
"""

import builtins
import io
import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from unittest.mock import patch

# What is in a folder: the bytes of each file, None for each folder, by relative path.
Contents = dict[str, bytes | None]


class Operation(NamedTuple):
    """One change of the folder. Paths are relative to it; a file keeps its number when renamed."""

    kind: str  # make folder, create, write, truncate, rename, unlink, sync file, sync folder, note
    path: str = ""
    target: str = ""  # the new name, of a rename
    file: int = 0
    offset: int = 0  # where a write begins; the new size, of a truncate
    data: bytes = b""


class Recording(list[Operation]):
    """The operations below a folder in their order; several threads may do them."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder.resolve()
        self.lock = threading.RLock()  # an operation and its record are one
        self.files: dict[tuple[int, int], int] = {}  # (device, inode): our number of the file
        self.folders = {identity(os.stat(self.folder)): "."}
        self.numbers = itertools.count(1)

    def relative(self, path: Any) -> str:
        """Return the path relative to the folder, or "" if it is elsewhere."""
        if not isinstance(path, str | bytes | os.PathLike):  # a descriptor
            return ""
        path = Path(os.path.abspath(os.fsdecode(path)))
        return path.relative_to(self.folder).as_posix() if self.folder in path.parents else ""

    def note(self, path: str | Path) -> None:
        """Record that the program has been told that `path` is written."""
        self.append(Operation("note", self.relative(path)))

    def patches(self) -> Iterator[Any]:
        """Yield the patches that put recording functions in the place of Python's."""
        for module in (builtins, io):
            yield patch.object(module, "open", self._open(module.open))
        for name in ("rename", "replace"):
            yield patch.object(os, name, self._rename(getattr(os, name)))
        for name in ("unlink", "remove"):
            yield patch.object(os, name, self._unlink(getattr(os, name)))
        yield patch.object(os, "mkdir", self._mkdir(os.mkdir))
        yield patch.object(os, "fsync", self._fsync(os.fsync))

    def _open(self, real: Callable) -> Callable:
        def open(path, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **others):
            if not self.relative(path) or set(mode) <= set("rbt"):
                return real(path, mode, buffering, encoding, errors, newline, **others)
            raw = RecordedFile(self, path, mode)
            buffer = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
            return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)

        return open

    def _rename(self, real: Callable) -> Callable:
        def rename(path, target, **others):
            with self.lock:
                real(path, target, **others)
                if (old := self.relative(path)) and (new := self.relative(target)):
                    self.append(Operation("rename", old, new))

        return rename

    def _unlink(self, real: Callable) -> Callable:
        def unlink(path, **others):
            with self.lock:
                real(path, **others)
                if name := self.relative(path):
                    self.append(Operation("unlink", name))

        return unlink

    def _mkdir(self, real: Callable) -> Callable:
        def mkdir(path, *mode, **others):
            with self.lock:
                real(path, *mode, **others)
                if name := self.relative(path):
                    self.folders[identity(os.stat(path))] = name
                    self.append(Operation("make folder", name))

        return mkdir

    def _fsync(self, real: Callable) -> Callable:
        def fsync(descriptor):
            with self.lock:
                real(descriptor)
                status = os.fstat(descriptor)
                if stat.S_ISDIR(status.st_mode):
                    self.append(Operation("sync folder", self.folders.get(identity(status), "")))
                else:
                    number = self.files.get(identity(status), 0)
                    self.append(Operation("sync file", file=number))

        return fsync


class RecordedFile(io.FileIO):
    """A file below the buffers, so that each write is recorded when the system gets it."""

    def __init__(self, recording: Recording, path: str | Path, mode: str) -> None:
        self.recording = recording
        with recording.lock:
            is_new = not os.path.exists(path)
            super().__init__(path, mode.replace("b", "").replace("t", ""))
            key = identity(os.fstat(self.fileno()))
            if is_new:
                recording.files[key] = next(recording.numbers)
            self.number = recording.files[key]
            if is_new:
                operation = Operation("create", recording.relative(path), file=self.number)
                recording.append(operation)
            elif "w" in mode:
                recording.append(Operation("truncate", file=self.number))

    def write(self, data: Any) -> int:
        with self.recording.lock:
            offset = os.fstat(self.fileno()).st_size if "a" in self.mode else self.tell()
            count = super().write(data)
            operation = Operation(
                "write", file=self.number, offset=offset, data=bytes(data)[:count]
            )
            self.recording.append(operation)
        return count

    def truncate(self, size: int | None = None) -> int:
        with self.recording.lock:
            size = super().truncate(size)
            self.recording.append(Operation("truncate", file=self.number, offset=size))
        return size


def identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


@contextmanager
def record(folder: Path) -> Iterator[Recording]:
    """Record every operation below `folder`, which has to be empty, until the block ends.

    Python's `open` and the functions of `os` are replaced meanwhile. Not seen: os.write, os.link,
    os.rmdir, mmap, a function that was imported by name earlier, what C code or another process
    does. So the end of the block replays all operations and compares with the disk, byte for byte:
    AssertionError if anything was missed.
    """
    assert not os.listdir(folder)
    recording = Recording(folder)
    with ExitStack() as stack:
        for one in recording.patches():
            stack.enter_context(one)
        yield recording
    assert replay(recording) == contents(folder), "an operation was not recorded"


class Entry(NamedTuple):
    """What a name stands for after the operation `number`."""

    number: int
    file: int | None  # FOLDER for a folder, None for nothing
    target: str = ""  # nothing because of a rename to this name


FOLDER = 0


class Disk:
    """A disk under a POSIX file system without a journal, as weak as the standard allows it.

    Before a power cut, processes see all operations. What a cut leaves:
    - A file has the contents of its last completed fsync. What changed since is lost, there up to
      its middle, there wholly, or as long as it should be but zeros; a truncation may be there and
      nothing of what was written after it. (Real disks have more: old blocks, holes. Zeros stand
      for them.) A file that was never synced was empty.
    - A name in a folder is what it was at the last completed fsync of this folder, or after any
      later operation on this name: each name keeps its order, but there is no order between names,
      and fsync of a file does not keep its name.
    - A rename onto a name that exists is atomic: it stands for the old or the new file. The new
      name may be there and the old one, too, but never neither of them.
    - A file is lost with its folder.
    What is fsynced stays: the disk does not lie. The folder that is recorded outlives the cut.
    ext4, XFS, Btrfs leave a part of these states.
    """

    def __init__(self) -> None:
        self.names: dict[str, list[Entry]] = {}  # the first outlives a cut, the last is seen
        self.files: dict[int, File] = {}

    def apply(self, number: int, operation: Operation) -> None:
        kind, path, target, file, offset, data = operation
        if kind == "create":
            self.files[file] = File()
            self._add(path, Entry(number, file))
        elif kind == "make folder":
            self._add(path, Entry(number, FOLDER))
        elif kind == "unlink":
            self._add(path, Entry(number, None))
        elif kind == "rename":
            moved = self.names[path][-1].file
            assert moved != FOLDER, "folders that are renamed are not modelled"
            self._add(target, Entry(number, moved))
            self._add(path, Entry(number, None, target))
        elif kind == "write":
            self.files[file].change(offset, data)
        elif kind == "truncate":
            self.files[file].change(offset, None)
        elif kind == "sync file" and file:
            self.files[file].sync()
        elif kind == "sync folder":
            for name in [name for name in self.names if folder_of(name) == path]:
                del self.names[name][:-1]
                if self.names[name][0].file is None:
                    del self.names[name]

    def _add(self, path: str, entry: Entry) -> None:
        self.names.setdefault(path, [Entry(-1, None)]).append(entry)

    def seen(self) -> Contents:
        """Return what processes see."""
        last = {name: entries[-1].file for name, entries in self.names.items()}
        return {
            name: self.files[file].written() if file else None
            for name, file in last.items()
            if file is not None
        }

    def after_cut(self) -> Iterator[Contents]:
        """Yield each state that a power cut may leave now."""
        for entries in itertools.product(*self.names.values()):
            chosen = dict(zip(self.names, entries, strict=True))
            if any(
                entry.target in chosen and chosen[entry.target].number < entry.number
                for entry in entries
                if entry.target
            ):
                continue  # neither the old nor the new name of a rename
            left = {name: entry.file for name, entry in chosen.items() if entry.file is not None}
            left = {
                name: file for name, file in left.items() if set(folders_of(name)) <= left.keys()
            }
            files = sorted({file for file in left.values() if file != FOLDER})
            for variant in itertools.product(*(self.files[file].after_cut() for file in files)):
                data = {FOLDER: None, **dict(zip(files, variant, strict=True))}
                yield {name: data[file] for name, file in left.items()}


class File:
    """The contents of a file: what is on the disk for good, and what was changed since."""

    def __init__(self) -> None:
        self.synced = b""
        self.changes: list[tuple[int, bytes | None]] = []  # None: a truncation
        self.left: list[bytes] = []  # what a cut may leave; empty: not computed yet

    def change(self, offset: int, data: bytes | None) -> None:
        self.changes.append((offset, data))
        self.left = []

    def sync(self) -> None:
        self.synced, self.changes, self.left = self.written(), [], []

    def written(self, share: float = 1, zeros: bool = False) -> bytes:
        """Return the contents with a share of the bytes written since the last fsync."""
        rest = int(share * sum(len(data or b"") for _, data in self.changes))
        now = bytearray(self.synced)
        for offset, data in self.changes:
            now.extend(bytes(max(0, offset - len(now))))
            if data is None:
                del now[offset:]
            else:
                part = data[:rest]
                rest -= len(part)
                now[offset : offset + len(part)] = bytes(len(part)) if zeros else part
        return bytes(now)

    def after_cut(self) -> list[bytes]:
        if not self.left:
            parts = [self.written(share) for share in (0, 0.5, 1)]
            self.left = list(dict.fromkeys([self.synced, *parts, self.written(zeros=True)]))
        return self.left


def folder_of(path: str) -> str:
    return PurePosixPath(path).parent.as_posix()


def folders_of(path: str) -> list[str]:
    return [folder.as_posix() for folder in PurePosixPath(path).parents][:-1]


def states(
    recording: Iterable[Operation], first: int = 0, limit: int = 50_000
) -> Iterator[tuple[int, Contents]]:
    """Yield (number of operations done, state) for a power cut after `first` operations or later.

    A state is yielded once for each interval between two notes. AssertionError after `limit`
    states: their number is exponential in the number of files and names that are not synced.
    """
    disk, known = Disk(), set()
    for number, operation in enumerate([*recording, Operation("end")]):
        if number >= first:
            for state in disk.after_cut():
                if (key := frozenset(state.items())) not in known:
                    known.add(key)
                    limit -= 1
                    assert limit >= 0, "too many states: too little is synced"
                    yield number, state
        if operation.kind == "note":
            known.clear()
        disk.apply(number, operation)


def replay(recording: Iterable[Operation]) -> Contents:
    """Return what the folder holds after the operations."""
    disk = Disk()
    for number, operation in enumerate(recording):
        disk.apply(number, operation)
    return disk.seen()


def contents(folder: Path) -> Contents:
    """Read all that is in a folder."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


def build(state: Contents, folder: Path) -> None:
    """Write a state to a new folder."""
    folder.mkdir()
    for path in sorted(state):
        if state[path] is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(state[path])
