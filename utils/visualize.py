"""Curves, images and tables for two optional viewers: TensorBoard's files and a visdom server.

An error of a viewer costs a line; the run continues.
"""

import html
import io
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm


class Visualizer:
    """The book's visualizer: `vis.plot("loss", 1.0)` appends a point; x counts up by itself.

    log_dir: folder of TensorBoard's event files; None writes none. port: of a visdom server on this
    machine; None, or no server there, shows nothing. Any other visdom call works too:
    `vis.bar(X=…)`; without a server it does nothing. resume_at: the x from which on the points of
    an earlier process count no more, for a resumed run.
    """

    def __init__(
        self,
        env: str = "default",
        log_dir: Path | None = None,
        port: int | None = 8097,
        resume_at: int | None = None,
    ) -> None:
        self.index: dict[str, int] = defaultdict(int)  # name: its next x
        self.text = ""
        self.port, self.log_dir = port, log_dir
        self.vis = open_visdom(env, port, log_dir, resume_at)
        self.writer = Viewer(f"TensorBoard in {log_dir}", open_events, log_dir, resume_at)

    def state_dict(self) -> dict[str, int]:
        return dict(self.index)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.index.update(state)

    def reinit(self, env: str = "default") -> "Visualizer":
        """Continue in another visdom environment."""
        self.vis.close()
        self.vis = open_visdom(env, self.port, self.log_dir, None)
        return self

    @property
    def connected(self) -> bool:
        return self.vis.connected

    def plot(self, name: str, y: float, x: int | None = None, line: str = "") -> None:
        """Append a point to the curve `name`; x None: the last x plus 1.

        line: the name of a curve that shares its chart with others, as "train" and "val". Its tag
        in TensorBoard is name/line.
        """
        y, x = float(y), self._next_x(f"{name}/{line}" if line else name, x)
        self.writer.add_scalar(f"{name}/{line}" if line else name, y, x)
        self.vis.add_point(name, line, x, y)

    def plot_many(self, values: Mapping[str, float], x: int | None = None) -> None:
        for name, y in values.items():
            self.plot(name, y, x)

    def img(self, name: str, image: Tensor | np.ndarray, x: int | None = None) -> None:
        """Show (H, W), (C, H, W) or (N, C, H, W) with C 1 or 3; floats within 0 … 1 or uint8."""
        array = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
        array = array[None] if array.ndim == 2 else array
        if not (array.ndim in (3, 4) and array.shape[-3] in (1, 3)):
            raise ValueError(f"{name}: cannot show an image of shape {array.shape}")
        images = array if array.ndim == 4 else array[None]
        self.writer.add_images(name, images, self._next_x(name, x))
        self.vis.show(name, "images", images, opts={"title": name})

    def img_many(self, images: Mapping[str, Tensor | np.ndarray]) -> None:
        for name, image in images.items():
            self.img(name, image)

    def photo(self, name: str, image: Image.Image, x: int) -> None:
        """Show a picture of Pillow: as JPEG, or as PNG if it has a palette. Both take little."""
        file = io.BytesIO()
        image.save(file, "png" if image.mode == "P" else "jpeg", quality=85)
        self.writer.add_encoded(name, file.getvalue(), image.size, x)
        options = {"title": name, "width": image.width + 20, "height": image.height + 40}
        options |= {} if image.mode == "P" else {"jpgquality": 85}
        self.vis.show(name, "image", image.convert("RGB"), opts=options)

    def histogram(
        self,
        name: str,
        groups: Mapping[str, np.ndarray],
        x: int,
        limits: tuple[float, float] | None = None,
        bins: int = 20,
    ) -> None:
        """Show how the values of each group are distributed; the groups share their bins.

        limits: of the first and the last bin; None: those of the values.
        """
        groups = {group: np.asarray(values, dtype=np.float64) for group, values in groups.items()}
        edges = np.histogram_bin_edges(np.concatenate([*groups.values()]), bins, limits)
        counts = {group: np.histogram(values, edges)[0] for group, values in groups.items()}
        for group, values in groups.items():
            facts = summary_of(values, edges, counts[group])
            self.writer.add_histogram_raw(f"{name}/{group}", **facts, global_step=x)
        names = [html.escape(group, quote=False) for group in groups]  # Plotly reads tags
        options = {"title": name, "stacked": False} | ({"legend": names} if names[1:] else {})
        options["rownames"] = [f"{edge:.3g}" for edge in edges[:-1]]
        self.vis.show(name, "bar", np.stack([*counts.values()], axis=1), opts=options)

    def layers(self, name: str, tensors: Mapping[str, Tensor], x: int) -> None:
        """Show how the values of each tensor are distributed.

        TensorBoard shows a histogram of each, visdom one map of all: how large the values are.
        """
        rows: list[np.ndarray] = []
        columns: list[str] = []
        for layer, tensor in tensors.items():
            values = tensor.detach().float().flatten().cpu().numpy().astype(np.float64)
            values = values[np.isfinite(values)]
            counts, edges = np.histogram(values, bins=30)
            facts = summary_of(values, edges, counts)
            self.writer.add_histogram_raw(f"{name}/{layer}", **facts, global_step=x)
            row, columns = sizes_of(values, np.ones(len(values)))
            rows.append(row)
        options = {"title": f"log10 |{name}|", "rownames": [*tensors], "columnnames": columns}
        if rows:  # a run that is resumed for the val pass of an epoch has no gradients
            self.vis.show(name, "heatmap", np.stack(rows), opts=options)

    def graph(self, graph_def: Any) -> None:
        """Show the graph of a model in TensorBoard."""
        self.writer.add_graph_def(graph_def)

    def svg(self, name: str, drawing: str) -> None:
        """Show a drawing on visdom."""
        self.vis.show(name, "svg", drawing, opts={"title": name})

    def share_charts(self, names: Sequence[str]) -> None:
        """Let TensorBoard lay name/train over name/val, under Custom Scalars."""
        charts = {name: ["Multiline", [f"{name}/train$", f"{name}/val$"]] for name in names}
        self.writer.add_custom_scalars({"train and val": charts})

    def hparams(self, options: Mapping[str, Any], results: Mapping[str, float], x: int) -> None:
        """Put a run into TensorBoard's table of hyper-parameters."""
        # Of type, not isinstance: True would be shown as 1.0.
        kept = {k: v if type(v) in (int, float) else str(v) for k, v in options.items()}
        self.writer.add_final(kept, dict(results))
        for name, value in results.items():
            self.writer.add_scalar(name, value, x)

    def table(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        """Show a table; the first row is its heading."""
        lines = [[html.escape(str(cell)) for cell in row] for row in rows]
        marked = [[cell.replace("|", "&#124;") for cell in row] for row in lines]
        marked.insert(1, ["---"] * len(rows[0]))
        markdown = "\n".join(f"| {' | '.join(row)} |" for row in marked)
        self.writer.add_text(name, markdown, self._next_x(name, None))
        self.vis.show(name, "text", html_table(lines), opts={"title": name})

    def log(self, info: Any, win: str = "log_text") -> None:
        """Append a line with its time."""
        line = f"[{time.strftime('%m%d_%H%M%S')}] {info}"
        self.text += html.escape(line) + "<br>"
        self.writer.add_text(win, line, self._next_x(win, None))
        self.vis.show(win, "text", self.text)

    def flush(self) -> None:
        self.writer.flush()

    def close(self, wait: bool = True) -> None:
        """Write and deliver what is left; later calls show nothing.

        wait: until a visdom server has everything; else a thread goes on delivering.
        """
        self.vis.close() if wait else self.vis.stop()
        self.writer.flush()  # raises an error of SummaryWriter's thread; `close` does not
        self.writer.close()
        self.writer.target = None

    def _next_x(self, name: str, x: int | None) -> int:
        x = self.index.get(name, 0) if x is None else x
        self.index[name] = x + 1
        return x

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self).get("vis"), name)  # `self.vis`, if not set yet, would recurse


