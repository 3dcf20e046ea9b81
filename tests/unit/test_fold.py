"""Folding batch normalisation: the same function with less in it, or a plain refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet8_eval import backends
from resnet8_eval.backends import onnxruntime as ort_backend
from resnet8_eval.checks import failed
from resnet8_eval.configurations import stock
from resnet8_eval.convert import onnx_file, pixels, structure
from resnet8_eval.convert.fold import fold
from resnet8_eval.errors import ModelError
from resnet8_eval.evaluate import same_function
from resnet8_eval.network import parse
from tests import small_network

NORMALISATION = ["scale", "shift", "mean", "variance"]
IMAGES = np.random.default_rng(5).normal(size=(2, 4, 8, 8)).astype(np.float32)


def network(path: Path, *nodes: tuple[str, list[str]]) -> Path:
    """Operators of four channels, one after the other."""
    random = np.random.default_rng(6)
    constants = {
        "kernel": random.normal(size=(4, 4, 3, 3)),
        **{name: 1 + random.random(4) for name in NORMALISATION},
        "factor": random.normal(size=(1, 4, 1, 1)),
        "term": random.normal(size=(1, 4, 1, 1)),
        "number": random.normal(size=1),
    }
    stored = [numpy_helper.from_array(v.astype(np.float32), name) for name, v in constants.items()]
    chain = []
    for position, (kind, words) in enumerate(nodes):
        source = "x" if position == 0 else str(position)
        target = "y" if position == len(nodes) - 1 else str(position + 1)
        chain.append(helper.make_node(kind, [source, *words], [target], f"{kind}{position}"))
        if kind == "BatchNormalization":
            chain[-1].attribute.append(helper.make_attribute("epsilon", 0.5))
    used = {name for node in chain for name in node.input}
    graph = helper.make_graph(
        chain,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, "height", "width"])],
        [entry for entry in stored if entry.name in used],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def output(path: Path) -> np.ndarray:
    import onnxruntime as ort

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": IMAGES})[0])


@pytest.mark.parametrize(
    "nodes",
    [
        [("BatchNormalization", NORMALISATION)],
        [("Mul", ["factor"]), ("Add", ["term"])],
        [("Mul", ["number"]), ("Add", ["term"])],
        [("Mul", ["factor"]), ("Add", ["number"])],
    ],
    ids=["whole", "as tf2onnx writes it", "of one number", "by one number"],
)
def test_a_normalisation_goes_into_the_convolution_before_it(
    tmp_path: Path, nodes: list[tuple[str, list[str]]]
) -> None:
    source = network(tmp_path / "source.onnx", ("Conv", ["kernel"]), *nodes)
    fold(source, tmp_path / "folded.onnx")
    assert [each.op_type for each in onnx.load(tmp_path / "folded.onnx").graph.node] == ["Conv"]
    assert np.abs(output(tmp_path / "folded.onnx") - output(source)).max() < 1e-5


def test_numbers_that_stand_in_nodes_go_into_the_convolution_too(tmp_path: Path) -> None:
    """As PyTorch exports ``2 * conv(x) + 3``."""
    scaled, shifted = ("Mul", ["two"]), ("Add", ["three"])
    source = network(tmp_path / "source.onnx", ("Conv", ["kernel"]), scaled, shifted)
    model = onnx.load(source)
    for name, number in {"two": 2, "three": 3}.items():
        value = numpy_helper.from_array(np.array(number, np.float32))
        model.graph.node.insert(0, helper.make_node("Constant", [], [name], name, value=value))
    onnx.save(model, source)
    fold(source, tmp_path / "folded.onnx")
    assert [each.op_type for each in onnx.load(tmp_path / "folded.onnx").graph.node] == ["Conv"]
    assert np.abs(output(tmp_path / "folded.onnx") - output(source)).max() < 1e-5


@pytest.mark.parametrize(
    ("kind", "words"),
    [("BatchNormalization", NORMALISATION), ("Mul", ["factor"])],
    ids=["whole", "as tf2onnx writes it"],
)
def test_a_normalisation_without_a_convolution_is_refused(
    tmp_path: Path, kind: str, words: list[str]
) -> None:
    source = network(tmp_path / "source.onnx", (kind, words))
    with pytest.raises(ModelError, match="could not be folded whole") as caught:
        fold(source, tmp_path / "folded.onnx")
    assert kind in caught.value.given


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def store(model: onnx.ModelProto, name: str, change: Callable[[Any], Any]) -> None:
    (entry,) = (entry for entry in model.graph.initializer if entry.name == name)
    values = np.ascontiguousarray(change(numpy_helper.to_array(entry)), np.float32)
    entry.CopyFrom(numpy_helper.from_array(values, name))


def product(**attributes: float) -> Callable[[onnx.ModelProto], None]:
    """As PyTorch exports a linear layer, transposed, or as only ONNX lets one write it."""

    def change(model: onnx.ModelProto) -> None:
        if "transB" in attributes:
            store(model, "dense/weight", lambda weight: weight.T)
        for name, value in attributes.items():
            node(model, "dense").attribute.append(helper.make_attribute(name, value))

    return change


def bias(shape: tuple[int, ...]) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        size = int(np.prod(shape))
        store(model, "dense/bias", lambda values: values[:size].reshape(shape))

    return change


def no_bias(model: onnx.ModelProto) -> None:
    del node(model, "dense").input[2:]


def empty_bias(model: onnx.ModelProto) -> None:
    """One that is left out by its empty name."""
    node(model, "second").input[2] = ""


def product_and_sum(model: onnx.ModelProto) -> None:
    """A bias before the product, and of two dimensions."""
    store(model, "dense/bias", lambda values: values.reshape(1, -1))
    dense = node(model, "dense")
    place = list(model.graph.node).index(dense)
    product = helper.make_node("MatMul", [*dense.input[:2]], ["product"], "product")
    total = helper.make_node("Add", ["dense/bias", "product"], [*dense.output], "total")
    model.graph.node.remove(dense)
    model.graph.node.insert(place, total)
    model.graph.node.insert(place, product)


def mean(axes: list[int], keepdims: int, opset: int) -> Callable[[onnx.ModelProto], None]:
    """As PyTorch exports ``x.mean((2, 3))``."""

    def change(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = opset
        pool = node(model, "mean")
        pool.op_type = "ReduceMean"
        pool.attribute.append(helper.make_attribute("keepdims", keepdims))
        if opset < 18:
            pool.attribute.append(helper.make_attribute("axes", axes))
        else:
            pool.input.append("axes")
            model.graph.initializer.append(numpy_helper.from_array(np.array(axes), "axes"))
        if not keepdims:
            flat = node(model, "flat")
            node(model, "dense").input[0] = pool.output[0]
            model.graph.node.remove(flat)

    return change


def padded(how: str, *names: str) -> Callable[[onnx.ModelProto], None]:
    """As converters write a padding before they know the size of the map."""

    def change(model: onnx.ModelProto) -> None:
        for name in names:
            (pads,) = (each for each in node(model, name).attribute if each.name == "pads")
            node(model, name).attribute.remove(pads)
            node(model, name).attribute.append(helper.make_attribute("auto_pad", how))

    return change


def left_over(model: onnx.ModelProto) -> None:
    """As where another output was taken out."""
    model.graph.node.append(helper.make_node("Sigmoid", ["first"], ["gate"], "gate"))


def sum_of_two(model: onnx.ModelProto) -> None:
    node(model, "sum").op_type = "Sum"


OTHERWISE: dict[str, Callable[[onnx.ModelProto], None]] = {
    "a transposed product": product(transB=1),
    "a scaled product": product(alpha=0.5),
    "a scaled bias": product(beta=2.0),
    "all of it": product(transB=1, alpha=0.5, beta=2.0),
    "a bias in one row": bias((1, 10)),
    "one bias for all": bias((1,)),
    "a bias without dimensions": bias(()),
    "a product without a bias": no_bias,
    "a convolution with an empty bias": empty_bias,
    "a product and a sum": product_and_sum,
    "sizes that are kept": padded("SAME_UPPER", "first", "second"),
    "the same with more in front": padded("SAME_LOWER", "first", "second"),
    "no padding": padded("VALID", "first"),
    "a node that nothing reads": left_over,
    "a sum that could be of more": sum_of_two,
    "a mean over the map": mean([2, 3], 1, 17),
    "a mean that flattens": mean([-1, -2], 0, 17),
    "a mean that is told its axes": mean([2, 3], 0, 18),
}


@pytest.mark.parametrize("change", OTHERWISE.values(), ids=OTHERWISE)
def test_the_same_layer_otherwise_written_becomes_the_same(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    model = small_network.network()
    change(model)
    onnx.checker.check_model(model, full_check=True)
    source, target = tmp_path / "source.onnx", tmp_path / "folded.onnx"
    onnx.save(model, source)
    fold(source, target)
    folded = onnx.load(target)
    assert [type(layer).__name__ for layer in parse(folded).layers] == [
        *("Convolution", "Convolution", "Addition", "Pooling", "Dense")
    ]
    assert failed(same_function("both", source, target, small_network.images(), 1)) == []
    read = {name for each in folded.graph.node for name in each.input}
    assert {entry.name for entry in folded.graph.initializer} <= read


@pytest.mark.parametrize("axes", [[1, 2], [1], [0, 2, 3]], ids=str)
def test_a_mean_over_something_else_is_not_taken_for_the_map_s(
    tmp_path: Path, axes: list[int]
) -> None:
    model = small_network.network()
    mean(axes, 1, 17)(model)
    del model.graph.node[-3:], model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "source.onnx")
    fold(tmp_path / "source.onnx", tmp_path / "folded.onnx")
    assert "ReduceMean" in {each.op_type for each in onnx.load(tmp_path / "folded.onnx").graph.node}


def bare(name: Callable[[str], str]) -> onnx.ModelProto:
    """No convolution has a bias, and pixels are scaled and shifted: what has to be made for each.

    `name` says what each node is called.
    """
    model = small_network.network()
    for each in ("first", "second"):
        del node(model, each).input[2:]
    store(model, "first/weight", lambda weight: weight * 127.5)
    edge = helper.make_node(
        "Conv",
        ["planes", "edge/weight"],
        ["edge"],
        "edge",
        pads=small_network.PADS,
        strides=small_network.STRIDES,
        kernel_shape=small_network.KERNEL,
    )
    first = node(model, "first/relu")
    both = helper.make_node("Add", ["first", "edge"], ["both"], "both")
    place = list(model.graph.node).index(first)
    first.input[0] = "both"
    model.graph.node.insert(place, both)
    model.graph.node.insert(place, edge)
    weight = np.random.default_rng(9).normal(size=(4, 3, *small_network.KERNEL)) / 5
    front = [
        helper.make_node("Mul", ["images", "factor"], ["scaled"], "scaled"),
        helper.make_node("Add", ["scaled", "term"], ["shifted"], "shifted"),
    ]
    for each, values in {"factor": 1 / 127.5, "term": -1, "edge/weight": weight}.items():
        model.graph.initializer.append(
            numpy_helper.from_array(np.asarray(values, np.float32), each)
        )
    node(model, "planes").input[0] = "shifted"
    for each in reversed(front):
        model.graph.node.insert(0, each)
    for each in model.graph.node:
        each.name = name(each.name)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("called", ["", "node"])
def test_nodes_without_names_of_their_own_are_told_apart(tmp_path: Path, called: str) -> None:
    """ONNX asks for none; biases of zeros and scaled weights were one for all of them."""
    scores = []
    for place, name in enumerate((lambda name: name, lambda _: called)):
        source, taken, folded, quantized = (
            tmp_path / f"{kind} {place}.onnx" for kind in ("source", "taken", "folded", "quantized")
        )
        onnx.save(bare(name), source)
        onnx_file.demand_readable(source)
        onnx_file.take(source, taken)
        fold(taken, folded)
        images = small_network.images()
        assert failed(same_function("both", taken, folded, images, 1)) == []
        census = ort_backend.quantize(folded, images, stock()[0], quantized, 1)
        assert (census["convolutions"][1], census["products"][1]) == (0, 0)
        scores.append(backends.scores(quantized, images, threads=1))
    assert np.array_equal(scores[0], scores[1])


@pytest.mark.parametrize(
    "operator",
    ["DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger"],
)
def test_a_quantized_model_is_not_folded(tmp_path: Path, operator: str) -> None:
    source = network(tmp_path / "source.onnx", (operator, []))
    with pytest.raises(ModelError, match="already quantized") as caught:
        fold(source, tmp_path / "folded.onnx")
    assert caught.value.given == f"{operator} among its operators"


def test_reckoning_with_the_number_of_images_is_no_normalisation(tmp_path: Path) -> None:
    """PyTorch's newer exporter writes the flattening of an average so."""
    model = small_network.network()
    for name, value in {"zero": 0, "one": 1, "step": 3}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    dense = node(model, "dense")
    place = list(model.graph.node).index(dense)
    dense.input[0] = "rows"
    for kind, takes, gives in (
        ("Gather", ["flat", "places"], "rows"),
        ("Mul", ["numbers", "step"], "places"),
        ("Range", ["zero", "count", "one"], "numbers"),
        ("Gather", ["size", "zero"], "count"),
        ("Shape", ["images"], "size"),
    ):
        model.graph.node.insert(place, helper.make_node(kind, takes, [gives], gives))
    onnx.save(model, tmp_path / "source.onnx")
    fold(tmp_path / "source.onnx", tmp_path / "folded.onnx")
    with pytest.raises(ModelError, match="cannot quantize") as caught:
        parse(onnx.load(tmp_path / "folded.onnx"))
    assert caught.value.given.startswith("arithmetic on the number of images")


