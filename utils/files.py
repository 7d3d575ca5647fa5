"""Files that are always whole: written beside their place, flushed to the disk, then renamed.

No torch here.
"""

import csv
import errno
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def replace_file(
    path: str | Path, write: Callable[[BinaryIO], object], keep_previous: bool = False
) -> None:
    """Let `write(file)` fill a new file that then takes the place of `path`.

    A kill or a power cut at any moment leaves the old file or the new one, never a part of one.
    keep_previous: the old file stays as `previous(path)`. An OSError leaves the old file in place.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # the contents have to be on the disk before the new name is
        if keep_previous and path.exists():
            os.replace(path, previous(path))
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def digest_of(path: str | Path, kind: str = "sha256") -> str:
    """Return the digest of a file's contents, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def previous(path: Path) -> Path:
    """Return where the file that `path` replaced is kept: last.pth has last.previous.pth."""
    return path.with_suffix(f".previous{path.suffix}")


def make_folder(folder: Path) -> None:
    """Make a folder, and those it is in, so that they outlive a power cut."""
    if not folder.exists():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, so that a renaming outlives a power cut."""
    if os.name != "posix":  # Windows has no such call
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot do it
            raise
    finally:
        os.close(descriptor)


def write_bytes(path: str | Path, contents: bytes) -> None:
    replace_file(path, lambda file: file.write(contents))


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8. A path with bytes that are no UTF-8 becomes an escape, which JSON reads back."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: str | Path, contents: Any) -> None:
    write_text(path, json.dumps(contents, indent=2, ensure_ascii=False) + "\n")


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Return the rows of a table with a heading."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Write a table: a column for each key of any row, an empty cell where a row lacks it."""
    text = io.StringIO(newline="")
    columns = dict.fromkeys(key for row in rows for key in row)
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())
