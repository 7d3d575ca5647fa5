"""The touch file: a debugger in the frame of the loop, at a real pseudo-terminal."""

import csv
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import main
from tests.helpers import NOBODY, PRECISION, PROJECT, children_of, is_alive, wait_until
from utils import debug

pty = pytest.importorskip("pty", reason="needs a pseudo-terminal")

PATIENCE = 120.0  # seconds to wait for a prompt before the test has failed
SMALL: dict = {"image_size": 64, "batch_size": 21, "max_epoch": 1, "visdom_port": NOBODY}
SMALL |= {"precision": PRECISION, "dataset": "Pictures"}
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x1b\][^\x07]*\x07|\r")


class Terminal:
    """A command at a pseudo-terminal of its own."""

    def __init__(self, words: list[str], folder: Path, launcher: Sequence[str] = ()) -> None:
        self.terminal, far_end = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, *launcher, str(PROJECT / "main.py"), *words],
            stdin=far_end,
            stdout=far_end,
            stderr=far_end,
            cwd=folder,
            env=os.environ | {"TERM": "dumb", "IPYTHONDIR": str(folder / "ipython")},
            start_new_session=True,
        )
        os.close(far_end)
        self.seen = ""
        self.read = 0  # up to here it has been looked at

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)

    def wait_for(self, pattern: str) -> str:
        """Read until `pattern` appears; return what came up to there since the last time."""
        deadline = time.monotonic() + PATIENCE
        while not (match := re.compile(pattern).search(self.seen, self.read)):
            assert time.monotonic() < deadline, f"no {pattern!r} in:\n{self.seen[-3000:]}"
            self.receive(pattern)
        begin, self.read = self.read, match.end()
        return self.seen[begin : match.end()]

    def receive(self, wanted: str) -> None:
        if sys.platform != "win32":
            os.set_blocking(self.terminal, False)
        try:
            data = os.read(self.terminal, 65536)
        except BlockingIOError:
            time.sleep(0.02)
            return
        except OSError:  # the other end is closed
            data = b""
        assert data, f"it ended without {wanted!r}:\n{self.seen[-3000:]}"
        self.seen += CODES.sub("", data.decode(errors="replace"))

    def type(self, line: str) -> None:
        os.write(self.terminal, f"{line}\n".encode())

    def answer(self, line: str) -> str:
        """Type a line at the prompt; return what is printed up to the next prompt."""
        self.type(line)
        return self.wait_for(r"\n(ipdb|\(Pdb\))> ?")

    def prompt(self) -> str:
        return self.wait_for(r"(ipdb|\(Pdb\))> ?")

    def end(self) -> int:
        """Wait for the end of the process, reading what it says; return its exit code."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                self.receive("its end")
            except AssertionError:
                time.sleep(0.02)
        return self.process.wait(1)


def words_for(pictures: Path, folder: Path, touch: Path, **options) -> list[str]:
    options = SMALL | {"num_workers": 0, "use_gpu": False, "debug_file": touch} | options
    options |= {"train_data_root": pictures / "train", "checkpoint_root": folder / "runs"}
    return [f"--{name}={value}" for name, value in options.items()]


def lr_of(folder: Path) -> list[float]:
    (path,) = folder.glob("runs/*/metrics.csv")
    with open(path, newline="") as file:
        return [float(row["lr"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to validate and test."""
    options = SMALL | {"num_workers": 0, "use_gpu": False, "debug_file": None}
    paths = {"train_data_root": pictures / "train", "checkpoint_root": tmp_path_factory.mktemp("r")}
    return main.train(**options | paths)


def test_one_looks_around_changes_the_rate_goes_on_and_quits(pictures, tmp_path):
    touch = tmp_path / "debug"
    touch.touch()
    options = {"schedule": "plateau", "warmup": 0, "max_epoch": 500, "lr": 0.005, "num_workers": 2}
    words = ["train", *words_for(pictures, tmp_path, touch, **options)]
    with Terminal(words, tmp_path) as terminal:
        terminal.prompt()
        assert not touch.exists()
        assert "\n0.005\n" in terminal.answer("p opt.lr")
        assert "torch.Size([21, 3, 64, 64])" in terminal.answer("p images.shape")
        assert "torch.Size([21])" in terminal.answer("p labels.shape")
        assert "torch.Size([21, 2])" in terminal.answer("p logits.shape")
        assert "torch.Size([21])" in terminal.answer("p losses.shape")
        assert "torch.Size([])" in terminal.answer("p loss.shape")  # one number
        assert "SqueezeNet" in terminal.answer("p type(model).__name__")
        assert "Muon" in terminal.answer("p type(optimizer).__name__")
        assert "\n(0, 0)\n" in terminal.answer("p (epoch, step)")
        terminal.answer("opt.lr = 0.001")
        terminal.type("c")
        terminal.wait_for(r"epoch 1/500, lr 0\.001;")  # the run goes on, at the new rate
        assert lr_of(tmp_path)[0] == 0.001

        touch.touch()
        terminal.prompt()
        assert not touch.exists()
        assert "\n0.001\n" in terminal.answer("p optimizer.param_groups[0]['lr']")
        workers = children_of(terminal.process.pid)
        terminal.type("q")
        assert terminal.end() == 0, terminal.seen[-2000:]
    assert "Traceback" not in terminal.seen and "stopped in the debugger" in terminal.seen
    if Path("/proc/self/stat").exists():
        assert len(workers) >= 2
        wait_until(lambda: not any(map(is_alive, workers)))


