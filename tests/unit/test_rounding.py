"""Rounding: onto the grid that will be used, and better than to the nearest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from resnet8_eval.calibrate.parameters import Parameters, Ranges
from resnet8_eval.calibrate.probe import Probe
from resnet8_eval.calibrate.rounding import gptq, input_moments, round_weights
from resnet8_eval.configurations import Recipe
from resnet8_eval.environment import WEIGHT_LIMIT
from resnet8_eval.network import Convolution, Dense, Network, read
from resnet8_eval.pipeline import Pipeline
from tests import small_network

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


def test_the_input_that_varies_most_is_rounded_first_and_the_others_make_up_for_it() -> None:
    weight = random(6, 3)
    covariance = np.array([[1.0, 0.9, 1.5], [0.9, 1.0, 1.6], [1.5, 1.6, 4.0]])
    scale = np.abs(weight).max(axis=1) / 7
    rounded, nearest = gptq(weight, covariance, scale, 7), np.round(weight / scale[:, None])
    assert np.array_equal(rounded[:, 2], nearest[:, 2])
    assert not np.array_equal(rounded, nearest)


def ranges(model: Network, step: float = 1.0) -> Ranges:
    """Of all activations alike."""
    names = (model.input, *(layer.output for layer in model.maps))
    return dict.fromkeys(names, (0.0, 255 * step))


# --- a network in small --------------------------------------------------------------------------


def test_moments_are_those_of_what_each_layer_multiplies_by_its_weights() -> None:
    """Against another implementation of the windows of a convolution."""
    model, images = small_network.parsed(), small_network.images()
    names = ["planes", "first/relu", "flat"]
    fed = {name: torch.from_numpy(x) for name, x in next(Probe(model, names).run(images)).items()}
    top, left, bottom, right = small_network.PADS
    padded = functional.pad(fed["planes"], (left, right, top, bottom))
    windows = {
        "first/weight": functional.unfold(
            padded, small_network.KERNEL, stride=small_network.STRIDES
        ),
        "second/weight": functional.unfold(fed["first/relu"], 3, padding=1),
        "dense/weight": fed["flat"][:, :, None],
    }
    found = input_moments(model, images)
    assert list(found) == list(windows)
    for name, columns in windows.items():
        rows = columns.transpose(1, 2).flatten(0, 1).double().numpy()
        mean, covariance = found[name]
        assert mean == pytest.approx(rows.mean(axis=0), rel=1e-5)
        wanted = np.cov(rows.T, bias=True)
        assert covariance == pytest.approx(wanted, abs=1e-4 * wanted.max())


def test_inputs_that_never_change_do_not_vary_by_what_is_rounded_away() -> None:
    """A network that has learnt nothing gives each image the same averages."""
    model = small_network.parsed()
    weights = model.weights()
    weights["second/weight"] *= 0
    weights["first/weight"] *= 0
    weights["first/bias"] += 1000 / 3
    model = model.with_weights(weights)
    moments = input_moments(model, small_network.images())
    assert not moments["dense/weight"][1].any()
    rounded = round_weights(model, moments, ranges(model))
    assert all(np.isfinite(scale).all() for scale in rounded.scales.values())


def test_inputs_that_hardly_change_are_left_out_whole() -> None:
    """Averages that vary together by a millionth, the first by more than float64 is sure of."""
    model, images = small_network.parsed(), small_network.images()
    weights = model.weights()
    for name in ("second/weight", "second/bias", "first/bias"):
        weights[name] *= 0
    weights["first/weight"][:] = 1e-3
    moments = input_moments(model.with_weights(weights), images)
    variance = moments["dense/weight"][1][0, 0]
    wanted = np.array([1.5, 0.9, 0.9, 0.9])[:, None, None, None] * 1e-6
    weights["first/weight"] *= np.sqrt(wanted / variance)
    weights["first/bias"] += 1000
    model = model.with_weights(weights)
    moments = input_moments(model, images)
    covariance = moments["dense/weight"][1]
    assert covariance[0, 0] == pytest.approx(1.5e-6, rel=0.01)
    assert np.count_nonzero(covariance) == 1
    round_weights(model, moments, ranges(model))


@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
def test_each_layer_s_mean_output_stays_where_it_was(rounding: Any) -> None:
    model, images = small_network.parsed(), small_network.images()
    moments = input_moments(model, images)
    recipe = Recipe(rounding=rounding)
    rounded = round_weights(model, moments, ranges(model), recipe, limit=7).rounded
    means = [
        next(Probe(one, ["first"]).run(images))["first"].mean(axis=(0, 2, 3), dtype=np.float64)
        for one in (model, rounded)
    ]
    assert not np.array_equal(
        model.constants()["first/weight"], rounded.constants()["first/weight"]
    )
    assert means[1] == pytest.approx(means[0], abs=1e-4)


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
@pytest.mark.parametrize("limit", [7, 127])
def test_to_the_nearest_no_weight_moves_by_more_than_half_a_step(
    granularity: Any, limit: int
) -> None:
    model, images = small_network.parsed(), small_network.images(4)
    recipe = Recipe(granularity=granularity, rounding="nearest")
    found = round_weights(model, input_moments(model, images), ranges(model), recipe, limit)
    before, after = model.constants(), found.rounded.constants()
    for name, scale in found.scales.items():
        largest = np.abs(found.integers[name].astype(int)).reshape(len(scale), -1).max(axis=1)
        assert largest.max() == limit
        assert (largest == limit).all() == (granularity == "per-channel")
        assert len(set(scale.tolist())) == (1 if granularity == "per-tensor" else len(scale))
        moved = np.abs(after[name] - before[name])
        moved = moved.T if moved.ndim == 2 else moved.reshape(len(scale), -1)
        assert (moved.max(axis=1) <= 0.501 * scale).all()


@pytest.mark.parametrize("place", [0, -1])
def test_a_layer_that_the_recipe_leaves_in_float_stays_as_it_was(place: int) -> None:
    model, images = small_network.parsed(), small_network.images(4)
    recipe = Recipe(float_layers=(place,))
    found = round_weights(model, input_moments(model, images), ranges(model), recipe)
    layer = model.weighted[place]
    before, after = model.constants(), found.rounded.constants()
    for name in (layer.weight, layer.bias):
        assert np.array_equal(before[name], after[name])
    others = {other.weight for other in model.weighted} - {layer.weight}
    assert set(found.scales) == set(found.integers) == others


@pytest.fixture(scope="module")
def model(pipeline: Pipeline) -> Network:
    return read(pipeline.artifact("folded").path("folded.onnx"))


@pytest.fixture(scope="module")
def images(pipeline: Pipeline) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = np.load(pipeline.artifact("calibration").path("images.npy"))[::25]
    return found


@pytest.fixture(scope="module")
def rounded(model: Network, images: NDArray[np.uint8]) -> Parameters:
    return round_weights(model, input_moments(model, images), ranges(model))


def test_every_weight_is_its_integer_times_its_scale(rounded: Parameters) -> None:
    after = rounded.rounded.constants()
    for layer in rounded.rounded.weighted:
        name = layer.weight
        weight = after[name].T if isinstance(layer, Dense) else after[name]
        scale = rounded.scales[name].astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
        assert rounded.scales[name].dtype == np.float32
        assert rounded.integers[name].dtype == np.int8
        assert rounded.integers[name].min() >= -WEIGHT_LIMIT
        assert np.array_equal((rounded.integers[name] * scale).astype(np.float32), weight)


def test_no_weight_moves_far_and_the_given_model_stays(
    pipeline: Pipeline, model: Network, rounded: Parameters
) -> None:
    folded = read(pipeline.artifact("folded").path("folded.onnx"))
    assert model.model.SerializeToString() == folded.model.SerializeToString()
    before, after = model.constants(), rounded.rounded.constants()
    for name in rounded.scales:
        moved = np.abs(after[name] - before[name])
        assert 0 < moved.max() < 0.25 * np.abs(before[name]).max()


def test_biases_make_up_for_the_mean_error(
    model: Network, rounded: Parameters, images: NDArray[np.uint8]
) -> None:
    """On the calibration images, the first layer's mean output stays where it was."""
    layer = model.weighted[0]
    assert isinstance(layer, Convolution)
    first = str(layer.before_relu)
    means = [
        next(Probe(one, [first]).run(images))[first].mean(axis=(0, 2, 3), dtype=np.float64)
        for one in (model, rounded.rounded)
    ]
    assert means[1] == pytest.approx(means[0], abs=1e-4)


