"""`touch /tmp/debug` while a run goes on: a debugger opens in the frame of its loop."""

import os
import pdb
import stat
import sys
from pathlib import Path

from tqdm import tqdm


def pause_if_asked(debug_file: str | None) -> None:
    """Open ipdb in the caller's frame if the user has touched `debug_file`; the file is consumed.

    `c` goes on, `q` ends the run. Without a terminal it says so and the run goes on.
    """
    if debug_file is None or not asked(debug_file):
        return
    try:
        Path(debug_file).unlink()
    except OSError:  # gone already, or not to be removed: it would stop every step from now on
        return
    streams = (sys.stdin, sys.stdout)  # None where the caller has closed them
    if not all(stream is not None and stream.isatty() for stream in streams):
        tqdm.write(f"{debug_file} was touched, but there is no terminal to debug at; going on")
        return
    frame = sys._getframe(1)
    try:
        import ipdb
    except ImportError:
        pdb.Pdb().set_trace(frame)
    else:
        ipdb.set_trace(frame)


def asked(debug_file: str) -> bool:
    """Whether the file is there, a regular one, the user's own, and no one else could write it.

    Its usual folder, /tmp, is open to all: a file or link of somebody else must not stop a run.
    """
    try:
        status = os.lstat(debug_file)
    except OSError:
        return False
    mine = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    return mine and stat.S_ISREG(status.st_mode) and not status.st_mode & stat.S_IWOTH
