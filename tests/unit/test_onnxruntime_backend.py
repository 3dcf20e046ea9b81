"""ONNX Runtime's quantized models: made alike twice, and counted for what they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from resnet8_eval import configurations, proof
from resnet8_eval.backends import onnxruntime as ort_backend
from resnet8_eval.calibrate.parameters import Parameters
from resnet8_eval.checks import failed, from_records
from resnet8_eval.environment import is_x86
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.store import file_sha256
from tests.planted import (
    edited,
    float_activation,
    float_weight,
    nodes,
    weight_made_8_bit_on_the_fly,
)

ROWS = configurations.calibrated("onnxruntime")
NAMES = [row.name for row in ROWS]
KINDS = {row.name: (row.weights_dtype, row.activations_dtype) for row in ROWS}


def stored(pipeline: Pipeline, name: str = NAMES[0]) -> Path:
    return pipeline.artifact(f"model/{name}").path("model.onnx")


@pytest.mark.parametrize("name", NAMES)
def test_a_model_made_twice_is_the_same_to_the_byte(
    pipeline: Pipeline, tmp_path: Path, name: str
) -> None:
    row = configurations.of(name)
    assert row.recipe is not None
    parameters = Parameters.load(pipeline.artifact(f"parameters/{row.recipe.key}").folder)
    path = tmp_path / "model.onnx"
    record = ort_backend.write(parameters, row, path)
    assert file_sha256(tmp_path / "model.onnx") == file_sha256(stored(pipeline, name))
    found = dict(pipeline.artifact(f"model/{name}").record)
    assert failed(from_records(found.pop("checks"))) == []
    assert record == found


@pytest.mark.parametrize("name", NAMES)
def test_the_census_of_an_honest_model(pipeline: Pipeline, name: str) -> None:
    found = ort_backend.census(stored(pipeline, name))
    assert found["quantized_ops"] == {"Conv": 9, "Add": 3, "GlobalAveragePool": 1, "Gemm": 1}
    assert found["float_ops"] == {"Softmax": 1}
    assert list(found["weights"].values()) == [KINDS[name][0]] * 10
    assert found["activations"] == [KINDS[name][1]]


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_valid_onnx_with_its_interface_kept(pipeline: Pipeline, name: str) -> None:
    model = onnx.load(stored(pipeline, name))
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["images"]
    sizes = [
        value.type.tensor_type.shape.dim for value in (*model.graph.input, *model.graph.output)
    ]
    assert [[dim.dim_value for dim in size[1:]] for size in sizes] == [[32, 32, 3], [10]]
    assert not any(size[0].HasField("dim_value") for size in sizes)


@pytest.mark.parametrize("name", NAMES)
def test_no_two_classes_tie(pipeline: Pipeline, name: str) -> None:
    """The score stays in float32, or two of 256 levels would often be equal."""
    scores = np.load(pipeline.artifact(f"scores/{name}").path("scores.npy"))
    best = np.sort(scores, axis=1)[:, -2:]
    assert (best[:, 0] == best[:, 1]).sum() <= 2  # but for those that both round to 1


@pytest.mark.parametrize("name", NAMES)
def test_onnxruntime_runs_every_convolution_in_integers(pipeline: Pipeline, name: str) -> None:
    kernels = ort_backend.kernels(stored(pipeline, name))
    assert kernels["QLinearConv"] == 9
    assert not any("Conv" in operator for operator in kernels if operator != "QLinearConv")


@pytest.mark.skipif(not is_x86(), reason="a default session rewrites signed activations on x86")
def test_what_a_default_session_leaves_in_float_is_recorded(pipeline: Pipeline) -> None:
    signed, unsigned, mixed = (pipeline.artifact(f"model/{name}").record for name in NAMES)
    assert signed["default_kernels"]["Conv"] == 6
    assert signed["default_kernels"]["QLinearConv"] == 3
    assert unsigned["default_kernels"] == unsigned["kernels"]
    assert mixed["default_kernels"] == mixed["kernels"]


@pytest.mark.parametrize("place", [1, -1])
def test_a_layer_that_the_recipe_leaves_in_float_is_in_float(
    pipeline: Pipeline, tmp_path: Path, place: int
) -> None:
    parameters = Parameters.load(pipeline.artifact("parameters/tuned").folder)
    layer = parameters.exact.weighted[place]
    weights, exact = parameters.rounded.weights(), parameters.exact.weights()
    kept = {name: exact[name] for name in (layer.weight, layer.bias)}
    parameters = replace(
        parameters,
        rounded=parameters.rounded.with_weights(weights | kept),
        scales={name: s for name, s in parameters.scales.items() if name != layer.weight},
    )
    found = ort_backend.write(parameters, ROWS[0], tmp_path / "model.onnx")
    assert list(found["weights"].values()).count("float32") == 1
    assert found["weights"][layer.name] == "float32"
    assert found["convolutions"] == ([8, 1] if place == 1 else [9, 0])
    assert found["products"] == ([1, 0] if place == 1 else [0, 1])
    stored_tensors = ort_backend.read_back(tmp_path / "model.onnx", parameters.rounded)
    assert not failed(proof.compare(stored_tensors, parameters, ROWS[0]))


@pytest.mark.parametrize("source", ["onnx", "folded"])
def test_the_census_of_a_float_model(pipeline: Pipeline, source: str) -> None:
    path = next(pipeline.artifact(source).folder.glob("*.onnx"))
    found = ort_backend.census(path)
    assert found["quantized_ops"] == {}
    assert found["float_ops"]["Conv"] == 9
    assert set(found["weights"].values()) == {"float32"}
    assert found["activations"] == []
    assert "QLinearConv" not in ort_backend.kernels(path)


FAULTS: dict[str, tuple[Callable[[Any], None], dict[str, int], str]] = {
    "a weight in float": (float_weight("Conv", 4), {"Conv": 1}, "float32"),
    "a dense weight in float": (float_weight("Gemm", 0), {"Gemm": 1}, "float32"),
    "a convolution's input in float": (float_activation("Conv", 4), {"Conv": 1}, "int8"),
    "an addition's input in float": (float_activation("Add", 1), {"Add": 1}, "int8"),
    "a weight stored in float": (weight_made_8_bit_on_the_fly(6), {}, "computed"),
}


@pytest.mark.parametrize(("change", "in_float", "dtype"), FAULTS.values(), ids=FAULTS)
def test_what_is_left_in_float_is_counted(
    pipeline: Pipeline,
    tmp_path: Path,
    change: Callable[[Any], None],
    in_float: dict[str, int],
    dtype: str,
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(edited(stored(pipeline), change))
    found = ort_backend.census(path)
    assert found["float_ops"] == {"Softmax": 1, **in_float}
    assert {*found["weights"].values()} == {"int8", dtype}
    assert len(found["weights"]) == 10


def test_one_type_among_the_others_is_listed(pipeline: Pipeline, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        """One activation in 16 bits."""
        zero = nodes(model, "QuantizeLinear")[2].input[2]
        (entry,) = [entry for entry in model.graph.initializer if entry.name == zero]
        entry.CopyFrom(onnx.numpy_helper.from_array(np.array(0, np.int16), zero))

    path = tmp_path / "model.onnx"
    path.write_bytes(edited(stored(pipeline), change))
    assert ort_backend.census(path)["activations"] == ["int16", "int8"]


def test_a_session_that_forbids_signed_activations_leaves_convolutions_in_float(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the census cannot see, and the count of kernels does."""
    import onnxruntime as ort

    monkeypatch.setattr(ort_backend, "unsigned", str)
    monkeypatch.setattr(ort.SessionOptions, "add_session_config_entry", lambda *_: None)
    kernels = ort_backend.kernels(stored(pipeline, "onnxruntime-int8-tuned"))
    assert kernels.get("QLinearConv", 0) < 9
