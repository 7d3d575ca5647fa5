"""Failures as a user reads them: one line that says what happened, where, and what to do."""

import sys
import traceback
from bdb import BdbQuit
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


@contextmanager
def one_line_failures(show_traceback: bool) -> Iterator[None]:
    """End the program with exit code 1 and one line on stderr when something fails.

    130 for Ctrl-C; 0 for `q` in the debugger, which is how one stops a run there.
    """
    try:
        yield
    except BdbQuit:
        print("stopped in the debugger", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if show_traceback:
            raise
        print(f"{one_line(error)} (--traceback shows where)", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))


def one_line(error: Exception) -> str:
    """Say what failed; an error nobody foresaw comes with its kind and its line in the project."""
    message = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if PROJECT in Path(f.filename).parents and ".venv" not in f.filename]
    if isinstance(error, OSError) or not ours or type(error).__module__ != "builtins":
        return message or type(error).__name__
    place = f"{Path(ours[-1].filename).relative_to(PROJECT)}:{ours[-1].lineno}"
    return f"{type(error).__name__}: {message}, at {place}"
