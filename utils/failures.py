"""Report a failure as one line: what happened, where, and what to do."""

import os
import re
import sys
import traceback
from bdb import BdbQuit
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

PROJECT = Path(__file__).resolve().parent.parent
LIBRARY = Path(os.__file__).parent  # Python's own
# Our own files that call the user's code: a message names the user's line, not these.
CALLERS = {"main.py", "utils", "__init__.py", "build.py", "loader.py"}


@contextmanager
def one_line_failures(show_traceback: bool, debug: bool = False) -> Iterator[None]:
    """End the program with exit code 1 and one line on stderr if something fails.

    Exit code 130 for Ctrl-C; 0 for `q` in the debugger, the usual way to end a run there. debug:
    open the debugger first, if there is a terminal, in the innermost frame that has a `model`.
    """
    try:
        yield
    except BdbQuit:
        print("stopped in the debugger", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        exit_code = getattr(error, "exit_code", 1)  # wrong usage has 2, a signal 128 + its number
        if debug and exit_code == 1 and sys.stdin.isatty():
            try:
                from ipdb import post_mortem
            except ImportError:  # Python's own
                from pdb import post_mortem
            post_mortem(up_to_model(error.__traceback__))
        if show_traceback:
            raise
        hint = " (--traceback shows where)" if exit_code == 1 else ""
        print(f"{one_line(error)}{hint}", file=sys.stderr)
        sys.exit(exit_code)


def up_to_model(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback up to its last frame with a local variable `model`, or all of it."""
    frames, step = [], trace
    while step:
        frames.append(step)
        step = step.tb_next
    while len(frames) > 1 and "model" not in frames[-1].tb_frame.f_locals:
        frames.pop()
    cut = None
    for step in reversed(frames):
        cut = TracebackType(cut, step.tb_frame, step.tb_lasti, step.tb_lineno)
    return cut if "model" in frames[-1].tb_frame.f_locals else trace


def one_line(error: Exception) -> str:
    """Return what failed, in one line.

    OSError and the exceptions of this project say it themselves. Any other gets its type, the
    first useful line of its message, and the last place in the user's code, or else in ours.
    """
    kind, text = type(error).__name__, str(error)
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if "Original Traceback" in text:  # torch sends an error of a loader process as text
        places += re.findall(r'^  File "(.+)", line (\d+)', text, re.M)
        kind, _, text = re.findall(r"^ .*\n(\S.*)", text, re.M)[-1].partition(": ")
    if isinstance(error, OSError) or type(error).__module__.startswith(("utils.", "data.")):
        return shorten(" ".join(text.split())) or kind
    first, second, *_ = [line.strip() for line in text.splitlines() if line.strip()] + ["", ""]
    message = f"{kind}: {first} {second if first.endswith(':') else ''}".rstrip(": ")
    ours = f"{PROJECT}{os.sep}"
    places = [(file.removeprefix(ours), n) for file, n in places if not is_library(Path(file))]
    places = [(file, n) for file, n in places if not CALLERS & {*Path(file).parts}] or places
    return shorten(message) + "".join(f", at {file}:{n}" for file, n in places[-1:])


def is_library(path: Path) -> bool:
    installed = {"site-packages", "dist-packages"} & {*path.parts}
    return bool(installed) or LIBRARY in path.parents or str(path).startswith("<frozen")


def shorten(text: str) -> str:
    """Cut a long text in its middle: the end may say what to do."""
    return text if len(text) <= 300 else f"{text[:200]} … {text[-97:]}"
