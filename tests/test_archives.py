"""Archives from anywhere: they come out byte for byte, or not at all and with one line."""

import bz2
import errno
import gzip
import io
import os
import random
import re
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import PROJECT, linux_only
from utils.preparation.archives import ArchiveError, Entry, is_archive, unpack, what_is_wrong

DATA = bytes(range(256)) * 2  # of a file that could be a picture
MB = 1 << 20
Build = Callable[[Path], object]
pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")  # zipfile about hostile ones


# Building archives.


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = 0) -> Build:
    """Return what writes a .zip file of names and contents."""

    def build(path: Path) -> None:
        with zipfile.ZipFile(path, "w", method) as file:
            for name, data in entries:
                file.writestr(name, data)

    return build


def tarred(*entries: tuple[str | tarfile.TarInfo, bytes], **options) -> Build:
    """Return what writes a .tar file of names and contents, compressed if it is to have .gz."""

    def build(path: Path) -> None:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", **options) as file:
            for name, data in entries:
                info = tarfile.TarInfo(name) if isinstance(name, str) else name
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
        data = stream.getvalue()
        path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)

    return build


def raw(*parts: bytes) -> Build:
    """Return what writes these bytes, compressed one by one if the file is to have .gz."""

    def build(path: Path) -> None:
        pieces = [gzip.compress(part) for part in parts] if path.suffix == ".gz" else parts
        path.write_bytes(b"".join(pieces))

    return build


def both(*names: str, suffix: str) -> Build:
    """Return what writes files of these names into a .zip or a .tar."""
    return (zipped if suffix == ".zip" else tarred)(*((name, DATA) for name in names))


def special_zip(name: str, mode: int, data: bytes = b"") -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (mode | 0o777) << 16
    return info, data


