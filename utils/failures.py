"""Failures as a user reads them: one line that says what happened, where, and what to do."""

import sys
import traceback
from bdb import BdbQuit
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

PROJECT = Path(__file__).resolve().parent.parent


@contextmanager
def one_line_failures(show_traceback: bool, debug: bool = False) -> Iterator[None]:
    """End the program with exit code 1 and one line on stderr when something fails.

    130 for Ctrl-C; 0 for `q` in the debugger, which is how one stops a run there. debug: the
    debugger opens first, on a terminal, in the frame of the failure that has a `model`.
    """
    try:
        yield
    except BdbQuit:
        print("stopped in the debugger", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        exit_code = getattr(error, "exit_code", 1)  # some know theirs
        if debug and exit_code == 1 and sys.stdin.isatty():
            import ipdb

            ipdb.post_mortem(up_to_model(error.__traceback__))
        if show_traceback:
            raise
        hint = " (--traceback shows where)" if exit_code == 1 else ""
        print(f"{one_line(error)}{hint}", file=sys.stderr)
        sys.exit(exit_code)


def up_to_model(trace: TracebackType) -> TracebackType:
    """Cut a traceback behind its last frame with a local variable `model`, if there is one."""
    frames = [trace]
    while frames[-1].tb_next:
        frames.append(frames[-1].tb_next)
    while len(frames) > 1 and "model" not in frames[-1].tb_frame.f_locals:
        frames.pop()
    cut = None
    for step in reversed(frames):
        cut = TracebackType(cut, step.tb_frame, step.tb_lasti, step.tb_lineno)
    return cut if "model" in frames[-1].tb_frame.f_locals else trace


def one_line(error: Exception) -> str:
    """Say what failed; an error nobody foresaw comes with its kind and its line in the project."""
    message = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if PROJECT in Path(f.filename).parents and ".venv" not in f.filename]
    if isinstance(error, OSError) or not ours or type(error).__module__ != "builtins":
        return message or type(error).__name__
    place = f"{Path(ours[-1].filename).relative_to(PROJECT)}:{ours[-1].lineno}"
    return f"{type(error).__name__}: {message}, at {place}"
