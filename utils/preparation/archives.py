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
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
NESTED = (*ARCHIVES, ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
MOST_GROWTH = 100  # unpacked bytes for a byte of the archive; photographs hardly shrink
GROWTH_FREE = 10 << 20  # bytes that may grow without limit
SMALLEST_PICTURE = 26  # bytes, of a GIF
MOST_OTHERS = 10_000  # so many more folders and smaller entries than pictures are refused
MOST_AT_ONCE = 1 << 16  # bytes; an entry's header is never longer
# What Windows takes for something else than a name: a device, a stream of a file, a shorter name.
NOT_ON_WINDOWS = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*[<>:\"|?*].*|.*[. ]")
DAMAGED = (  # what the libraries raise for an archive that is damaged, or was made to hurt
    *(EOFError, ValueError, IndexError, RuntimeError, RecursionError, NotImplementedError),
    *(zlib.error, zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile),
)


class ArchiveError(ValueError):
    """An archive that is refused: one line with its name, the entry and the reason."""


class Entry(NamedTuple):
    name: str
    size: int  # bytes when unpacked
    kind: str  # file, folder, or what else it is
    open: Callable[[], Any]  # returns a file of bytes


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def unpack(
    archive: Path,
    target: Path,
    allowed: tuple[str, ...] = (),
    after_each: Callable[[], object] = lambda: None,
) -> list[Path]:
    """Unpack an archive into the folder `target`; return the archives in it.

    allowed: names of archives that it may contain. after_each: is called after each file; what it
    raises ends the work. A target that is there is whole, and stays as it is. Raises ArchiveError
    for an archive that is damaged, or that could write elsewhere, fill the disk, or hide something.
    """
    if not target.exists():
        with entries_of(archive) as entries:
            judge(archive, entries(), allowed)
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir(parents=True)
        with entries_of(archive) as entries:
            for entry in entries():
                write(archive, entry, partial)
                after_each()
        partial.rename(target)
    return [target / name for name in allowed if (target / name).exists()]


def judge(archive: Path, entries: Iterator[Entry], allowed: tuple[str, ...]) -> None:
    """Raise ArchiveError for the first entry that must not be unpacked."""
    most = MOST_GROWTH * archive.stat().st_size + GROWTH_FREE
    total, pictures, others = 0, 0, 0
    kinds: dict[str, str] = {}  # of each path, as a file system without upper case sees it
    for entry in entries:
        total += entry.size
        pictures += entry.size >= SMALLEST_PICTURE
        others += entry.size < SMALLEST_PICTURE
        reason = what_is_wrong(entry, allowed)
        if total > most:
            reason = f"it is a bomb: {total:,} bytes and more in {archive.stat().st_size:,}"
        elif others >= pictures + MOST_OTHERS:
            reason = f"{others:,} folders and entries that are too small for pictures"
        path = normalize("NFC", entry.name.rstrip("/")).casefold()
        known = kinds.get(path)
        if known and not (known == entry.kind == "folder"):
            reason = reason or "another entry has this name, perhaps in upper or lower case"
        kinds[path] = entry.kind
        while "/" in path and not reason:
            path = path.rpartition("/")[0]
            others += path not in kinds
            if kinds.setdefault(path, "folder") != "folder":
                reason = "it lies in a file"
        if reason:
            raise ArchiveError(f"{archive} is refused because of {entry.name!a}: {reason}")


def what_is_wrong(entry: Entry, allowed: tuple[str, ...]) -> str:
    """Return why an entry must not be unpacked, "" if it may be."""
    parts = entry.name.rstrip("/").split("/")
    if entry.kind not in ("file", "folder"):
        return f"it is {entry.kind}"
    if entry.size < 0:
        return "its size is below zero"
    if entry.kind == "folder" and parts == ["."]:
        return ""
    if entry.name.startswith("/") or re.match(r"[A-Za-z]:", entry.name):
        return "its path is absolute"
    if ".." in parts:
        return "its path leads out of the folder"
    if {"", "."} & {*parts} or "\\" in entry.name or not entry.name.isprintable():
        return "its path is not a plain one"
    if os.name == "nt" and any(map(NOT_ON_WINDOWS.fullmatch, parts)):
        return "Windows has no file of this name"
    if any(len(os.fsencode(part)) > 255 for part in parts) or len(entry.name) > 1000:
        return "its name is too long"
    if entry.kind == "file" and parts[-1].lower().endswith(NESTED) and entry.name not in allowed:
        return "it is an archive in an archive: unpack that one, and prepare the folder"
    return ""


def write(archive: Path, entry: Entry, folder: Path) -> None:
    """Write a file below `folder`; none is there by that name."""
    path = folder / entry.name
    if entry.kind == "folder":
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with entry.open() as source, open(path, "xb") as file:
            shutil.copyfileobj(source, file, MOST_AT_ONCE)
        if path.stat().st_size != entry.size:
            raise EOFError(f"{path.stat().st_size:,} of {entry.size:,} bytes")
    except DAMAGED as error:
        raise ArchiveError(f"{archive} is damaged at {entry.name!a}: {str(error)!a}") from error


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
                limited: Any = Limited(stream, archive)  # has all that tarfile calls
                with tarfile.open(fileobj=limited, mode="r:") as file:
                    yield lambda: tar_entries(file, limited)
    except ArchiveError:
        raise
    except DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise ArchiveError(f"{archive} cannot be read as an archive: {reason}") from error


def zip_entry(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> Entry:
    kind = "folder" if info.filename.endswith("/") else "file"
    unix_type = stat.S_IFMT(info.external_attr >> 16)
    if unix_type == stat.S_IFLNK:
        kind = "a link"
    elif unix_type not in (0, stat.S_IFREG, stat.S_IFDIR):
        kind = "a device or something else"
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        kind = "compressed in an unusual way"  # the others are unpacked without a limit
    elif info.flag_bits & 1:
        kind = "locked by a password"
    elif info.header_offset < 0:
        kind = "outside of the archive"
    return Entry(plain(info.filename), info.file_size, kind, lambda: file.open(info))


def tar_entries(file: tarfile.TarFile, stream: "Limited") -> Iterator[Entry]:
    """Yield the entries, and make sure that the end is there and that the checksum is right."""
    for member in file:
        yield tar_entry(file, member)
    stream.seek(file.offset)
    if stream.read(512) != bytes(512):  # tarfile takes a damaged header for the end
        raise tarfile.ReadError("its end is missing")
    while stream.read(MOST_AT_ONCE):
        pass


def tar_entry(file: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    kind = "folder" if member.isdir() else "file"
    if member.issym() or member.islnk():
        kind = "a link"
    elif member.issparse() or not (member.isreg() or member.isdir()):
        kind = "a device or something else"
    return Entry(plain(member.name), member.size, kind, lambda: file.extractfile(member))


def plain(name: str) -> str:
    """Return a name without "./" at its start."""
    while name.startswith("./"):
        name = name[2:] or "."
    return name


class Limited:
    """The unpacked bytes of a .tar.gz: reading ends with ArchiveError where it is a bomb."""

    def __init__(self, stream: BufferedIOBase, archive: Path) -> None:
        self.stream, self.archive = stream, archive
        self.most = MOST_GROWTH * archive.stat().st_size + GROWTH_FREE

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MOST_AT_ONCE or self.stream.tell() > self.most:
            raise ArchiveError(f"{self.archive} is refused: it is a bomb")
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 0 and offset > self.most:
            raise ArchiveError(f"{self.archive} is refused: it is a bomb")
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()