def test_a_scale_of_pixels_before_a_padding_is_no_normalisation(tmp_path: Path) -> None:
    """As Keras's ZeroPadding2D stands before a convolution that pads by itself."""
    model = small_network.network()
    scale = helper.make_node("Mul", ["images", "factor"], ["scaled"], "scale")
    pad = helper.make_node("Pad", ["scaled", "by"], ["padded"], "pad")
    for each in (pad, scale):
        model.graph.node.insert(0, each)
    node(model, "planes").input[0] = "padded"
    for name, value in {"factor": np.float32(0.5), "by": np.array([0, 1, 1, 0] * 2)}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.save(model, tmp_path / "source.onnx")
    fold(tmp_path / "source.onnx", tmp_path / "folded.onnx")
    with pytest.raises(ModelError) as caught:
        parse(onnx.load(tmp_path / "folded.onnx"))
    assert caught.value.given == "a scale that no convolution is next to (scale)"


def test_a_product_with_a_vector_is_refused(tmp_path: Path) -> None:
    model = small_network.network()
    dense = node(model, "dense")
    dense.op_type, dense.input[1] = "MatMul", "vector"
    del dense.input[2:], model.graph.node[-1], model.graph.output[0].type.tensor_type.shape.dim[1]
    model.graph.output[0].name = dense.output[0]
    vector = numpy_helper.from_array(np.ones(4, np.float32), "vector")
    model.graph.initializer.append(vector)
    onnx.save(model, tmp_path / "source.onnx")
    fold(tmp_path / "source.onnx", tmp_path / "folded.onnx")
    with pytest.raises(ModelError) as caught:
        parse(onnx.load(tmp_path / "folded.onnx"))
    assert caught.value.given == "MatMul (dense)"


