"""Signals as requests: a run that is asked to end does so at its next step. No torch here."""

import atexit
import multiprocessing.util  # registers its own exit handler first, so that ours runs before it
import os
import signal
import threading
from typing import Any

from utils.notebook import OneLineError

NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGBREAK")  # Windows lacks two, Unix the last
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


class Stopped(OneLineError):
    """A signal has ended the run; the exit code is 128 + its number, as in a shell."""

    def __init__(self, number: int, advice: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{advice}")
        self.exit_code = 128 + number


class StopRequest:
    """`with StopRequest() as stop:` notes a signal; `stop.raise_if_received()` acts on it.

    A second Ctrl-C does what it would do without this: it ends the program at once, or in a
    notebook the cell. advice: what the message of Stopped ends with.
    """

    def __init__(self, advice: str = "") -> None:
        self.advice = advice
        self.received: int | None = None
        self.old_handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python's rule for handlers
            self.old_handlers = {number: signal.signal(number, self._note) for number in wanted()}
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: Any) -> None:
        for number, handler in self.old_handlers.items():
            signal.signal(number, handler)
        if error_type and issubclass(error_type, Exception):
            self.raise_if_received()  # the signal may have killed a worker, which is no failure

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            self.old_handlers[number](number, frame)
        self.received = self.received or number

    def raise_if_received(self) -> None:
        """Raise Stopped if a signal has come."""
        if self.received is not None:
            raise Stopped(self.received, self.advice)


def wanted() -> list[int]:
    """List the signals that may end this process: not those that its parent told it to ignore.

    `nohup` does so with SIGHUP, and a shell with SIGINT for a job in the background.
    """
    return [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def exit_at_once(number: int, _: Any = None) -> None:
    """End the process here. An exception could be caught by the code that is running."""
    end_workers()
    os._exit(128 + number)


def exit_on_signals() -> None:
    """End with 128 + n and no traceback: for a program that has nothing to save yet."""
    for number in wanted():
        signal.signal(number, exit_at_once)


def follow_main_process() -> None:
    """In a worker process: leave signals to the main process, and end when that has been killed."""
    for number in SIGNALS:  # a terminal sends Ctrl-C to the whole group
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with_main_process, daemon=True).start()


def end_with_main_process() -> None:
    if main := multiprocessing.parent_process():
        main.join()
        os._exit(1)


@atexit.register
def end_workers() -> None:
    """Kill the worker processes that are left at exit; Python would wait for them."""
    if hasattr(signal, "SIGCHLD"):  # torch's handler would report each killed worker as a failure
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        child.kill()
