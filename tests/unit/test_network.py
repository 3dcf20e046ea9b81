"""The network: what is parsed, and what is refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet8_eval import network
from resnet8_eval.errors import ModelError
from resnet8_eval.network import Addition, Convolution, Dense, Network, Pooling
from resnet8_eval.pipeline import Pipeline
from tests import small_network
from tests.planted import nodes


def test_the_small_network_by_hand() -> None:
    found = small_network.parsed()
    first, second, addition, pool, dense = found.layers
    assert (found.input, found.planes, found.output) == ("images", "planes", "output")
    assert first == Convolution(
        "first",
        ("planes",),
        "first/relu",
        "first",
        "first/weight",
        "first/bias",
        (2, 1),
        (1, 0, 2, 1),
    )
    assert isinstance(second, Convolution)
    assert (second.output, second.before_relu) == ("second", None)
    assert addition == Addition("sum", ("second", "first/relu"), "sum/relu", "sum")
    assert pool == Pooling("mean", ("sum/relu",), "mean", "flat", (17, 32))
    assert pool.area == 17 * 32
    assert dense == Dense("dense", ("flat",), "scores", "dense/weight", "dense/bias")
    assert found.weighted == [first, second, dense]
    assert found.maps == [first, second, addition, pool]
    assert found.softmax


def test_the_stand_in_is_a_resnet8(pipeline: Pipeline) -> None:
    found = network.read(pipeline.artifact("folded").path("folded.onnx"))
    kinds = [type(layer).__name__ for layer in found.layers]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "Convolution": 9,
        "Addition": 3,
        "Pooling": 1,
        "Dense": 1,
    }


def test_other_weights_leave_the_given_network_as_it_was() -> None:
    found = small_network.parsed()
    before = found.model.SerializeToString()
    changed = found.with_weights({"first/bias": np.full(4, 7.0)})
    assert found.model.SerializeToString() == before
    assert changed.constants()["first/bias"].tolist() == [7, 7, 7, 7]
    assert changed.constants()["first/bias"].dtype == np.float32
    assert changed.layers == found.layers


def test_a_network_without_softmax_has_its_scores_for_output() -> None:
    model = small_network.network()
    model.graph.node.remove(nodes(model, "Softmax")[0])
    model.graph.output[0].name = "scores"
    found = network.parse(model)
    assert not found.softmax
    assert found.output == found.dense.output == "scores"


def set_attribute(kind: str, name: str, value: Any) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        node = nodes(model, kind)[0]
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def pool_window(height: int, width: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        node = nodes(model, "GlobalAveragePool")[0]
        node.op_type = "AveragePool"
        node.attribute.append(helper.make_attribute("kernel_shape", [height, width]))

    return change


def rename(kind: str, other: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        nodes(model, kind)[0].op_type = other

    return change


def without_bias(model: onnx.ModelProto) -> None:
    del nodes(model, "Conv")[0].input[2]


def two_dense_layers(model: onnx.ModelProto) -> None:
    square = numpy_helper.from_array(np.eye(10, dtype=np.float32), "square")
    model.graph.initializer.append(square)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(10, np.float32), "zeros"))
    more = helper.make_node("Gemm", ["scores", "square", "zeros"], ["more"], "dense_2")
    model.graph.node.insert(len(model.graph.node) - 1, more)
    nodes(model, "Softmax")[0].input[0] = "more"


def pre_activation(model: onnx.ModelProto) -> None:
    """The sum is also read before its ReLU, as a pre-activation block's shortcut is."""
    nodes(model, "GlobalAveragePool")[0].input[0] = "more"
    more = helper.make_node("Add", ["sum", "sum/relu"], ["more"], "more")
    place = list(model.graph.node).index(nodes(model, "GlobalAveragePool")[0])
    model.graph.node.insert(place, more)


def add_a_constant(model: onnx.ModelProto) -> None:
    nodes(model, "Add")[0].input[1] = "second/bias"


def add_the_image(model: onnx.ModelProto) -> None:
    nodes(model, "Add")[0].input[1] = "planes"


def no_dense_layer(model: onnx.ModelProto) -> None:
    model.graph.node.remove(nodes(model, "Gemm")[0])
    model.graph.node.remove(nodes(model, "Softmax")[0])
    shape = helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["N", 4])
    model.graph.output[0].CopyFrom(shape)


def infinite_weight(model: onnx.ModelProto) -> None:
    entry = next(e for e in model.graph.initializer if e.name == "second/weight")
    values = numpy_helper.to_array(entry).copy()
    values.flat[0] = np.inf
    entry.CopyFrom(numpy_helper.from_array(values, entry.name))


def other_classes(model: onnx.ModelProto) -> None:
    """A head of CIFAR-100's kind, in small."""
    for name, shape in {"dense/weight": (4, 12), "dense/bias": (12,)}.items():
        entry = next(e for e in model.graph.initializer if e.name == name)
        entry.CopyFrom(numpy_helper.from_array(np.ones(shape, np.float32), name))
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 12])
    )


REFUSED: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "an average over a part of the map": (pool_window(16, 32), "16×32 of a map of 17×32"),
    "an average over small windows": (pool_window(1, 1), "1×1 of a map of 17×32"),
    "a maximum": (rename("GlobalAveragePool", "GlobalMaxPool"), "GlobalMaxPool"),
    "another activation": (rename("Relu", "Sigmoid"), "Sigmoid"),
    "another sum": (rename("Add", "Sub"), "Sub"),
    "groups": (set_attribute("Conv", "group", 3), "3 groups"),
    "dilation": (set_attribute("Conv", "dilations", [2, 2]), "dilated"),
    "padding by name": (set_attribute("Conv", "auto_pad", "SAME_UPPER"), "padding"),
    "a transposed dense layer": (set_attribute("Gemm", "transA", 1), "transposed"),
    "a scaled dense layer": (set_attribute("Gemm", "alpha", 0.5), "scaled"),
    "no bias": (without_bias, "Conv without constant weights (first)"),
    "two dense layers": (two_dense_layers, "more than one dense layer"),
    "a pre-activation block": (pre_activation, "before and after its ReLU (sum)"),
    "a constant added": (add_a_constant, "Add of a constant"),
    "the image added": (add_the_image, "an addition"),
    "no dense layer": (no_dense_layer, "no dense layer"),
    "an infinite weight": (infinite_weight, "NaN or infinite (second)"),
    "twelve classes": (other_classes, "(N, 12)"),
}


@pytest.mark.parametrize(("change", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_represented_is_refused_in_one_sentence(
    change: Callable[[onnx.ModelProto], None], said: str
) -> None:
    model = small_network.network()
    change(model)
    with pytest.raises(ModelError, match="cannot quantize") as caught:
        network.parse(model, "mine.h5")
    assert said in caught.value.given
    assert caught.value.what.startswith("mine.h5 ")
    assert "\n" not in caught.value.given


def test_an_average_over_the_whole_map_is_a_global_one() -> None:
    model = small_network.network()
    pool_window(17, 32)(model)
    found: Network = network.parse(model)
    assert found.model.SerializeToString() == small_network.parsed().model.SerializeToString()
