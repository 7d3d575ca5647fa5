"""The operations of a model that gradients flow through: for TensorBoard, and as a drawing."""

import copy
import html
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Operation:
    """An operation of the forward pass, by the name that autograd gives it."""

    name: str
    layer: str  # the module that calls it; "" for the model itself
    inputs: list[int] = field(default_factory=list)  # numbers of earlier operations
    weights: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)  # names and shapes


def operations_of(model: nn.Module, images: Tensor) -> list[Operation]:
    """Return the operations between images (N, 3, H, W) and logits, in the order of the pass.

    The pass is made by a copy of the model, in eval mode.
    """
    model = copy.deepcopy(model).eval()
    layer_of: dict[Any, str] = {}  # autograd's nodes; a layer's own come before its parent's
    starts: list[list[Any]] = []  # the nodes that the inputs of the running modules came from
    name_of = {module: name for name, module in model.named_modules()}

    def enter(_module: nn.Module, inputs: Any) -> None:
        starts.append([x.grad_fn for x in inputs if isinstance(x, Tensor)])

    def leave(module: nn.Module, _inputs: Any, output: Any) -> None:
        known = {*starts.pop(), *layer_of}
        found = [x.grad_fn for x in [output] if isinstance(x, Tensor) and x.grad_fn]
        while found:
            if (node := found.pop()) not in known:
                layer_of[node] = name_of[module]
                known.add(node)
                found += [before for before, _ in node.next_functions if before]

    for module in name_of:
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
    with torch.enable_grad():
        logits = model(images)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    operations: list[Operation] = []
    number_of: dict[Any, int] = {}
    waiting = [(logits.grad_fn, False)]
    while waiting:
        node, inputs_are_done = waiting.pop()
        if node is None or node in number_of or hasattr(node, "variable"):
            continue
        before = [other for other, _ in node.next_functions if other]
        if not inputs_are_done:
            waiting += [(node, True), *((other, False) for other in before)]
            continue
        number_of[node] = len(operations)
        name = re.sub(r"Backward\d*$", "", node.name())
        operation = Operation(name, layer_of.get(node, ""))
        for other in before:
            if hasattr(other, "variable"):
                shape = tuple(other.variable.shape)
                operation.weights.append((names.get(id(other.variable), "?"), shape))
            else:
                operation.inputs.append(number_of[other])
        operations.append(operation)
    return operations


def to_graph_def(operations: list[Operation]) -> Any:
    """Return the operations as the graph that TensorBoard shows, with a box for each layer."""
    from tensorboard.compat.proto.graph_pb2 import GraphDef  # slow to import

    graph = GraphDef()
    graph.versions.producer = 22
    paths: list[str] = []
    for number, operation in enumerate(operations):
        layer = "".join(f"{part}/" for part in operation.layer.split(".") if part)
        paths.append(f"{layer}{operation.name}_{number}")
        weights = [name.replace(".", "/") for name, _ in operation.weights]
        inputs = [paths[before] for before in operation.inputs]
        graph.node.add(name=paths[-1], op=operation.name, input=inputs + weights)
        for name, (_, shape) in zip(weights, operation.weights, strict=True):
            if not any(node.name == name for node in graph.node):
                node = graph.node.add(name=name, op="Parameter")
                for size in shape:
                    node.attr["shape"].shape.dim.add(size=size)
    return graph


ROW, COLUMN, BOX = 34, 220, 200  # pixels: heights and widths of the drawing


def to_svg(operations: list[Operation]) -> str:
    """Draw the operations from top to bottom; those that do not depend on each other side by side.

    Returns an SVG picture as text. Colours follow those of the page around it.
    """
    rows: list[int] = []
    columns: list[int] = []
    used: dict[int, int] = defaultdict(int)  # row: how many of its columns are taken
    boxes, lines = [], []
    for operation in operations:
        row = 1 + max((rows[before] for before in operation.inputs), default=-1)
        column = used[row]
        used[row] += 1
        rows.append(row)
        columns.append(column)
        x, y = column * COLUMN, row * ROW
        shapes = ", ".join("×".join(map(str, shape)) for _, shape in operation.weights)
        words = f"{operation.layer} {operation.name}".strip()
        title = html.escape(f"{words} {shapes}".strip())
        boxes.append(f"<rect x='{x}' y='{y}' width='{BOX}' height='22' rx='4'/>")
        text = f"{html.escape(words[-32:])}<title>{title}</title>"
        boxes.append(f"<text x='{x + 6}' y='{y + 15}'>{text}</text>")
        for before in operation.inputs:
            x1, y1 = columns[before] * COLUMN + BOX // 2, rows[before] * ROW + 22
            lines.append(f"<path d='M{x1} {y1} L{x + BOX // 2} {y}'/>")
    width = COLUMN * (max(columns, default=0) + 1)
    height = ROW * (max(rows, default=0) + 1)
    style = "rect{fill:#8883}text{font:11px sans-serif;fill:#555}path{stroke:#888;fill:none}"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' "
        f"height='{height}'><style>{style}</style>{''.join(lines)}{''.join(boxes)}</svg>"
    )
