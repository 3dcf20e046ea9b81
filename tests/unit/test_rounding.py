"""Rounding: onto the grid that will be used, and better than to the nearest."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from resnet8_eval.pipeline import Pipeline
from resnet8_eval.quantize.graph import Probe, weighted
from resnet8_eval.quantize.parameters import WEIGHT_LIMIT
from resnet8_eval.quantize.rounding import Rounded, gptq, round_weights

Matrix = NDArray[np.float64]


def random(*shape: int, seed: int = 1) -> Matrix:
    return np.random.default_rng(seed).normal(size=shape)


def step(weight: Matrix) -> Matrix:
    return np.abs(weight).max(axis=1) / WEIGHT_LIMIT


def test_independent_inputs_leave_nothing_to_gain_over_rounding_to_nearest() -> None:
    weight = random(4, 30)
    rounded = gptq(weight, np.eye(30), step(weight))
    assert np.array_equal(rounded, np.round(weight / step(weight)[:, None]))


def test_what_the_layer_computes_changes_less_than_by_rounding_to_nearest() -> None:
    weight, rows = random(8, 40), random(500, 40) @ random(40, 40, seed=2)
    covariance = rows.T @ rows / len(rows)
    scale = np.abs(weight).max(axis=1) / 7
    errors = [
        float((((rounded * scale[:, None] - weight) @ rows.T) ** 2).mean())
        for rounded in (gptq(weight, covariance, scale), np.round(weight / scale[:, None]))
    ]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize(
    "covariance",
    [np.zeros((6, 6)), np.diag([1e12, 1, 1, 1, 1, 1e-12]), np.ones((6, 6))],
    ids=["inputs that are always 0", "inputs of all sizes", "inputs that are all the same"],
)
def test_inputs_without_variety_are_rounded_as_well(covariance: Matrix) -> None:
    weight = random(3, 6)
    rounded = gptq(weight, covariance, step(weight))
    assert np.isfinite(rounded).all()
    assert np.array_equal(rounded, np.round(rounded))
    assert np.abs(rounded).max() <= WEIGHT_LIMIT


def test_nothing_leaves_the_range_even_when_errors_add_up() -> None:
    weight = np.full((1, 20), 1.49)
    rounded = gptq(weight, np.ones((20, 20)), np.array([0.01]))
    assert np.abs(rounded).max() <= WEIGHT_LIMIT


@pytest.fixture(scope="module")
def model(pipeline: Pipeline) -> onnx.ModelProto:
    return onnx.load(pipeline.artifact("folded").path("folded.onnx"))


@pytest.fixture(scope="module")
def images(pipeline: Pipeline) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = np.load(pipeline.artifact("calibration").path("images.npy"))[::25]
    return found


@pytest.fixture(scope="module")
def rounded(model: onnx.ModelProto, images: NDArray[np.uint8]) -> Rounded:
    return round_weights(model, images, 1)


def initializers(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    return {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}


def test_every_weight_is_its_integer_times_its_scale(rounded: Rounded) -> None:
    after = initializers(rounded.model)
    for node in weighted(rounded.model):
        name = node.input[1]
        weight = after[name].T if node.op_type == "Gemm" else after[name]
        scale = rounded.scales[name].astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
        assert rounded.scales[name].dtype == np.float32
        assert rounded.integers[name].dtype == np.int8
        assert rounded.integers[name].min() >= -WEIGHT_LIMIT
        assert np.array_equal((rounded.integers[name] * scale).astype(np.float32), weight)


def test_no_weight_moves_far_and_the_given_model_stays(
    pipeline: Pipeline, model: onnx.ModelProto, rounded: Rounded
) -> None:
    folded = onnx.load(pipeline.artifact("folded").path("folded.onnx"))
    assert model.SerializeToString() == folded.SerializeToString()
    before, after = initializers(model), initializers(rounded.model)
    for name in rounded.scales:
        moved = np.abs(after[name] - before[name])
        assert 0 < moved.max() < 0.25 * np.abs(before[name]).max()


def test_biases_make_up_for_the_mean_error(
    model: onnx.ModelProto, rounded: Rounded, images: NDArray[np.uint8]
) -> None:
    """On the calibration images, the first layer's mean output stays where it was."""
    first = weighted(model)[0].output[0]
    means = [
        next(Probe(one, [first], 1).run(images[::4]))[first].mean(axis=(0, 2, 3), dtype=np.float64)
        for one in (model, rounded.model)
    ]
    assert means[1] == pytest.approx(means[0], abs=1e-4)


def test_rounding_twice_gives_the_same(
    model: onnx.ModelProto, rounded: Rounded, images: NDArray[np.uint8]
) -> None:
    again = round_weights(model, images, 2)
    assert again.model.SerializeToString() == rounded.model.SerializeToString()
