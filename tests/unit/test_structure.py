"""Structure checks on the stand-in: one fault at a time, and the check that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from resnet8_eval.checks import failed
from resnet8_eval.convert.structure import verify_onnx
from resnet8_eval.evaluate import parity
from resnet8_eval.pipeline import Pipeline
from tests.planted import edited, nodes, perturb

Weights = dict[str, NDArray[np.float32]]

INPUT, OUTPUT = "input", "output"
CONVOLUTIONS, DENSE = "convolutions", "dense layers"
KERNELS = "kernels (HWIO) and strides, in order"
IN_ONNX = "Keras parameters whose values are in ONNX"
VALUES = "float32 values in the ONNX file, from Keras"
MISNAMED = "layers that are called otherwise in ONNX"
LOST, FOREIGN = "layers whose weights are not in ONNX", "ONNX weights that are not from Keras"


class Conversion:
    """What the structure is verified from; tests change one part of it."""

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        made = pipeline.artifact("onnx")
        self.source, self.copy = made.path("model.onnx"), folder / "model.onnx"
        self.layers: list[dict[str, Any]] = [dict(layer) for layer in made.record["layers"]]
        with np.load(made.path("keras_weights.npz")) as weights:
            self.weights: Weights = dict(weights)
        self.copy.write_bytes(self.source.read_bytes())

    def edit(self, change: Callable[[onnx.ModelProto], object]) -> None:
        self.copy.write_bytes(edited(self.source, change))

    def broken(self) -> dict[str, str]:
        """The checks that fail, and what they observed."""
        checks, _ = verify_onnx(self.copy, self.layers, self.weights)
        return {check.name: check.observed for check in failed(checks)}


@pytest.fixture
def conversion(pipeline: Pipeline, tmp_path: Path) -> Conversion:
    return Conversion(pipeline, tmp_path)


def test_an_honest_conversion_passes_and_every_parameter_is_accounted_for(
    conversion: Conversion,
) -> None:
    checks, found = verify_onnx(conversion.copy, conversion.layers, conversion.weights)
    assert failed(checks) == []
    assert len(checks) == 10
    assert found == 78_666
    normalisations = [x for x in conversion.layers if x["class"] == "BatchNormalization"]
    # Four vectors of each normalisation are two in the file.
    merged = sum(layer["parameters"] for layer in normalisations) // 2
    (values,) = [check for check in checks if check.name == VALUES]
    assert values.observed == str(78_666 - merged) == "78186"


def set_stride(model: onnx.ModelProto) -> None:
    node = nodes(model, "Conv")[3]
    (strides,) = [a for a in node.attribute if a.name == "strides"]
    strides.ints[:] = [1, 1]


def drop_convolution(model: onnx.ModelProto) -> None:
    model.graph.node.remove(nodes(model, "Conv")[4])


def add_convolution(model: onnx.ModelProto) -> None:
    kernel = numpy_helper.from_array(np.ones((10, 10, 1, 1), np.float32), "extra")
    model.graph.initializer.append(kernel)
    model.graph.node.append(onnx.helper.make_node("Conv", ["dense", "extra"], ["more"]))


def add_dense(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.eye(10, dtype=np.float32), "extra"))
    model.graph.node.append(onnx.helper.make_node("MatMul", ["dense", "extra"], ["more"]))


def add_vector(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(10, np.float32), "extra"))
    model.graph.node.append(onnx.helper.make_node("Add", ["dense", "extra"], ["more"]))


def retype(value: str, sizes: list[Any], kind: int = onnx.TensorProto.FLOAT) -> Any:
    def change(model: onnx.ModelProto) -> None:
        entry = getattr(model.graph, value)[0]
        entry.CopyFrom(onnx.helper.make_tensor_value_info(entry.name, kind, sizes))

    return change


def second_input(model: onnx.ModelProto) -> None:
    extra = onnx.helper.make_tensor_value_info("extra", onnx.TensorProto.FLOAT, ["N"])
    model.graph.input.append(extra)


def drop_bias(model: onnx.ModelProto) -> None:
    del nodes(model, "Conv")[5].input[2]


def swap_names(model: onnx.ModelProto) -> None:
    one, other = nodes(model, "Conv")[1:3]
    one.name, other.name = other.name, one.name


ONNX_FAULTS: dict[str, tuple[Callable[[onnx.ModelProto], object], set[str]]] = {
    "a kernel": (perturb("Conv", 2, 1), {KERNELS, IN_ONNX, LOST, VALUES, FOREIGN}),
    "a convolution's bias": (perturb("Conv", 2, 2), {KERNELS, IN_ONNX, LOST, VALUES, FOREIGN}),
    "a normalisation's scale": (perturb("Mul", 4, 1, 1e-3), {IN_ONNX, LOST, VALUES, FOREIGN}),
    "a normalisation's shift": (perturb("Add", 0, 1, 1e-3), {IN_ONNX, LOST, VALUES, FOREIGN}),
    "the dense matrix": (perturb("MatMul", 0, 1), {IN_ONNX, LOST, VALUES, FOREIGN}),
    "another stride": (set_stride, {KERNELS}),
    "a convolution missing": (
        drop_convolution,
        {CONVOLUTIONS, KERNELS, IN_ONNX, LOST, VALUES, FOREIGN},
    ),
    "a convolution too many": (add_convolution, {CONVOLUTIONS, VALUES, FOREIGN}),
    "a dense layer too many": (add_dense, {DENSE, VALUES, FOREIGN}),
    "a bias too many": (add_vector, {VALUES, FOREIGN}),
    "a bias missing": (drop_bias, {KERNELS, IN_ONNX, LOST, VALUES, FOREIGN}),
    "two names swapped": (swap_names, {MISNAMED}),
    "channels first": (retype("input", ["N", 3, 32, 32]), {INPUT}),
    "a fixed batch": (retype("input", [1, 32, 32, 3]), {INPUT}),
    "another size": (retype("input", ["N", 28, 28, 3]), {INPUT}),
    "a byte input": (retype("input", ["N", 32, 32, 3], onnx.TensorProto.UINT8), {INPUT}),
    "a half-precision input": (
        retype("input", ["N", 32, 32, 3], onnx.TensorProto.FLOAT16),
        {INPUT},
    ),
    "a second input": (second_input, {INPUT}),
    "a fixed output batch": (retype("output", [1, 10]), {OUTPUT}),
    "eleven classes": (retype("output", ["N", 11]), {OUTPUT}),
}


@pytest.mark.parametrize(("change", "names"), ONNX_FAULTS.values(), ids=ONNX_FAULTS)
def test_a_fault_in_the_onnx_model(
    conversion: Conversion, change: Callable[[onnx.ModelProto], object], names: set[str]
) -> None:
    conversion.edit(change)
    assert set(conversion.broken()) == names


def test_the_smallest_change_of_one_weight_is_seen(conversion: Conversion) -> None:
    conversion.edit(perturb("Conv", 0, 1, ulp=True))
    assert conversion.broken()[LOST] == "conv2d"


@pytest.mark.parametrize("statistic", ["gamma", "beta", "moving_mean", "moving_variance"])
def test_a_perturbed_statistic_is_seen(conversion: Conversion, statistic: str) -> None:
    vector = conversion.weights[f"batch_normalization_3/{statistic}"]
    vector[np.abs(vector).argmax()] *= np.float32(1.001)
    assert conversion.broken()[LOST] == "batch_normalization_3"


def test_a_perturbed_epsilon_is_seen(conversion: Conversion) -> None:
    (layer,) = [layer for layer in conversion.layers if layer["name"] == "batch_normalization"]
    layer["epsilon"] = 1.0
    assert conversion.broken()[LOST] == "batch_normalization"


def test_a_layer_that_keras_does_not_have_is_missed(conversion: Conversion) -> None:
    conversion.layers = [layer for layer in conversion.layers if layer["name"] != "dense"]
    assert set(conversion.broken()) == {DENSE, VALUES, FOREIGN}


def test_another_order_of_layers_is_seen(conversion: Conversion) -> None:
    conversion.layers.reverse()
    # In whatever order Keras has them, the list of what was found follows it.
    assert set(conversion.broken()) == set()


SCORES = np.eye(10, dtype=np.float32)[[1, 2, 3]]


def moved(by: float) -> NDArray[np.float32]:
    scores = SCORES.copy()
    scores[1, 5] += np.float32(by)
    return scores


@pytest.mark.parametrize(
    ("observed", "failures"),
    [
        (SCORES, 0),
        (moved(0.9e-5), 0),
        (moved(1.1e-5), 1),
        (moved(1.1), 2),
        (moved(np.nan), 2),
        (SCORES[:2], 1),
        (SCORES[:, :9], 1),
    ],
    ids=["same", "rounding", "more", "another answer", "nan", "fewer images", "fewer classes"],
)
def test_parity(observed: NDArray[np.float32], failures: int) -> None:
    assert len(failed(parity("one against the other", SCORES, observed, 1e-5))) == failures


@pytest.mark.parametrize(("roundings", "failures"), [(4, 0), (6, 1)])
def test_large_logits_are_held_as_exactly_as_float32_has_them(
    roundings: int, failures: int
) -> None:
    """At 200 one rounding of float32 is 2.4e-5, which moves a probability by a quarter of it."""
    expected = np.zeros((3, 10), np.float32)
    expected[:, :2] = 200
    observed = expected.copy()
    observed[:, 0] += 4 * roundings * 200 * np.finfo(np.float32).eps
    assert len(failed(parity("", expected, observed, 1e-5))) == failures


def test_a_large_logit_that_does_not_matter_allows_nothing() -> None:
    """As of a class that is masked, or of another image."""
    expected = np.zeros((3, 10), np.float32)
    expected[0, 9], expected[1, 0] = -1e9, 7800
    observed = expected.copy()
    observed[2, 0] += 2e-4
    assert len(failed(parity("", expected, expected, 1e-5))) == 0
    assert len(failed(parity("", expected, observed, 1e-5))) == 1
    observed[2, 0] = 0
    observed[0, 0] += 2e-4
    assert len(failed(parity("", expected, observed, 1e-5))) == 1
