"""Output to a terminal, pipe or file that never ends the program. No torch here."""

import codecs
import io
import os
import sys
import unicodedata
from typing import Any

# Characters that Unicode does not decompose into ASCII, as it does with … and é.
LOOK_ALIKES = str.maketrans("–—−×✓✗‘’“”│█", "---xvx''\"\"|#") | {0x2264: "<=", 0x2265: ">="}


class DroppingFile(io.FileIO):
    """A file that drops what it cannot write: closed pipe, full disk, terminal gone."""

    pipe_is_closed = False

    def write(self, data) -> int:
        try:
            return super().write(data) or len(data)
        except OSError as error:
            self.pipe_is_closed |= isinstance(error, BrokenPipeError)
            return len(data)


def protect_output() -> None:
    """Replace stdout and stderr by streams that never raise: what they cannot show is replaced."""
    codecs.register_error("look-alike", look_alike)
    # No file opened later may get a closed 1 or 2: what libraries print would go into it.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)  # None if it was closed
        buffer = getattr(old, "buffer", None)
        raw = getattr(buffer, "raw", buffer)  # python -u has no buffer
        if old is None or (type(raw) is io.FileIO and raw.fileno() == number):  # no Windows console
            file = io.BufferedWriter(DroppingFile(number, "w", closefd=False))
            new = io.TextIOWrapper(file, getattr(old, "encoding", "utf-8"), "look-alike")
            new.reconfigure(line_buffering=old and (old.line_buffering or old.write_through))
            setattr(sys, name, new)


def nobody_reads() -> bool:
    """Return whether stdout is a pipe whose reader has ended, as in `… | head -1`."""
    file = getattr(getattr(sys.stdout, "buffer", None), "raw", None)  # a notebook has none
    return getattr(file, "pipe_is_closed", False)


def look_alike(error: Any) -> tuple[str, int]:  # UnicodeEncodeError
    """Return ASCII for the characters that the encoding of a stream does not have."""
    text = error.object[error.start : error.end].translate(LOOK_ALIKES)
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return text.encode("ascii", "replace").decode(), error.end
