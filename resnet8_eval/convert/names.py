"""Keras's own names of layers, in the ONNX model that is made of them.

Keras 3 opens TensorFlow's scope of a layer twice, to build and to call it, and TensorFlow numbers
what it has seen: what the layer ``conv2d`` computes stands in the scope ``conv2d_1``, and Keras has
another layer of that name. The check of the structure holds that names and weights go together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Final

import onnx

from resnet8_eval import onnx_graph

_NUMBER: Final = re.compile(r"_\d+$")
_LAYERS: Final = frozenset({"Conv", "Add", "AveragePool", "GlobalAveragePool", "Gemm"})


def as_in_keras(
    model: onnx.ModelProto, network: str, layers: Collection[str], nodes: Mapping[str, str]
) -> None:
    """Name nodes, tensors and constants ``layer/operation``, as Keras calls the layer, in place.

    What stands in the scope of no layer keeps its name. `network` and `layers` are Keras's names;
    `nodes` are names of nodes to the layers whose weights they hold: a convolution with which a
    batch normalisation was merged stands in no scope, or in the normalisation's.
    """
    graph = model.graph
    old = {name for node in graph.node for name in (*node.input, *node.output)}
    holders = set(nodes.values())
    for node in graph.node:
        name = _called(node.name, network, layers)
        scope, inside, _ = name.partition("/")
        if node.name in nodes and not (inside and scope in holders):
            name = f"{nodes[node.name]}/{node.op_type}"
        node.name = name
    onnx_graph.rename(graph, {name: _called(name, network, layers) for name in old})


def _called(name: str, network: str, layers: Collection[str]) -> str:
    outer, _, inner = name.partition("/")
    scope, _, operation = inner.partition("/")
    layer = _NUMBER.sub("", scope)
    if not inner or _NUMBER.sub("", outer) != network:
        return name
    return f"{layer}/{operation}" if operation and layer in layers else inner


def by_layer(model: onnx.ModelProto) -> None:
    """Call each node that is a layer by its layer alone, if no other is of that layer; in place."""
    found = [node for node in model.graph.node if node.op_type in _LAYERS]
    owners = Counter(node.name.partition("/")[0] for node in found)
    for node in found:
        layer = node.name.partition("/")[0]
        if layer and owners[layer] == 1:
            node.name = layer
    layers = {node.name for node in found}
    for node in model.graph.node:
        if node.op_type not in _LAYERS and node.name in layers:  # so called by its place
            node.name += f"/{node.op_type}"