def special_tar(
    name: str, kind: bytes, link: str = "", **pax: str
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.pax_headers = kind, link, pax
    return info, b""


def folder_of_tar(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return special_tar(name, tarfile.DIRTYPE)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a header of a tar member, which may say anything about its size."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


END = bytes(1024)  # of a .tar file
MANY_ZEROS = gzip.compress(bytes(MB))  # 1 kB; a .gz file may consist of several


def header_then_zeros(head: bytes, megabytes: int, padding: int = 0) -> Build:
    """Return what writes a .tar.gz with a header and zeros, and with bytes that do not shrink."""

    def build(path: Path) -> None:
        noise = random.Random(0).randbytes(padding)
        data = gzip.compress(head) + MANY_ZEROS * megabytes
        path.write_bytes(data + gzip.compress(noise, 0) * bool(padding))

    return build


class Lie:
    """A zip entry whose two headers say what one likes."""

    def __init__(self, name: bytes, data: bytes, method: int = 0, **says) -> None:
        self.name, self.data, self.method = name, data, method
        self.crc = says.pop("crc", zlib.crc32(data))
        self.size = says.pop("size", len(data))  # when unpacked
        self.flags = says.pop("flags", 0x800)  # 0x800: the name is UTF-8
        self.local_name = says.pop("local_name", name)
        assert not says

    def fields(self, name: bytes) -> bytes:
        sizes = (self.crc, len(self.data), self.size, len(name), 0)
        return struct.pack("<5H3L2H", 20, self.flags, self.method, 0, 33, *sizes)

    def local(self) -> bytes:
        return b"PK\3\4" + self.fields(self.local_name) + self.local_name + self.data

    def central(self, offset: int) -> bytes:
        rest = struct.pack("<3H2L", 0, 0, 0, 0, offset)
        return (
            b"PK\1\2" + struct.pack("<H", 3 << 8 | 20) + self.fields(self.name) + rest + self.name
        )


def lying(*entries: Lie, shift: int = 0, nested: bool = False) -> Build:
    """Return what writes a .zip of such entries.

    shift: how far the end is wrong about where the table of contents is. nested: each entry
    contains all that follow it.
    """

    def build(path: Path) -> None:
        body, table, offsets, written = b"", b"", [], list(entries)
        if nested:
            for number, entry in reversed([*enumerate(entries)]):
                written[number] = Lie(entry.name, entry.data + body)
                body = written[number].local()
            offsets = [len(body) - len(entry.local()) for entry in written]
        else:
            for entry in entries:
                offsets.append(len(body))
                body += entry.local()
        for entry, offset in zip(written, offsets, strict=True):
            table += entry.central(offset)
        count, place = len(entries), len(body) + shift
        end = struct.pack("<4H2LH", 0, 0, count, count, len(table), place, 0)
        path.write_bytes(body + table + b"PK\5\6" + end)

    return build


def deflated_zeros(megabytes: int) -> bytes:
    press = zlib.compressobj(9, wbits=-15)
    block = press.compress(bytes(MB)) + press.flush(zlib.Z_FULL_FLUSH)
    return block * megabytes + b"\3\0"


def bz2_zeros(blocks: int) -> bytes:
    """Return 46 MB of zeros for each block, in fewer than 50 bytes a block."""
    stream = bz2.compress(bytes(46 * MB))  # two blocks
    bits = f"{int.from_bytes(stream):0{8 * len(stream)}b}"
    block = bits[32 : bits.index(f"{0x314159265359:048b}", 33)]
    total = 0
    for _ in range(blocks):
        total = (total << 1 & 0xFFFFFFFF | total >> 31) ^ int(block[48:80], 2)
    bits = bits[:32] + block * blocks + f"{0x177245385090:048b}{total:032b}"
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8)


def later(make: Callable[[], Build]) -> Build:
    """Return what makes and calls a `Build` that takes long to make."""
    return lambda path: make()(path)


def in_its_own_folder(suffix: str) -> Build:
    """Return what writes an absolute path, one that the test looks at, into an archive."""
    return lambda path: both(f"{path.parent}/x.jpg", suffix=suffix)(path)


def cut(build: Build, length: int) -> Build:
    """Return what writes an archive and cuts it; length: of what stays, or minus what is lost."""

    def cut_it(path: Path) -> None:
        build(path)
        path.write_bytes(path.read_bytes()[:length])

    return cut_it


def changed(build: Build, place: int, data: bytes) -> Build:
    def change(path: Path) -> None:
        build(path)
        old = path.read_bytes()
        place_from_start = place % len(old)
        path.write_bytes(old[:place_from_start] + data + old[place_from_start + len(data) :])

    return change


# Hostile archives: what they are, the end of the file's name, what writes it, and the entry that
# is to blame, if one is. Those in REFUSED must be seen before anything is written.

TWO_FILES = (("a.jpg", DATA), ("b.jpg", DATA))
NFC, NFD = "Äpfel.jpg", "A\u0308pfel.jpg"
TOO_LONG = "é" * 126 + ".jpg"  # 256 bytes, 130 letters
DEEP = "/".join(["d"] * 200)
PAX_MAP = {"GNU.sparse.map": "0,256,512,256", "GNU.sparse.size": "1024"}

REFUSED: dict[str, tuple[str, Build, str | None]] = {
    # Out of the folder.
    "up (zip)": (".zip", both("../x.jpg", suffix=".zip"), "../x.jpg"),
    "up (tar)": (".tar", both("../x.jpg", suffix=".tar"), "../x.jpg"),
    "up (tar.gz)": (".tar.gz", both("../x.jpg", suffix=".tar"), "../x.jpg"),
    "down and up (zip)": (".zip", both("a/../../x.jpg", suffix=".zip"), "a/../../x.jpg"),
    "down and up (tar)": (".tar", both("a/../../x.jpg", suffix=".tar"), "a/../../x.jpg"),
    "up behind ./ (tar)": (".tar", both("./../x.jpg", suffix=".tar"), "../x.jpg"),
    "up with backslashes (zip)": (".zip", both("..\\x.jpg", suffix=".zip"), "..\\x.jpg"),
    "up with backslashes (tar)": (".tar", both("..\\x.jpg", suffix=".tar"), "..\\x.jpg"),
    "a folder that is up (tar)": (".tar", tarred(folder_of_tar("a/..")), "a/.."),
    "up after a good file (zip)": (".zip", both("a.jpg", "../x.jpg", suffix=".zip"), "../x.jpg"),
    "absolute (zip)": (".zip", in_its_own_folder(".zip"), "{parent}/x.jpg"),
    "absolute (tar)": (".tar", in_its_own_folder(".tar"), "{parent}/x.jpg"),
    "absolute with two slashes (zip)": (".zip", both("//a/x.jpg", suffix=".zip"), "//a/x.jpg"),
    "a drive of Windows (zip)": (".zip", both("C:/x.jpg", suffix=".zip"), "C:/x.jpg"),
    "a drive of Windows (tar)": (".tar", both("c:x.jpg", suffix=".tar"), "c:x.jpg"),
    # Links and devices.
    "a link out (zip)": (".zip", zipped(special_zip("a.jpg", stat.S_IFLNK, b"../x")), "a.jpg"),
    "a link out (tar)": (".tar", tarred(special_tar("a.jpg", tarfile.SYMTYPE, "../x")), "a.jpg"),
    "a link within (tar.gz)": (
        ".tar.gz",
        tarred(("b.jpg", DATA), special_tar("a.jpg", tarfile.SYMTYPE, "b.jpg")),
        "a.jpg",
    ),
    "a file through a link (zip)": (
        ".zip",
        zipped(special_zip("d", stat.S_IFLNK, b"../.."), ("d/x.jpg", DATA)),
        "d",
    ),
    "a file through a link (tar)": (
        ".tar",
        tarred(special_tar("d", tarfile.SYMTYPE, "../.."), ("d/x.jpg", DATA)),
        "d",
    ),
    "a hard link out (tar)": (
        ".tar",
        tarred(special_tar("a.jpg", tarfile.LNKTYPE, "../../mine.txt")),
        "a.jpg",
    ),
    "a hard link to be written through (tar)": (
        ".tar",
        tarred(special_tar("a.jpg", tarfile.LNKTYPE, "../../mine.txt"), ("a.jpg", DATA)),
        "a.jpg",
    ),
    "a character device (zip)": (".zip", zipped(special_zip("a.jpg", stat.S_IFCHR)), "a.jpg"),
    "a character device (tar)": (".tar", tarred(special_tar("a.jpg", tarfile.CHRTYPE)), "a.jpg"),
    "a block device (tar)": (".tar", tarred(special_tar("a.jpg", tarfile.BLKTYPE)), "a.jpg"),
    "a pipe (zip)": (".zip", zipped(special_zip("a.jpg", stat.S_IFIFO)), "a.jpg"),
    "a pipe (tar)": (".tar", tarred(special_tar("a.jpg", tarfile.FIFOTYPE)), "a.jpg"),
    "a sparse file (tar)": (".tar", tarred(special_tar("a.jpg", tarfile.GNUTYPE_SPARSE)), "a.jpg"),
    "a sparse file in pax (tar)": (
        ".tar",
        tarred(special_tar("a.jpg", tarfile.REGTYPE, **PAX_MAP)),
        "a.jpg",
    ),
    # Several entries for one file.
    "upper and lower case (zip)": (".zip", both("A.jpg", "a.jpg", suffix=".zip"), "a.jpg"),
    "upper and lower case (tar)": (".tar", both("d/A.jpg", "D/a.JPG", suffix=".tar"), "D/a.JPG"),
    "NFC and NFD (zip)": (".zip", both(NFC, NFD, suffix=".zip"), NFD),
    "NFD and NFC (tar)": (".tar", both(NFD, NFC, suffix=".tar"), NFC),
    "the same name (zip)": (".zip", both("a.jpg", "a.jpg", suffix=".zip"), "a.jpg"),
    "the same name (tar)": (".tar", both("a.jpg", "a.jpg", suffix=".tar"), "a.jpg"),
    "the same name with ./ (zip)": (".zip", both("a.jpg", "./a.jpg", suffix=".zip"), None),
    "the same name with ./ (tar)": (".tar", both("a.jpg", "././a.jpg", suffix=".tar"), None),
    "a file, then in it another (zip)": (".zip", both("a", "a/b.jpg", suffix=".zip"), "a/b.jpg"),
    "a file, then in it another (tar)": (".tar", both("a", "a/b.jpg", suffix=".tar"), "a/b.jpg"),
    "a file in a later file (zip)": (".zip", both("a/b.jpg", "a", suffix=".zip"), "a"),
    "a file in a later file (tar)": (".tar", both("a/b.jpg", "a", suffix=".tar"), "a"),
    "a folder that is a file (tar)": (".tar", tarred(("a", DATA), folder_of_tar("A")), "A"),
    "the folder itself as a file (zip)": (".zip", both(".", suffix=".zip"), "."),
    "the folder itself as a file (tar)": (".tar", both("./", suffix=".tar"), "."),
    # Names.
    "a new line in a name (zip)": (".zip", both("a\nb.jpg", suffix=".zip"), "a\nb.jpg"),
    "a terminal's codes in a name (tar)": (
        ".tar",
        both("a\33[2J.jpg", suffix=".tar"),
        "a\33[2J.jpg",
    ),
    "a name from right to left (zip)": (
        ".zip",
        both("a\u202egpj.exe", suffix=".zip"),
        "a\u202egpj.exe",
    ),
    "a name that is no UTF-8 (tar)": (".tar", raw(header("a\udcff.jpg", 0), END), "a\udcff.jpg"),
    "a name that is no UTF-8 (zip)": (".zip", lying(Lie(b"a\xff.jpg", DATA)), None),
    "an empty name (zip)": (".zip", lying(Lie(b"\0.jpg", DATA)), None),
    "256 bytes of name (zip)": (".zip", both(TOO_LONG, suffix=".zip"), TOO_LONG),
    "256 bytes of name (tar)": (".tar", both(f"a/{TOO_LONG}", suffix=".tar"), f"a/{TOO_LONG}"),
    "1,001 letters of path (tar)": (
        ".tar",
        both("ab/" * 332 + "a.jpg", suffix=".tar"),
        "ab/" * 332 + "a.jpg",
    ),
    "two slashes (zip)": (".zip", both("a//b.jpg", suffix=".zip"), "a//b.jpg"),
    # Archives in archives, and locked ones.
    "a zip in a zip": (".zip", both("a/more.zip", suffix=".zip"), "a/more.zip"),
    "a tar.gz in a tar": (".tar", both("more.tar.gz", suffix=".tar"), "more.tar.gz"),
    "a 7z in a zip": (".zip", both("more.7z", suffix=".zip"), "more.7z"),
    "a RAR in a tar.gz": (".tar.gz", both("more.RAR", suffix=".tar"), "more.RAR"),
    "a password (zip)": (".zip", lying(Lie(b"a.jpg", DATA, flags=0x801)), "a.jpg"),
    # Too much of something.
    "10,000 tiny files (zip)": (
        ".zip",
        later(lambda: lying(*(Lie(b"%d.jpg" % number, b"x" * 25) for number in range(10_000)))),
        "9999.jpg",
    ),
    "10,000 tiny files (tar.gz)": (
        ".tar.gz",
        later(lambda: raw(b"".join(header(f"{number}.jpg", 0) for number in range(10_000)) + END)),
        "9999.jpg",
    ),
    "10,001 empty folders (tar.gz)": (
        ".tar.gz",
        later(
            lambda: raw(b"".join(header(f"{number}", 0, b"5") for number in range(10_001)) + END)
        ),
        None,
    ),
    "12,000 folders around 60 files (tar.gz)": (
        ".tar.gz",
        tarred(*((f"{number}/{DEEP}/a.jpg", DATA) for number in range(60))),
        None,
    ),
    # No archives, and parts of them.
    "a text (zip)": (".zip", raw(b"This is no archive.\n" * 50), None),
    "a text (tar)": (".tar", raw(b"This is no archive.\n" * 50), None),
    "a text (tar.gz)": (".tar.gz", lambda path: path.write_text("no archive\n" * 50), None),
    "a text that was compressed (tar.gz)": (".tar.gz", raw(b"This is no archive.\n" * 50), None),
    "nothing (zip)": (".zip", raw(), None),
    "nothing (tar)": (".tar", raw(), None),
    "a truncated zip": (".zip", cut(zipped(*TWO_FILES), 800), None),
    "a tar.gz truncated in a file": (".tar.gz", cut(tarred(*TWO_FILES), 180), None),
    "a tar truncated in a file": (".tar", cut(tarred(*TWO_FILES), 1024 + 512 + 100), None),
    "a tar truncated in a header": (".tar", cut(tarred(*TWO_FILES), 1024 + 100), None),
    "a tar truncated before a header": (".tar", cut(tarred(*TWO_FILES), 1024), None),
    "a tar whose second header is damaged": (".tar", changed(tarred(*TWO_FILES), 1030, b"?"), None),
    "a tar.gz with a wrong sum": (".tar.gz", changed(tarred(*TWO_FILES), -8, b"????"), None),
    "a size below zero (tar)": (".tar", raw(header("a.jpg", -4096), DATA, END), None),
    "a size far below zero (tar)": (".tar", raw(header("a.jpg", -(2**80)), DATA, END), None),
    "a size far beyond the end (tar)": (".tar", raw(header("a.jpg", 2**80), DATA, END), None),
    "a pax header of a size below zero (tar.gz)": (
        ".tar.gz",
        raw(header("a", -512, tarfile.XHDTYPE), END),
        None,
    ),
    "a map of holes that is none (tar)": (
        ".tar",
        tarred(special_tar("a.jpg", tarfile.REGTYPE, **{"GNU.sparse.map": "a,b"})),
        None,
    ),
    "400 long names for one file (tar)": (
        ".tar",
        raw(
            (header("././@LongLink", 4, b"L") + b"a" * 4 + bytes(508)) * 400,
            header("a.jpg", 0),
            END,
        ),
        None,
    ),
}

# Each of these would fill the disk, the memory, or a day.
BOMBS: dict[str, tuple[str, Build, str | None]] = {
    "2 GB of zeros (zip)": (
        ".zip",
        lying(Lie(b"a.bmp", deflated_zeros(2000), 8, size=2000 * MB)),
        "a.bmp",
    ),
    "2 GB of zeros (tar.gz)": (
        ".tar.gz",
        header_then_zeros(header("a.bmp", 2000 * MB), 2000),
        None,
    ),
    "60 files of 1 MB of zeros (zip)": (
        ".zip",
        zipped(*((f"{number}.bmp", bytes(MB)) for number in range(60)), method=8),
        None,
    ),
    "3,000 files of 20 kB of zeros (tar.gz)": (
        ".tar.gz",
        tarred(*((f"{number}.bmp", bytes(20_000)) for number in range(3000))),
        None,
    ),
    "400 files that overlap (zip)": (
        ".zip",
        lying(
            *(Lie(b"%03d.bmp" % number, b"") for number in range(399)),
            Lie(b"a", bytes(100_000)),
            nested=True,
        ),
        None,
    ),
    "2 GB of pax header (tar.gz)": (
        ".tar.gz",
        header_then_zeros(header("a", 2000 * MB, tarfile.XHDTYPE), 2000),
        None,
    ),
    "400 MB of pax header beside 4 MB that do not shrink (tar.gz)": (
        ".tar.gz",
        header_then_zeros(header("a", 400 * MB, tarfile.XHDTYPE), 400, padding=4 * MB),
        None,
    ),
    "400 MB of long name beside 4 MB that do not shrink (tar.gz)": (
        ".tar.gz",
        header_then_zeros(header("a", 400 * MB, tarfile.GNUTYPE_LONGNAME), 400, padding=4 * MB),
        None,
    ),
    "1.2 MB of digits as pax header, minutes for a regular expression (tar.gz)": (
        ".tar.gz",
        raw(header("a", 1_200_000, tarfile.XHDTYPE), b"9" * 1_200_000, END),
        None,
    ),
    "550 MB that are said to be 99 bytes (zip, deflate)": (
        ".zip",
        lying(Lie(b"a.bmp", deflated_zeros(550), 8, size=99)),
        "a.bmp",
    ),
    "550 MB that are said to be 99 bytes (zip, bzip2)": (
        ".zip",
        later(lambda: lying(Lie(b"a.bmp", bz2_zeros(12), 12, size=99))),
        "a.bmp",
    ),
}

# What is seen when the entry is read; files before it may have been written, in `out`.
DAMAGED: dict[str, tuple[str, Build, str | None]] = {
    "a wrong CRC": (".zip", lying(Lie(b"a.jpg", DATA), Lie(b"b.jpg", DATA, crc=1)), "b.jpg"),
    "a wrong CRC, deflated": (
        ".zip",
        lying(Lie("Ä.jpg".encode(), deflated_zeros(1), 8, size=MB)),
        "Ä.jpg",
    ),
    "another name in the file": (".zip", lying(Lie(b"a.jpg", DATA, local_name=b"../x")), "a.jpg"),
    "less than it says": (
        ".zip",
        lying(Lie(b"a.jpg", DATA, size=600), Lie(b"b.jpg", b"")),
        "a.jpg",
    ),
    "no deflated bytes": (".zip", lying(Lie(b"a.jpg", b"\xff" * 99, 8, size=600)), "a.jpg"),
    "no bzip2": (".zip", lying(Lie(b"a.jpg", b"\xff" * 99, 12, size=600)), "a.jpg"),
    "no LZMA": (".zip", changed(zipped(("a.jpg", DATA), method=14), 50, b"\xff" * 60), "a.jpg"),
    "a method that nobody knows": (".zip", lying(Lie(b"a.jpg", DATA, 77)), "a.jpg"),
    "an entry that begins before the file": (".zip", lying(Lie(b"a.jpg", DATA), shift=99), "a.jpg"),
}


def listing(folder: Path, besides: Path) -> dict[str, tuple]:
    """Return what lies below a folder, with the contents of files, but not what is in `besides`."""
    found = {}
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(path, name) != besides]
        for name in (*folders, *files):
            entry = Path(path, name)
            kind = stat.S_IFMT(entry.lstat().st_mode)
            whole = kind == stat.S_IFREG
            found[str(entry)] = (kind, entry.lstat().st_nlink, whole and entry.read_bytes())
    return found


