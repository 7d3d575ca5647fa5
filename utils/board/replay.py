"""Put a run on the board from its own files."""

import html
import io
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.visdom_client import Windows, read_curves, read_events
from utils.visualize import html_table, sizes_of


def replay(folder: Path, port: int) -> str:
    """Show a run in an environment that has the name of its folder; return that name.

    Curves are shown as a whole; of pictures and histograms, those of the last epoch.
    """
    if not list(folder.glob("events.out.tfevents.*")):
        raise FileNotFoundError(f"{folder} has no event files: give the folder of a run")
    windows = Windows(folder.name, port)
    for chart, line, points in read_curves(folder):
        for x, y in [] if chart.startswith("final/") else points:
            windows.add_point(chart, line, x, y)
    events = read_events(folder)
    for tag in events.Tags()["images"]:
        image = Image.open(io.BytesIO(events.Images(tag)[-1].encoded_image_string))
        windows.show(tag, "image", image.convert("RGB"), opts={"title": tag})
    for name, groups in histograms_of(events).items():
        counts, limits = zip(*groups.values(), strict=True)
        names = [html.escape(group, quote=False) for group in groups]
        if all(np.array_equal(limits[0], other) for other in limits):
            width = limits[0][1] - limits[0][0]
            edges = [f"{limit - width:.3g}" for limit in limits[0]]  # as during a training
            options = {"title": name, "legend": names, "rownames": edges, "stacked": False}
            windows.show(name, "bar", np.stack(counts, axis=1), opts=options)
        else:  # layers: each has bins of its own, from its smallest to its largest value
            values = [limit - (limit[1] - limit[0]) / 2 for limit in limits]  # middles of the bins
            pairs = zip(values, counts, strict=True)
            rows, columns = zip(*(sizes_of(value, count) for value, count in pairs), strict=True)
            options = {"title": f"log10 |{name}|", "rownames": names, "columnnames": columns[0]}
            windows.show(name, "heatmap", np.stack(rows), opts=options)
    for tag in events.Tags()["tensors"]:
        if name := tag.removesuffix("/text_summary") * tag.endswith("/text_summary"):
            text = events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
            windows.show(name, "text", as_html(text), opts={"title": name})
    if (drawing := folder / "autograd.svg").exists():
        text = drawing.read_text(encoding="utf-8")
        windows.show("autograd graph", "svg", text, opts={"title": "autograd graph"})
    windows.close()
    return folder.name


def histograms_of(events: Any) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Return {name: {group: (counts, upper limits)}} of the last histograms."""
    found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = defaultdict(dict)
    for tag in events.Tags()["histograms"]:
        name, _, group = tag.partition("/")
        value = events.Histograms(tag)[-1].histogram_value
        found[name][group] = np.array(value.bucket), np.array(value.bucket_limit)
    return found


def as_html(markdown: str) -> str:
    """Return a table of `Visualizer.table` as HTML; its cells are escaped already."""
    rows = [line for line in markdown.splitlines() if not line.startswith("| --- ")]
    return html_table([re.findall(r"(?<=\| ).*?(?= \|)", row) for row in rows])
