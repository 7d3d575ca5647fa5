"""Curves, images and log lines for two optional viewers: TensorBoard's files and a visdom server.

The first error of a viewer prints one line; the run continues without this viewer.
"""

import html
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm


class Visualizer:
    """The book's visualizer: `vis.plot("loss", 1.0)` appends a point; x counts up by itself.

    log_dir: folder of TensorBoard's event files; None writes none. port: of a visdom server on this
    machine; None, or no server there, shows nothing. Any other visdom call works too:
    `vis.bar(X=…)`; without a server it does nothing.
    """

    def __init__(self, env: str = "default", log_dir: Path | None = None, port: int | None = 8097):
        self.index: dict[str, int] = defaultdict(int)  # name: its next x
        self.text = ""
        self.port = port
        self.writer = Viewer(f"TensorBoard in {log_dir}", open_events, log_dir)
        self.vis = Viewer("visdom", open_visdom, env, port)

    def state_dict(self) -> dict[str, int]:
        return dict(self.index)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.index.update(state)

    def reinit(self, env: str = "default") -> "Visualizer":
        """Continue in another visdom environment."""
        self.vis.finish()
        self.vis = Viewer("visdom", open_visdom, env, self.port)
        return self

    @property
    def connected(self) -> bool:
        return self.vis.target is not None

    def plot(self, name: str, y: float, x: int | None = None) -> None:
        """Append a point to the curve `name`; x None: the last x plus 1."""
        y, x = float(y), self.index.get(name, 0) if x is None else x
        options = {"opts": {"title": name}, "update": "append" if name in self.index else None}
        self.index[name] = x + 1
        self.writer.add_scalar(name, y, x)
        self.vis.send("line", Y=np.array([y]), X=np.array([x]), win=name, **options)

    def plot_many(self, values: Mapping[str, float], x: int | None = None) -> None:
        for name, y in values.items():
            self.plot(name, y, x)

    def img(self, name: str, image: Tensor | np.ndarray) -> None:
        """Show (H, W), (C, H, W) or (N, C, H, W) with C 1 or 3; floats within 0 … 1 or uint8."""
        array = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
        array = array[None] if array.ndim == 2 else array
        if not (array.ndim in (3, 4) and array.shape[-3] in (1, 3)):
            raise ValueError(f"{name}: cannot show an image of shape {array.shape}")
        images = array if array.ndim == 4 else array[None]
        self.writer.add_images(name, images, self.index[name])
        self.index[name] += 1
        self.vis.send("images", images, win=name, opts={"title": name})

    def img_many(self, images: Mapping[str, Tensor | np.ndarray]) -> None:
        for name, image in images.items():
            self.img(name, image)

    def log(self, info: Any, win: str = "log_text") -> None:
        """Append a line with its time."""
        line = f"[{time.strftime('%m%d_%H%M%S')}] {info}"
        self.text += html.escape(line) + "<br>"
        self.writer.add_text(win, line, self.index[win])
        self.index[win] += 1
        self.vis.send("text", self.text, win=win)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        """Write what is left; later calls show nothing."""
        self.vis.finish()
        self.writer.flush()  # raises an error of SummaryWriter's thread; `close` does not
        self.writer.close()
        self.writer.finish()

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self).get("vis"), name)  # `self.vis`, if not set yet, would recurse


class Viewer:
    """Forward calls to what `open(*args)` returned; after an error, or without it, do nothing."""

    def __init__(self, title: str, open: Callable, *args: Any) -> None:
        self.title = title
        self.target = None if None in args else self._call(Exception, open, *args)
        self.calls: SimpleQueue[Callable | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def __getattr__(self, name: str) -> Any:
        target = self.target  # the thread may set it to None
        found = getattr(target, name) if target is not None else lambda *_, **__: None
        return partial(self._call, OSError, found) if callable(found) else found

    def _call(self, failure: type[Exception], call: Callable, *args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except failure as error:
            self.target = None
            reason = f"{type(error).__name__}: {error}"
            tqdm.write(f"{self.title} failed ({reason}); the run continues without it")

    def send(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Make a call in the thread: training does not wait. Skip it while 1000 others wait."""
        if self.target is not None and self.calls.qsize() < 1000:
            self.calls.put(partial(self._call, Exception, getattr(self, name), *args, **kwargs))

    def _work(self) -> None:
        while self.target is not None and (call := self.calls.get()):
            call()

    def finish(self) -> None:
        """Wait for the thread to make the queued calls, at most 6 s; then make no more."""
        self.calls.put(None)
        self.thread.join(timeout=6)  # longer than the client waits for an answer
        self.target = None


def open_events(log_dir: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    do_not_print_its_errors()
    return SummaryWriter(log_dir)


@cache
def do_not_print_its_errors() -> None:
    """SummaryWriter's thread prints an error that SummaryWriter's next call raises as well."""
    hook = threading.excepthook
    threading.excepthook = lambda args: "tensorboard" in type(args.thread).__module__ or hook(args)


def open_visdom(env: str, port: int) -> Any:
    with suppress(ImportError, ConnectionRefusedError):  # no client, no visdom, no server
        from utils.visdom_client import connect

        return connect(env, port)
