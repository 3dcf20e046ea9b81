"""Equalization: the same function, with channels that are more alike."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from resnet8_eval.pipeline import Pipeline
from resnet8_eval.quantize.equalization import FLOOR, equalize
from resnet8_eval.quantize.graph import Probe, Weights, weighted
from tests import small_network

Tensor = NDArray[np.float32]


@pytest.fixture(scope="module")
def images(pipeline: Pipeline) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = np.load(pipeline.artifact("calibration").path("images.npy"))[::25]
    return found


@pytest.fixture(scope="module")
def model(pipeline: Pipeline) -> onnx.ModelProto:
    return onnx.load(pipeline.artifact("folded").path("folded.onnx"))


@pytest.fixture(scope="module")
def equalized(model: onnx.ModelProto, images: NDArray[np.uint8]) -> onnx.ModelProto:
    return equalize(model, images, 1)


def seen(model: onnx.ModelProto, names: list[str], images: NDArray[np.uint8]) -> dict[str, Tensor]:
    return next(Probe(model, names, 1).run(images))


def test_the_function_stays_the_same(
    model: onnx.ModelProto, equalized: onnx.ModelProto, images: NDArray[np.uint8]
) -> None:
    output = model.graph.output[0].name
    before, after = (seen(one, [output], images)[output] for one in (model, equalized))
    assert np.abs(before - after).max() < 1e-5
    assert np.array_equal(before.argmax(axis=1), after.argmax(axis=1))


def test_the_weights_do_not(model: onnx.ModelProto, equalized: onnx.ModelProto) -> None:
    before, after = Weights(model), Weights(equalized)
    assert all(
        not np.array_equal(before[node.input[1]], after[node.input[1]]) for node in weighted(model)
    )


def test_the_given_model_stays_as_it_was(
    pipeline: Pipeline, model: onnx.ModelProto, equalized: onnx.ModelProto
) -> None:
    folded = pipeline.artifact("folded").path("folded.onnx")
    assert equalized is not model
    assert model.SerializeToString() == onnx.load(folded).SerializeToString()


def test_channels_that_share_a_scale_become_alike(
    model: onnx.ModelProto, equalized: onnx.ModelProto, images: NDArray[np.uint8]
) -> None:
    relus = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]

    def spread(one: onnx.ModelProto) -> list[float]:
        """Of each tensor, how much larger its widest channel is than its median one."""
        found = [np.abs(value).max(axis=(0, 2, 3)) for value in seen(one, relus, images).values()]
        return [float(ranges.max() / max(np.median(ranges), 1e-6)) for ranges in found]

    before, after = spread(model), spread(equalized)
    assert np.mean(after) < 0.8 * np.mean(before)


def test_no_channel_is_enlarged_without_end(
    model: onnx.ModelProto, images: NDArray[np.uint8]
) -> None:
    """A dead channel: its weights are zero, its range is zero, its factor is the floor."""
    dead = onnx.ModelProto()
    dead.CopyFrom(model)
    weights, node = Weights(dead), weighted(dead)[1]
    for name in (node.input[1], node.input[2]):
        values = weights[name]
        values[3] = 0
        weights[name] = values
    after = Weights(equalize(dead, images, 1))
    for name in (n.input[1] for n in weighted(dead)):
        assert np.isfinite(after[name]).all()
        assert np.abs(after[name]).max() <= np.abs(weights[name]).max() / FLOOR * 1.001


def test_a_shortcut_s_channels_are_scaled_with_those_that_it_is_added_to() -> None:
    model, images = small_network.network(), small_network.images()
    equalized = equalize(model, images, 1)
    before, after = (seen(one, ["output"], images)["output"] for one in (model, equalized))
    assert np.abs(before - after).max() < 1e-5

    def least_used(one: onnx.ModelProto) -> float:
        """What the narrowest channel uses of a range, in the tensor that it fills most."""
        tensors = seen(one, ["first/relu", "second", "sum/relu", "mean"], images).values()
        spans = [np.abs(values).max(axis=(0, 2, 3)) for values in tensors]
        return float(np.max([span / span.max() for span in spans], axis=0).min())

    assert least_used(model) < 0.9
    assert least_used(equalized) > 0.999
