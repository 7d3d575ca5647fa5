"""The graph of a model's operations: for TensorBoard, and as a drawing."""

import copy
import html
from collections import defaultdict
from typing import Any, NamedTuple

from torch import Tensor, nn

from utils.trace import Trace


class Node(NamedTuple):
    """An operation of the forward pass."""

    name: str  # of torch's function
    layer: str  # the module that calls it; "" for the model itself
    inputs: list[int]  # numbers of earlier nodes
    weights: list[tuple[str, tuple[int, ...]]]  # names and shapes


def nodes_of(model: nn.Module, images: Tensor) -> list[Node]:
    """Return the operations between images (N, 3, H, W) and logits, in the order of the pass.

    The pass is made by a copy of the model, in eval mode.
    """
    model = copy.deepcopy(model).eval()
    trace = Trace(model, images)
    names = {id(weight): name for name, weight in model.named_parameters()}
    number_of = {index: number for number, index in enumerate(trace.path_indices)}
    nodes = []
    for operation in trace.path:
        inputs = sorted({number_of[source] for source in operation.sources if source >= 0})
        weights = [(names.get(id(x), "computed"), tuple(x.shape)) for x in operation.weights]
        nodes.append(Node(operation.name, operation.layer, inputs, weights))
    return nodes


def to_graph_def(nodes: list[Node]) -> Any:
    """Return the nodes as the graph that TensorBoard shows, with a box for each layer."""
    from tensorboard.compat.proto.graph_pb2 import GraphDef  # slow to import

    graph = GraphDef()
    graph.versions.producer = 22
    paths: list[str] = []
    for number, node in enumerate(nodes):
        layer = "".join(f"{part}/" for part in node.layer.split(".") if part)
        paths.append(f"{layer}{node.name}_{number}")
        weights = [name.replace(".", "/") for name, _ in node.weights]
        inputs = [paths[before] for before in node.inputs]
        graph.node.add(name=paths[-1], op=node.name, input=inputs + weights)
        for name, (_, shape) in zip(weights, node.weights, strict=True):
            if not any(other.name == name for other in graph.node):
                parameter = graph.node.add(name=name, op="Parameter")
                for size in shape:
                    parameter.attr["shape"].shape.dim.add(size=size)
    return graph


ROW, COLUMN, BOX = 34, 220, 200  # pixels: heights and widths of the drawing


def to_svg(nodes: list[Node]) -> str:
    """Draw the nodes from top to bottom; those that do not depend on each other side by side.

    Returns an SVG picture as text. Colours follow those of the page around it.
    """
    rows: list[int] = []
    columns: list[int] = []
    used: dict[int, int] = defaultdict(int)  # row: how many of its columns are taken
    boxes, lines = [], []
    for node in nodes:
        row = 1 + max((rows[before] for before in node.inputs), default=-1)
        column = used[row]
        used[row] += 1
        rows.append(row)
        columns.append(column)
        x, y = column * COLUMN, row * ROW
        shapes = ", ".join("×".join(map(str, shape)) for _, shape in node.weights)
        words = f"{node.layer} {node.name}".strip()
        title = html.escape(f"{words} {shapes}".strip())
        boxes.append(f"<rect x='{x}' y='{y}' width='{BOX}' height='22' rx='4'/>")
        text = f"{html.escape(words[-32:])}<title>{title}</title>"
        boxes.append(f"<text x='{x + 6}' y='{y + 15}'>{text}</text>")
        for before in node.inputs:
            x1, y1 = columns[before] * COLUMN + BOX // 2, rows[before] * ROW + 22
            lines.append(f"<path d='M{x1} {y1} L{x + BOX // 2} {y}'/>")
    width = COLUMN * (max(columns, default=0) + 1)
    height = ROW * (max(rows, default=0) + 1)
    style = "rect{fill:#8883}text{font:11px sans-serif;fill:#555}path{stroke:#888;fill:none}"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' "
        f"height='{height}'><style>{style}</style>{''.join(lines)}{''.join(boxes)}</svg>"
    )
