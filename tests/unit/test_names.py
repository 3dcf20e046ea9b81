"""The layers of a converted model are called as in the user's Keras file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from resnet8_eval import network
from resnet8_eval.checks import failed
from resnet8_eval.convert import keras_to_onnx
from resnet8_eval.convert.fold import fold
from resnet8_eval.convert.names import as_in_keras, by_layer
from resnet8_eval.convert.structure import verify_onnx
from resnet8_eval.pipeline import Pipeline
from tests import own_networks


def layer_names(folder: Path) -> list[str]:
    fold(folder / "model.onnx", folder / "folded.onnx")
    return [layer.name for layer in network.read(folder / "folded.onnx").layers]


def test_every_folded_layer_has_its_name_in_keras(pipeline: Pipeline) -> None:
    folded = network.read(pipeline.artifact("folded").path("folded.onnx"))
    keras = {layer["name"]: layer["class"] for layer in pipeline.artifact("onnx").record["layers"]}
    kinds = {
        "Convolution": "Conv2D",
        "Addition": "Add",
        "Pooling": "AveragePooling2D",
        "Dense": "Dense",
    }
    assert {keras[layer.name] for layer in folded.layers} == set(kinds.values())
    assert all(keras[layer.name] == kinds[type(layer).__name__] for layer in folded.layers)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "model",
    [
        lambda: own_networks.residual(bias=False, norm={}),
        lambda: own_networks.residual(norm={}, name="conv2d_{}"),
        lambda: own_networks.residual(name="Conv2D_1_{}", norm={}, bias=False),
    ],
    ids=["merged with its normalisation", "numbers as TensorFlow's", "two numbers"],
)
def test_names_and_weights_go_together(model: Callable[[], Any], tmp_path: Path) -> None:
    made = model()
    made.save(tmp_path / "model.keras")
    record = keras_to_onnx.convert(tmp_path / "model.keras", tmp_path)
    with np.load(tmp_path / "keras_weights.npz") as weights:
        checks, _ = verify_onnx(tmp_path / "model.onnx", record["layers"], dict(weights))
    assert failed(checks) == []
    convolutions = {layer["name"] for layer in record["layers"] if layer["class"] == "Conv2D"}
    assert convolutions <= set(layer_names(tmp_path))


def graph(names: list[str]) -> onnx.ModelProto:
    made = [onnx.helper.make_node("Conv", [f"{n}:in"], [f"{n}:0"], n) for n in names]
    return onnx.helper.make_model(onnx.helper.make_graph(made, "g", [], []))


def test_what_stands_in_the_scope_of_no_layer_keeps_its_name() -> None:
    names = ["m_1/conv_1/BiasAdd", "m_1/norm_1/mul", "Conv_3", "Conv_4", "n_1/conv_1/x"]
    model = graph(names)
    holds = {names[0]: "another with the same weights", names[1]: "two", names[2]: "merged"}
    holds |= {"elsewhere": "conv", "at another place": "Conv_3"}
    as_in_keras(model, "m", ["conv", "norm", "Conv_3"], holds)
    named = [node.name for node in model.graph.node]
    assert named == ["conv/BiasAdd", "two/Conv", "merged/Conv", "Conv_4", "n_1/conv_1/x"]
    assert list(model.graph.node[0].input) == ["conv/BiasAdd:in"]
    assert list(model.graph.node[2].output) == ["Conv_3:0"]


def test_nodes_that_share_a_layer_or_have_none_keep_their_names() -> None:
    model = graph(["a/x", "a/y", "/b", "c/x"])
    by_layer(model)
    assert [node.name for node in model.graph.node] == ["a/x", "a/y", "/b", "c"]


def test_what_is_called_by_its_place_as_a_layer_is_gives_way() -> None:
    model = graph(["Transpose_0", "Transpose_0/BiasAdd"])
    model.graph.node[0].op_type = "Transpose"
    by_layer(model)
    assert [node.name for node in model.graph.node] == ["Transpose_0/Transpose", "Transpose_0"]
