"""What a network does to pixels before its first layer: a scale and a shift for each channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from resnet8_eval import onnx_graph

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Front:
    """A chain of sums and products with constants, from the image on.

    Attributes
    ----------
    nodes
        Its nodes, in order, without the transposition among them.
    constants
        Names of their constants.
    scale, shift
        float64, shape (3,): what a value becomes is ``scale * pixel + shift``.
    output
        The tensor that layers read.
    """

    nodes: list[onnx.NodeProto]
    constants: list[str]
    scale: Vector
    shift: Vector
    output: str


def front(graph: onnx.GraphProto) -> Front:
    """Read the chain at the front of a network; it may be empty."""
    constants, readers = onnx_graph.constants(graph), onnx_graph.readers(graph)
    name = graph.input[0].name
    scale, shift = np.ones(3), np.zeros(3)
    nodes: list[onnx.NodeProto] = []
    names: list[str] = []
    while len(following := readers[name]) == 1:
        (node,) = following
        others = [each for each in node.input if each != name]
        if node.op_type in ("Mul", "Div", "Add", "Sub") and len(others) == 1:
            value = _for_channels(constants.get(others[0]))
            reversed_ = node.op_type in ("Div", "Sub") and node.input[0] != name
            if value is None or reversed_:
                break
            if node.op_type in ("Mul", "Div"):
                factor = value if node.op_type == "Mul" else 1 / value
                scale, shift = scale * factor, shift * factor
            else:
                shift = shift + (value if node.op_type == "Add" else -value)
            nodes.append(node)
            names += others
        elif node.op_type != "Transpose":
            break
        name = node.output[0]
    return Front(nodes, names, scale, shift, name)


def _for_channels(value: NDArray[Any] | None) -> Vector | None:
    if value is None or value.size not in (1, 3):
        return None
    return np.broadcast_to(value.astype(np.float64).ravel(), (3,))


def fold(model: onnx.ModelProto) -> None:
    """Make the chain at the front part of the convolutions that read it, in place.

    Where such a convolution pads, a shift does not reach the padding, which is zero behind the
    chain. There a second convolution, of a map of ones, adds what is missing at the edges. A model
    in which something else than a convolution reads the chain stays as it is.
    """
    graph = model.graph
    found = front(graph)
    following = [node for node in graph.node if found.output in node.input]
    constants = onnx_graph.constants(graph)
    if not found.nodes or not all(
        node.op_type == "Conv" and all(name in constants for name in node.input[1:])
        for node in following
    ):
        return

    def constant(name: str, value: NDArray[Any]) -> str:
        return onnx_graph.add_constant(graph, name, value.astype(np.float32))

    for node in following:
        weight = constants[node.input[1]].astype(np.float64)
        bias = constants[node.input[2]].astype(np.float64)
        shifted = np.einsum("ocij,c->oij", weight, found.shift)[:, None]
        inside = shifted.sum((1, 2, 3))
        name = node.name
        scaled = weight * found.scale[:, None, None]
        node.input[1:] = [
            constant(f"{name}/scaled", scaled),
            constant(f"{name}/shifted", bias + inside),
        ]
        padded = any(onnx_graph.settings(node).get("pads", ()))
        if not padded or not found.shift.any():
            continue
        ones = onnx.helper.make_node(
            "Conv",
            [
                found.output,
                constant(f"{name}/nothing", np.zeros((1, 3, 1, 1))),
                constant(f"{name}/one", np.ones(1)),
            ],
            [f"{name}/ones"],
            f"{name}/ones",
        )
        edge = onnx.NodeProto()
        edge.CopyFrom(node)
        edge.name = f"{name}/edge"
        edge.input[:] = [
            ones.output[0],
            constant(f"{name}/edge/weight", shifted),
            constant(f"{name}/edge/bias", -inside),
        ]
        edge.output[0] = f"{name}/edge"
        whole = node.output[0]
        node.output[0] = f"{name}/inside"
        both = onnx.helper.make_node(
            "Add", [node.output[0], edge.output[0]], [whole], f"{name}/whole"
        )
        place = list(graph.node).index(node) + 1
        for offset, new in enumerate((ones, edge, both)):
            graph.node.insert(place + offset, new)
    for node in found.nodes:
        (source,) = (name for name in node.input if name not in found.constants)
        onnx_graph.bypass(graph, node, source)