def test_one_number_behind_a_product_is_refused(tmp_path: Path) -> None:
    model = small_network.network()
    product_and_sum(model)
    store(model, "dense/bias", lambda values: values[:, :1])
    onnx.save(model, tmp_path / "source.onnx")
    fold(tmp_path / "source.onnx", tmp_path / "folded.onnx")
    with pytest.raises(ModelError) as caught:
        parse(onnx.load(tmp_path / "folded.onnx"))
    assert "(product)" in caught.value.given


def test_a_bias_that_is_none_for_each_output_is_told(tmp_path: Path) -> None:
    model = small_network.network()
    store(model, "dense/bias", lambda values: values.reshape(10, 1))
    with pytest.raises(ModelError) as caught:
        parse(model)
    assert caught.value.given == "a bias of shape (10, 1) for 10 outputs (dense)"


def test_an_average_that_pads_is_told_by_its_padding() -> None:
    model = small_network.network()
    pool = node(model, "mean")
    pool.op_type = "AveragePool"
    for name, value in {"kernel_shape": [17, 32], "pads": [8, 15, 8, 16]}.items():
        pool.attribute.append(helper.make_attribute(name, value))
    with pytest.raises(ModelError) as caught:
        parse(model)
    assert caught.value.given == "an average that pads its map (mean)"


def test_a_channel_of_pixels_that_is_scaled_by_zero_is_compared() -> None:
    model = bare(lambda name: name)
    factor = np.array([0, 1 / 127.5, 1 / 127.5], np.float32)
    (entry,) = (entry for entry in model.graph.initializer if entry.name == "factor")
    entry.CopyFrom(numpy_helper.from_array(factor, "factor"))
    assert pixels.front(model.graph).scale[0] == 0
    ledger = structure._Ledger(model.graph, [], {})
    layers = [{"scale": factor.tolist(), "shift": [-1.0, -1.0, -1.0]}]
    assert failed(ledger.front(layers)) == []
    layers[0]["scale"][0] = 1e-3
    assert failed(ledger.front(layers)) != []
