"""`touch /tmp/debug` while a run goes on: a debugger opens in the frame of its loop."""

import os
import pdb
import stat
import sys
from pathlib import Path

from tqdm import tqdm

from utils import distributed


def pause_if_asked(debug_file: str | None) -> None:
    """Open ipdb in the caller's frame if the user has touched `debug_file`, and delete that file.

    `c` continues, `q` ends the run. Without a terminal the run goes on and says so. Under torchrun
    the first rank opens it, and the others wait.
    """
    if debug_file is None or distributed.RANK or not is_own_file(debug_file):
        return
    try:
        Path(debug_file).unlink()
    except OSError:  # it cannot be deleted, so it would stop each step from now on
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


def is_own_file(path: str) -> bool:
    """Return whether a regular file of the user is there that nobody else can write.

    Everybody can write to /tmp: a file or link of somebody else must not stop a run.
    """
    try:
        status = os.lstat(path)
    except OSError:
        return False
    mine = not hasattr(os, "getuid") or (  # Windows has neither owners nor a /tmp for all
        status.st_uid == os.getuid() and not status.st_mode & stat.S_IWOTH
    )
    return mine and stat.S_ISREG(status.st_mode)
