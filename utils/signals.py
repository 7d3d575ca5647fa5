"""Signals as a request: a run that is asked to end does so at its next step. No torch here."""

import atexit
import multiprocessing.util  # registers its own end of workers first, so that ours runs before it
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


class Stopped(Exception):
    """A signal has ended the run; the exit code is 128 + its number, as the shell has it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; --resume goes on")
        self.exit_code = 128 + number


class Stop:
    """`with Stop() as stop:` notes a signal for the next step; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # Python's rule for handlers
            self.handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if kind and issubclass(kind, Exception):
            self.check()  # a worker that the signal killed, say: the run was asked to end

    def _note(self, number: int, _: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            exit_at_once(number)
        self.received = self.received or number

    def check(self) -> None:
        """Raise Stopped if a signal has come."""
        if self.received is not None:
            raise Stopped(self.received)

    def watch(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Pass the batches on until a signal comes."""
        for batch in batches:
            yield batch
            self.check()


def exit_at_once(number: int, _: Any = None) -> None:
    """End here and now: an exception might be taken for a failure by what is being imported."""
    end_workers()
    os._exit(128 + number)


def die_quietly() -> None:
    """End with 128 + n and no traceback: for a program that has nothing to save yet."""
    for number in SIGNALS:
        signal.signal(number, exit_at_once)


def ignore(*_: Any) -> None:
    """Leave signals to the main process: for its workers, which get those of the group as well."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def end_workers() -> None:
    """Kill the workers that are left at exit: they would ignore Python's SIGTERM for ever."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(
            signal.SIGCHLD, signal.SIG_DFL
        )  # torch's handler takes each death for a failure
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
