"""A client of a visdom server on this machine. To remove it: see docs/adapting.md.

What a window shows is kept here, and a thread delivers it. Training never waits for the server.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from tqdm import tqdm

SECONDS_TO_ANSWER = 10.0
SECONDS_TO_RETRY = 2.0
SECONDS_TO_END = 120.0  # how long `close` waits for a server that goes on answering
REST = 20  # times the CPU time of a delivery, at most 10 s, the thread rests


ROOM = {"margintop": 80}  # pixels for the title of a plot, below its buttons
ROOM_FOR_LAYERS = {"marginleft": 200, "width": 700, "height": 500}  # their names are long
COLORS = {"train": (31, 119, 180), "val": (255, 127, 14)}  # the same in all charts


class Windows:
    """The newest contents of each window of an environment, and a thread that delivers them.

    A server that does not answer, or answers with an error, is tried again. After an interruption
    all windows are delivered anew, since it may be another server: nothing is missing or twice.
    folder, resume_at: of a resumed run, whose earlier points are read from its event files.
    """

    def __init__(
        self, env: str, port: int, folder: Path | None = None, resume_at: int | None = None
    ) -> None:
        if not find_spec("visdom"):
            raise ImportError("visdom is not installed")
        self.env, self.port, self.folder = env, port, folder
        self.resume_at = resume_at
        self.curves: dict[str, dict[str, list[tuple[float, float]]]] = {}  # chart: line: points
        self.contents: dict[str, tuple[str, tuple, dict]] = {}  # window: a call of visdom's
        self.undelivered: dict[str, None] = {}  # windows, the oldest change first
        self.client: Any = None
        self.failing = self.closing = False
        self.changed, self.tried = threading.Condition(), threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def add_point(self, chart: str, line: str, x: float, y: float) -> None:
        self.curves.setdefault(chart, {}).setdefault(line, []).append((x, y))
        self._note(chart)

    def show(self, window: str, call: str, *args: Any, **kwargs: Any) -> None:
        """Let a window show what visdom's function `call` draws."""
        self.contents[window] = call, args, kwargs
        self._note(window)

    def _note(self, window: str) -> None:
        with self.changed:
            self.undelivered[window] = None
            self.changed.notify()

    @property
    def connected(self) -> bool:
        self.tried.wait(SECONDS_TO_ANSWER)
        return self.client is not None

    def __getattr__(self, name: str) -> Any:
        """Return visdom's own function or attribute, or a function that does nothing."""
        if name.startswith("_"):
            raise AttributeError(name)
        if not self.connected:
            return lambda *_, **__: None
        found = getattr(self.client, name)
        return self._guarded(found) if callable(found) else found

    def _guarded(self, call: Callable) -> Callable:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return call(*args, **kwargs)
            except OSError as error:
                self._lose(error)

        return guarded

    def _lose(self, error: Exception) -> None:
        self.client = None
        if not self.failing and not self.closing:
            tqdm.write(
                f"visdom on port {self.port} does not answer ({error}); the run goes on, "
                "and the server gets everything once it answers"
            )
        self.failing = True

    def _work(self) -> None:
        """Deliver what has changed until `close` is called, and then what is left."""
        while not self.closing:
            busy = time.thread_time()
            works = self._try_to_deliver()
            self.tried.set()
            rest = min(REST * (time.thread_time() - busy), 10) if works else SECONDS_TO_RETRY
            with self.changed:
                self.changed.wait_for(lambda: self.closing, rest)
                if works:
                    self.changed.wait_for(lambda: self.closing or self.undelivered)
        if not (self._try_to_deliver() and self._try_to_deliver(save=True)) and self.failing:
            # The server may have been restarted since the last delivery.
            self._try_to_deliver() and self._try_to_deliver(save=True)

    def _try_to_deliver(self, save: bool = False) -> bool:
        """Send all windows that have changed. After an error, all of them count as changed.

        save: let the server write the environment to its disk.
        """
        try:
            self._deliver()
            if save:
                self.client.save([self.env])
        except Exception as error:  # OSError, or what is there is no visdom
            if self.failing or self.client or not isinstance(error, ConnectionRefusedError):
                self._lose(error)  # else there is no server; it may be started later
        return self.client is not None

    def _deliver(self) -> None:
        if self.client is None:
            client = connect(self.env, self.port)
            self._read_earlier_points()
            with self.changed:
                self.undelivered = dict.fromkeys([*self.curves, *self.contents])
            self.client = client
            if self.failing:
                tqdm.write(f"visdom on port {self.port} answers again")
            self.failing = False
        client = self.client  # a call of the main thread may lose it in the meantime
        while window := self._next_window():
            try:
                self._send(client, window)
            except OSError:
                raise
            except Exception as error:  # visdom refuses the arguments
                tqdm.write(f"visdom cannot show {window} ({type(error).__name__}: {error})")

    def _next_window(self) -> str:
        """Return the window whose change is the oldest, or ""; a later one is delivered again."""
        with self.changed:
            window = next(iter(self.undelivered), "")
            self.undelivered.pop(window, None)
        return window

    def _send(self, client: Any, window: str) -> None:
        if window in self.contents:
            call, args, kwargs = self.contents[window]
            if args and isinstance(args[0], Image.Image):
                args = (np.asarray(args[0]).transpose(2, 0, 1),)  # (3, H, W)
            room = {"bar": ROOM, "heatmap": ROOM | ROOM_FOR_LAYERS}.get(call, {})
            kwargs = kwargs | {"opts": kwargs.get("opts", {}) | room}  # visdom changes its copy
            getattr(client, call)(*args, **kwargs, win=window)
            return
        lines = {name: np.array(points) for name, points in dict(self.curves[window]).items()}
        longest = max(map(len, lines.values()))
        table = np.full((2, longest, len(lines)), np.nan)  # x and y; shorter lines end with NaN
        for column, points in enumerate(lines.values()):
            table[:, : len(points), column] = points.T
        table[~np.isfinite(table)] = np.nan  # JSON has no infinity
        options = {"title": window, "xlabel": "step", "showlegend": [*lines] != [""], **ROOM}
        options |= {"markers": longest <= 100, "markersize": 4}
        if options["showlegend"]:
            options["legend"] = [*lines]
        if COLORS.keys() >= lines.keys():
            options["linecolor"] = np.array([COLORS[name] for name in lines])
        x, y = table if len(lines) > 1 else table[:, :, 0]
        client.line(X=x, Y=y, win=window, opts=options)

    def _read_earlier_points(self) -> None:
        if self.folder is None or self.resume_at is None:
            return
        for chart, line, points in read_curves(self.folder):
            if earlier := [(x, y) for x, y in points if x < self.resume_at]:
                self.curves.setdefault(chart, {}).setdefault(line, [])[:0] = earlier
        self.resume_at = None

    def stop(self) -> None:
        """Let the thread deliver what is left, as long as the server answers, and then end."""
        with self.changed:
            self.closing = True
            self.changed.notify()

    def close(self) -> None:
        """Stop, and wait for the end of the thread."""
        self.stop()
        self.thread.join(SECONDS_TO_RETRY)
        if self.thread.is_alive() and not self.failing:
            tqdm.write(f"waiting for visdom to take what is left, at most {SECONDS_TO_END:.0f} s")
            self.thread.join(SECONDS_TO_END)
        if self.failing or self.thread.is_alive():
            tqdm.write(
                f"visdom on port {self.port} has not got everything; "
                f"python main.py board --replay={self.folder} shows it"
            )
        self.client = None


