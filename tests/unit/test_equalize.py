"""Equalization: the same function, with channels that are more alike."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from resnet8_eval.calibrate.equalize import FLOOR, equalize
from resnet8_eval.calibrate.probe import Probe
from resnet8_eval.network import Network, read
from resnet8_eval.pipeline import Pipeline
from tests import small_network

Tensor = NDArray[np.float64]


@pytest.fixture(scope="module")
def images(pipeline: Pipeline) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = np.load(pipeline.artifact("calibration").path("images.npy"))[::25]
    return found


@pytest.fixture(scope="module")
def model(pipeline: Pipeline) -> Network:
    return read(pipeline.artifact("folded").path("folded.onnx"))


@pytest.fixture(scope="module")
def equalized(model: Network, images: NDArray[np.uint8]) -> Network:
    return equalize(model, images)


def seen(model: Network, names: list[str], images: NDArray[np.uint8]) -> dict[str, Tensor]:
    return next(Probe(model, names).run(images))


def test_the_function_stays_the_same(
    model: Network, equalized: Network, images: NDArray[np.uint8]
) -> None:
    output = model.output
    before, after = (seen(one, [output], images)[output] for one in (model, equalized))
    assert np.abs(before - after).max() < 1e-5
    assert np.array_equal(before.argmax(axis=1), after.argmax(axis=1))


def test_the_weights_do_not(model: Network, equalized: Network) -> None:
    before, after = model.weights(), equalized.weights()
    names = [layer.weight for layer in model.weighted]
    assert all(not np.array_equal(before[name], after[name]) for name in names)


def test_the_given_model_stays_as_it_was(
    pipeline: Pipeline, model: Network, equalized: Network
) -> None:
    folded = read(pipeline.artifact("folded").path("folded.onnx"))
    assert equalized is not model
    assert model.model.SerializeToString() == folded.model.SerializeToString()


def test_channels_that_share_a_scale_become_alike(
    model: Network, equalized: Network, images: NDArray[np.uint8]
) -> None:
    relus = [node.output[0] for node in model.model.graph.node if node.op_type == "Relu"]

    def spread(one: Network) -> list[float]:
        """Of each tensor, how much larger its widest channel is than its median one."""
        found = [np.abs(value).max(axis=(0, 2, 3)) for value in seen(one, relus, images).values()]
        return [float(ranges.max() / max(np.median(ranges), 1e-6)) for ranges in found]

    before, after = spread(model), spread(equalized)
    assert np.mean(after) < 0.8 * np.mean(before)


def test_no_channel_is_enlarged_without_end(model: Network, images: NDArray[np.uint8]) -> None:
    """A dead channel: its weights are zero, its range is zero, its factor is the floor."""
    weights, layer = model.weights(), model.weighted[1]
    for name in (layer.weight, layer.bias):
        weights[name][3] = 0
    after = equalize(model.with_weights(weights), images).weights()
    for name in (layer.weight for layer in model.weighted):
        assert np.isfinite(after[name]).all()
        assert np.abs(after[name]).max() <= np.abs(weights[name]).max() / FLOOR * 1.001


def test_a_shortcut_s_channels_are_scaled_with_those_that_it_is_added_to() -> None:
    model, images = small_network.parsed(), small_network.images()
    equalized = equalize(model, images)
    before, after = (seen(one, ["output"], images)["output"] for one in (model, equalized))
    assert np.abs(before - after).max() < 1e-5

    def least_used(one: Network) -> float:
        """What the narrowest channel uses of a range, in the tensor that it fills most."""
        tensors = seen(one, ["first/relu", "second", "sum/relu", "mean"], images).values()
        spans = [np.abs(values).max(axis=(0, 2, 3)) for values in tensors]
        return float(np.max([span / span.max() for span in spans], axis=0).min())

    assert least_used(model) < 0.9
    assert least_used(equalized) > 0.999
