"""What a user sees: output that never ends a command, and failures in one line."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from tests.helpers import SMALL, as_words, posix_only
from utils.failures import one_line
from utils.options import UsageError

PROJECT = Path(__file__).resolve().parent.parent
OURS = PROJECT / "utils/engine.py"
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
# Says its text on both streams and ends with 5. A library's last words come after it.
SCRIPT = f"""
import atexit, os, sys
sys.path.insert(0, {str(PROJECT)!r})
from utils.output import protect_output

protect_output()
atexit.register(lambda: print("at exit"))
for stream in (sys.stdout, sys.stderr):
    print("Größe … – ✓ ✗ ≥ 日 \\udcff é", file=stream)
for number in range(20_000):
    print("line", number)
sys.exit(5)
"""


def python(*words: str, env: dict | None = None, **streams) -> subprocess.CompletedProcess:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    command = [sys.executable, *words]
    return subprocess.run(command, env=os.environ | (env or {}), timeout=300, **streams)


@pytest.fixture
def closed_pipe():
    """The writing end of a pipe that nobody reads, as after `| head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.fixture
def full_disk():
    with open("/dev/full", "w") as file:
        yield file


# Streams that cannot be written.


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("place", ["closed_pipe", pytest.param("full_disk", marks=needs_full)])
def test_what_cannot_be_written_is_dropped_and_the_exit_code_stays(place, unbuffered, request):
    stream, env = request.getfixturevalue(place), {"PYTHONUNBUFFERED": unbuffered}
    done = python("-c", SCRIPT, stdout=stream, env=env)
    assert done.returncode == 5 and done.stderr.decode().splitlines()[0].startswith("Gr")
    assert len(done.stderr.splitlines()) == 1  # nothing at the end, such as "Exception ignored"
    done = python("-c", SCRIPT, stderr=stream, env=env)
    assert done.returncode == 5 and done.stdout.count(b"\n") == 20_002
    assert python("-c", SCRIPT, stdout=stream, stderr=stream, env=env).returncode == 5


@pytest.mark.parametrize("place", ["closed_pipe", pytest.param("full_disk", marks=needs_full)])
def test_help_and_wrong_usage_keep_their_exit_codes(place, request):
    stream = request.getfixturevalue(place)
    done = python("main.py", "help", stdout=stream, cwd=PROJECT)
    assert (done.returncode, done.stderr) == (0, b"")
    assert python("main.py", "train", "--lr=x", stderr=stream, cwd=PROJECT).returncode == 2


@posix_only
def test_a_file_never_takes_the_place_of_a_closed_stream(tmp_path):
    script = f"{SCRIPT[: SCRIPT.index('atexit.register')]}\n" + (
        f"file = open({str(tmp_path / 'file')!r}, 'w')\n"
        "print('lost', flush=True); os.write(1, b'lost'); os.write(2, b'lost')\n"
        "file.write(str(file.fileno()))\n"
    )
    command = 'exec "$@" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, "sh", sys.executable, "-c", script], timeout=60)
    assert done.returncode == 0 and int((tmp_path / "file").read_text()) > 2


@needs_full
def test_a_training_survives_its_terminal(full_disk, pictures, tmp_path):
    options = SMALL | {"max_epoch": 1, "train_data_root": pictures / "train"}
    words = as_words(options | {"checkpoint_root": tmp_path / "runs"})
    env, streams = {"PYTHONIOENCODING": "ascii"}, {"stdout": full_disk, "stderr": full_disk}
    assert python("main.py", "train", *words, env=env, cwd=PROJECT, **streams).returncode == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "report.html").exists() and (run / "best.pth").exists()
    assert "…" in (run / "log.txt").read_text(encoding="utf-8")  # a file can have every character


# Characters that the terminal's encoding lacks.


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "Größe … – ✓ ✗ ≥ 日 ? é"),
        ("latin-1", "Größe ... - v x >= ? ? é"),
        ("ascii", "Gro?e ... - v x >= ? ? e"),
    ],
)
def test_a_character_that_the_terminal_lacks_is_replaced(encoding, shown):
    done = python("-c", SCRIPT, env={"PYTHONIOENCODING": encoding})
    lines = done.stdout.decode(encoding).splitlines()
    assert done.returncode == 5 and lines[0] == shown and lines[-1] == "at exit"
    assert done.stderr.decode(encoding).splitlines() == [shown]


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""},
    ],
    ids=["latin-1", "C"],
)
def test_help_is_shown_on_an_old_terminal(env):
    done = python("main.py", "help", env=env, cwd=PROJECT)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"python main.py COMMAND --option=value ...\n" in done.stdout.replace(b"\r", b"")


@posix_only
def test_a_terminal_is_still_a_terminal():
    import pty

    script = f"{SCRIPT[: SCRIPT.index('atexit.register')]}\n" + (
        "for n, s in ((1, sys.stdout), (2, sys.stderr)):\n"
        "    print(s.isatty(), s.fileno() == n, s.encoding, s.line_buffering)\n"
        "    print(s.isatty(), s.fileno() == n, s.encoding, s.line_buffering, file=s, end='')\n"
        "    assert input(' and? ') == 'yes'\n"
    )
    terminal, far_end = pty.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), far_end)
    env = os.environ | {"PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen([sys.executable, "-c", script], env=env, **streams)
    os.close(far_end)
    os.write(terminal, b"yes\nyes\n")
    seen = b""
    while seen.count(b"and? ") < 2:
        seen += os.read(terminal, 4096)
    assert process.wait(60) == 0 and seen.count(b"True True utf-8 True") == 4
    os.close(terminal)


# Failures in one line.


def function_in(path: str | Path, body: str, **names) -> Callable:
    """Make a function whose line 3 is `body`, in a file called `path`."""
    exec(compile(f"def call():\n    # a comment\n    {body}\n", str(path), "exec"), names)
    return names["call"]


def line_of(function: Callable) -> str:
    try:
        function()
    except Exception as error:
        return one_line(error.with_traceback(error.__traceback__.tb_next))  # without this file
    raise AssertionError("it did not fail")


@pytest.mark.parametrize("path", ["models/tiny.py", "data/flowers.py", "/home/me/nets/tiny.py"])
def test_a_failure_names_the_last_place_in_the_users_files(path):
    model = function_in(PROJECT / path, "1 / 0")
    shown = path.replace("/", os.sep) if not path.startswith("/") else path
    assert line_of(model) == f"ZeroDivisionError: division by zero, at {shown}:3"
    step = function_in(PROJECT / "utils/engine.py", "model()", model=model)
    main = function_in(PROJECT / "main.py", "step()", step=step)
    assert line_of(main) == f"ZeroDivisionError: division by zero, at {shown}:3"
    deeper = function_in(PROJECT / path, "json.loads('{')", json=json)  # in Python's library
    assert re.fullmatch(rf"JSONDecodeError: .*, at {re.escape(shown)}:3", line_of(deeper))
    deeper = function_in(PROJECT / path, "step()", step=function_in(OURS, "1 / 0"))
    assert line_of(deeper).endswith(f", at {shown}:3")  # and not in ours, which it called


def test_a_failure_in_no_file_of_the_users_names_ours():
    library = function_in("/usr/lib/python3/dist-packages/fast/nn.py", "1 / 0")
    main = function_in(PROJECT / "main.py", "library()", library=library)
    step = function_in(OURS, "main()", main=main)
    assert line_of(step) == "ZeroDivisionError: division by zero, at main.py:3"
    assert line_of(library) == "ZeroDivisionError: division by zero"


class Broken(Dataset):
    """Its samples fail in ways that torch passes on from a loader process as a long text."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> None:
        if index == 0:
            raise ValueError("row 7 has no label\nand more on a second line")
        if index == 1:
            raise KeyError("label")
        json.loads("{")


@pytest.mark.parametrize(
    ("index", "says"),
    [(0, "ValueError: row 7 has no label"), (1, "KeyError: 'label'"), (2, ".*JSONDecodeError: .*")],
)
def test_an_error_in_a_loader_process_is_told_as_if_it_were_here(index, says):
    loader = DataLoader(Subset(Broken(), [index]), num_workers=1)
    assert re.fullmatch(rf"{says}, at tests.test_output\.py:\d+", line_of(lambda: list(loader)))
    here = line_of(lambda: Broken()[index])
    assert line_of(lambda: list(loader)).rpartition(":")[2] == here.rpartition(":")[2]


def test_a_long_message_is_one_line_of_300_characters_with_both_ends():
    model = torch.nn.Linear(2, 3)
    state = {f"features.{number}.weight": torch.zeros(1) for number in range(100)}
    line = line_of(lambda: model.load_state_dict(state))
    assert line.startswith("RuntimeError: Error(s) in loading state_dict for Linear: Missing key")
    assert "features" not in line  # it stands in the lines after the first
    long = "x" * 400 + " and this is what to do"
    line = line_of(function_in("/home/me/a.py", f"raise ValueError({long!r})"))
    assert "xx … xx" in line and "and this is what to do, at /home/me/a.py:3" in line
    assert len(line) < 330
    assert line_of(function_in("a.py", "raise ValueError()")) == "ValueError, at a.py:3"


@pytest.mark.parametrize("error", [UsageError("too\n much"), FileNotFoundError("too\n much")])
def test_an_error_that_says_what_to_do_is_left_as_it_is(error):
    raising = function_in(PROJECT / "data/flowers.py", "raise error", error=error)
    assert line_of(raising) == "too much"