def connect(env: str, port: int) -> Any:
    """Return a visdom client. Raises OSError if no server answers on `port`.

    It keeps one connection to the server. If that ends, a call raises ConnectionError.
    """
    connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS_TO_ANSWER)
    connection.connect()
    connection.auto_open = 0  # a connection that is opened anew may lead to another server
    lock = threading.Lock()  # native calls come from the main thread
    import visdom  # slow to import, so only if there is a server

    logging.getLogger("visdom").setLevel(logging.ERROR)  # it warns of use_incoming_socket=False

    class Client(visdom.Visdom):
        def _handle_post(self, url: str, data: str | None = None) -> str:
            try:
                with lock:
                    connection.request("POST", urlsplit(url).path, data or "{}")
                    answer = connection.getresponse()
                    text = answer.read().decode()
                    connection.auto_open = answer.will_close  # such a server ends each connection
            except TimeoutError:
                connection.close()
                raise TimeoutError(f"no answer in {SECONDS_TO_ANSWER:.0f} s") from None
            except (OSError, HTTPException):
                connection.close()
                raise ConnectionError("the connection has ended") from None
            if answer.status != 200:
                raise ConnectionError(f"the answer is {answer.status} {answer.reason}")
            return text

    return Client("http://127.0.0.1", port=port, env=env, use_incoming_socket=False)


def read_curves(folder: Path) -> Iterator[tuple[str, str, list[tuple[float, float]]]]:
    """Yield (chart, line, points) of each curve in a run's event files."""
    events = read_events(folder)
    for tag in events.Tags()["scalars"]:
        chart, _, line = tag.rpartition("/")
        if line not in ("train", "val"):
            chart, line = tag, ""
        yield chart, line, [(event.step, event.value) for event in events.Scalars(tag)]


def read_events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow

    everything = dict.fromkeys(("scalars", "images", "histograms", "tensors"), 0)
    return EventAccumulator(str(folder), size_guidance=everything).Reload()
