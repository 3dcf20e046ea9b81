"""What Keras 2 wrote, held against the scores that Keras 2 gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from resnet8_eval import backends
from resnet8_eval.checks import failed
from resnet8_eval.convert import keras2, keras_to_onnx
from resnet8_eval.errors import ModelError
from resnet8_eval.evaluate import parity
from resnet8_eval.requirements import PARITY_ATOL
from tests import small_network
from tests.unit.test_keras_file import as_h5, config

# What TensorFlow and its converters say to a Python that turns warnings into errors.
pytestmark = pytest.mark.filterwarnings("ignore")
FOLDER = Path(__file__).parent / "keras2"


@pytest.mark.parametrize("name", ["own.h5", "own.keras"])
def test_a_network_of_keras_2_gives_its_scores(name: str, tmp_path: Path) -> None:
    record = keras_to_onnx.convert(FOLDER / name, tmp_path)
    images, wanted = small_network.images(24), np.load(FOLDER / "scores.npy")
    assert wanted.std(axis=0).max() > 0.01
    for path in (FOLDER / name, tmp_path / "model.onnx"):
        scores = backends.scores(path, images, threads=1)
        assert failed(parity(name, wanted, scores, PARITY_ATOL)) == []
    assert [note for note in record["notes"] if "inert" in note] == [
        "inert at inference, left out: RandomFlip, RandomZoom, SpatialDropout2D"
    ]


def operator(function: str, **also: Any) -> dict[str, Any]:
    return {
        "class_name": "TFOpLambda",
        "config": {"name": f"tf.{function}", "function": function},
        "name": f"tf.{function}",
        "inbound_nodes": [["first", 0, 0, {**also, "name": None}]],
    }


def constant_first(function: str, value: float) -> dict[str, Any]:
    found = operator(function)
    found["inbound_nodes"] = [["_CONSTANT_VALUE", -1, value, {"y": ["first", 0, 0]}]]
    return found


@pytest.mark.parametrize(
    ("found", "kind", "settings"),
    [
        (operator("math.truediv", y=4.0), "Rescaling", ([0.25], [0])),
        (operator("math.multiply", y=4), "Rescaling", ([4], [0])),
        (operator("math.subtract", y=[1, 2, 3]), "Rescaling", ([1, 1, 1], [-1, -2, -3])),
        (operator("__operators__.add", y=4), "Rescaling", ([1], [4])),
        (operator("math.add", y=["second", 0, 0]), "Add", None),
        (operator("nn.relu"), "ReLU", None),
        (operator("nn.softmax", axis=-1), "Softmax", None),
        (operator("nn.softmax", axis=0), "TFOpLambda", None),
        (operator("math.truediv", y=[1.0, 0.0, 2.0]), "TFOpLambda", None),
        (constant_first("__operators__.add", 120.0), "Rescaling", ([1], [120])),
        (constant_first("math.subtract", 1.0), "Rescaling", ([-1], [1])),
        (constant_first("math.truediv", 1.0), "TFOpLambda", None),
        (operator("math.multiply", y=["second", 0, 0]), "TFOpLambda", None),
        (operator("math.pow", y=2), "TFOpLambda", None),
        (operator("image.resize", size=[32, 32]), "TFOpLambda", None),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else None,
)
def test_an_operator_becomes_the_layer_that_computes_it(
    found: dict[str, Any], kind: str, settings: tuple[list[float], list[float]] | None
) -> None:
    made = keras2.modern(found)
    assert made["class_name"] == kind
    assert made["name"] == found["name"]
    if settings:
        assert (made["config"]["scale"], made["config"]["offset"]) == settings
        assert made["inbound_nodes"] == [[["first", 0, 0, {}]]]
    if kind == "Add":
        assert made["inbound_nodes"] == [[["first", 0, 0, {}], ["second", 0, 0, {}]]]


def test_a_policy_is_its_name_and_an_axis_a_number() -> None:
    policy = {"class_name": "Policy", "config": {"name": "mixed_float16"}}
    found = {"class_name": "BatchNormalization", "config": {"axis": [3], "dtype": policy}}
    assert keras2.modern(found)["config"] == {"axis": 3, "dtype": "mixed_float16"}


def test_what_keras_3_wrote_stays_as_it_is(tmp_path: Path) -> None:
    assert keras2.modern(config()) == config()
    found = config()
    dropout = {"class_name": "Dropout", "config": {"rate": 0.1, "noise_shape": None}}
    found["config"]["layers"].append(dropout)
    path = as_h5(tmp_path / "model.h5", json.dumps(found))
    with h5py.File(path, "r+") as file:
        file.attrs["keras_version"] = "3.15.1"
    assert keras2.rewritten(path, tmp_path / "copies") == path


def test_a_damaged_description_is_refused(tmp_path: Path) -> None:
    found = config()
    found["config"]["layers"][0]["inbound_nodes"] = [[[], 1]]
    found["config"]["layers"][1] = {"config": {"layers": 3}}
    with pytest.raises(ModelError, match="is not a Keras model"):
        keras_to_onnx.load(as_h5(tmp_path / "model.h5", json.dumps(found)))