def test_rounding_twice_gives_the_same(
    model: Network, rounded: Parameters, images: NDArray[np.uint8]
) -> None:
    again = round_weights(model, input_moments(model, images), ranges(model))
    assert again.rounded.model.SerializeToString() == rounded.rounded.model.SerializeToString()


@pytest.mark.parametrize("step", [1e-20, 1e-3, 1e6])
@pytest.mark.parametrize("weight", [0.0, 1e-5])
def test_a_channel_without_large_weights_has_a_step_that_its_bias_fits(
    weight: float, step: float
) -> None:
    """The bias is stored in 32 bits, in steps of the input's scale times the weight's."""
    network = small_network.parsed()
    layer = network.weighted[1]
    weights = network.weights()
    weights[layer.weight][0] = weight
    weights[layer.bias][0] = 30.0
    network = network.with_weights(weights)
    size = {each.weight: weights[each.weight][0].size for each in network.weighted[:-1]}
    size[network.dense.weight] = small_network.CHANNELS
    moments = {name: (np.zeros(count), np.eye(count)) for name, count in size.items()}
    rounded = round_weights(network, moments, ranges(network, step))
    assert 30 / (step * rounded.scales[layer.weight][0]) < 2**24
    # Beside large inputs, even such weights have all their bits.
    assert rounded.integers[layer.weight][0].any() == (weight > 0 and step > 1)
