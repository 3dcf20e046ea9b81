"""The parts of an ONNX graph by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

Shapes = dict[str, tuple[int, ...]]


def constants(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    """Every initializer."""
    from onnx import numpy_helper

    return {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}


def readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that read each tensor, in order; none for one that no node reads."""
    found: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            found[name].append(node)
    return found


def makers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The node that computes each tensor."""
    return {name: node for node in graph.node for name in node.output}


def settings(node: onnx.NodeProto) -> dict[str, Any]:
    """Its attributes."""
    from onnx.helper import get_attribute_value

    return {entry.name: get_attribute_value(entry) for entry in node.attribute}


def sizes(values: Iterable[onnx.ValueInfoProto]) -> Shapes:
    """Shapes of inputs, outputs or tensors between; 0 where any size is taken."""
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in values
    }


def shapes(model: onnx.ModelProto) -> Shapes:
    """The shape of every tensor but constants, as :func:`sizes`, by ONNX's shape inference."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    return sizes((*graph.input, *graph.value_info, *graph.output))


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors other names, wherever they stand in nodes and constants."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for entry in graph.initializer:
        entry.name = names.get(entry.name, entry.name)


def bypass(graph: onnx.GraphProto, node: onnx.NodeProto, name: str) -> None:
    """Take out a node; what reads its output reads `name` instead."""
    for reader in graph.node:
        reader.input[:] = [name if read == node.output[0] else read for read in reader.input]
    graph.node.remove(node)
