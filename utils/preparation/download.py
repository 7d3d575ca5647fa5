"""Download a file: a broken connection is taken up again, and nothing unfinished looks whole."""

import re
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from utils.files import digest_of
from utils.notebook import bar_options

TIMEOUT = 30  # seconds without a byte
WAITS = (1, 2, 4, 8, 16)  # seconds before another attempt
TRY_AGAIN = (408, 429, 500, 502, 503, 504)  # codes of a server that may answer later


class DownloadError(OSError):
    """A download that failed: one line with the address, the reason and what to do."""


class Unfinished(OSError):
    """The end of a file has not come, and another attempt may bring it."""


def download(
    address: str,
    path: Path,
    md5: str | None = None,
    after_each: Callable[[], object] = lambda: None,
) -> Path:
    """Download to `path`, unless it is there. A later call goes on where this one was stopped.

    md5: the checksum, if it is known. after_each: is called now and then; what it raises ends the
    download. Raises DownloadError if the server cannot or will not give
    the file, or gives another one.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    for wait in (*WAITS, None):
        try:
            fetch(address, partial, after_each)
            break
        except (HTTPException, URLError, ConnectionError, TimeoutError, Unfinished) as error:
            reason = str(error) or type(error).__name__
            final = isinstance(error, HTTPError) and error.code not in TRY_AGAIN
            if wait is None or final:
                kept = "" if final else "; what has come is kept: try again later"
                raise DownloadError(f"{address}: {reason}{kept}") from error
            tqdm.write(f"{address}: {reason}; next attempt in {wait} s")
            for _ in range(10):
                time.sleep(wait / 10)
                after_each()
    if md5 and digest_of(partial, "md5") != md5:
        partial.unlink()
        raise DownloadError(f"{address} has another checksum than {md5}: deleted, try again")
    return partial.rename(path)


def fetch(address: str, partial: Path, after_each: Callable[[], object]) -> None:
    """Add to `partial` what it lacks. Raises Unfinished if the end was not reached."""
    done = partial.stat().st_size if partial.exists() else 0
    mark = partial.with_name(f"{partial.name}.version")  # of the file that the part belongs to
    known = mark.read_text(encoding="utf-8") if mark.exists() else ""
    headers = {"Range": f"bytes={done}-", "If-Range": known} if done and known else {}
    headers |= {"User-Agent": "python", "Accept-Encoding": "identity"}
    try:
        answer = urlopen(Request(address, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416:  # there is nothing behind our part: it is of another file
            partial.unlink(missing_ok=True)
            raise Unfinished("the part that had come belongs to another file") from error
        raise
    with answer:
        version = answer.headers["ETag"] or answer.headers["Last-Modified"] or ""
        place = re.match(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers["Content-Range"] or "")
        goes_on = answer.status == 206
        if goes_on and not (place and int(place[1]) == done and version in ("", known)):
            partial.unlink(missing_ok=True)
            raise Unfinished("the server sends another part than was asked for")
        if not goes_on:
            partial.unlink(missing_ok=True)
            mark.write_text(version, encoding="utf-8")
        length = answer.headers["Content-Length"]
        total = int(length) + done * goes_on if length else None
        if goes_on and place and place[2] != "*":
            total = int(place[2])
        options: dict = {"unit": "B", "unit_scale": True, **bar_options()}
        bar = tqdm(desc=partial.stem, total=total, initial=done * goes_on, **options)
        with bar, open(partial, "ab") as file:
            while data := answer.read(1 << 18):
                bar.update(file.write(data))
                after_each()
    size = partial.stat().st_size
    if total is not None and size != total:
        raise Unfinished(f"the connection ended after {size:,} of {total:,} bytes")
    mark.unlink()
