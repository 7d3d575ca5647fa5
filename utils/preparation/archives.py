"""Unpack .zip and .tar files from anywhere: all entries are judged before the first is written."""

import gzip
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple
from unicodedata import normalize

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
NESTED = (*ARCHIVES, ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
MOST_GROWTH = 100  # unpacked bytes for a byte of the archive; photographs hardly shrink
GROWTH_FREE = 10 << 20  # bytes that may grow without limit
SMALLEST_PICTURE, MOST_OTHER_FILES = 26, 10_000  # bytes of a GIF; entries that are no picture


class ArchiveError(ValueError):
    """An archive that is refused: one line with its name, the entry and the reason."""


class Entry(NamedTuple):
    name: str
    size: int  # bytes when unpacked
    kind: str  # file, folder, or what else it is
    open: Callable[[], BinaryIO]


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def unpack(archive: Path, target: Path, allowed: tuple[str, ...] = ()) -> list[Path]:
    """Unpack an archive into the folder `target`; return the archives in it.

    allowed: names of archives that it may contain. A target that is there is whole. Raises
    ArchiveError for an archive that could write elsewhere, fill the disk, or hide something.
    """
    if not target.exists():
        partial = target.with_name(f"{target.name}.partial")  # a run that was killed goes on in it
        with entries_of(archive) as entries:
            judge(archive, entries(), allowed)
        with entries_of(archive) as entries:
            for entry in entries():
                write(archive, entry, partial)
        partial.mkdir(parents=True, exist_ok=True)  # the archive may be empty
        partial.rename(target)
    return [target / name for name in allowed if (target / name).exists()]


def judge(archive: Path, entries: Iterator[Entry], allowed: tuple[str, ...]) -> None:
    """Raise ArchiveError for the first entry that must not be unpacked."""
    most = MOST_GROWTH * archive.stat().st_size + GROWTH_FREE
    total, others = 0, 0
    kinds: dict[str, str] = {}  # of each path, as a file system without upper case sees it
    for entry in entries:
        total += entry.size
        others += entry.kind == "file" and entry.size < SMALLEST_PICTURE
        reason = what_is_wrong(entry, allowed)
        if total > most:
            reason = f"it is a bomb: {total:,} bytes and more in {archive.stat().st_size:,}"
        elif others >= MOST_OTHER_FILES:
            reason = f"{others:,} entries are too small for pictures"
        path = normalize("NFC", entry.name.rstrip("/")).casefold()
        known = kinds.get(path)
        if known and not (known == entry.kind == "folder"):
            reason = reason or "another entry has this name, perhaps in upper or lower case"
        kinds[path] = entry.kind
        while "/" in path and not reason:
            path = path.rpartition("/")[0]
            if kinds.setdefault(path, "folder") != "folder":
                reason = "it lies in a file"
        if reason:
            raise ArchiveError(f"{archive} is refused because of {entry.name!a}: {reason}")


def what_is_wrong(entry: Entry, allowed: tuple[str, ...]) -> str:
    """Return why an entry must not be unpacked, "" if it may be."""
    parts = entry.name.rstrip("/").split("/")
    if entry.kind not in ("file", "folder"):
        return f"it is {entry.kind}"
    if entry.name.startswith("/") or re.match(r"[A-Za-z]:", entry.name):
        return "its path is absolute"
    if ".." in parts:
        return "its path leads out of the folder"
    if "" in parts or "." in parts[1:] or "\\" in entry.name or not entry.name.isprintable():
        return "its path is not a plain one"
    if any(len(os.fsencode(part)) > 255 for part in parts) or len(entry.name) > 1000:
        return "its name is too long"
    if entry.kind == "file" and parts[-1].lower().endswith(NESTED) and entry.name not in allowed:
        return "it is an archive in an archive: unpack that one, and prepare the folder"
    return ""


def write(archive: Path, entry: Entry, folder: Path) -> None:
    """Write a file below `folder`, unless it is there already."""
    path = folder / entry.name
    if entry.kind == "folder":
        path.mkdir(parents=True, exist_ok=True)
    elif not (path.is_file() and path.stat().st_size == entry.size):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(".unfinished")
        try:
            with entry.open() as source, open(unfinished, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            os.replace(unfinished, path)
        except (EOFError, ValueError, RuntimeError, zlib.error, *DAMAGED) as error:
            raise ArchiveError(f"{archive} is damaged at {entry.name}: {error}") from error


DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, NotImplementedError)


@contextmanager
def entries_of(archive: Path) -> Iterator[Callable[[], Iterator[Entry]]]:
    """Open an archive; give a function that yields its entries."""
    try:
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as file:
                yield lambda: (zip_entry(file, info) for info in file.infolist())
        else:
            plain = archive.name.lower().endswith(".tar")
            with open(archive, "rb") if plain else gzip.open(archive) as stream:
                limited = Limited(stream, archive)
                with tarfile.open(fileobj=limited, mode="r:") as file:
                    yield lambda: (tar_entry(file, member) for member in file)
    except (EOFError, zlib.error, *DAMAGED) as error:
        reason = str(error) or type(error).__name__
        raise ArchiveError(f"{archive} cannot be read as an archive: {reason}") from error


def zip_entry(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> Entry:
    kind = "folder" if info.is_dir() else "file"
    unix_type = stat.S_IFMT(info.external_attr >> 16)
    if unix_type == stat.S_IFLNK:
        kind = "a link"
    elif unix_type not in (0, stat.S_IFREG, stat.S_IFDIR):
        kind = "a device or something else"
    elif info.flag_bits & 1:
        kind = "locked by a password"
    return Entry(info.filename, info.file_size, kind, lambda: file.open(info))


def tar_entry(file: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    kind = "folder" if member.isdir() else "file"
    if member.issym() or member.islnk():
        kind = "a link"
    elif member.issparse() or not (member.isreg() or member.isdir()):
        kind = "a device or something else"
    name = member.name.removeprefix("./")
    return Entry(name or ".", member.size, kind, lambda: file.extractfile(member))


class Limited:
    """The unpacked bytes of a .tar.gz: reading ends with ArchiveError where it is a bomb."""

    def __init__(self, stream: BinaryIO, archive: Path) -> None:
        self.stream, self.archive = stream, archive
        self.most = MOST_GROWTH * archive.stat().st_size + GROWTH_FREE

    def read(self, size: int = -1) -> bytes:
        if size > self.most or self.stream.tell() > self.most:
            raise ArchiveError(f"{self.archive} is refused: it is a bomb")
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 0 and offset > self.most:
            raise ArchiveError(f"{self.archive} is refused: it is a bomb")
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()