def made(tmp_path: Path, case: tuple[str, Build, str | None]) -> tuple[Path, str]:
    """Write a hostile archive beside somebody's file; return it and what the line must contain."""
    suffix, build, blamed = case
    archive = tmp_path / f"bad{suffix}"
    build(archive)
    (tmp_path / "mine.txt").write_text("keep me")
    return archive, "" if blamed is None else ascii(blamed.format(parent=tmp_path))


def refusal(archive: Path, target: Path) -> str:
    with pytest.raises(ArchiveError) as caught:
        unpack(archive, target)
    return str(caught.value)


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_hostile_archive_is_refused_before_anything_is_written(tmp_path, case):
    archive, blamed = made(tmp_path, case)
    out = tmp_path / "out"
    before = listing(tmp_path, besides=out)
    line = refusal(archive, out / "target")
    assert line.startswith(f"{archive} ") and line.isprintable()
    assert blamed in line
    assert not out.exists() or not any(out.iterdir())
    assert listing(tmp_path, besides=out) == before


@pytest.mark.parametrize("case", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_entry_is_named_and_gives_no_folder(tmp_path, case):
    archive, blamed = made(tmp_path, case)
    out = tmp_path / "out"
    before = listing(tmp_path, besides=out)
    line = refusal(archive, out / "target")
    assert line.startswith(f"{archive} ") and line.isprintable()
    assert not (out / "target").exists()
    assert listing(tmp_path, besides=out) == before
    assert blamed in line


# Unpacks; prints the line of the refusal, and by how many bytes the most memory ever has grown.
MEASURED = """
import sys
from pathlib import Path
from utils.preparation.archives import ArchiveError, unpack

def most_memory():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024

before = most_memory()
try:
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
except ArchiveError as error:
    print(error)
print(most_memory() - before)
"""


@linux_only
@pytest.mark.parametrize("case", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_and_takes_little_memory_and_time(tmp_path, case):
    archive, blamed = made(tmp_path, case)
    assert archive.stat().st_size < 5 * MB
    out = tmp_path / "out"
    before = listing(tmp_path, besides=out)
    command = [sys.executable, "-c", MEASURED, str(archive), str(out / "target")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    line, taken = done.stdout.splitlines()
    assert line.startswith(f"{archive} ") and blamed in line
    assert int(taken) < 300e6
    assert sum(path.stat().st_size for path in out.rglob("*")) < MB
    assert not (out / "target").exists()
    assert listing(tmp_path, besides=out) == before


def test_whatever_bytes_are_damaged_there_is_one_line_or_a_folder(tmp_path):
    """No other exception, nothing elsewhere, no hang: 400 damages to each of three archives."""
    rng = random.Random(1)
    unexpected: dict[str, str] = {}
    outcomes = {"folder": 0, "line": 0}
    for suffix, build in (
        (".zip", zipped(("d/Ä.jpg", DATA), ("b.jpg", DATA), ("c/", b""), method=8)),
        (".tar", tarred(("d/Ä.jpg", DATA), ("b" * 150, DATA), format=tarfile.PAX_FORMAT)),
        (".tar.gz", tarred(("d/Ä.jpg", DATA), ("b" * 150, DATA), format=tarfile.GNU_FORMAT)),
    ):
        archive, out = tmp_path / f"bad{suffix}", tmp_path / "out"
        build(archive)
        whole = archive.read_bytes()
        for number in range(400):
            data = bytearray(whole if number % 4 else whole[: rng.randrange(1, len(whole))])
            for _ in range(rng.choice((1, 2, 4))):
                data[rng.randrange(len(data))] = rng.choice(
                    (0, 0x2F, 0x30, 0xFF, rng.randrange(256))
                )
            if suffix == ".tar":
                data = with_right_sums(data)
            archive.write_bytes(data)
            before = listing(tmp_path, besides=out)
            try:
                unpack(archive, out / "target")
                outcomes["folder"] += 1
                assert (out / "target").is_dir()
            except ArchiveError as error:
                outcomes["line"] += 1
                assert str(error).startswith(f"{archive} ") and str(error).isprintable()
                assert not (out / "target").exists()
            except Exception as error:
                unexpected.setdefault(f"{suffix} {type(error).__name__}", str(error))
            assert listing(tmp_path, besides=out) == before
            shutil.rmtree(out, ignore_errors=True)
    assert min(outcomes.values()) > 100
    assert unexpected == {}


def with_right_sums(data: bytearray) -> bytearray:
    """Correct the sums of a tar's headers, without which each damage would be noticed at once."""
    for place in range(0, len(data) - 511, 512):
        if data[place + 257 : place + 262] == b"ustar":
            total = sum(data[place : place + 512]) - sum(data[place + 148 : place + 156]) + 256
            data[place + 148 : place + 156] = b"%06o\0 " % total
    return data


# Good archives.

GOOD = {
    "a.jpg": DATA,
    "empty.jpg": b"",
    "firs/1.jpg": DATA[:100],
    "firs/more/firs/2.jpg": DATA * 5000,  # 2.5 MB
    "Äpfel/grüner Apfel.jpg": b"apple" * 9,
    "玫瑰/玫瑰 1.jpg": b"rose" * 9,
    "d/" * 60 + "deep.jpg": b"deep" * 9,
    "n" * 251 + ".jpg": b"long" * 9,
    "it's (1), 50% & more..jpg": b"signs" * 9,
}
KINDS = [".zip", "deflated.zip", ".tar", ".tar.gz", ".tgz", "gnu.tar", ".ZIP"]


def contents(root: Path) -> dict[str, bytes]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def good(path: Path, files: dict[str, bytes] = GOOD, prefix: str = "") -> Path:
    """Write files and the folder `nothing/` as the kind of archive that the path's end names."""
    entries = [(prefix + name, data) for name, data in files.items()]
    if path.name.lower().endswith(".zip"):
        folder = special_zip(f"{prefix}nothing/", stat.S_IFDIR)
        zipped(folder, *entries, method=8 * ("deflated" in path.name))(path)
    else:
        options = {"format": tarfile.GNU_FORMAT} if "gnu" in path.name else {}
        tarred(folder_of_tar(f"{prefix}nothing"), *entries, **options)(path)
        if path.suffix == ".tgz":
            path.write_bytes(gzip.compress(path.read_bytes()))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_archive_comes_out_byte_for_byte(tmp_path, kind):
    archive = good(tmp_path / f"good{kind}")
    assert is_archive(archive)
    target = tmp_path / "out" / "target"
    assert unpack(archive, target) == []
    assert contents(target) == GOOD
    assert (target / "nothing").is_dir() and not any((target / "nothing").iterdir())
    assert [*target.parent.iterdir()] == [target]


def test_what_is_no_archive_by_its_name_is_known():
    names = ["a.jpg", "zip", "a.zip.txt", "a.gz", "a.7z", "a.tar.bz2"]
    assert not any(is_archive(Path(name)) for name in names)


@pytest.mark.parametrize("kind", [".zip", ".tar", ".tar.gz"])
def test_paths_that_begin_with_a_dot_and_a_slash_come_out_without_it(tmp_path, kind):
    """As `tar -c .` writes them, with an entry for the folder itself."""
    archive = good(tmp_path / f"good{kind}", prefix="./")
    target = tmp_path / "out" / "target"
    unpack(archive, target)
    assert contents(target) == GOOD
    names = {path.name for path in target.iterdir()}
    assert names == {name.partition("/")[0] for name in GOOD} | {"nothing"}


def test_an_archive_made_by_tar_itself_comes_out_byte_for_byte(tmp_path):
    if not shutil.which("tar"):
        pytest.skip("there is no tar")
    unpack(good(tmp_path / "first.zip"), tmp_path / "first")
    archive = tmp_path / "second.tar.gz"
    subprocess.run(["tar", "-czf", archive, "-C", tmp_path / "first", "."], check=True)
    unpack(archive, tmp_path / "second")
    assert contents(tmp_path / "second") == GOOD


@pytest.mark.parametrize("kind", [".zip", ".tar", ".tar.gz"])
def test_an_empty_archive_gives_an_empty_folder(tmp_path, kind):
    archive = tmp_path / f"empty{kind}"
    (zipped() if kind == ".zip" else tarred())(archive)
    assert unpack(archive, tmp_path / "out" / "target") == []
    assert [*(tmp_path / "out" / "target").iterdir()] == []


@pytest.mark.parametrize("kind", [".zip", ".tar"])
def test_files_are_readable_and_not_executable_whatever_the_archive_says(tmp_path, kind):
    archive = tmp_path / f"modes{kind}"
    if kind == ".zip":
        info, _ = special_zip("none.jpg", stat.S_IFREG)
        info.external_attr = stat.S_IFREG << 16
        zipped((info, DATA), special_zip("all.jpg", stat.S_IFREG | stat.S_ISUID, DATA))(archive)
    else:
        none, everything = tarfile.TarInfo("none.jpg"), tarfile.TarInfo("all.jpg")
        none.mode, everything.mode = 0, 0o6777
        tarred((none, DATA), (everything, DATA))(archive)
    unpack(archive, tmp_path / "target")
    modes = {path.name: path.stat().st_mode & 0o7511 for path in (tmp_path / "target").iterdir()}
    assert modes == {"none.jpg": 0o400, "all.jpg": 0o400}


@pytest.mark.parametrize("kind", [".zip", ".tar"])
@pytest.mark.parametrize("name", [".unfinished", ".unfinished/b.jpg"])
def test_an_entry_with_the_name_of_an_unfinished_file_is_not_lost(tmp_path, kind, name):
    files = {name: DATA, "a.jpg": DATA[::-1]}
    archive = tmp_path / f"names{kind}"
    (zipped if kind == ".zip" else tarred)(*files.items())(archive)
    try:
        unpack(archive, tmp_path / "target")
        assert contents(tmp_path / "target") == files
    except ArchiveError as error:  # to refuse it is as good
        assert ascii(name) in str(error)
        assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_call_changes_nothing(tmp_path, kind):
    archive = good(tmp_path / f"good{kind}")
    unpack(archive, tmp_path / "target")
    before = states(tmp_path)
    unpack(archive, tmp_path / "target")
    assert states(tmp_path) == before
    archive.unlink()  # a folder that is there is whole
    assert unpack(archive, tmp_path / "target") == []


def states(root: Path) -> dict[str, tuple[int, int]]:
    """Return {path: (inode, time of the last change)} of all files."""
    files = {path: path.stat() for path in root.rglob("*") if path.is_file()}
    return {
        path.relative_to(root).as_posix(): (state.st_ino, state.st_mtime_ns)
        for path, state in files.items()
    }


@pytest.mark.parametrize("kind", [".zip", ".tar", ".tar.gz"])
def test_the_archives_that_are_allowed_are_returned(tmp_path, kind):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as file:
        file.writestr("fir.0.jpg", DATA)
    files = {"train.zip": inner.getvalue(), "test1.zip": inner.getvalue(), "a.jpg": DATA}
    archive = good(tmp_path / f"all{kind}", files)
    target = tmp_path / "target"
    allowed = ("train.zip", "test1.zip", "val.zip")
    expected = [target / "train.zip", target / "test1.zip"]
    assert unpack(archive, target, allowed=allowed) == expected
    assert unpack(archive, target, allowed=allowed) == expected  # it is there already
    assert contents(target) == files
    unpack(target / "train.zip", tmp_path / "train")
    assert contents(tmp_path / "train") == {"fir.0.jpg": DATA}


def test_an_archive_is_allowed_by_its_whole_path(tmp_path):
    archive = good(tmp_path / "all.zip", {"deeper/train.zip": DATA})
    with pytest.raises(ArchiveError, match=re.escape("'deeper/train.zip'")):
        unpack(archive, tmp_path / "target", allowed=("train.zip",))
    assert [*tmp_path.iterdir()] == [archive]


# Runs that are stopped.

SIX = {f"{folder}/{number}.jpg": DATA * (number + 1) for folder in "ab" for number in range(3)}


def stop_at_third(monkeypatch, error: BaseException) -> None:
    """Let the third file that is written end in the middle with an error."""
    copy, calls = shutil.copyfileobj, []

    def copy_two(source, file, *rest) -> None:
        calls.append(file)
        if len(calls) < 3:
            return copy(source, file, *rest)
        file.write(source.read(7))
        file.flush()
        raise error

    monkeypatch.setattr(shutil, "copyfileobj", copy_two)


@pytest.mark.parametrize("kind", [".zip", ".tar", ".tar.gz"])
def test_an_unpacking_that_was_killed_leaves_nothing_that_looks_whole(tmp_path, monkeypatch, kind):
    archive, out = good(tmp_path / f"six{kind}", SIX), tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at_third(patch, KeyboardInterrupt())
        unpack(archive, out / "target")
    assert not (out / "target").exists() and [*out.rglob("a/0.jpg")]
    unpack(archive, out / "target")
    assert contents(out / "target") == SIX
    assert [*out.iterdir()] == [out / "target"]


@pytest.mark.parametrize("kind", [".zip", ".tar", ".tar.gz"])
def test_a_full_disk_is_an_error_of_the_system_and_leaves_no_folder(tmp_path, monkeypatch, kind):
    archive, out = good(tmp_path / f"six{kind}", SIX), tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_at_third(patch, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(OSError) as caught:
            unpack(archive, out / "target")
    assert caught.value.errno == errno.ENOSPC == 28
    assert not (out / "target").exists()
    unpack(archive, out / "target")  # when there is room again
    assert contents(out / "target") == SIX


@pytest.mark.parametrize("kind", [".zip", ".tar", ".tar.gz"])
def test_an_archive_that_was_replaced_gives_its_own_files_only(tmp_path, monkeypatch, kind):
    """What an interrupted run left of another archive may have the same names and sizes."""
    archive, target = good(tmp_path / f"six{kind}", SIX), tmp_path / "out" / "target"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at_third(patch, KeyboardInterrupt())
        unpack(archive, target)
    new = {name: data[::-1] for name, data in SIX.items() if name != "a/1.jpg"}
    good(archive, new)
    unpack(archive, target)
    assert contents(target) == new


def test_after_a_damage_a_whole_archive_gives_its_files(tmp_path):
    archive, target = tmp_path / "bad.zip", tmp_path / "out" / "target"
    lying(Lie(b"a.jpg", DATA), Lie(b"b.jpg", DATA, crc=1), Lie(b"c.jpg", DATA))(archive)
    refusal(archive, target)
    zipped(("a.jpg", DATA), ("b.jpg", DATA), ("c.jpg", DATA))(archive)
    unpack(archive, target)
    assert contents(target) == {"a.jpg": DATA, "b.jpg": DATA, "c.jpg": DATA}


def test_an_archive_that_is_not_there_is_an_error_of_the_system(tmp_path):
    for kind in (".zip", ".tar", ".tar.gz"):
        with pytest.raises(FileNotFoundError, match="none"):
            unpack(tmp_path / f"none{kind}", tmp_path / "target")
    assert [*tmp_path.iterdir()] == []


PLAIN = ("a/console.jpg", "a b/c.tar.jpg", "com10.jpg")  # the same on all systems


@pytest.mark.parametrize("name", [*PLAIN, "a/con.jpg", "NUL", "a/b:c.jpg", "a./b.jpg", "a?.jpg"])
def test_names_that_mean_something_else_on_windows_are_refused_there(monkeypatch, name):
    entry = Entry(name, 9, "file", io.BytesIO)
    monkeypatch.setattr(os, "name", "posix")
    assert what_is_wrong(entry, ()) == ""
    monkeypatch.setattr(os, "name", "nt")
    assert bool(what_is_wrong(entry, ())) == (name not in PLAIN)
