"""Several ranks on this machine: tests, and trials by `python -m tests.distributed`."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.helpers import PROJECT, children_of, is_alive


class Launch:
    """`torchrun … main.py …` in the background, and what it prints."""

    def __init__(
        self,
        ranks: int,
        *words: str,
        folder: Path,
        restarts: int = 0,
        options: Sequence[str] = (),
    ) -> None:
        """folder: for the text that the ranks print, and where they start. options: of torchrun."""
        folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / f"launch{len([*folder.glob('launch*.txt')])}.txt"
        torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
        command = [sys.executable, *torchrun, f"--max-restarts={restarts}", *options]
        if words[0] in ("train", "val", "test", "check", "help"):
            command.append(str(PROJECT / "main.py"))
        self.seen: set[int] = set()  # all processes of ranks that were found
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(
                [*command, *words],
                stdout=output,
                stderr=output,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(PROJECT)},
            )

    def ranks(self) -> dict[int, int]:
        """Return the process of each rank that runs now, from Linux's /proc."""
        found = {}
        for pid in children_of(self.process.pid):
            try:
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            for variable in variables:
                if variable.startswith(b"RANK="):
                    found[int(variable[5:])] = pid
        self.seen.update(found.values())
        return found

    def wait(self, seconds: float = 150) -> int:
        """Return torchrun's exit code. Raises TimeoutExpired."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            for pid in self.ranks().values():
                os.kill(pid, 9)
            raise

    @property
    def text(self) -> str:
        return self.output.read_text()

    def left(self, seconds: float = 10) -> list[int]:
        """Return the ranks and their children that are alive, after some seconds at most."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            left = [pid for pid in self.seen if is_alive(pid)]
            if not left:
                break
            time.sleep(0.1)
        return left