class Viewer:
    """Forward calls to what `open(*args)` returned; after an error, or without it, do nothing."""

    def __init__(self, title: str, open: Callable, folder: Path | None, *args: Any) -> None:
        self.title = title
        self.target = None if folder is None else self._call(Exception, open, folder, *args)

    def __getattr__(self, name: str) -> Any:
        target = self.target
        found = getattr(target, name) if target is not None else lambda *_, **__: None
        return partial(self._call, OSError, found) if callable(found) else found

    def _call(self, failure: type[Exception], call: Callable, *args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except failure as error:
            self.target = None
            reason = f"{type(error).__name__}: {error}"
            tqdm.write(f"{self.title} failed ({reason}); the run continues without it")


def open_events(log_dir: Path, resume_at: int | None) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary  # slow to import, all of them
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    class Writer(SummaryWriter):
        file_writer: Any  # for torch its type is None

        def add_graph_def(self, graph_def: Any) -> None:
            self.file_writer.add_event(Event(graph_def=graph_def.SerializeToString()))

        def add_final(self, options: dict[str, Any], results: dict[str, float]) -> None:
            for summary in hparams(options, results):  # add_hparams makes a folder of its own
                self.file_writer.add_summary(summary)

        def add_encoded(self, tag: str, encoded: bytes, size: tuple[int, int], x: int) -> None:
            width, height = size
            image = Summary.Image(width=width, height=height, colorspace=3)
            image.encoded_image_string = encoded
            self.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), x)

    do_not_print_its_errors()
    # A new run says so, too: TensorBoard takes the first of these marks for no resume.
    return Writer(log_dir, purge_step=resume_at or 0)


