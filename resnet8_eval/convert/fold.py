"""Fold batch normalisation into the convolutions before anything is quantized.

tf2onnx leaves each batch normalisation as a Mul and an Add after its convolution. Quantizing those
separately costs half a percentage point here; folded, they cost nothing (Jacob et al. 2018,
*Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference*,
section 3.2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from resnet8_eval import onnx_graph
from resnet8_eval.convert import names, pixels
from resnet8_eval.errors import ModelError

Array = NDArray[Any]
_QUANTIZED: Final = ("uantize", "QLinear", "Integer", "QGemm")
"""Parts of the names of operators that only quantized models have."""


def fold(source: Path, target: Path) -> None:
    """Write `source` with its batch normalisations folded, by ONNX Runtime's own preprocessing.

    Where several operators can express the same, one form is used: a matrix product and its sum
    become Gemm, untransposed, with a bias for each output; a mean over the map becomes
    GlobalAveragePool, flattening the averages Reshape, and a Sum of two maps Add; what has no bias
    gets one of zeros, and padding is stated in numbers. A second ReLU, a change of shape that
    changes none, and what has no part in the output, go. A constant that tf2onnx keeps once for
    equal layers is copied for each, since what follows changes layers one by one. A scale and a
    shift of the pixels become part of the first convolutions.

    `source` is a float32 model as tf2onnx made it; the folded one has the same input, output and
    numbers, to float32 rounding. ModelError if a batch normalisation is left, or if the model is
    quantized.
    """
    given = onnx.load(source)
    quantized = {n.op_type for n in given.graph.node if any(s in n.op_type for s in _QUANTIZED)}
    if quantized:
        raise ModelError(
            "The model is already quantized.",
            expected="a float32 network",
            given=f"{', '.join(sorted(quantized))} among its operators",
            next_step="give the float32 model that it was made of; `resnet8-eval evaluate` and"
            " `compare` take this one as it is",
        )
    from onnxruntime.quantization import quant_pre_process

    onnx_graph.drop_unread(given.graph)
    onnx_graph.store_constants(given.graph)
    _give_each_channel_its_own(given.graph)
    onnx.save(given, target)
    # Symbolic shape inference would import sympy for shapes that are static but for the batch.
    quant_pre_process(str(target), str(target), skip_symbolic_shape=True)
    model = onnx.load(target)
    _normalise(model)
    pixels.fold(model)
    onnx_graph.drop_unread(model.graph)
    names.by_layer(model)
    onnx.save(model, target)
    after = Counter(node.op_type for node in model.graph.node)
    left = {op: after[op] for op in ("Mul", "BatchNormalization") if after[op]}
    # Exporters multiply integers, too, to reckon with sizes, and behind a padding that stays no
    # convolution is near; such a network is refused as a whole.
    if left and not after.keys() & {"Gather", "Pad", "Range", "Shape"}:
        raise ModelError(
            "Batch normalisation could not be folded whole.",
            expected="every Mul, Add or BatchNormalization after a Conv merged into that Conv",
            given=f"left over: {left}",
            next_step="have each BatchNormalization directly follow a Conv2D, which it does not in"
            " pre-activation blocks, and nothing else read that Conv2D; docs/own-models.md says"
            " what is accepted",
        )


def _give_each_channel_its_own(graph: onnx.GraphProto) -> None:
    """Write one number that scales or shifts a convolution's map once for each channel, in place.

    ONNX Runtime merges nothing else into the convolution, be it of one channel alone.
    """
    constants = onnx_graph.constants(graph)
    channels: dict[str, int] = {}
    for node in graph.node:
        if node.op_type == "Conv" and node.input[1] in constants:
            channels[node.output[0]] = len(constants[node.input[1]])
        elif node.op_type in ("Mul", "Add"):
            for place, name in enumerate(node.input):
                count = channels.get(node.input[1 - place])
                if not count or name not in constants:
                    continue
                channels[node.output[0]] = count
                if constants[name].size == 1:
                    each = np.full((count, 1, 1), constants[name])
                    node.input[place] = onnx_graph.add_constant(graph, f"{node.name}/each", each)


def _normalise(model: onnx.ModelProto) -> None:
    """Write alike what means the same."""
    graph = model.graph
    shapes, constants = onnx_graph.sizes(graph.value_info), onnx_graph.constants(graph)
    matrices = {name for name, value in constants.items() if value.ndim == 2}

    def constant(name: str, value: Array) -> str:
        name = onnx_graph.add_constant(graph, name, value)
        constants[name] = value
        return name

    for node in list(graph.node):
        if node.op_type == "Conv" and node.input[1] in constants:
            _write_pads(node, shapes, constants[node.input[1]].shape[2:])
        if _is_idle(node, graph, shapes):
            onnx_graph.bypass(graph, node, node.input[0])
        elif node.op_type == "Sum" and len(node.input) == 2:
            node.op_type = "Add"
        elif node.op_type == "Conv" and node.input[1] in constants and not any(node.input[2:]):
            zeros = np.zeros(len(constants[node.input[1]]), np.float32)
            node.input[2:] = [constant(f"{node.name}/zeros", zeros)]
        elif node.op_type in ("Squeeze", "Flatten") and len(shapes.get(node.output[0], ())) == 2:
            width = shapes[node.output[0]][1]
            node.op_type = "Reshape"
            del node.attribute[:]
            node.input[:] = [
                node.input[0],
                constant(f"{node.name}/shape", np.array([-1, width], np.int64)),
            ]
        elif node.op_type == "ReduceMean" and _is_over_the_map(node, shapes, constants):
            if not onnx_graph.settings(node).get("keepdims", 1):
                shape = constant(f"{node.name}/shape", np.array([-1, shapes[node.input[0]][1]]))
                flat = onnx.helper.make_node(
                    "Reshape", [f"{node.name}/map", shape], [node.output[0]], f"{node.name}/flat"
                )
                node.output[0] = flat.input[0]
                graph.node.insert(list(graph.node).index(node) + 1, flat)
            node.op_type = "GlobalAveragePool"
            del node.attribute[:], node.input[1:]
        elif node.op_type == "MatMul" and node.input[1] in matrices:
            node.op_type = "Gemm"  # ONNX Runtime has made one of a product and its sum
        if node.op_type == "Gemm" and {*filter(None, node.input[1:])} <= constants.keys():
            _write_plainly(node, constants, constant)
    taken: set[str] = set()
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in taken:
                node.input[place] = constant(f"{node.name}/own {place}", constants[name])
        taken.update(constants.keys() & node.input)


def _write_pads(node: onnx.NodeProto, shapes: onnx_graph.Shapes, kernel: tuple[int, ...]) -> None:
    """State how far a convolution pads that is told to keep the map's size, or not to pad."""
    given = onnx_graph.settings(node)
    how = given.get("auto_pad", b"NOTSET")
    size = shapes.get(node.input[0], ())[2:]
    if how == b"NOTSET" or len(size) != len(kernel):
        return
    total = [
        max((-(-whole // stride) - 1) * stride + window - whole, 0) if how != b"VALID" else 0
        for whole, stride, window in zip(
            size, given.get("strides", [1] * len(kernel)), kernel, strict=True
        )
    ]
    less, more = [pad // 2 for pad in total], [pad - pad // 2 for pad in total]
    for entry in [entry for entry in node.attribute if entry.name in ("auto_pad", "pads")]:
        node.attribute.remove(entry)
    pads = less + more if how == b"SAME_UPPER" else more + less
    node.attribute.append(onnx.helper.make_attribute("pads", pads))


def _write_plainly(
    node: onnx.NodeProto, constants: Mapping[str, Array], constant: Callable[[str, Array], str]
) -> None:
    """Make a matrix product one of a weight (inputs, outputs) and a bias for each output."""
    given = {"transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0, **onnx_graph.settings(node)}
    if given.pop("transA"):
        return
    weight = constants[node.input[1]]
    if given["transB"] or given["alpha"] != 1:
        weight = (weight.T if given["transB"] else weight) * np.float32(given["alpha"])
        node.input[1] = constant(f"{node.name}/weight", np.ascontiguousarray(weight))
    width = weight.shape[1]
    bias = constants[node.input[2]] if any(node.input[2:]) else np.zeros(width, np.float32)
    if bias.shape not in ((), (1,), (1, 1), (width,), (1, width)):  # others are not for each output
        return
    if bias.shape != (width,) or given["beta"] != 1 or not any(node.input[2:]):
        bias = np.broadcast_to(bias * np.float32(given["beta"]), (1, width)).ravel()
        node.input[2:] = [constant(f"{node.name}/bias", bias)]
    del node.attribute[:]


def _is_over_the_map(
    node: onnx.NodeProto, shapes: onnx_graph.Shapes, constants: Mapping[str, Array]
) -> bool:
    """Whether a mean is over the height and width of each channel's map."""
    axes = onnx_graph.settings(node).get("axes")
    if axes is None and any(node.input[1:]):
        axes = constants.get(node.input[1])
    rank = len(shapes.get(node.input[0], ()))
    return axes is not None and rank == 4 and {int(axis) % 4 for axis in axes} == {2, 3}


def _is_idle(
    node: onnx.NodeProto, graph: onnx.GraphProto, shapes: dict[str, tuple[int, ...]]
) -> bool:
    """Whether a node hands on what it takes."""
    if node.op_type == "Relu":
        return any(n.op_type == "Relu" and node.input[0] in n.output for n in graph.node)
    before, after = (shapes.get(names[0], ()) for names in (node.input, node.output))
    # tf2onnx moves the only channel of a map by a Reshape, there and back.
    same = len(before) > 1 and all(before[1:]) and before[1:] == after[1:]
    return node.op_type in ("Reshape", "Squeeze", "Flatten") and same
