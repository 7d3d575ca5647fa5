"""Curves, pictures and words for a viewer: TensorBoard files always, visdom where it answers.

Nothing here can stop or slow a run: visdom is fed by a thread of its own from a bounded queue.
"""

import html
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

SECONDS_TO_ANSWER = 0.5
SECONDS_TO_FINISH = 5.0


class Visualizer:
    """The book's visualizer: `vis.plot("loss", 1.0)`, and x counts up by itself.

    log_dir: where TensorBoard's event files go; None writes none. port: of a visdom server on this
    machine; None, or no server there, and the visdom half is silent. Any other visdom call goes
    straight through: `vis.bar(X=…)` (without a server it does nothing).
    """

    def __init__(
        self, env: str = "default", log_dir: str | Path | None = None, port: int | None = 8097
    ) -> None:
        self.index: dict[str, int] = defaultdict(int)  # name: its next x
        self.text = ""
        self.port = port
        self.writer = SummaryWriter(str(log_dir)) if log_dir else None
        self.tasks: queue.Queue[tuple[Callable, tuple, dict] | None] = queue.Queue(maxsize=1000)
        self.vis = connect(env, port)
        threading.Thread(target=self._work, daemon=True).start()

    def state_dict(self) -> dict[str, int]:
        return dict(self.index)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.index.update(state)

    def reinit(self, env: str = "default") -> "Visualizer":
        """Go on in another visdom environment."""
        self.vis = connect(env, self.port)
        return self

    @property
    def connected(self) -> bool:
        return not isinstance(self.vis, NullVisdom)

    def plot(self, name: str, y: float, x: int | None = None) -> None:
        """Append a point to the curve `name`; x None: one further than the last."""
        x = self.index.get(name, 0) if x is None else x
        first, self.index[name] = name not in self.index, x + 1
        if self.writer:
            self._record(self.writer.add_scalar, name, y, x)
        self._send(
            "line",
            Y=np.array([y]),
            X=np.array([x]),
            win=name,
            opts={"title": name},
            update=None if first else "append",
        )

    def plot_many(self, values: Mapping[str, float], x: int | None = None) -> None:
        for name, y in values.items():
            self.plot(name, y, x)

    def img(self, name: str, image: Tensor | np.ndarray) -> None:
        """Show (H, W), (C, H, W) or (N, C, H, W) with C 1 or 3; floats within 0 … 1 or uint8."""
        array = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
        if array.ndim == 2:
            array = array[None]
        if not (array.ndim in (3, 4) and array.shape[-3] in (1, 3)):
            raise ValueError(f"{name}: cannot show an image of shape {array.shape}")
        batch = array if array.ndim == 4 else array[None]
        if self.writer:
            self._record(self.writer.add_images, name, batch, self.index[name])
        self.index[name] += 1
        self._send("images", batch, win=name, opts={"title": name})

    def img_many(self, images: Mapping[str, Tensor | np.ndarray]) -> None:
        for name, image in images.items():
            self.img(name, image)

    def log(self, info: Any, win: str = "log_text") -> None:
        """Append a line with its time."""
        line = f"[{time.strftime('%m%d_%H%M%S')}] {info}"
        self.text += html.escape(line) + "<br>"
        if self.writer:
            self._record(self.writer.add_text, win, line, self.index[win])
        self.index[win] += 1
        self._send("text", self.text, win=win)

    def flush(self) -> None:
        if self.writer:
            self._record(self.writer.flush)

    def close(self) -> None:
        """Write what is left; a server that does not take it in time is left behind."""
        deadline = time.monotonic() + SECONDS_TO_FINISH
        while self.tasks.unfinished_tasks and self.connected and time.monotonic() < deadline:
            time.sleep(0.01)
        self.vis = NullVisdom()
        with suppress(queue.Full):
            self.tasks.put_nowait(None)  # the thread ends
        if self.writer:
            self._record(self.writer.close)

    def __getattr__(self, name: str) -> Any:
        if name == "vis":  # not made yet: looking further would never end
            raise AttributeError(name)
        found = getattr(self.vis, name)
        return partial(self._native, found) if callable(found) else found

    def _native(self, call: Callable, *args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except OSError as error:  # the server's fault; a wrong argument is the caller's to know
            self._give_up(type(error).__name__)

    def _record(self, call: Callable, *args: Any) -> None:
        try:
            call(*args)
        except OSError as error:  # a full disk, say
            self.writer = None
            tqdm.write(f"TensorBoard's file cannot be written ({error.strerror}); going on without")

    def _send(self, call: str, *args: Any, **kwargs: Any) -> None:
        if self.connected:
            try:
                self.tasks.put_nowait((getattr(self.vis, call), args, kwargs))
            except queue.Full:
                self._give_up("too slow")

    def _work(self) -> None:
        for call, args, kwargs in iter(self.tasks.get, None):
            try:
                if self.connected:
                    call(*args, **kwargs)
            except Exception as error:  # whatever a dying server makes its client raise
                self._give_up(type(error).__name__)
            self.tasks.task_done()

    def _give_up(self, reason: str) -> None:
        if self.connected:
            self.vis = NullVisdom()
            tqdm.write(f"visdom does not answer any more ({reason}); going on without it")


class NullVisdom:
    """Takes any visdom call and does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def connect(env: str, port: int | None) -> Any:
    """Return a visdom client, or a NullVisdom where no server answers on this machine's `port`."""
    if port is None:
        return NullVisdom()
    try:
        probe = HTTPConnection("127.0.0.1", port, timeout=SECONDS_TO_ANSWER)
        probe.request("GET", "/")
        probe.getresponse()
    except (OSError, HTTPException):
        return NullVisdom()
    import visdom  # slow to load, so only when somebody listens

    logging.getLogger("visdom").setLevel(logging.ERROR)  # it warns of what we ask for

    class Client(visdom.Visdom):
        def _handle_post(self, url: str, data: str | None = None) -> str:
            return self.session.post(url, data=data, timeout=SECONDS_TO_FINISH).text

    try:
        return Client(
            server="http://127.0.0.1",
            port=port,
            env=env,
            raise_exceptions=True,
            use_incoming_socket=False,
        )
    except Exception:
        return NullVisdom()