@cache
def do_not_print_its_errors() -> None:
    """SummaryWriter's thread prints an error that SummaryWriter's next call raises as well."""
    hook = threading.excepthook
    threading.excepthook = lambda args: "tensorboard" in type(args.thread).__module__ or hook(args)


def sizes_of(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return how large values are, each of which is there `counts` times.

    That is the share of them in each of 40 bins of log10 |value|, and the lower edges of the bins.
    """
    there = values != 0
    shares, edges = np.histogram(
        np.log10(np.abs(values[there])), 40, (-10, 2), weights=counts[there]
    )
    return shares / max(1, counts.sum()), [f"{edge:.1f}" for edge in edges[:-1]]


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table for a window of visdom; its cells are escaped already."""
    names = " style='overflow-wrap: anywhere; min-width: 8em'"  # long ones do not hide the rest
    lines = (
        "".join(f"<td{names if k == 0 else ''}>{cell}</td>" for k, cell in enumerate(row))
        for row in rows
    )
    return f"<table cellpadding=4>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def summary_of(values: np.ndarray, edges: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    """Return what TensorBoard's histograms hold."""
    low, high = (values.min(), values.max()) if len(values) else (0.0, 0.0)
    facts = {"min": low, "max": high, "num": len(values)}
    facts |= {"sum": values.sum(), "sum_squares": (values**2).sum()}
    return facts | {"bucket_limits": edges[1:].tolist(), "bucket_counts": counts.tolist()}


class NoWindows:
    """Stands for visdom where it is not wanted, or its client has been deleted."""

    connected = False

    def __getattr__(self, name: str) -> Callable:
        return lambda *_, **__: None


def open_visdom(env: str, port: int | None, log_dir: Path | None, resume_at: int | None) -> Any:
    if port is not None:
        with suppress(ImportError):  # no client, or no visdom
            from utils.visdom_client import Windows

            return Windows(env, port, log_dir, resume_at)
    return NoWindows()
