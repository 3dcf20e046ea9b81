"""The parts of an ONNX graph by name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

Shapes = dict[str, tuple[int, ...]]
QUANTIZE_STEPS: Final = ("QuantizeLinear", "DequantizeLinear")
_NOT_IN_WORDS: Final = re.compile(r"\W", re.ASCII)


def module_name(place: int, name: str) -> str:
    """What PyTorch calls the module of a layer, such as ``n03_block_1``.

    The place tells it from every other layer, whatever their names, and from the attributes of
    modules and the words of Python. In the name, ``_`` stands for what TorchScript cannot read.
    """
    return f"n{place:02}_{_NOT_IN_WORDS.sub('_', name)}"


def constants(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    """Every initializer."""
    from onnx import numpy_helper

    return {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}


def unlist(model: onnx.ModelProto) -> None:
    """Take initializers out of the inputs, where older files list them as well; in place."""
    stored = {entry.name for entry in model.graph.initializer}
    for value in [value for value in model.graph.input if value.name in stored]:
        model.graph.input.remove(value)
    # The first version in which they need not be listed.
    model.ir_version = max(model.ir_version, 4)


def name_nodes(model: onnx.ModelProto) -> None:
    """Give each node without a name, or with that of another, one of its own; in place.

    ONNX asks for none, but layers and what is made of them are told apart by the names of nodes.
    """
    taken, seen = {node.name for node in model.graph.node}, {""}
    for place, node in enumerate(model.graph.node):
        if node.name in seen:
            name = f"{node.name or node.op_type}_{place}"
            while name in taken:
                name += "_"
            node.name = name
        taken.add(node.name)
        seen.add(node.name)


def load_quantized(path: Path) -> onnx.ModelProto:
    """Read a model, with what its quantize steps take among the initializers, whoever wrote it.

    ``Constant`` nodes become initializers, and float weights before a ``QuantizeLinear`` step the
    integers that it makes of them. A step without a zero point gets one of 0, of its dtype.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    unlist(model)
    name_nodes(model)
    graph = model.graph
    store_constants(graph)
    known = constants(graph)
    dtypes = {name: value.dtype for name, value in known.items()}
    for node in list(graph.node):
        if node.op_type not in QUANTIZE_STEPS or node.input[1] not in known:
            continue
        output = node.output[0]
        if not any(node.input[2:]):
            node.input[2:] = [f"{output}, zero point"]
            known[node.input[2]] = np.zeros(known[node.input[1]].shape, _integers(node, dtypes))
        if node.op_type == "QuantizeLinear" and node.input[2] in known:
            scale, zero_point = (known[name] for name in node.input[1:])
            dtypes[output] = zero_point.dtype
            # Neither blocks nor float8.
            if node.input[0] in known and scale.ndim < 2 and zero_point.dtype.kind in "iu":
                known[output] = _evaluated(node, known)
                graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    del graph.initializer[:]
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in known.items() if name in read
    )
    return model


def _evaluated(node: onnx.NodeProto, known: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    from onnx.reference import ReferenceEvaluator

    (value,) = ReferenceEvaluator(node).run(None, {name: known[name] for name in node.input})
    return np.asarray(value)


def _integers(node: onnx.NodeProto, dtypes: Mapping[str, Any]) -> Any:
    """The dtype of a zero point that is not there, as ONNX has it."""
    from onnx.helper import tensor_dtype_to_np_dtype

    if node.op_type == "DequantizeLinear":
        return dtypes.get(node.input[0], np.uint8)
    stated = settings(node).get("output_dtype")
    return tensor_dtype_to_np_dtype(stated) if stated else np.uint8


def along_axis(node: onnx.NodeProto, values: NDArray[Any], dimensions: int) -> NDArray[Any]:
    """Scales or zero points of a quantize step, shaped to stand along its axis."""
    shape = [1] * dimensions
    if values.size > 1:
        shape[settings(node).get("axis", 1)] = -1
    return values.reshape(shape)


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
    """Give tensors other names in nodes and constants, but for the graph's inputs and outputs."""
    kept = {value.name for value in (*graph.input, *graph.output)}
    names = {name: other for name, other in names.items() if name not in kept}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for entry in graph.initializer:
        entry.name = names.get(entry.name, entry.name)


def store_constants(graph: onnx.GraphProto) -> None:
    """Have an initializer in the place of each ``Constant`` node, in place."""
    from onnx import numpy_helper

    for node in [node for node in graph.node if node.op_type == "Constant"]:
        value = numpy_helper.from_array(_evaluated(node, {}), node.output[0])
        graph.initializer.append(value)
        graph.node.remove(node)


def add_constant(graph: onnx.GraphProto, name: str, value: NDArray[Any]) -> str:
    """Store a constant, by this name or, where that is taken, by one like it, which is returned."""
    from onnx import numpy_helper

    taken = {entry.name for entry in graph.initializer}
    taken |= {each for node in graph.node for each in (*node.input, *node.output)}
    while name in taken:
        name += "_"
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def drop_unread(graph: onnx.GraphProto) -> None:
    """Take out nodes and constants that have no part in the output."""
    read = {value.name for value in graph.output}
    for node in reversed(list(graph.node)):
        if read.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            read.update(node.input)
    for entry in [entry for entry in graph.initializer if entry.name not in read]:
        graph.initializer.remove(entry)


def bypass(graph: onnx.GraphProto, node: onnx.NodeProto, name: str) -> None:
    """Take out a node; what reads its output reads `name` instead."""
    for reader in graph.node:
        reader.input[:] = [name if read == node.output[0] else read for read in reader.input]
    graph.node.remove(node)
