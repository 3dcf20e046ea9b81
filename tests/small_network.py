"""A network in small: every operator of a folded ResNet8 once, and none of its evenness.

Padding, strides and kernel differ by direction, so that mixing them up shows.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from resnet8_eval.network import Network, parse

Images = NDArray[np.uint8]

CLASSES: Final = 10
CHANNELS: Final = 4
PADS: Final = [1, 0, 2, 1]
STRIDES: Final = (2, 1)
KERNEL: Final = (3, 2)


def images(count: int = 30) -> Images:
    """Noise, of another brightness in each image."""
    random = np.random.default_rng(3)
    noise = random.integers(0, 200, (count, 32, 32, 3))
    return np.asarray(noise + random.integers(0, 56, (count, 1, 1, 1)), np.uint8)


def parsed() -> Network:
    """:func:`network`, parsed."""
    return parse(network())


def network() -> onnx.ModelProto:
    """Two convolutions, the second beside a shortcut, an average and a dense layer."""
    random = np.random.default_rng(4)
    uneven = np.array([1, 0.1, 3, 0.3])[:, None, None, None]
    constants = {
        "first/weight": random.normal(size=(CHANNELS, 3, *KERNEL)) * uneven / 200,
        "first/bias": random.normal(size=CHANNELS) / 10,
        "second/weight": random.normal(size=(CHANNELS, CHANNELS, 3, 3)) / 6,
        "second/bias": random.normal(size=CHANNELS) / 10,
        "dense/weight": random.normal(size=(CHANNELS, CLASSES)),
        "dense/bias": random.normal(size=CLASSES) / 10,
    }
    stored = [
        numpy_helper.from_array(np.asarray(values, np.float32), name)
        for name, values in constants.items()
    ]
    stored.append(numpy_helper.from_array(np.array([-1, CHANNELS], np.int64), "shape"))
    nodes = [
        helper.make_node("Transpose", ["images"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node(
            "Conv",
            ["planes", "first/weight", "first/bias"],
            ["first"],
            "first",
            pads=PADS,
            strides=STRIDES,
            kernel_shape=KERNEL,
        ),
        helper.make_node("Relu", ["first"], ["first/relu"], "first/relu"),
        helper.make_node(
            "Conv",
            ["first/relu", "second/weight", "second/bias"],
            ["second"],
            "second",
            pads=[1, 1, 1, 1],
            strides=[1, 1],
            kernel_shape=[3, 3],
        ),
        helper.make_node("Add", ["second", "first/relu"], ["sum"], "sum"),
        helper.make_node("Relu", ["sum"], ["sum/relu"], "sum/relu"),
        helper.make_node("GlobalAveragePool", ["sum/relu"], ["mean"], "mean"),
        helper.make_node("Reshape", ["mean", "shape"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "dense/weight", "dense/bias"], ["scores"], "dense"),
        helper.make_node("Softmax", ["scores"], ["output"], "softmax", axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 32, 32, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", CLASSES])],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def listed(model: onnx.ModelProto) -> None:
    """Have a file list its initializers as inputs, before its own, as older exporters did."""
    model.ir_version = 3
    for entry in model.graph.initializer:
        value = helper.make_tensor_value_info(entry.name, entry.data_type, entry.dims)
        model.graph.input.insert(0, value)