@pytest.mark.parametrize("command", ["val", "test"])
def test_val_and_test_stop_in_the_frame_of_evaluate(pictures, run, tmp_path, command):
    touch = tmp_path / "debug"
    touch.touch()
    words = [f"--load-model-path={run}", f"--debug-file={touch}", "--num-workers=0"]
    words += [f"--test-data-root={pictures / 'test1'}"] if command == "test" else []
    with Terminal([command, *words, "--batch-size=4", "--use-gpu=false"], tmp_path) as terminal:
        assert "engine.py" in terminal.prompt()
        assert "torch.Size([4, 2])" in terminal.answer("p logits.shape")
        assert "torch.Size([4, 3, 64, 64])" in terminal.answer("p images.shape")
        assert "\n1\n" in terminal.answer("p len(results)")  # at its first batch
        terminal.type("c")
        terminal.wait_for("of 18 pictures" if command == "val" else "6 rows are in result.csv")
        assert terminal.end() == 0
    assert not touch.exists()


# Without a terminal, or with a file that is not the user's own, the run goes on.


def train(pictures: Path, root: Path, touch: Path | None) -> Path:
    return main.train(
        **SMALL,
        train_data_root=pictures / "train",
        checkpoint_root=root,
        num_workers=0,
        use_gpu=False,
        debug_file=touch,
    )


@pytest.mark.parametrize("stdin", ["null", "closed", "pipe"])
def test_without_a_terminal_it_is_said_once_and_training_goes_on(
    pictures, tmp_path, monkeypatch, capsys, stdin
):
    touch = tmp_path / "debug"
    touch.touch()
    read, write = os.pipe()
    null = os.open(os.devnull, os.O_RDONLY)
    streams = {"null": os.fdopen(null), "closed": None, "pipe": os.fdopen(read)}
    monkeypatch.setattr(sys, "stdin", streams[stdin])
    run = train(pictures, tmp_path / "runs", touch)
    monkeypatch.undo()
    for stream in (streams["null"], streams["pipe"], os.fdopen(write, "w")):
        stream.close()
    out = capsys.readouterr().out
    assert out.count(f"{touch} was touched, but there is no terminal to debug at") == 1
    assert not touch.exists() and (run / "report.html").exists()


def test_a_process_with_a_closed_stdin_trains_to_the_end(pictures, tmp_path):
    touch = tmp_path / "debug"
    touch.touch()
    words = ["train", *words_for(pictures, tmp_path, touch)]
    command = [sys.executable, str(PROJECT / "main.py"), *words]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("there is no terminal to debug at") == 1
    assert not touch.exists() and len(lr_of(tmp_path)) == 1


def refused(kind: str, folder: Path) -> Path:
    path = folder / "debug"
    if kind == "symlink":
        (folder / "target").touch()
        path.symlink_to(folder / "target")
    elif kind == "directory":
        path.mkdir()
    elif kind == "pipe" and sys.platform != "win32":
        os.mkfifo(path)
    else:
        path.touch()
        path.chmod(0o666 if kind == "writable by all" else 0o600)
    return path


@pytest.mark.parametrize(
    "kind", ["symlink", "directory", "pipe", "writable by all", "another user's"]
)
def test_a_file_that_another_could_have_put_there_is_left_alone(
    kind, tmp_path, monkeypatch, capsys
):
    path = refused(kind, tmp_path)
    if kind == "another user's":
        monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    pretend_a_terminal(monkeypatch)
    debug.pause_if_asked(str(path))  # a prompt would read its stdin, which is empty, and quit
    assert os.path.lexists(path) and capsys.readouterr().out == ""


def test_the_file_of_the_test_above_counts_when_it_is_ones_own(tmp_path, monkeypatch):
    path = refused("none", tmp_path)
    assert debug.is_own_file(str(path)) and not debug.is_own_file(str(tmp_path / "not there"))
    pretend_a_terminal(monkeypatch)
    opened = []
    monkeypatch.setitem(sys.modules, "ipdb", type("ipdb", (), {"set_trace": opened.append}))
    debug.pause_if_asked(str(path))
    assert opened == [sys._getframe()] and not path.exists()
    debug.pause_if_asked(str(path))
    assert len(opened) == 1


def pretend_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)


def test_none_switches_it_off(pictures, tmp_path, capsys):
    pretended = tmp_path / "None"
    pretended.touch()
    train(pictures, tmp_path / "runs", None)
    assert pretended.exists() and "was touched" not in capsys.readouterr().out


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_a_file_that_cannot_be_removed_does_not_stop_the_run(tmp_path, monkeypatch, capsys, error):
    def unlink(path: Path) -> None:
        raise error(str(path))

    path = refused("none", tmp_path)
    pretend_a_terminal(monkeypatch)
    monkeypatch.setattr(Path, "unlink", unlink)
    debug.pause_if_asked(str(path))
    assert capsys.readouterr().out == ""


def test_an_error_opens_the_debugger_where_the_model_is(pictures, tmp_path):
    words = words_for(pictures, tmp_path, tmp_path / "touch", lr=1e30, warmup=0, clip_norm=None)
    with Terminal(["train", *words, "--debug-on-error"], tmp_path) as terminal:
        terminal.prompt()
        assert "SqueezeNet" in terminal.answer("p type(model).__name__")
        terminal.type("q")
        assert terminal.end() == 1
        assert "is not finite; the update was not made" in terminal.seen
        assert "Traceback" not in terminal.seen
