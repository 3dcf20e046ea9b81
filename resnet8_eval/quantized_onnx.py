"""Any quantized ONNX model that holds one of this suite's networks, in exact integers.

A model of quantize and dequantize steps is read as the float32 network between them and the
integers, scales and zero points that they store, whichever tool wrote it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resnet8_eval import network, onnx_graph
from resnet8_eval.backends import StoredTensor, onnxruntime
from resnet8_eval.errors import ModelError
from resnet8_eval.integers import ExactNetwork

if TYPE_CHECKING:
    import onnx


def read(path: Path) -> ExactNetwork:
    """Read a stored ONNX model with QuantizeLinear and DequantizeLinear around every layer.

    ModelError if it has no such steps, others than exact integers take, or holds another network.
    """
    model = onnx_graph.load_quantized(path)
    if not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise _refused(path, "no QuantizeLinear step")
    if any("block_size" in onnx_graph.settings(node) for node in model.graph.node):
        raise _refused(path, "a scale for each block of weights")
    try:
        parsed = network.parse(without_steps(model), path.name)
        found = onnxruntime.read_back(path, parsed)
        for entry in found:
            if given := _beyond(entry):
                raise _refused(path, given)
        exact = ExactNetwork(parsed, found, "onnxruntime")
        grids = exact.grids
        for layer in parsed.maps:
            exact.grid(layer.output)
            if not isinstance(layer, network.Pooling) and layer.before_relu in grids:
                raise _refused(path, f"a step between {layer.name} and its ReLU")
        exact.grid(parsed.planes)
        biases = {entry.name: entry.scales for entry in found if entry.kind == "bias"}
        for weighted in parsed.weighted:
            scales = exact.weights[weighted.name].scales
            if scales is not None:
                steps = exact.grid(weighted.inputs[0]).scale * scales
                if not np.allclose(biases[weighted.weight], steps, rtol=1e-4, atol=0):
                    raise _refused(path, f"a bias in other steps than the sums of {weighted.name}")
    except KeyError as error:
        raise _refused(path, f"no step at {error.args[0]}") from None
    return exact


def _beyond(entry: StoredTensor) -> str | None:
    """What exact integers do not compute of a tensor."""
    if entry.kind == "activation":
        if entry.dtype not in ("int8", "uint8", "uint4"):
            return f"{entry.dtype} at {entry.name}"
        if len(entry.scales) > 1:
            return f"{len(entry.scales)} scales at {entry.name}"
    return f"scales along the inputs of {entry.name}" if entry.wrong_axis else None


def without_steps(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float32 network of a model, its constants dequantized; the model is used up."""
    from onnx import numpy_helper

    graph = model.graph
    constants = onnx_graph.constants(graph)
    real: dict[str, str] = {}
    """What stands for a tensor behind its steps."""
    kept, floats = [], {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            real[node.output[0]] = real.get(node.input[0], node.input[0])
        elif node.op_type == "DequantizeLinear" and node.input[0] in constants:
            integers, scale, zero_point = (constants[name] for name in node.input)
            zero_point, scale = (
                onnx_graph.along_axis(node, values, integers.ndim) for values in (zero_point, scale)
            )
            values = (integers.astype("int32") - zero_point.astype("int32")) * scale
            name = real[node.output[0]] = node.input[0].removesuffix("_quantized")
            floats[name] = values.astype("float32")
        elif node.op_type == "DequantizeLinear":
            real[node.output[0]] = real[node.input[0]]
        else:
            for i, name in enumerate(node.input):
                node.input[i] = real.get(name, name)
            kept.append(node)
    del graph.node[:], graph.value_info[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(
        numpy_helper.from_array(y, name) for name, y in (constants | floats).items()
    )
    for output in graph.output:
        output.name = real.get(output.name, output.name)
    return model


def _refused(path: Path, given: str) -> ModelError:
    return ModelError(
        f"{path.name} cannot be computed in exact integers.",
        expected="QDQ format: one 8-bit step at the input and at each map, behind its ReLU; scales"
        " of weights by output channel; biases in steps of input scale times weight scale",
        given=given,
        next_step="quantize it so, as `resnet8-eval quantize` does",
    )
