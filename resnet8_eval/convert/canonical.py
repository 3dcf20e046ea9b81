"""One form for every conversion of the same network.

tf2onnx walks sets of objects, whose order changes from process to process: it numbers its
constants differently each time, and about once in fifteen leaves the shape of the Flatten layer to
be computed at run time, which the quantizers cannot follow. The network itself stays the same.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import onnx

from resnet8_eval import onnx_graph

_NUMBERED = re.compile(r"__\d+(:\d+)?$")


def canonical(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network, as tf2onnx made it, changed in place and returned.

    Reshape targets are constant, and names and order say where a thing is.
    """
    _fix_reshapes(model)
    onnx_graph.drop_unread(model.graph)
    _rename(model)
    return model


def _fix_reshapes(model: onnx.ModelProto) -> None:
    """Give each Reshape to two sizes, as Keras's Flatten is, a constant target."""
    constants = {entry.name: entry for entry in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Reshape" and (
            node.input[1] not in constants or constants[node.input[1]].dims == [2]
        ):
            width = int(np.prod(onnx_graph.shapes(model)[node.input[0]][1:]))
            node.input[1] = onnx_graph.add_constant(
                model.graph, f"{node.name}/shape", np.array([-1, width], np.int64)
            )


def _rename(model: onnx.ModelProto) -> None:
    """Name numbered things after their place, and put the constants in order of first use."""
    graph = model.graph
    constants = {entry.name: entry for entry in graph.initializer}
    used = Counter(name for node in graph.node for name in node.input if name in constants)
    names: dict[str, str] = {}
    for position, name in enumerate(used):
        # Equal constants are merged under the name of whichever came first.
        if _NUMBERED.search(name) or used[name] > 1:
            names[name] = f"constant_{position}"
    for position, node in enumerate(graph.node):
        if _NUMBERED.search(node.name):
            node.name = f"{node.op_type}_{position}"
        for index, name in enumerate(node.output):
            if _NUMBERED.search(name):
                names[name] = f"{node.op_type}_{position}:{index}"
    onnx_graph.rename(graph, names)
    del graph.initializer[:]
    graph.initializer.extend(constants[name] for name in used)
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    del graph.value_info[:]
